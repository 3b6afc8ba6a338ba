"""The gate: who may use llama-server's slot now.  One at a time, users first.

A slot works on one request after the other, and whoever comes next finds what the last one left.  So everything
that uses it passes here, and inside the gate one can rely on being alone.

Twisted's `DeferredSemaphore` is the lock: a counter of tokens (here: one) and a queue of those who wait.
Nothing blocks: `acquire` returns a `Deferred`, a coroutine awaits it, and the rest of the program goes on.
Because every wait is a Deferred it can be *cancelled*: a client that hangs up in the queue simply leaves it.

The semaphore is strictly first come, first served, and that is right among users.  A warm-up must never
stand before a user, so it does not queue at all: it takes the gate if it is free with nobody waiting, and is
cancelled as soon as a user comes.  Being cancelled closes its connection, which makes llama-server stop.

One part of a warm-up is let through: saving its result to a file.  llama-server finishes a save that it began
even if nobody waits for the answer, and makes everyone wait meanwhile; giving up then would gain nothing for the
user and throw the warm-up's work away.

Knows nothing of HTTP or of what is done inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.internet.interfaces import IReactorTime

from bioproxy.errors import Unavailable
from bioproxy.metrics import Metrics


class Gate:
    """At most one is inside; users come in the order of their arrival; no warm-up is inside while a user waits."""

    def __init__(self, clock: IReactorTime, metrics: Metrics, limit: int, timeout: float) -> None:
        self._clock = clock
        self._metrics = metrics
        self._limit = limit
        self._timeout = timeout
        self._semaphore = DeferredSemaphore(1)
        self._user_inside = False
        self._warmup: Deferred[Any] | None = None
        self._may_cancel = True
        self._preempted = False
        self._user_left_at = clock.seconds()
        # Gauges that look for themselves when Prometheus asks: they cannot fall behind.
        metrics.queue_depth.set_function(lambda: self.waiting)
        metrics.gate_busy.labels("user").set_function(lambda: self.busy == "user")
        metrics.gate_busy.labels("warmup").set_function(lambda: self.busy == "warmup")

    @property
    def busy(self) -> str | None:
        """Who is inside: ``"user"``, ``"warmup"`` or nobody."""
        return "user" if self._user_inside else "warmup" if self._warmup is not None else None

    @property
    def waiting(self) -> int:
        """How many users wait."""
        return len(self._semaphore.waiting)

    def idle_seconds(self) -> float:
        """Return for how long no user has been here."""
        return 0.0 if self._user_inside or self.waiting else self._clock.seconds() - self._user_left_at

    @asynccontextmanager
    async def user(self) -> AsyncIterator[float]:
        """Wait for one's turn, be inside, and leave at the end of the ``async with``.

        Gives the seconds waited.  Raises `Unavailable` if too many wait already, or when `timeout` has passed;
        cancelling leaves the queue, or the gate.
        """
        # A warm-up inside is no reason to wait: it leaves.
        if (self._user_inside or self.waiting) and self.waiting >= self._limit:
            raise Unavailable(f"{self.waiting} requests are waiting already")
        arrived = self._clock.seconds()
        turn = self._semaphore.acquire()
        if not turn.called:
            # `addTimeout` cancels the Deferred, which takes it out of the queue; it then fails with TimeoutError.
            turn.addTimeout(self._timeout, self._clock)
        meets_warmup = self._warmup is not None
        self._preempt()
        try:
            await turn
        except TimeoutError:
            raise Unavailable(f"waited {self._timeout:g} s for llama-server to be free") from None
        try:
            self._user_inside = True
            waited = self._clock.seconds() - arrived
            if meets_warmup:
                self._metrics.preempt_seconds.observe(waited)
            yield waited
        finally:
            self._user_inside = False
            self._user_left_at = self._clock.seconds()
            self._semaphore.release()

    async def warmup(self, work: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> bool:
        """Do `work` inside the gate, if it is free now.

        Fires with whether the work was done to its end; it was not if a user was there or came.  Fails as
        `work` fails; cancelling cancels `work`.
        """
        if self.busy or self.waiting:
            return False
        await self._semaphore.acquire()  # it is free: this fires at once
        self._preempted = False
        # `fromCoroutine` starts the coroutine and makes it a Deferred: a thing that can be cancelled.
        running = self._warmup = Deferred.fromCoroutine(work())
        try:
            await running
            return True
        except CancelledError:
            if self._preempted:
                return False
            raise  # the service stops
        finally:
            self._warmup = None
            self._semaphore.release()

    @contextmanager
    def let_finish(self, last: bool = False) -> Iterator[None]:
        """Inside a warm-up: what is done under this ``with`` is not given up when a user comes.

        At its end a user who came meanwhile is made up for: raises `CancelledError`, unless this was the `last` thing
        that the warm-up has to do.
        """
        self._may_cancel = False
        try:
            yield
        finally:
            self._may_cancel = True
        if self.waiting and not last:
            self._preempted = True
            raise CancelledError()

    def _preempt(self) -> None:
        """Ask a warm-up to leave."""
        if self._warmup is not None and self._may_cancel:
            self._preempted = True
            self._warmup.cancel()
