"""The gate decides who may use llama-server's slot now: one user or one warm-up at a time, users first.

A slot processes one request after the other, and each request finds what the request before has left in it.  So all
code that uses the slot must enter the gate first, and code inside the gate can rely on being the only user of the slot.

Twisted runs all of bioproxy in one thread, so this lock does not protect against other threads.  Two coroutines never
run at the same moment, but each ``await`` lets others run, and relaying one answer has thousands of them.  The lock is
a token (`bioproxy.gate.token`).  It never blocks the thread: code that finds it taken gets a `Deferred`, an object that
gets its result later, and the coroutine that awaits the Deferred sleeps until then, while the rest of the program goes
on.

A Deferred can be *cancelled*.  Then it fails with `CancelledError`, which the coroutine sees as an exception at its
``await``, and its turn is taken out of the queue.  This is how a client that hangs up leaves the queue.  A time-out
works in the same way: a timer cancels the Deferred, which fails with `TimeoutError`.

Users enter in the order of their arrival, but a user who goes on with what the slot holds may pass others for a while,
and the gate may wait for such a user with nobody inside (*linger*).  `bioproxy.gate.queue` has the users who wait, and
`bioproxy.gate.order` decides which of them goes next.  A warm-up never joins the
queue, because it must never be ahead of a user.  It enters only if the gate is free and no user waits, and is cancelled
as soon as a user comes (`bioproxy.gate.preemption`).

This module knows neither HTTP nor the work inside the gate.  `bioproxy.gate.queue_stats` keeps the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from math import inf
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.gate.preemption import Preemption
from bioproxy.gate.queue import WaitingQueue
from bioproxy.gate.queue_stats import QueueStats, timestamp
from bioproxy.gate.token import Token
from bioproxy.gate.turn import Turn, Work
from bioproxy.runtime.errors import Unavailable
from bioproxy.runtime.metrics import Metrics


class Gate:
    """At most one user or warm-up is inside; users enter as `queue` says; no warm-up is inside while a user waits.

    The last rule has one exception: a warm-up inside `without_preemption`.  In short:

    ===================  =========================  ===================================
    who arrives          finds inside               what happens
    ===================  =========================  ===================================
    a user               nobody                     enters at once
    a user               a user                     waits, or is turned away at `limit`
    a user               a warm-up                  cancels the warm-up, enters at once
    a user               a warm-up that is saving   waits for the end of the save
    a user               nobody, lingering          waits, unless it is the one that is lingered for
    a warm-up            a user or a warm-up        does nothing, tries again later
    a warm-up            nobody, lingering          does nothing, tries again later
    any of them          a closed gate              is turned away
    ===================  =========================  ===================================
    """

    log = Logger()

    # `limit` and `timeout` are settings.  A reload may change them; the queue is not changed by that.
    limit: int
    """How many users may wait.  May be changed at any time; users who wait already stay."""

    timeout: float
    """Seconds that a user may wait.  A change applies to users who arrive later."""

    queue: WaitingQueue
    """The users who wait, with the settings `patience` and `linger`."""

    stats: QueueStats
    """Statistics about the queue."""

    def __init__(
        self,
        clock: IReactorTime,
        metrics: Metrics,
        limit: int,
        timeout: float,
        patience: float = 0.0,
        linger: float = 0.0,
    ) -> None:
        """Make a gate; `patience` and `linger` are the first values of the attributes of `queue`, in seconds."""
        self.limit = limit
        self.timeout = timeout
        self._clock = clock
        # Whether a user holds the token, and whether that user has left already but the token is still held, for work
        # that must be done before the next user comes in.
        self._user_inside = self._user_has_left = False
        # The warm-up inside, if there is one.
        self._preemption = Preemption()
        # Whether bioproxy is shutting down.  Then no user and no warm-up may enter any more.
        self.closed = False
        # Held while a user or a warm-up is inside.  The users who wait for it are in the queue.
        self._token = Token(lambda: None if self.closed else self.queue.next())
        self.queue = WaitingQueue(clock, metrics, patience, linger, self._token.hand_on)
        self.stats = QueueStats(clock, metrics, lambda: self.waiting, lambda: self.busy)

    # The present state.

    @property
    def busy(self) -> str | None:
        """Who is inside: ``"user"``, ``"warmup"``, or `None` for nobody."""
        # For display, and to avoid preparing work that could not begin.  Only the token decides who may enter.
        return "user" if self._user_inside else "warmup" if self._preemption.running is not None else None

    @property
    def waiting(self) -> int:
        """How many users wait."""
        # Always up to date: a turn whose Deferred is cancelled leaves the queue at once.
        return len(self.queue)

    # Users.

    def user(
        self,
        who: Any = None,
        goes_on: Callable[[], bool] = lambda: False,
        fills_for: Hashable = None,
        switch_seconds: Callable[[], float] = lambda: inf,
    ) -> Turn:
        """Return a turn for a user, which ``async with`` begins.

        `who` says whose turn it is, for operators only; the others are described at the attributes of `Turn`.
        """
        # A turn joins the queue only at ``async with``: a turn that is never begun, for an invalid request, needs no
        # clean-up.
        return Turn(self, who, goes_on, fills_for, switch_seconds)

    async def enter(self, turn: Turn) -> float:
        """Wait until a user may enter.  Called by `Turn`, whose `__aenter__` describes the result and the errors."""
        # If waiting fails, the turn is out of the queue before the caller gets the error: the queue has removed it.  A
        # Deferred that has fired can no longer be cancelled, so a user who gives up while waiting never keeps the
        # token.  `Unavailable` passes unchanged: a newer request of the same client has replaced this one.
        arrived, timeout, meets_warmup = self._clock.seconds(), self.timeout, self.busy == "warmup"
        acquired = self._join_queue(turn)
        turn.since = timestamp()
        try:
            await acquired
        except TimeoutError:
            raise self.unavailable(f"waited {timeout:g} s for llama-server to be free") from None
        except CancelledError:
            # There are two causes.  If the client has hung up, it gets no answer, and the error is passed on unchanged.
            # If `close` has cancelled the wait, the client must be told the reason.
            if self.closed:
                raise self.unavailable("bioproxy is shutting down") from None
            raise
        # No ``await`` from here to the return.  This coroutine may be running inside the call that handed the token
        # to it, and no other code may read the gate's state before the state says that a user is inside.
        self._user_inside = True
        turn.since = timestamp()
        waited = self._clock.seconds() - arrived
        self.stats.user_entered(turn, waited, meets_warmup)
        return waited

    def leave(self, turn: Turn, work: Callable[[], Work] | None) -> None:
        """Let the next user in, after `work` if there is any.  Called by `Turn`."""
        # Not a coroutine: leaving must not be cancellable, or a hang-up at that moment would leave the gate closed.
        if work is None:
            return self._release(turn)
        self._user_has_left = True
        # `fromCoroutine` starts the work in a coroutine of its own.  That coroutine belongs to no client, so no
        # client's hang-up can cancel it.  The gate opens even if the work fails: a gate that stays closed would be
        # worse than any error.
        holding = Deferred.fromCoroutine(work())
        holding.addErrback(lambda failure: self.log.failure("work after a user's turn failed", failure))
        holding.addBoth(lambda _: self.leave(turn, None))

    def unavailable(self, reason: str) -> Unavailable:
        """Return the error for a user who is turned away, with the time after which the queue may be shorter."""
        # Clients get status 503 with the header ``Retry-After``.  The time is estimated from the queue of this moment.
        return Unavailable(reason, self.stats.retry_after())

    def _join_queue(self, turn: Turn) -> Deferred[Any]:
        """Join the queue; the Deferred fires when the user may come in.  Raises `Unavailable`."""
        # Not a coroutine: no other code can run between counting the waiting users and joining them, so the limit is
        # exact.
        if self.closed:
            raise self.unavailable("bioproxy is shutting down")
        if turn.fills_for is not None:
            self.queue.replace(turn.fills_for, self.unavailable("replaced by a newer request of the same client"))
        # A warm-up inside does not count here, because it will be cancelled.  A user who has left does not count
        # either, although the gate is still held: the work that holds the gate is mostly a single quick request to
        # llama-server.  The request for which the gate lingers enters at once, so it needs no place in the queue.
        inside = self._user_inside and not self._user_has_left
        is_expected = self.queue.lingering and turn.goes_on()
        if (inside or self.waiting) and self.waiting >= self.limit and not is_expected:
            raise self.unavailable(f"llama-server is busy, and {self.waiting} requests are waiting already")
        if self._token.is_free and self.queue.may_be_bypassed:
            return self._token.take()
        # First join, then preempt: the warm-up releases its token while it is being cancelled, and the user must be in
        # the queue by then.  In the reverse order, another warm-up could start at that moment and find the gate free.
        acquired = self.queue.join(turn, self.timeout)
        self._preemption.preempt()
        self._token.hand_on()
        self.stats.user_joined()
        return acquired

    def _release(self, turn: Turn) -> None:
        """Let the next user in, after a user."""
        # All fields must be up to date before: the next user's coroutine runs inside the last line.
        self._user_inside = self._user_has_left = False
        self.queue.user_left(turn, self.stats.user_left())
        self._token.give_back()

    # Warm-ups.

    async def warmup(self, work: Callable[[], Work]) -> bool:
        """Do `work` inside the gate, if the gate is free now.

        Fires with `True` if the work was completed, with `False` if the gate was not free or a user came meanwhile.
        Fails as `work` fails; cancelling cancels `work`.

        When a user comes meanwhile, all of these steps happen within the user's call of `_join_queue`: the user's turn
        joins the queue; `Preemption.preempt` cancels the warm-up's Deferred; the `await` inside the work raises an
        error, the connection to llama-server closes, and the work ends; the ``finally`` below releases the token and
        fires the user's Deferred.  llama-server itself stops only at the end of its current batch, and the user's
        request waits for that.  So warm-ups are sent in small pieces.
        """
        # The token is checked, not `busy`: after a warm-up was cancelled for a user, the user has the token slightly
        # before `busy` shows it.  While the gate lingers the token is free, but users wait.
        if not self._token.is_free or self.closed or self.waiting:
            return False
        await self._token.take()  # it is free, so this fires at once, before other code can run
        self.queue.warmup_entered()
        self.stats.warmup_entered()
        try:
            return await self._preemption.run(work)
        finally:
            # The gate opens in all cases, and the next user's coroutine runs inside this call.
            self._token.give_back()

    def without_preemption(self, last: bool = False) -> AbstractContextManager[None]:
        """Protect a part of a warm-up: the code in this ``with`` block is not cancelled when a user comes.

        Used for saving to a file.  llama-server finishes a save that it has begun even if no client waits for the
        answer, and processes no other request meanwhile.  Cancelling then would not help the user, and would lose the
        warm-up's work.

        Raises `CancelledError` at the end of the block if a user came meanwhile, so that the warm-up ends.  With `last`
        it does not: the block was the last step of the warm-up, which then counts as completed.
        """
        # Likewise if `close` was called meanwhile: there is no user then, but the service waits for the gate.
        return self._preemption.protected(lambda: (self.waiting > 0 or self.closed) and not last)

    # Shutdown.

    def close(self) -> None:
        """Turn away all waiting users, and all who come later.  A user who is inside stays; a warm-up is cancelled."""
        # Called at shutdown: waiting clients learn at once that they must try another server, and a client that is
        # being answered gets the rest of its answer.  `closed` is set first, because each coroutine that is cancelled
        # below runs at once, and reads `closed` to find the reason.
        self.closed = True
        self.queue.close()
        self._preemption.preempt()

    async def until_free(self) -> None:
        """Fire when nobody is inside.  Only for a gate that was closed; cancelling stops waiting."""
        await self._token.until_free()
