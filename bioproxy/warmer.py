"""Decides what is warmed up and when, for as long as nobody uses llama-server.

A round comes twice a second.  Mostly it finds that everything is warm, and ends.  Otherwise it takes the templates that
are not, one after the other, finds their prefix tokens, and has each warmed up (`bioproxy.warmup`) if the gate is free.

The order: first what an operator asked for; then what the slot holds already and only needs saving; then as they were
used last, the latest one at the end, so that the slot is left with what will probably be asked next.  If it is left
with something else, the latest is restored.  In idle moments the conversation that a user left in the slot is saved,
too.

A user's arrival cancels what is going on (see `bioproxy.gate`).  It is tried again in a later round.  A warm-up that
*failed* waits a while, longer after each failure, so that trouble that stays does not keep llama-server busy.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.errors import LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.gate import Gate
from bioproxy.habits import Habits
from bioproxy.metrics import Metrics
from bioproxy.poller import Poller, error_texts
from bioproxy.prefix import DoesNotFit, Prefixes
from bioproxy.shape import BARE, Key
from bioproxy.slot import Slot
from bioproxy.slot_files import SaveFailed
from bioproxy.snapshots import PREFIX
from bioproxy.troubles import LONGEST_PAUSE, Troubles
from bioproxy.warmup import Warmup
from bioproxy.watch import Watch

INTERVAL = 0.5
"""Seconds between rounds."""

IDLE = 3.0
"""Seconds without anybody at the gate after which a conversation is saved."""


CHANGES = 2
"""So often a text may change during its warm-up without anybody thinking anything of it."""


class Warmer:
    """Keeps every template warm that its `Poller` knows, as far as users leave time for it.

    `tokens` has the number of prefix tokens of each template, where it was counted; `wanted` are the templates that an
    operator wants to be warmed up now.
    """

    log = Logger()

    def __init__(
        self,
        poller: Poller,
        habits: Habits,
        prefixes: Prefixes,
        warmup: Warmup,
        gate: Gate,
        slot: Slot,
        watch: Watch,
        metrics: Metrics,
        clock: IReactorTime,
        ahead: bool,
    ) -> None:
        self.tokens: dict[str, int] = {}
        self.wanted: set[str] = set()
        self._poller = poller
        self._habits = habits
        self._prefixes = prefixes
        self._warmup = warmup
        self._gate = gate
        self._slot = slot
        self._watch = watch
        self._metrics = metrics
        self._clock = clock
        self.ahead = ahead
        self._asked: set[str] = set()
        self._chosen: str | None = None
        self._troubles = Troubles(clock)
        self._brought_back: object = None
        self._changing: dict[str, tuple[int, float]] = {}

    def asked(self, name: str) -> None:
        """Note that a user asked for a template: it is worth a snapshot, even where warm-ups are switched off."""
        self._asked.add(name)
        self._chosen = None

    def want(self, name: str) -> None:
        """Have a template warmed up next, for an operator: even if it is warm, or its warm-ups wait after failures."""
        self.wanted.add(name)
        self._chosen = name
        self._troubles.over(name)
        self._changing.pop(name, None)
        self._slot.files.try_again()
        self._slot.files.forget(name, PREFIX)

    def forget(self, name: str) -> None:
        """Forget all about a template: it is gone, or another one of this name has come."""
        self.tokens.pop(name, None)
        self._changing.pop(name, None)
        self.wanted.discard(name)
        self._asked.discard(name)
        if self._chosen == name:
            self._chosen = None
        self._troubles.over(name)

    @property
    def current(self) -> str | None:
        """The template that is being warmed up, if any."""
        return self._warmup.current

    def key(self, name: str) -> Key | None:
        """Return what a template is to be warmed up for: its text, in the shape that clients use."""
        text = self._poller.text(name)
        return None if text is None else self._habits.shape(name).key(text.prefix_digest)

    def state(self, name: str) -> tuple[str, str | None]:
        """Return a template's state (``cold``, ``warming``, ``warm`` or ``error``) and what is wrong, if anything."""
        reading = self._poller.readings.get(name)
        problems = list(error_texts(reading)) if reading is not None else []
        key = self.key(name)
        trouble = self._troubles.current(name, self._about(name))
        if trouble is not None:
            problems.append(trouble.text)
        error = "; ".join(problems) or None
        if key is None:
            return ("error" if error else "cold"), error
        if self._warmup.current == name:
            return "warming", error
        if self._slot.holding.has(key) or self._slot.saved(name, key):
            return "warm", error
        return ("error" if trouble is not None else "cold"), error

    def note(self, name: str) -> str | None:
        """Return what is unwise about how a template is used, if anything is."""
        if not self._habits.restless(name):
            return None
        return (
            "what stands before the template (a system message, tools) is another with each question, so it cannot be"
            " warmed up for the next one: does it tell the time?"
        )

    def progress(self, name: str) -> float:
        """Return how far a template is, from 0 to 1."""
        key = self.key(name)
        if key is None or self.state(name)[0] == "warm":
            return float(key is not None)
        return self._warmup.progress(name, key)

    async def round(self) -> None:
        """Do what there is to do, one template after the other, for as long as nobody uses llama-server."""
        tried: set[str] = set()
        while self._watch.up and not self._gate.busy and (name := self._next(tried)) is not None:
            # Each one once: if it needs it still, or again, the next round will see.
            tried.add(name)
            await self._try(name)
        if self._watch.up and not self._watch.asleep and not self._gate.busy:
            await self._tidy_up()
        self._show()

    async def _try(self, name: str) -> None:
        """Warm one template up, unless a user comes."""
        key, text = self.key(name), self._poller.text(name)
        assert key is not None and text is not None  # `_next` takes no other
        began = self._clock.seconds()
        try:
            if self._slot.doubted(name):
                self._prefixes.forget()
            about = self._about(name)
            tokens = await self._prefix_tokens(name, text.prefix, about)
            self.tokens[name] = len(tokens)
            if self._gate.busy:
                return  # a user came meanwhile
            self._brought_back = None
            done = await self._gate.warmup(lambda: self._warmup.run(name, key, tokens, lambda: self.key(name) == key))
            if done and self.key(name) == key:
                self.wanted.discard(name)
                self._troubles.over(name)
                self._changing.pop(name, None)
            else:
                self._metrics.warmups.labels(name, "preempted").inc()
                if done:
                    self._note_change(name)
        except DoesNotFit as error:
            self.tokens[name] = error.tokens or 0
            self._failed(name, str(error), None)
        except (LlamaError, UpstreamError, UpstreamTimeout, SaveFailed, OSError) as error:
            self._failed(name, str(error), self._clock.seconds() - began)
        finally:
            self._show()

    async def _prefix_tokens(self, name: str, text: str, about: object) -> list[int]:
        """Fire with a template's prefix tokens."""
        shape = self._habits.shape(name)
        try:
            return await self._prefixes.tokens(text, shape, self._watch.context, about)
        except LlamaError as error:
            if shape != BARE and error.status != 503:
                self._habits.refused(name)
            raise

    def _note_change(self, name: str) -> None:
        """Note that a text changed while it was warmed up: one that does so all the time has to wait, ever longer."""
        times, _ = self._changing.get(name, (0, 0.0))
        pause = min(LONGEST_PAUSE, 2.0**times) if times >= CHANGES else 0.0
        self._changing[name] = (times + 1, self._clock.seconds() + pause)

    async def _tidy_up(self) -> None:
        """Nothing needs to be warmed up: keep what a user left in the slot, or bring back what warm-ups displaced."""
        if self._gate.idle_seconds() >= IDLE and self._slot.keeper.due():
            await self._gate.warmup(self._keep)
        name = self._favourite()
        key = self.key(name) if name is not None else None
        if name is None or key is None or not self.ahead or not self._habits.turn(name):
            return
        holding = self._slot.holding
        if holding.users or not holding.visible or holding.has(key) or not self._slot.saved(name, key):
            return
        # Once for each occasion: what cannot be brought back, or not be seen, would be tried for ever.
        if self._brought_back != (occasion := (self._watch.process, name, key)):
            self._brought_back = occasion
            await self._gate.warmup(lambda: self._slot.bring_back(name, key))

    async def _keep(self) -> None:
        with self._gate.let_finish(last=True):
            await self._slot.keeper.keep()

    def _next(self, tried: set[str]) -> str | None:
        """Choose what to warm up."""
        due = [name for name in self._poller.templates if name not in tried and self._is_due(name)]

        def order(name: str) -> tuple[bool, bool, int]:
            return name not in self.wanted, not self._slot.holding.has(self.key(name)), self._habits.turn(name)

        return min(due, default=None, key=order)

    def _is_due(self, name: str) -> bool:
        key = self.key(name)
        if self._slot.files.enabled is None:
            return False  # not asked yet, perhaps because llama-server sleeps
        if key is None or not self._has_prefix(name):
            return False
        if name in self.wanted:
            return True
        if not (self.ahead or name in self._asked):
            return False
        if self._troubles.must_wait(name, self._about(name)):
            return False
        if self._clock.seconds() < self._changing.get(name, (0, 0.0))[1]:
            return False
        if self._slot.files.of_use:
            return self._slot.saved(name, key) is None
        # Without files only one template can be warm, in the slot itself: the one that was asked for last.  It is not
        # worth waking llama-server up for: as soon as it sleeps again, the slot is empty.
        if self._watch.asleep:
            return False
        # What a user left there on this template stays, even if it is in another shape.
        held, holding = self._slot.holding.now, self._slot.holding
        theirs = holding.users and held is not None and held.name == name
        return name == self._favourite() and holding.visible and not holding.has(key) and not theirs

    def _favourite(self) -> str | None:
        """Return the template that will probably be asked for next: the last one, or else the first that there is.

        What an operator wanted since then comes before it.
        """
        if self._chosen is not None and self._has_prefix(self._chosen):
            return self._chosen
        return max(filter(self._has_prefix, self._poller.templates), default=None, key=self._habits.turn)

    def _has_prefix(self, name: str) -> bool:
        """Tell whether there is anything to warm: a template may begin with the message, or be unreadable."""
        text = self._poller.text(name)
        return text is not None and bool(text.prefix.strip())

    def _about(self, name: str) -> object:
        """Return everything that a template's prefix tokens depend on."""
        return self.key(name), self._watch.process

    def _failed(self, name: str, text: str, took: float | None) -> None:
        """Note a failure; `took` seconds, or `None` if trying again would be of no use."""
        self.wanted.discard(name)
        self._metrics.warmups.labels(name, "failed").inc()
        if self._troubles.note(name, self._about(name), text, took):
            self.log.warn("template {name} cannot be warmed up: {text}", name=name, text=text)

    def _show(self) -> None:
        """Bring the gauges up to date."""
        for name in self._poller.templates:
            self._metrics.template_warm.labels(name).set(self.state(name)[0] == "warm")
            self._metrics.template_tokens.labels(name).set(self.tokens.get(name, 0))
