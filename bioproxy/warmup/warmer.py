"""Warms templates up, for as long as nobody uses llama-server.

A round comes twice a second.  Mostly it finds that everything is warm, and ends.  Otherwise it takes the templates that
are not, in the order of the agenda (`bioproxy.warmup.schedule`), finds their prefix tokens, and has each warmed up
(`bioproxy.warmup.warmup`) if the gate is free.  If the slot is then left with something else than what will probably be
asked next, that is restored.  In idle moments the conversation that a user left in the slot is saved, too.

A user's arrival cancels what is going on (see `bioproxy.slot.gate`).  It is tried again in a later round.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.prefix_tokens import DoesNotFit, Prefixes
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.prompts.template_poller import TemplatePoller, error_texts
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.files import SaveFailed
from bioproxy.slot.gate import Gate
from bioproxy.slot.slot import Slot
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmup import Warmup

INTERVAL = 0.5
"""Seconds between rounds."""

IDLE = 3.0
"""Seconds without anybody at the gate after which a conversation is saved."""


class Warmer:
    """Keeps every template warm that its `TemplatePoller` knows, as far as users leave time for it.

    `tokens` has the number of prefix tokens of each template, where it was counted.
    """

    log = Logger()

    def __init__(
        self,
        schedule: Schedule,
        poller: TemplatePoller,
        shape_learning: ShapeLearning,
        prefixes: Prefixes,
        warmup: Warmup,
        gate: Gate,
        slot: Slot,
        watch: ProcessWatch,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        self.schedule = schedule
        self.tokens: dict[str, int] = {}
        self._poller = poller
        self._shape_learning = shape_learning
        self._prefixes = prefixes
        self._warmup = warmup
        self._gate = gate
        self._slot = slot
        self._watch = watch
        self._metrics = metrics
        self._clock = clock
        self._brought_back: object = None

    def forget(self, name: str) -> None:
        """Forget all about a template: it is gone, or another one of this name has come."""
        self.tokens.pop(name, None)
        self.schedule.forget(name)

    @property
    def current(self) -> str | None:
        """The template that is being warmed up, if any."""
        return self._warmup.current

    def state(self, name: str) -> tuple[str, str | None]:
        """Return a template's state (``cold``, ``warming``, ``warm`` or ``error``) and what is wrong, if anything."""
        reading = self._poller.readings.get(name)
        problems = list(error_texts(reading)) if reading is not None else []
        key = self.schedule.key(name)
        trouble = self.schedule.trouble(name)
        if trouble is not None:
            problems.append(trouble)
        error = "; ".join(problems) or None
        if key is None:
            return ("error" if error else "cold"), error
        if self._warmup.current == name:
            return "warming", error
        if self._slot.content.has(key) or self._slot.saved(name, key):
            return "warm", error
        return ("error" if trouble is not None else "cold"), error

    def note(self, name: str) -> str | None:
        """Return what is unwise about how a template is used, if anything is."""
        if not self._shape_learning.restless(name):
            return None
        return (
            "what stands before the template (a system message, tools) is another with each question, so it cannot be"
            " warmed up for the next one: does it tell the time?"
        )

    def progress(self, name: str) -> float:
        """Return how far a template is, from 0 to 1."""
        key = self.schedule.key(name)
        if key is None or self.state(name)[0] == "warm":
            return float(key is not None)
        return self._warmup.progress(name, key)

    async def round(self) -> None:
        """Do what there is to do, one template after the other, for as long as nobody uses llama-server."""
        tried: set[str] = set()
        while self._watch.up and not self._gate.busy and (name := self.schedule.next(tried)) is not None:
            # Each one once: if it needs it still, or again, the next round will see.
            tried.add(name)
            await self._try(name)
        if self._watch.up and not self._watch.process.props.asleep and not self._gate.busy:
            await self._tidy_up()
        self._show()

    async def _try(self, name: str) -> None:
        """Warm one template up, unless a user comes."""
        key, text = self.schedule.key(name), self._poller.text(name)
        assert key is not None and text is not None  # the agenda has no other
        began = self._clock.seconds()
        try:
            if self._slot.doubted(name):
                self._prefixes.forget()
            tokens = await self._prefix_tokens(name, text.prefix, self.schedule.about(name))
            self.tokens[name] = len(tokens)
            if self._gate.busy:
                return  # a user came meanwhile
            self._brought_back = None

            def as_before() -> bool:
                return self.schedule.key(name) == key

            done = await self._gate.warmup(lambda: self._warmup.run(name, key, tokens, as_before))
            if done and as_before():
                self.schedule.succeeded(name)
            else:
                self._metrics.warmups.labels(name, "preempted").inc()
                if done:
                    self.schedule.changed(name)
        except DoesNotFit as error:
            self.tokens[name] = error.tokens or 0
            self._failed(name, str(error), None)
        except (LlamaCallFailed, SaveFailed, OSError) as error:
            self._failed(name, str(error), self._clock.seconds() - began)
        finally:
            self._show()

    async def _prefix_tokens(self, name: str, text: str, about: object) -> list[int]:
        """Fire with a template's prefix tokens."""
        shape = self._shape_learning.shape(name)
        try:
            return await self._prefixes.tokens(text, shape, self._watch.process.props.context, about)
        except LlamaError as error:
            if shape != USER_MESSAGE_ONLY and error.status != 503:
                self._shape_learning.refused(name)
            raise

    def _failed(self, name: str, text: str, took: float | None) -> None:
        """Note a failure; `took` seconds, or `None` if trying again would be of no use."""
        self._metrics.warmups.labels(name, "failed").inc()
        if self.schedule.failed(name, text, took):
            self.log.warn("template {name} cannot be warmed up: {text}", name=name, text=text)

    async def _tidy_up(self) -> None:
        """Nothing needs to be warmed up: keep what a user left in the slot, or bring back what warm-ups displaced."""
        if self._gate.idle_seconds() >= IDLE and self._slot.saver.due():
            await self._gate.warmup(self._keep)
        name = self.schedule.favourite()
        key = self.schedule.key(name) if name is not None else None
        if name is None or key is None or not self.schedule.ahead or not self._shape_learning.turn(name):
            return
        content = self._slot.content
        if content.users or not content.visible or content.has(key) or not self._slot.saved(name, key):
            return
        # Once for each occasion: what cannot be brought back, or not be seen, would be tried for ever.
        if self._brought_back != (occasion := (self._watch.process, name, key)):
            self._brought_back = occasion
            await self._gate.warmup(lambda: self._slot.bring_back(name, key))

    async def _keep(self) -> None:
        with self._gate.let_finish(last=True):
            await self._slot.saver.keep()

    def _show(self) -> None:
        """Bring the gauges up to date."""
        for name in self._poller.templates:
            self._metrics.template_warm.labels(name).set(self.state(name)[0] == "warm")
            self._metrics.template_tokens.labels(name).set(self.tokens.get(name, 0))
