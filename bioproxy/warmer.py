"""Warms templates up: has llama-server process them before anyone asks.

A round comes twice a second.  Mostly it finds that everything is warm, and ends.  Otherwise it takes a template that
is not, finds its prefix tokens, and, if the gate is free, has llama-server evaluate them in pieces and save the result
to a file; then the next one.

Why in pieces: llama-server notices that nobody waits any more only between batches, which may take seconds.  A user
who arrives during a warm-up waits for the piece in progress, so a piece is as long as llama-server needs about one
second for.  Each piece is a request with all tokens up to its end; those of the pieces before are in the slot
already, so it costs nothing to send them again.

Pieces must not be sent where the slot holds the template already, with a conversation behind it perhaps: a prompt that
is shorter than what the slot holds cuts the slot down to it.  Then all tokens are sent at once, and llama-server only
drops what is too much.

A user's arrival cancels the warm-up (see `bioproxy.gate`).  It is tried again in a later round.  A warm-up that
*failed* waits a while, longer after each failure, so that trouble that stays does not keep llama-server busy.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.errors import LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.gate import Gate
from bioproxy.llama import Llama
from bioproxy.metrics import Metrics
from bioproxy.poller import Poller, error_texts
from bioproxy.prefix import DoesNotFit, Prefixes
from bioproxy.slot import SaveFailed, Slot
from bioproxy.speed import Speed
from bioproxy.templates import Template
from bioproxy.troubles import Troubles
from bioproxy.watch import Watch

INTERVAL = 0.5
"""Seconds between rounds."""

SMALLEST_PIECE = 64
"""Tokens.  Below that a piece's fixed costs outweigh what a user gains."""

FIRST_PIECE = 256
"""Tokens of a piece while the speed is not known."""

PIECE_SECONDS = 1.0
"""How long a piece should take."""


class Warmer:
    """Keeps every template warm that its `Poller` knows, as far as users leave time for it."""

    log = Logger()

    def __init__(
        self,
        poller: Poller,
        gate: Gate,
        slot: Slot,
        llama: Llama,
        watch: Watch,
        metrics: Metrics,
        speed: Speed,
        clock: IReactorTime,
        piece: int,
        ahead: bool,
    ) -> None:
        self.current: str | None = None
        self.progress = 0.0
        self.tokens: dict[str, int] = {}
        self._poller = poller
        self._gate = gate
        self._slot = slot
        self._llama = llama
        self._watch = watch
        self._metrics = metrics
        self._speed = speed
        self._clock = clock
        self._longest_piece = piece
        self._ahead = ahead
        self._asked: list[str] = []
        self._troubles = Troubles(clock)
        self._prefixes = Prefixes(llama)

    def asked(self, name: str) -> None:
        """Note that a user asked for a template: it is worth a snapshot, even where warm-ups are switched off."""
        if name in self._asked:
            self._asked.remove(name)
        self._asked.append(name)

    def state(self, name: str) -> tuple[str, str | None]:
        """Return a template's state (``cold``, ``warming``, ``warm`` or ``error``) and what is wrong, if anything."""
        reading = self._poller.readings.get(name)
        problems = list(error_texts(reading)) if reading is not None else []
        key = self._poller.key(name)
        trouble = self._troubles.current(name, self._about(name))
        if trouble is not None:
            problems.append(trouble.text)
        error = "; ".join(problems) or None
        if key is None:
            return ("error" if error else "cold"), error
        if self.current == name:
            return "warming", error
        if self._slot.holds(key) or self._slot.saved(name, key):
            return "warm", error
        return ("error" if trouble is not None else "cold"), error

    async def round(self) -> None:
        """Warm up what needs it, one template after the other, for as long as nobody uses llama-server."""
        tried: set[str] = set()
        while self._watch.up and not self._gate.busy and (template := self._next(tried)) is not None:
            # Each one once: if it needs it still, or again, the next round will see.
            tried.add(template.name)
            await self._try(template)
        self._show()

    async def _try(self, template: Template) -> None:
        """Warm one template up, unless a user comes."""
        key = self._poller.key(template.name)
        assert key is not None  # `_next` takes no other
        began = self._clock.seconds()
        try:
            reading = self._poller.readings[template.name]
            assert reading.text is not None
            about = self._about(template.name)
            tokens = await self._prefixes.tokens(reading.text.prefix, self._watch.context, about)
            self.tokens[template.name] = len(tokens)
            if self._gate.busy:
                return  # a user came meanwhile
            if not await self._gate.warmup(lambda: self._warm(template.name, key, tokens)):
                self._metrics.warmups.labels(template.name, "preempted").inc()
        except DoesNotFit as error:
            self.tokens[template.name] = error.tokens or 0
            self._failed(template.name, str(error), None)
        except (LlamaError, UpstreamError, UpstreamTimeout, SaveFailed) as error:
            self._failed(template.name, str(error), self._clock.seconds() - began)
        finally:
            self.current = None
            self._show()

    def _next(self, tried: set[str]) -> Template | None:
        """Choose what to warm up: first what the slot holds already and only needs saving, then in order."""
        known = self._poller.templates.values()
        due = [template for template in known if template.name not in tried and self._is_due(template.name)]
        due.sort(key=lambda template: not self._slot.holds(self._poller.key(template.name) or ""))
        return due[0] if due else None

    def _is_due(self, name: str) -> bool:
        key = self._poller.key(name)
        if key is None or not self._has_prefix(name) or not (self._ahead or name in self._asked):
            return False
        if self._troubles.must_wait(name, self._about(name)):
            return False
        if self._slot.files:
            return self._slot.saved(name, key) is None
        # Without files only one template can be warm, in the slot itself: the one that was asked for last.
        wanted = [*reversed(self._asked), *self._poller.templates]
        favourite = next(each for each in wanted if self._has_prefix(each))
        return name == favourite and self._slot.visible and not self._slot.holds(key)

    def _has_prefix(self, name: str) -> bool:
        """Tell whether there is anything to warm: a template may begin with the message, or be unreadable."""
        reading = self._poller.readings.get(name)
        return reading is not None and reading.text is not None and bool(reading.text.prefix.strip())

    async def _warm(self, name: str, key: str, tokens: list[int]) -> None:
        """Evaluate and save.  Inside the gate; cancelled when a user comes."""
        self.current, self.progress = name, 0.0
        began = self._clock.seconds()
        if not self._slot.model_known():
            # llama-server was restarted, and a question was answered since.  What it left in the slot is right, but to
            # learn which model it belongs to costs just that: it has to be computed again.
            self._slot.forget()
        prepared = await self._slot.prepare(name, key, key)
        if self._slot.saved(name, key):
            self._troubles.over(name)
            return  # the file was there and good all along, and is in the slot now
        done = 0
        while done < len(tokens):
            if self._poller.key(name) != key:
                return  # the text has changed meanwhile: the next round begins with the new one
            piece = len(tokens) if prepared.cache == "hot" else self._piece()
            done = min(done + piece, len(tokens))
            self._slot.forget()
            result = await self._llama.evaluate(tokens[:done])
            self.progress = done / len(tokens)
            self._speed.measured(result.computed, result.ms)
        await self._slot.note(key)
        if self._slot.files:
            with self._gate.let_finish():
                await self._slot.save(name, key, len(tokens))
        self._troubles.over(name)
        self._metrics.warmups.labels(name, "done").inc()
        self._metrics.warmup_seconds.labels(name).observe(self._clock.seconds() - began)

    def _piece(self) -> int:
        """Return how many tokens the next piece may have: about `PIECE_SECONDS` of work, at the speed measured."""
        tokens = self._speed.tokens_in(PIECE_SECONDS, otherwise=FIRST_PIECE)
        return min(max(tokens, SMALLEST_PIECE), self._longest_piece)

    def _about(self, name: str) -> object:
        """Return everything that a template's prefix tokens depend on."""
        return self._poller.key(name), self._watch.process

    def _failed(self, name: str, text: str, took: float | None) -> None:
        """Note a failure; `took` seconds, or `None` if trying again would be of no use."""
        self._metrics.warmups.labels(name, "failed").inc()
        if self._troubles.note(name, self._about(name), text, took):
            self.log.warn("template {name} cannot be warmed up: {text}", name=name, text=text)

    def _show(self) -> None:
        """Bring the gauges up to date."""
        for name in self._poller.templates:
            self._metrics.template_warm.labels(name).set(self.state(name)[0] == "warm")
            self._metrics.template_tokens.labels(name).set(self.tokens.get(name, 0))
