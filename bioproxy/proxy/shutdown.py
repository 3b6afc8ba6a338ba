"""The end: what happens between SIGTERM and the last line of the log.

twistd stops its services and waits for the `Deferred` that this returns.  Stopping everything at once would break off
the answer that is being given, so it is done in order: nobody new comes in; those who wait are told at once, so that
they can ask elsewhere; whoever is being answered gets some seconds; and what the slot holds is saved if it is worth
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from bioproxy.llama.upstream import Upstream
from bioproxy.proxy.proxy import Proxy
from bioproxy.runtime.errors import ShuttingDown
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.gate import Gate

ANSWERING = 10.0
"""Seconds that a running answer may take to its end."""

SAVING = 2.0
"""Seconds that saving a conversation may take, and that is waited for until the gate is free for it."""

FLUSHING = 0.05
"""Seconds for the last bytes to leave: what was written is sent in the reactor's next turn."""


class Shutdown:
    """Stops the proxy gently."""

    log = Logger()

    def __init__(
        self,
        clients_port: IService,
        gate: Gate,
        proxy: Proxy,
        upstream: Upstream,
        saver: ConversationSaver,
        clock: IReactorTime,
    ) -> None:
        self._clients_port = clients_port
        self._gate = gate
        self._proxy = proxy
        self._upstream = upstream
        self._saver = saver
        self._clock = clock

    async def say(self) -> None:
        """Fire when the proxy is at rest, or has had its time.  Never fails."""
        for step in (self._turn_away, self._let_finish):
            try:
                await step()
            except Exception:
                # Whatever it is, the rest must be done all the same.
                self.log.failure("while stopping")
        await deferLater(self._clock, FLUSHING)

    async def _turn_away(self) -> None:
        """Let nobody new in, and tell those who wait."""
        self._gate.close()
        await maybeDeferred(self._clients_port.stopService)

    async def _let_finish(self) -> None:
        """Give those who are being answered some time, and save what that leaves in the slot, if it is worth it."""
        if not await self._within(ANSWERING, self._proxy.finished):
            self.log.warn("stopping in the middle of an answer: it took longer than {seconds:g} s", seconds=ANSWERING)
            self._upstream.end_all(lambda: ShuttingDown("bioproxy is shutting down"))
        elif await self._within(SAVING, lambda: Deferred.fromCoroutine(self._gate.until_free())):
            await self._within(SAVING, lambda: Deferred.fromCoroutine(self._saver.save_if_due()))

    async def _within(self, seconds: float, begin: Callable[[], Deferred[Any]]) -> bool:
        """Wait for something, but not longer; fire with whether it was done."""
        try:
            await begin().addTimeout(seconds, self._clock)
        except TimeoutError:
            return False
        return True
