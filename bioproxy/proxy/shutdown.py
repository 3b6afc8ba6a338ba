"""The shutdown: what happens between SIGTERM and the moment in which the services stop.

Stopping everything at once would break off the answer that is being given.  So there is an order:

1. the gate closes, and everybody in the queue gets an error now, while there is time to ask another server;
2. the clients' port closes, so that nobody new comes, and the operating system can give the port to a successor;
3. requests that are being answered get up to 10 seconds; what is not finished then is ended with an error;
4. the conversation in the slot is saved, if it is worth it, because it would be lost with llama-server's next request;
5. what was saved is given to other bioproxies, if there is a shared shelf;
6. the last bytes get a moment to leave.

The gate comes before the port, because closing a port may take a while, and a request that arrives meanwhile must not
find a place in the queue.  The worst case is 10 + 5 + 0.05 s after a long answer, or 10 + 2 + 2 + 5 + 0.05 s if the
answer ends in time; after `SIGKILL`, which systemd sends after 90 s, none of this would happen.

On Twisted: at SIGTERM the reactor fires an event, "before shutdown", whose handlers may return a `Deferred`, and waits
for it.  twistd's handler stops the root service, and the root returns the Deferred of `Shutdown.say`
(`bioproxy.runtime.root_service`).  So the reactor goes on for as long as it takes: connections, timers and the
answers of llama-server work as before, which is what makes a gentle end possible at all.

This module does not know what the services are that stop afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from bioproxy.gate.gate import Gate
from bioproxy.llama.upstream import Upstream
from bioproxy.proxy.running import RunningRequests
from bioproxy.runtime.errors import ShuttingDown
from bioproxy.slot.conversation_saver import ConversationSaver

ANSWERING = 10.0
"""Seconds that a running answer may take to its end.

Halved, more answers are broken off by a restart; doubled, a restart takes as long as that whenever an answer is long.
"""

SAVING = 2.0
"""Seconds that saving a conversation may take, and before that as long again until the gate is free for it.

A save of some thousand tokens takes well under a second on a local disk.  Halved, a slow disk loses the conversation;
doubled, a llama-server that is unresponsive delays the stop by twice as much.
"""

SHARING = 5.0
"""Seconds that giving saved files to other bioproxies may take (`bioproxy.shared.shelf`).

Halved, a large conversation is not there for its client's next request; doubled, a disk that hangs delays the stop.
"""

FLUSHING = 0.05
"""Seconds for the last bytes to leave.

What was written goes out in the reactor's next turn, and some more turns follow for what did not fit into a socket's
buffer.  Halved, a busy machine may cut the last event of an answer; doubled, every stop takes that much longer.
"""


class Shutdown:
    """Stops the proxy gently.

    Invariant: each step has a time limit or cannot wait, and an error in one does not keep the next from being done.
    """

    log = Logger()

    def __init__(
        self,
        clients_port: IService,
        gate: Gate,
        running: RunningRequests,
        upstream: Upstream,
        saver: ConversationSaver,
        share: Callable[[], Coroutine[Any, Any, None]],
        clock: IReactorTime,
    ) -> None:
        """Put the parts together; nothing happens before `say`.

        `clients_port` and `gate` are closed.  `running` are the requests that are waited for, `upstream` can end them,
        and `saver` saves what they leave in the slot, and `share` gives that to other bioproxies.  `clock` measures the
        limits.
        """
        self._clients_port = clients_port
        self._gate = gate
        self._running = running
        self._upstream = upstream
        self._saver = saver
        self._share = share
        self._clock = clock

    async def say(self) -> None:
        """Do all of it.  Called by the root service when twistd stops it.

        Fires when the proxy is at rest or has had its time.  Never fails.  Nobody cancels it.
        """
        for step in (self._turn_away, self._let_finish, self._give_to_others):
            try:
                await step()
            except Exception:
                # Whatever it is, the rest must be done anyway: an exception that got out of here would have the
                # root stop nothing at all, and the process would end with files half written.
                self.log.failure("error during shutdown")
        # Answers are handed to the operating system only when the reactor gets to it.  Without this pause the error to
        # a client in the queue might never leave the process.
        await deferLater(self._clock, FLUSHING)

    async def _turn_away(self) -> None:
        """Refuse new requests and those that wait.  Fires when the port is closed; may fail as closing it does."""
        # The `await` of each request in the queue fails here and now with `Unavailable`, which its client gets as a 503
        # with `Retry-After`.  A warm-up is cancelled.
        self._gate.close()
        # So does the request at the gate that waits for llama-server to start.
        if self._upstream.child is not None:
            self._upstream.child.turn_away(lambda: ShuttingDown("bioproxy is shutting down"))
        # Connections that are open stay: they carry the answers that are to be finished.  `maybeDeferred`, because
        # `stopService` of a service may return `None` instead of a Deferred.
        await maybeDeferred(self._clients_port.stopService)

    async def _let_finish(self) -> None:
        """Let running answers end, and save what they leave in the slot.  Fires when that is done or out of time."""
        if not await self._within(ANSWERING, self._running.finished):
            # Every call to llama-server ends with this error; a client sees it as the last event of its stream, or as a
            # connection that is reset.  Nothing is saved: what a broken answer leaves in the slot is not known.
            self.log.warn("stopping before an answer was finished: it took over {seconds:g} s", seconds=ANSWERING)
            self._upstream.pending.end_all(lambda: ShuttingDown("bioproxy is shutting down"))
        # The answer may be over while the gate is still closed, because what the slot holds is being noted.  A save
        # before that would not know what it saves.  The gate lets nobody else in any more, so once it is free, it stays
        # free.
        elif await self._within(SAVING, lambda: Deferred.fromCoroutine(self._gate.until_free())):
            await self._within(SAVING, lambda: Deferred.fromCoroutine(self._saver.save_if_due()))

    async def _give_to_others(self) -> None:
        """Give saved files to other bioproxies, and free the prompts that this one has claimed."""
        # Clients may be sent to another bioproxy from now on.
        await self._within(SHARING, lambda: Deferred.fromCoroutine(self._share()))

    async def _within(self, seconds: float, begin: Callable[[], Deferred[Any]]) -> bool:
        """Wait for what `begin` starts, for at most so many seconds.

        Fires with whether it was done in time.  If not, it was cancelled; fails with its error if it has one.
        """
        # `addTimeout` cancels the Deferred after that time and turns the `CancelledError` into Twisted's own
        # `TimeoutError`, which is another class than Python's.
        try:
            await begin().addTimeout(seconds, self._clock)
        except TimeoutError:
            return False
        return True
