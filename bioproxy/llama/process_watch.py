"""Watches llama-server: is it up, is it still the same process, which model does it run?

A look every two seconds, with two cheap questions: `/health`, which is answered within milliseconds even while a
long prompt is processed, and `/props`, whose random marker tells one process of llama-server from the next.  When
the process has changed, everything believed about its slot and its model is forgotten.

The same looks tell when llama-server is *dumb*: it accepts connections and says nothing, neither to a request nor to
`/health`.  After `upstream_timeout` seconds of that, whoever waits for it is told so.  A long prompt is no
reason: `/health` goes on being answered.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.api import LlamaApi, Props
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.advice import of_trouble
from bioproxy.operator.inspection import Advisor
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.slot import Slot

INTERVAL = 2.0
"""Seconds between looks."""

PATIENCE = 5.0
"""Seconds that one look may take."""


class ProcessWatch:
    """What is known of llama-server; as old as the last look.

    `up` and, if not, `trouble`; `model` is its file, `context` how many tokens it takes (where that is not told: any).
    `process` is another object for each process of llama-server; `asleep` tells whether it has unloaded its model.
    """

    log = Logger()

    def __init__(
        self,
        llama: LlamaApi,
        upstream: Upstream,
        identity: ModelIdentity,
        slot: Slot,
        metrics: Metrics,
        clock: IReactorTime,
        timeout: float,
        advisor: Advisor,
    ) -> None:
        self.up = False
        self.trouble: str | None = "not asked yet"
        self.model: str | None = None
        self.build: str | None = None
        self.context = sys.maxsize
        self.asleep = False
        self.process = object()
        self._llama = llama
        self._upstream = upstream
        self._identity = identity
        self._slot = slot
        self._metrics = metrics
        self._clock = clock
        self.timeout = timeout
        self._advisor = advisor
        self._advised: object = None
        self._props: Props | None = None
        self._files_asked: object = None

    async def look(self) -> None:
        """Ask llama-server how it is.  Never fails for reasons of llama-server's."""
        try:
            await Deferred.fromCoroutine(self._ask()).addTimeout(PATIENCE, self._clock)
            trouble, fix = None, ""
        except TimeoutError:
            trouble, fix = "llama-server does not answer", "if it is stuck, start it again"
        except LlamaCallFailed as error:
            # For example 503 while the model is being loaded.
            trouble, fix = str(error), of_trouble(error).fix
        if trouble is not None and self._clock.seconds() - self._upstream.last_heard >= self.timeout:
            self._upstream.give_up()
        if trouble is not None and trouble != self.trouble:
            self.log.warn(
                "llama-server at {url}: {trouble} (what helps: {fix})", url=self._upstream.url, trouble=trouble, fix=fix
            )
        elif trouble is None and not self.up:
            self.log.info(
                "llama-server at {url} is up: {model}, build {build}, {context} tokens of context",
                url=self._upstream.url,
                model=self.model,
                build=self.build,
                context=self.context,
            )
        if trouble is None and self._props is not None and self._advised is not self._files_asked:
            self._advised = self._files_asked  # a process of llama-server that was asked all there is to ask
            self._advisor.tell(self._props, self._slot.llama_keeps_files)
        self.trouble = trouble
        self.up = trouble is None
        self._metrics.upstream_up.set(self.up)

    async def _ask(self) -> None:
        await self._llama.health()
        props = await self._llama.props()
        self.model, self.build, self.context = props.model, props.build, props.context
        if props.asleep and not self.asleep:
            self._slot.llama_fell_asleep()
            self._identity.fell_asleep()
        self.asleep, props = props.asleep, replace(props, asleep=False)
        # After it was away it may be another process even with the same marker: older builds all have the same.
        if props != self._props or not self.up:
            self._props = props
            self.process = object()
            # A request may have met the new process before this look: then what it left in the slot is known.
            self._slot.llama_restarted(slot_known=self._identity.seen(props))
        if self._files_asked is not self.process and not self.asleep:  # asking would wake it
            self._slot.llama_keeps_files = await self._llama.slot_files_enabled()
            self._files_asked = self.process
