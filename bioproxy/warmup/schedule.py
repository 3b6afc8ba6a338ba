"""Decides which template is warmed up next.

The order: first what an operator asked for; then what the slot holds already and only needs saving; then as they were
used last, the latest one at the end, so that the slot is left with what will probably be asked next.

A warm-up that *failed* waits a while, longer after each failure, so that trouble that stays does not keep llama-server
busy; so does a text that changes during each of its warm-ups.

Does nothing itself, and waits for nothing: `bioproxy.warmup.warmer` asks it, and tells it what came of it.
"""

from __future__ import annotations

from collections.abc import Set

from twisted.internet.interfaces import IReactorTime

from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.prompt_shape import Key
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.slot.slot import Slot
from bioproxy.warmup.backoff import LONGEST_PAUSE, Backoff
from bioproxy.warmup.shape_learning import ShapeLearning

CHANGES = 2
"""So often a text may change during its warm-up without anybody thinking anything of it."""


class Schedule:
    """What there is to warm up of the templates that a `TemplatePoller` knows.

    `wanted` are those that an operator wants to be warmed up now.  `ahead`: whether templates are warmed up before
    anybody has asked for them.
    """

    def __init__(
        self,
        poller: TemplatePoller,
        shape_learning: ShapeLearning,
        slot: Slot,
        watch: ProcessWatch,
        clock: IReactorTime,
        ahead: bool,
    ) -> None:
        self.ahead = ahead
        self.wanted: set[str] = set()
        self._poller = poller
        self._shape_learning = shape_learning
        self._slot = slot
        self._watch = watch
        self._clock = clock
        self._asked: set[str] = set()
        self._chosen: str | None = None
        self._backoff = Backoff(clock)
        self._changing: dict[str, tuple[int, float]] = {}

    def key(self, name: str) -> Key | None:
        """Return what a template is to be warmed up for: its text, in the shape that clients use."""
        text = self._poller.text(name)
        return None if text is None else self._shape_learning.shape(name).key(text.prefix_digest)

    def about(self, name: str) -> object:
        """Return everything that a template's prefix tokens depend on."""
        return self.key(name), self._watch.process

    def next(self, tried: Set[str]) -> str | None:
        """Return what to warm up now, if anything; not one of those that were `tried`."""
        due = [name for name in self._poller.templates if name not in tried and self._is_due(name)]

        def order(name: str) -> tuple[bool, bool, int]:
            return name not in self.wanted, not self._slot.holds(self.key(name)), self._shape_learning.turn(name)

        return min(due, default=None, key=order)

    def favourite(self) -> str | None:
        """Return the template that will probably be asked for next: the last one, or else the first that there is.

        What an operator wanted since then comes before it.
        """
        if self._chosen is not None and self._has_prefix(self._chosen):
            return self._chosen
        return max(filter(self._has_prefix, self._poller.templates), default=None, key=self._shape_learning.turn)

    def trouble(self, name: str) -> str | None:
        """Return what went wrong with a template's last warm-up, if that is still so."""
        trouble = self._backoff.current(name, self.about(name))
        return None if trouble is None else trouble.text

    # What is asked for.

    def asked(self, name: str) -> None:
        """Note that a user asked for a template: it is worth a snapshot, even where warm-ups are switched off."""
        self._asked.add(name)
        self._chosen = None

    def want(self, name: str) -> None:
        """Have a template warmed up next, for an operator: even if it is warm, or its warm-ups wait after failures."""
        self.wanted.add(name)
        self._chosen = name
        self._backoff.over(name)
        self._changing.pop(name, None)
        self._slot.discard_template_file(name)

    def forget(self, name: str) -> None:
        """Forget all about a template: it is gone, or another one of this name has come."""
        self.succeeded(name)
        self._asked.discard(name)
        if self._chosen == name:
            self._chosen = None

    # What came of it.

    def succeeded(self, name: str) -> None:
        """Note that a template is warm now."""
        self.wanted.discard(name)
        self._backoff.over(name)
        self._changing.pop(name, None)

    def failed(self, name: str, text: str, took: float | None) -> bool:
        """Note a failure, after `took` seconds, or `None` if trying again would be of no use; return if it is news."""
        self.wanted.discard(name)
        return self._backoff.note(name, self.about(name), text, took)

    def changed(self, name: str) -> None:
        """Note that a text changed while it was warmed up: one that does so all the time has to wait, ever longer."""
        times, _ = self._changing.get(name, (0, 0.0))
        pause = min(LONGEST_PAUSE, 2.0**times) if times >= CHANGES else 0.0
        self._changing[name] = (times + 1, self._clock.seconds() + pause)

    def _is_due(self, name: str) -> bool:
        key = self.key(name)
        if self._slot.llama_keeps_files is None:
            return False  # not asked yet, perhaps because llama-server sleeps
        if key is None or not self._has_prefix(name):
            return False
        if name in self.wanted:
            return True
        if not (self.ahead or name in self._asked):
            return False
        if self._backoff.must_wait(name, self.about(name)):
            return False
        if self._clock.seconds() < self._changing.get(name, (0, 0.0))[1]:
            return False
        if self._slot.may_use_files:
            return self._slot.saved(name, key) is None
        # Without files only one template can be warm, in the slot itself: the one that was asked for last.  It is not
        # worth waking llama-server up for: as soon as it sleeps again, the slot is empty.
        if self._watch.process.props.asleep:
            return False
        return name == self.favourite() and self._slot.may_compute(name, key)

    def _has_prefix(self, name: str) -> bool:
        """Tell whether there is anything to warm: a template may begin with the message, or be unreadable."""
        text = self._poller.text(name)
        return text is not None and bool(text.prefix.strip())
