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
from bioproxy.prompts.catalogue import Catalogue, Prompt
from bioproxy.prompts.prompt_shape import BARE
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.files import SaveFailed
from bioproxy.slot.gate import Gate
from bioproxy.slot.slot import Slot
from bioproxy.warmup.due import Due
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
        catalogue: Catalogue,
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
        self.catalogue = catalogue
        self.tokens: dict[str, int] = {}
        self._shape_learning = shape_learning
        self._prefixes = prefixes
        self._warmup = warmup
        self._gate = gate
        self._slot = slot
        self._watch = watch
        self._metrics = metrics
        self._clock = clock
        self._brought_back: object = None
        self._told: dict[str, object] = {}

    def forget(self, name: str) -> None:
        """Forget all about a template: it is gone, or another one of this name has come."""
        self.tokens.pop(name, None)
        self._told.pop(name, None)
        self.schedule.forget(name)

    @property
    def current(self) -> str | None:
        """The template that is being warmed up, if any."""
        return self._warmup.current

    def state(self, name: str) -> tuple[str, str | None]:
        """Return a template's state (``cold``, ``warming``, ``warm`` or ``error``) and what is wrong, if anything."""
        problems = list(self.catalogue.problems(name))
        prompt = self.catalogue.get(name)
        key = None if prompt is None else prompt.key
        trouble = None if prompt is None else self.schedule.trouble(prompt)
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
        prompt = self.catalogue.get(name)
        if prompt is None or self.state(name)[0] == "warm":
            return float(prompt is not None)
        return self._warmup.progress(prompt)

    async def round(self) -> None:
        """Do what there is to do, one template after the other, for as long as nobody uses llama-server."""
        tried: set[str] = set()
        while self._watch.up and not self._gate.busy and (due := self.schedule.next(tried)) is not None:
            # Each one once: if it needs it still, or again, the next round will see.
            tried.add(due.prompt.id)
            self._tell(due)
            await self._try(due.prompt)
        if self._watch.up and not self._watch.asleep and not self._gate.busy:
            await self._tidy_up()
        self._show()

    def _tell(self, due: Due) -> None:
        """Log that a warm-up starts, and why; once for each reason, not for each try."""
        if self._told.get(due.prompt.id) != (occasion := (due.prompt.key, due.reason)):
            self._told[due.prompt.id] = occasion
            self.log.info("{prompt}: its warm-up starts: {reason}", prompt=due.prompt, reason=due.reason.value)

    async def _try(self, prompt: Prompt) -> None:
        """Warm one prompt up, unless a user comes."""
        name = prompt.id
        began = self._clock.seconds()
        try:
            if self._slot.doubted(name):
                self._prefixes.forget()
            tokens = await self._prefix_tokens(prompt)
            self.tokens[name] = len(tokens)
            if self._gate.busy:
                return  # a user came meanwhile
            self._brought_back = None

            def as_before() -> bool:
                return self.catalogue.get(name) == prompt

            done = await self._gate.warmup(lambda: self._warmup.run(prompt, tokens, as_before))
            if done and as_before():
                self.schedule.succeeded(name)
                self._told.pop(name, None)
            else:
                self._metrics.warmups.labels(name, "preempted").inc()
                if done:
                    self.schedule.changed(name)
        except DoesNotFit as error:
            self.tokens[name] = error.tokens or 0
            self._failed(prompt, str(error), None)
        except (LlamaCallFailed, SaveFailed, OSError) as error:
            self._failed(prompt, str(error), self._clock.seconds() - began)
        finally:
            self._show()

    async def _prefix_tokens(self, prompt: Prompt) -> list[int]:
        """Fire with the tokens of a prompt."""
        about = self.schedule.about(prompt)
        try:
            return await self._prefixes.tokens(prompt.text, prompt.shape, self._watch.context, about)
        except LlamaError as error:
            if prompt.shape != BARE and error.status != 503:
                self._shape_learning.refused(prompt.id)
            raise

    def _failed(self, prompt: Prompt, text: str, took: float | None) -> None:
        """Note a failure; `took` seconds, or `None` if trying again would be of no use."""
        self._metrics.warmups.labels(prompt.id, "failed").inc()
        if self.schedule.failed(prompt, text, took):
            self.log.warn("{prompt} cannot be warmed up: {text}", prompt=prompt, text=text)

    async def _tidy_up(self) -> None:
        """Nothing needs to be warmed up: keep what a user left in the slot, or bring back what warm-ups displaced."""
        if self._gate.idle_seconds() >= IDLE and self._slot.saver.due():
            await self._gate.warmup(self._keep)
        prompt = self.schedule.favourite()
        if prompt is None or not self.schedule.ahead or not self._shape_learning.turn(prompt.id):
            return
        name, key = prompt.id, prompt.key
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
        for name in self.catalogue:
            self._metrics.template_warm.labels(name).set(self.state(name)[0] == "warm")
            self._metrics.template_tokens.labels(name).set(self.tokens.get(name, 0))
