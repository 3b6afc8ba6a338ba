"""The gate: who may use llama-server's slot now.  One at a time, users first.

A slot works on one request after the other, and whoever comes next finds what the last one left.  So everything
that uses it passes here, and inside the gate one can rely on being alone.

Twisted's `DeferredSemaphore` is the lock: a counter of tokens (here: one) and a queue of those who wait.
Nothing blocks: `acquire` returns a `Deferred`, a coroutine awaits it, and the rest of the program goes on.
Because every wait is a Deferred it can be *cancelled*: a client that hangs up in the queue simply leaves it.

The semaphore is strictly first come, first served, and that is right among users.  A warm-up must never
stand before a user, so it does not queue at all: it takes the gate if it is free with nobody waiting, and is
cancelled as soon as a user comes.  Being cancelled closes its connection, which makes llama-server stop.

One thing in a warm-up is let through: saving to a file.  llama-server finishes a save that it began
even if nobody waits for the answer, and makes everyone wait meanwhile; giving up then would gain nothing for the
user and throw the warm-up's work away.

Knows nothing of HTTP or of what is done inside.  Who somebody is, it keeps for others to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.runtime.errors import Unavailable
from bioproxy.runtime.metrics import Metrics

Work = Coroutine[Deferred[Any], Any, None]

RECENT = 0.3
"""How much the last user's time counts in the mean service time."""

RETRY_AFTER = (1, 600)
"""Seconds: the shortest and the longest time after which a client that was turned away is told to come again."""


class Gate:
    """At most one is inside; users come in the order of their arrival; no warm-up is inside while a user waits."""

    log = Logger()

    def __init__(self, clock: IReactorTime, metrics: Metrics, limit: int, timeout: float) -> None:
        self._clock = clock
        self._metrics = metrics
        self.limit = limit
        self.timeout = timeout
        self._semaphore = DeferredSemaphore(1)
        self._user_inside = False
        self._warmup: Deferred[Any] | None = None
        self._may_cancel = True
        self._preempted = False
        self._closed = False
        self._leavers = 0
        self._staying = False
        self._turns: list[Turn] = []
        self._warmup_since = ""
        self._peak = 0
        self._entered_at = self._user_left_at = clock.seconds()
        self._service_seconds = 0.0
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

    def place(self, turn: Turn) -> int:
        """Return a user's place in the queue, 1 for the next one; 0 for who does not wait."""
        waiting = self._semaphore.waiting
        return waiting.index(turn.acquired) + 1 if turn.acquired in waiting else 0

    @property
    def inside_since(self) -> str | None:
        """When who is inside came in, in ISO 8601; `None`: nobody is."""
        turn = self.inside
        return turn.since if turn is not None else self._warmup_since if self._warmup is not None else None

    @property
    def inside(self) -> Turn | None:
        """The turn of the user who is inside."""
        return next((turn for turn in self._turns if turn.entered), None)

    @property
    def queue(self) -> list[Turn]:
        """The turns of those who wait, in order."""
        return [turn for turn in self._turns if not turn.entered]

    def take_peak(self) -> int:
        """Return how many users waited at most since this was last called."""
        peak, self._peak = max(self._peak, self.waiting), self.waiting
        return peak

    def idle_seconds(self) -> float:
        """Return for how long no user has been here."""
        return 0.0 if self._user_inside or self.waiting else self._clock.seconds() - self._user_left_at

    def user(self, who: Any = None) -> Turn:
        """Return a turn for a user; it begins with ``async with``.  `who` that is, operators see in `Turn.who`."""
        return Turn(self, who)

    async def enter(self, turn: Turn) -> float:
        """Wait until a user may come in.  `Turn` calls this, and tells what it gives and raises."""
        arrived, meets_warmup = self._clock.seconds(), self.busy == "warmup"
        turn.acquired = self._join_queue()
        turn.since = now()
        self._turns.append(turn)
        try:
            await turn.acquired
        except TimeoutError:
            self._turns.remove(turn)
            raise self.unavailable(f"waited {self.timeout:g} s for llama-server to be free") from None
        except CancelledError:
            self._turns.remove(turn)
            if self._closed:
                raise self.unavailable("bioproxy is shutting down") from None
            raise
        self._user_inside = turn.entered = True
        self._entered_at = self._clock.seconds()
        turn.since = now()
        waited = self._entered_at - arrived
        if meets_warmup:
            self._metrics.preempt_seconds.observe(waited)
        return waited

    def leave(self, turn: Turn, work: Callable[[], Work] | None) -> None:
        """Let the next one in, after `work`.  Called by `Turn`."""
        if work is None:
            self._turns.remove(turn)
            self._release()
            return
        self._staying = True
        staying = Deferred.fromCoroutine(work())
        staying.addErrback(lambda failure: self.log.failure("while a turn ended", failure))
        staying.addBoth(lambda _: self.leave(turn, None))

    async def warmup(self, work: Callable[[], Work]) -> bool:
        """Do `work` inside the gate, if it is free now.

        Fires with whether the work was done to its end; it was not if a user was there or came.  Fails as
        `work` fails; cancelling cancels `work`.
        """
        # `busy` would not do: a user whom a warm-up makes room for has the token some moments before being inside.
        if not self._semaphore.tokens or self._closed:
            return False
        await self._semaphore.acquire()  # it is free: this fires at once
        self._preempted = False
        self._warmup_since = now()
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
    def without_preemption(self, last: bool = False) -> Iterator[None]:
        """Inside a warm-up: what is done under this ``with`` is not given up when a user comes.

        At its end a user who came meanwhile is made up for: raises `CancelledError`, unless this was the `last` thing
        that the warm-up has to do.
        """
        self._may_cancel = False
        try:
            yield
        finally:
            self._may_cancel = True
        if (self.waiting or self._closed) and not last:
            self._preempted = True
            raise CancelledError()

    def close(self) -> None:
        """Turn away whoever waits, and whoever comes from now on.  A user who is inside stays, a warm-up leaves."""
        self._closed = True
        for turn in list(self._semaphore.waiting):
            turn.cancel()
        self._preempt()

    async def until_free(self) -> None:
        """Fire when nobody is inside.  For a gate that was closed."""
        await self._semaphore.acquire()
        self._semaphore.release()

    def unavailable(self, reason: str) -> Unavailable:
        """Return the error for a user who is turned away, with the time after which the queue may be shorter."""
        shortest, longest = RETRY_AFTER
        seconds = math.ceil(self._service_seconds * max(1, self.waiting))
        return Unavailable(reason, min(max(seconds, shortest), longest))

    def _join_queue(self) -> Deferred[Any]:
        """Join the queue; the Deferred fires at one's turn.  Raises `Unavailable`."""
        if self._closed:
            raise self.unavailable("bioproxy is shutting down")
        # A warm-up inside is no reason to wait: it leaves.  Nor is a turn whose user has gone: mostly it ends at once.
        inside = self._user_inside and not self._staying
        if (inside or self.waiting) and self.waiting >= self.limit:
            raise self.unavailable(f"llama-server is busy, and {self.waiting} requests are waiting already")
        acquired = self._semaphore.acquire()
        if not acquired.called:
            # `addTimeout` cancels the Deferred, which takes it out of the queue; it then fails with TimeoutError.
            acquired.addTimeout(self.timeout, self._clock)
        self._preempt()
        self._peak = max(self._peak, self.waiting)
        return acquired

    def _preempt(self) -> None:
        """Have a warm-up leave that is inside, unless it is just being let finish something."""
        if self._warmup is not None and self._may_cancel:
            self._preempted = True
            self._warmup.cancel()

    def _release(self) -> None:
        """Let the next one in, after a user."""
        self._user_inside = self._staying = False
        self._user_left_at = self._clock.seconds()
        seconds, known = self._user_left_at - self._entered_at, self._service_seconds
        self._service_seconds = seconds if not known else known + RECENT * (seconds - known)
        # Releasing runs the next one at once, who may be through just as soon, and release from inside this call.  One
        # after the other, or a long queue of such would not fit the stack.
        self._leavers += 1
        if self._leavers == 1:
            while self._leavers:
                self._semaphore.release()
                self._leavers -= 1


class Turn:
    """One user's way through the gate: ``async with`` waits, is inside, and leaves.

    Entering gives the seconds waited.  It raises `Unavailable` if too many wait already, when the time to wait is over,
    or when the gate was closed; cancelling leaves the queue, or the gate.

    For operators: `who` it is, whether it has `entered`, and `since` when it waits or is inside, in ISO 8601.  The gate
    keeps in `acquired` what fires when it lets this one in.
    """

    def __init__(self, gate: Gate, who: Any) -> None:
        self.who = who
        self.entered = False
        self.since = ""
        self.acquired: Deferred[Any] | None = None
        self._gate = gate
        self._until: Callable[[], Work] | None = None

    @property
    def place(self) -> int:
        """The place in the queue, 1 for the next one; 0 for who does not wait."""
        return self._gate.place(self)

    def hold_gate_for(self, work: Callable[[], Work]) -> None:
        """Keep the gate after leaving, until `work` is done, whether it succeeds or not.

        For what llama-server goes on with although nobody waits for it any more.
        """
        self._until = work

    async def __aenter__(self) -> float:
        """Wait for one's turn."""
        return await self._gate.enter(self)

    async def __aexit__(self, *_: object) -> None:
        """Leave."""
        self._gate.leave(self, self._until)


def now() -> str:
    """Return the time, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
