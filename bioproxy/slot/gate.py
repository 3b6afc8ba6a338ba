"""The gate: decides who may use llama-server's slot now: one user or warm-up at a time, users first.

A slot processes one request after the other, and each request finds what the request before has left in it.  So all
code that uses the slot must enter the gate first, and code inside the gate can rely on being the only user of the slot.

Twisted runs all of bioproxy in one thread, so this lock does not protect against other threads.  Two coroutines never
run at the same moment, but each ``await`` lets others run, and relaying one answer has thousands of them.  The lock is
Twisted's `DeferredSemaphore`, which never blocks the thread: ``acquire()`` returns a `Deferred`, an object that gets
its result later, and the coroutine that awaits it sleeps until then, while the rest of the program goes on.

A Deferred can be *cancelled*.  Then it fails with `CancelledError`, which the coroutine sees as an exception at its
``await``.  A Deferred that waits in the semaphore's list is then removed from the list.  This is how a client that
hangs up leaves the queue.  A time-out works in the same way: a timer cancels the Deferred, which fails with
`TimeoutError`.

Users enter in the order of their arrival.  A warm-up never joins the queue, because it must never be ahead of a user.
A warm-up enters only if the gate is free and no user waits, and is cancelled as soon as a user comes.

This module knows neither HTTP nor the work inside the gate.  `bioproxy.slot.queue_stats` keeps the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.runtime.errors import Unavailable
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.queue_stats import QueueStats, timestamp
from bioproxy.slot.turn import Turn, Work


class Gate:
    """At most one user or warm-up is inside; users enter in order of arrival; no warm-up is inside while a user waits.

    The last rule has one exception: a warm-up inside `without_preemption`.  In short:

    ===================  =========================  ===================================
    who arrives          finds inside               what happens
    ===================  =========================  ===================================
    a user               nobody                     enters at once
    a user               a user                     waits, or is turned away at `limit`
    a user               a warm-up                  cancels the warm-up, enters at once
    a user               a warm-up that is saving   waits for the end of the save
    a warm-up            a user or a warm-up        does nothing, tries again later
    any of them          a closed gate              is turned away
    ===================  =========================  ===================================
    """

    log = Logger()

    # `limit` and `timeout` are settings.  A reload may change them; the queue is not changed by that.
    limit: int
    """How many users may wait.  May be changed at any time; users who wait already stay."""

    timeout: float
    """Seconds that a user may wait.  A change applies to users who arrive later."""

    stats: QueueStats
    """Statistics about the queue."""

    def __init__(self, clock: IReactorTime, metrics: Metrics, limit: int, timeout: float) -> None:
        self.limit = limit
        self.timeout = timeout
        self._clock = clock
        # A semaphore has a number of tokens, here one, and `waiting`, the list of Deferreds without a token.  `acquire`
        # takes the token if it is free, and returns a Deferred that has fired; otherwise the Deferred joins the list.
        # `release` gives the token to the first Deferred in the list, or makes the token free if the list is empty.
        # The token is held while a user or a warm-up is inside.  So the gate is free if and only if the token is free.
        self._semaphore = DeferredSemaphore(1)
        # Whether a user holds the token, and whether that user has left already but the token is still held, for work
        # that must be done before the next user comes in.
        self._user_inside = self._user_has_left = False
        # The warm-up inside, if there is one; whether an arriving user may cancel the warm-up at this moment; and
        # whether the gate has cancelled it.  A warm-up that is cancelled because bioproxy stops is treated differently.
        self._warmup: Deferred[Any] | None = None
        self._may_preempt, self._preempted = True, False
        # Whether bioproxy is shutting down.  Then no user and no warm-up may enter any more.
        self._closed = False
        # How many calls of `_release` still have to release the semaphore, the one in progress included.
        self._releases_due = 0
        self.stats = QueueStats(clock, metrics, lambda: self.waiting, lambda: self.busy)

    # The present state.

    @property
    def busy(self) -> str | None:
        """Who is inside: ``"user"``, ``"warmup"``, or `None` for nobody."""
        # For display, and to avoid preparing work that could not begin.  Only the token decides who may enter.
        return "user" if self._user_inside else "warmup" if self._warmup is not None else None

    @property
    def waiting(self) -> int:
        """How many users wait."""
        # The semaphore's own list is always up to date: a cancelled Deferred is removed from it at once.
        return len(self._semaphore.waiting)

    def place(self, turn: Turn) -> int:
        """Return a user's place in the queue, 1 for the next one; 0 for a user who does not wait."""
        # Searched when a waiting client is sent its place, every few seconds, instead of being kept up to date for all
        # users.
        waiting = self._semaphore.waiting
        return waiting.index(turn.acquired) + 1 if turn.acquired in waiting else 0

    # Users.

    def user(self, who: Any = None) -> Turn:
        """Return a turn for a user, which ``async with`` begins.  `who` says whose turn it is, for operators only."""
        # The turn joins the queue only at ``async with``.  So a turn that is never begun, because its request turns out
        # to be invalid, needs no clean-up.
        return Turn(self, who)

    async def enter(self, turn: Turn) -> float:
        """Wait until a user may enter.  Called by `Turn`, whose `__aenter__` describes the result and the errors."""
        # If waiting fails, the turn is out of the queue before the caller gets the error: the semaphore has removed the
        # Deferred, and the code below removes the turn.  A Deferred that has fired can no longer be cancelled, so a
        # user who gives up while waiting never keeps the token.
        arrived, meets_warmup = self._clock.seconds(), self.busy == "warmup"
        turn.acquired = self._join_queue()
        turn.since = timestamp()
        self.stats.turns.append(turn)
        try:
            await turn.acquired
        except TimeoutError:
            self.stats.turns.remove(turn)
            raise self.unavailable(f"waited {self.timeout:g} s for llama-server to be free") from None
        except CancelledError:
            # There are two causes.  If the client has hung up, it gets no answer, and the error is passed on unchanged.
            # If `close` has cancelled the wait, the client must be told the reason.
            self.stats.turns.remove(turn)
            if self._closed:
                raise self.unavailable("bioproxy is shutting down") from None
            raise
        # No ``await`` from here to the return.  This coroutine may be running inside the call of `release` that gave it
        # the token, and no other code may read the gate's state before the state says that a user is inside.
        self._user_inside = turn.has_entered = True
        turn.since = timestamp()
        waited = self._clock.seconds() - arrived
        self.stats.user_entered(waited, meets_warmup)
        return waited

    def leave(self, turn: Turn, work: Callable[[], Work] | None) -> None:
        """Let the next user in, after `work` if there is any.  Called by `Turn`."""
        # A function that returns at once, not a coroutine: leaving must not be cancellable, or a client that hangs up
        # at that moment would leave the gate closed for ever.
        if work is None:
            self.stats.turns.remove(turn)
            self._release()
            return
        self._user_has_left = True
        # `fromCoroutine` starts the work in a coroutine of its own.  That coroutine belongs to no client, so no
        # client's hang-up can cancel it.  The gate opens even if the work fails: a gate that stays closed would be
        # worse than any error.
        holding = Deferred.fromCoroutine(work())
        holding.addErrback(lambda failure: self.log.failure("work after a user's turn failed", failure))
        holding.addBoth(lambda _: self.leave(turn, None))

    def unavailable(self, reason: str) -> Unavailable:
        """Return the error for a user who is turned away, with the time after which the queue may be shorter."""
        # Clients get status 503 with the header ``Retry-After``, which good clients obey.  The time is estimated from
        # the queue at the moment of the refusal.
        return Unavailable(reason, self.stats.retry_after())

    def _join_queue(self) -> Deferred[Any]:
        """Join the queue; the Deferred fires when the user may come in.  Raises `Unavailable`."""
        # A function, not a coroutine, on purpose: no other code can run between counting the waiting users and joining
        # them, so the limit is exact.
        if self._closed:
            raise self.unavailable("bioproxy is shutting down")
        # A warm-up inside does not count here, because it will be cancelled.  A user who has left does not count
        # either, although the gate is still held: the work that holds the gate is mostly a single quick request to
        # llama-server.
        inside = self._user_inside and not self._user_has_left
        if (inside or self.waiting) and self.waiting >= self.limit:
            raise self.unavailable(f"llama-server is busy, and {self.waiting} requests are waiting already")
        # First join, then preempt: the warm-up releases its token while it is being cancelled, and the user must be in
        # the list by then.  In the reverse order, another warm-up could start at that moment and find the gate free.
        acquired = self._semaphore.acquire()
        if not acquired.called:
            # `addTimeout` cancels the Deferred, which takes it out of the list; it then fails with `TimeoutError`.  The
            # timer is stopped when the Deferred fires or fails.
            acquired.addTimeout(self.timeout, self._clock)
        self._preempt()
        self.stats.user_joined()
        return acquired

    def _release(self) -> None:
        """Let the next user in, after a user."""
        # All fields must be up to date before the token is released, because the next user's coroutine runs inside that
        # call.
        self._user_inside = self._user_has_left = False
        self.stats.user_left()
        # `release` runs the next user's coroutine before it returns.  That coroutine may end at once and call
        # `_release` from inside this call, and so on: a queue of a thousand users would need thousands of stack frames.
        # So only the outermost call releases the token, once for itself and once for each nested call.
        self._releases_due += 1
        if self._releases_due == 1:
            while self._releases_due:
                self._semaphore.release()
                self._releases_due -= 1

    # Warm-ups.

    async def warmup(self, work: Callable[[], Work]) -> bool:
        """Do `work` inside the gate, if the gate is free now.

        Fires with `True` if the work was completed, with `False` if the gate was not free or a user came meanwhile.
        Fails as `work` fails; cancelling cancels `work`.

        When a user comes meanwhile, all of these steps happen within the user's call of `_join_queue`: the user's
        Deferred joins the list; `_preempt` cancels the warm-up's Deferred; the `await` inside the work raises an error,
        the connection to llama-server closes, and the work ends; the ``finally`` below releases the token, which fires
        the user's Deferred.  llama-server itself stops only at the end of its current batch, and the user's request
        waits for that.  So warm-ups are sent in small pieces.
        """
        # The token is checked, not `busy`: after a warm-up was cancelled for a user, the user has the token slightly
        # before `busy` shows it.
        if not self._semaphore.tokens or self._closed:
            return False
        await self._semaphore.acquire()  # a token is free, so this fires at once, before other code can run
        self._preempted = False
        self.stats.warmup_entered()
        # A coroutine alone cannot be cancelled.  `fromCoroutine` starts it and returns a Deferred that can be
        # cancelled.
        running = self._warmup = Deferred.fromCoroutine(work())
        # From here on there are two ways to cancel.  `_preempt` cancels `running`.  Cancelling the caller of this
        # method cancels the ``await`` below, and Twisted passes that on to the awaited Deferred, which is `running`
        # again.  In both cases the work ends first, and its ``finally`` blocks have run when the error arrives here.
        try:
            await running
            return True
        except CancelledError:
            # A preempted warm-up is no error: it will be tried again.  Any other cancellation means that the service
            # stops, and then the error must be passed on, or the caller would never stop.
            if self._preempted:
                return False
            raise
        finally:
            # The gate opens in all cases.  `_warmup` is cleared first: the next user's coroutine runs inside `release`,
            # and must not find a warm-up.
            self._warmup = None
            self._semaphore.release()

    @contextmanager
    def without_preemption(self, last: bool = False) -> Iterator[None]:
        """Protect a part of a warm-up: the code in this ``with`` block is not cancelled when a user comes.

        Used for saving to a file.  llama-server finishes a save that it has begun even if no client waits for the
        answer, and processes no other request meanwhile.  Cancelling then would not help the user, and would lose the
        warm-up's work.  The ``with`` statement itself waits for nothing: it only sets a flag that `_preempt` reads.

        Raises `CancelledError` at the end of the block if a user came meanwhile, so that the warm-up ends.  With `last`
        it does not: the block was the last step of the warm-up, which then counts as completed.
        """
        self._may_preempt = False
        try:
            yield
        finally:
            # Also after an error: users must be able to cancel the next warm-up.
            self._may_preempt = True
        # A user who came meanwhile could not cancel the warm-up, so it is ended here, by the same error.  The same
        # applies if `close` was called meanwhile: there is no user then, but the service waits for the gate.
        if (self.waiting or self._closed) and not last:
            self._preempted = True
            raise CancelledError()

    def _preempt(self) -> None:
        """Have the warm-up inside leave, if there is one and it may be interrupted now."""
        # If it may not be interrupted, `without_preemption` checks for waiting users at the end of its block.
        if self._warmup is not None and self._may_preempt:
            # Set before cancelling: the warm-up's ``except`` runs inside the next line.
            self._preempted = True
            self._warmup.cancel()

    # Shutdown.

    def close(self) -> None:
        """Turn away all waiting users, and all who come later.  A user who is inside stays; a warm-up is cancelled."""
        # Called at shutdown: waiting clients learn at once that they must try another server, and a client that is
        # being answered gets the rest of its answer.  `_closed` is set first, because each coroutine that is cancelled
        # below runs at once, and reads `_closed` to find the reason.
        self._closed = True
        # A copy, because each cancelled Deferred takes itself out of the list.
        for turn in list(self._semaphore.waiting):
            turn.cancel()
        self._preempt()

    async def until_free(self) -> None:
        """Fire when nobody is inside.  Only for a gate that was closed; cancelling stops waiting."""
        # This call waits in the users' list, so the gate must be closed: otherwise the call would count as a waiting
        # user, and be ahead of others.
        await self._semaphore.acquire()
        self._semaphore.release()
