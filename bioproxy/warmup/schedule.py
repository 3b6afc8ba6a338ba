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
from bioproxy.prompts.catalogue import Catalogue, Prompt
from bioproxy.slot.record import PREFIX
from bioproxy.slot.slot import Slot
from bioproxy.warmup.backoff import Backoff
from bioproxy.warmup.shape_learning import ShapeLearning

SHORTEST_PAUSE = 2.0
"""Seconds of the pause after the first failure of a warm-up."""

CHANGES = 2
"""How many times in a row a text may change during its warm-up before the next warm-up has to wait."""

CHANGES_PAUSE = 4.0
"""Seconds of the pause after the next such change."""


class Schedule:
    """What there is to warm up of the templates that a `TemplatePoller` knows.

    `wanted` are those that an operator wants to be warmed up now.  `ahead`: whether templates are warmed up before
    anybody has asked for them.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        shape_learning: ShapeLearning,
        slot: Slot,
        watch: ProcessWatch,
        clock: IReactorTime,
        ahead: bool,
    ) -> None:
        self.ahead = ahead
        self.wanted: set[str] = set()
        self._catalogue = catalogue
        self._shape_learning = shape_learning
        self._slot = slot
        self._watch = watch
        self._asked: set[str] = set()
        self._chosen: str | None = None
        self._failures = Backoff(clock, SHORTEST_PAUSE)
        self._changes = Backoff(clock, CHANGES_PAUSE, free=CHANGES)

    def about(self, prompt: Prompt) -> object:
        """Return everything that a prompt's tokens depend on."""
        return prompt.key, self._watch.process

    def next(self, tried: Set[str]) -> Prompt | None:
        """Return the prompt to warm up now, if there is any; none whose id is in `tried`."""
        due = [prompt for prompt in self._prompts() if prompt.id not in tried and self._is_due(prompt)]

        def order(prompt: Prompt) -> tuple[bool, bool, int]:
            held = self._slot.content.has(prompt.key)
            return prompt.id not in self.wanted, not held, self._shape_learning.turn(prompt.id)

        return min(due, default=None, key=order)

    def favourite(self) -> Prompt | None:
        """Return the prompt that will probably be asked for next: the last one, or else the first that there is.

        A prompt that an operator asked for since then comes first.
        """
        chosen = None if self._chosen is None else self._catalogue.get(self._chosen)
        if chosen is not None and not chosen.empty:
            return chosen
        return max(self._prompts(), default=None, key=lambda prompt: self._shape_learning.turn(prompt.id))

    def trouble(self, prompt: Prompt) -> str | None:
        """Return what went wrong with a prompt's last warm-up, if that is still so."""
        trouble = self._failures.current(prompt.id, self.about(prompt))
        return None if trouble is None else trouble.text

    def _prompts(self) -> list[Prompt]:
        """Return all prompts that have something to process ahead."""
        known = map(self._catalogue.get, self._catalogue)
        return [prompt for prompt in known if prompt is not None and not prompt.empty]

    # What is asked for.

    def asked(self, name: str) -> None:
        """Note that a user asked for a template: it is worth a snapshot, even where warm-ups are switched off."""
        self._asked.add(name)
        self._chosen = None

    def want(self, name: str) -> None:
        """Have a template warmed up next, for an operator: even if it is warm, or its warm-ups wait after failures."""
        self.wanted.add(name)
        self._chosen = name
        self._failures.over(name)
        self._changes.over(name)
        self._slot.files.try_again()
        self._slot.files.forget(name, PREFIX)

    def forget(self, name: str) -> None:
        """Forget all about a template: it is gone, or another one of this name has come."""
        self.succeeded(name)
        self._asked.discard(name)
        if self._chosen == name:
            self._chosen = None

    # What came of it.

    def succeeded(self, name: str) -> None:
        """Note that the prompt with this id is warm now."""
        self.wanted.discard(name)
        self._failures.over(name)
        self._changes.over(name)

    def failed(self, prompt: Prompt, text: str, took: float | None) -> bool:
        """Note a failure, after `took` seconds, or `None` if trying again would be of no use; return if it is news.

        The failure counts for the prompt that was tried.  If its text changed meanwhile, the new text need not wait.
        """
        self.wanted.discard(prompt.id)
        return self._failures.failed(prompt.id, self.about(prompt), text, took)

    def changed(self, name: str) -> None:
        """Note that a text changed while it was warmed up: one that does so all the time has to wait, ever longer."""
        self._changes.failed(name)

    def _is_due(self, prompt: Prompt) -> bool:
        name, key = prompt.id, prompt.key
        if self._slot.files.enabled is None:
            return False  # not asked yet, perhaps because llama-server sleeps
        if name in self.wanted:
            return True
        if not (self.ahead or name in self._asked):
            return False
        if self._failures.waiting(name, self.about(prompt)) is not None:
            return False
        if self._changes.waiting(name) is not None:
            return False
        if self._slot.files.of_use:
            return self._slot.saved(name, key) is None
        # Without files only one template can be warm, in the slot itself: the one that was asked for last.  It is not
        # worth waking llama-server up for: as soon as it sleeps again, the slot is empty.
        if self._watch.asleep:
            return False
        # What a user left there on this template stays, even if it is in another shape.
        held, content = self._slot.content.now, self._slot.content
        theirs = content.users and held is not None and held.name == name
        return prompt == self.favourite() and content.visible and not content.has(key) and not theirs
