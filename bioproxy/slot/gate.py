"""The gate: decides who may use llama-server's slot now.  One at a time, users before warm-ups.

A slot works on one request after the other, and each request finds what the one before has left.  So everything that
uses the slot passes here, and code inside the gate can rely on being alone.

Twisted runs all of bioproxy in one thread, so this lock protects against something else than locks do elsewhere.  Two
coroutines never run at the same moment, but each ``await`` lets others run, and one answer has thousands of them.  The
lock is Twisted's `DeferredSemaphore`, which blocks nobody: ``acquire()`` returns a `Deferred`, an object that gets its
result later, and the coroutine that awaits it sleeps until then, while the rest of the program goes on.

A Deferred can be *cancelled*.  Then it fails with `CancelledError`, which the coroutine sees as an exception at its
``await``, and if it stood in the semaphore's list it is out of it.  That is all there is to a client that hangs up in
the queue.  A time-out is the same with a clock: it cancels, and the error is `TimeoutError` instead.

Users come in first come, first served.  A warm-up never queues, because it must never stand before a user: it takes the
gate if that is free and nobody waits, and is cancelled as soon as a user comes.

Not known here: HTTP, what is done inside, and whether it was worth it.  `bioproxy.slot.queue_stats` has the numbers.
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
    """At most one is inside; users come in the order of their arrival; no warm-up is inside while a user waits.

    The last has one exception, a warm-up inside `without_preemption`.  In short:

    ===================  =========================  ===================================
    who comes            meets                      and then
    ===================  =========================  ===================================
    a user               nobody                     is inside at once
    a user               a user                     waits, or is turned away at `limit`
    a user               a warm-up                  that is cancelled; inside at once
    a user               a warm-up that is saving   waits for the end of the save
    a warm-up            anybody                    does nothing, tries again later
    anybody              a closed gate              is turned away
    ===================  =========================  ===================================
    """

    log = Logger()

    # The first two are settings, and may change while users wait; the queue itself stays as it is then.
    limit: int
    """How many users may wait.  May be changed at any time; those who wait already stay."""

    timeout: float
    """Seconds that a user may wait.  A change is for those who come from then on."""

    stats: QueueStats
    """The numbers about the queue."""

    def __init__(self, clock: IReactorTime, metrics: Metrics, limit: int, timeout: float) -> None:
        self.limit = limit
        self.timeout = timeout
        self._clock = clock
        # A counter of tokens, here one, and the list `waiting` of Deferreds that have none.  `acquire` takes the token
        # if it is there, and the Deferred has fired when it returns; otherwise the Deferred joins the list.  `release`
        # gives the token to the first in the list, or puts it back.  The token is held while anybody is inside, user or
        # warm-up, so "the token is free" is the only true answer to "is the gate free?".
        self._semaphore = DeferredSemaphore(1)
        # Whether a user holds the token, and whether that user has left already but the token is still held, for work
        # that must be done before the next user comes in.
        self._user_inside = self._user_has_left = False
        # The warm-up inside, to be cancelled when a user comes; whether that may be done at this moment; and whether it
        # was done, to tell it from a warm-up that is cancelled because bioproxy stops.
        self._warmup: Deferred[Any] | None = None
        self._may_preempt, self._preempted = True, False
        # Whether bioproxy is shutting down: nobody comes in any more.
        self._closed = False
        # How many users have left since the outermost `_release` began, itself included.
        self._releases_due = 0
        self.stats = QueueStats(clock, metrics, lambda: self.waiting, lambda: self.busy)

    # What the gate looks like now.

    @property
    def busy(self) -> str | None:
        """Who is inside: ``"user"``, ``"warmup"``, or `None` for nobody."""
        # For display, and to avoid work that could not begin anyway.  Who comes in is decided by the token alone.
        return "user" if self._user_inside else "warmup" if self._warmup is not None else None

    @property
    def waiting(self) -> int:
        """How many users wait."""
        # Counted by the semaphore itself, which is never behind: whoever is cancelled is out of its list at once.
        return len(self._semaphore.waiting)

    def place(self, turn: Turn) -> int:
        """Return a user's place in the queue, 1 for the next one; 0 for a user who does not wait."""
        # Looked up when a waiting client is told, every few seconds, rather than kept up to date for all.
        waiting = self._semaphore.waiting
        return waiting.index(turn.acquired) + 1 if turn.acquired in waiting else 0

    # Users.

    def user(self, who: Any = None) -> Turn:
        """Return a turn for a user, which ``async with`` begins.  `who` says whose turn it is, for operators only."""
        # Nothing has happened yet: the turn is at the gate from ``async with`` on, so one that is never begun, because
        # its request turns out to be wrong, leaves nothing to be undone.
        return Turn(self, who)

    async def enter(self, turn: Turn) -> float:
        """Wait until a user may come in.  For `Turn`, which says what this fires with and fails with."""
        # Whatever ends the waiting without success, the turn is out of the queue when the error is seen: the semaphore
        # has removed the Deferred, and here its turn is removed.  A Deferred cannot be cancelled any more once it has
        # fired, so there is no moment at which a user who gives up takes the token along.
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
            # Cancelled by whom?  A client that hangs up gets no answer, so its error goes on as it is.  But `close`
            # cancels those who wait, too, and these must be told why.
            self.stats.turns.remove(turn)
            if self._closed:
                raise self.unavailable("bioproxy is shutting down") from None
            raise
        # No ``await`` from here to the return.  The token was given away inside somebody's `release`, and this
        # coroutine runs on inside that call; nobody may look at the gate before it says who is inside.
        self._user_inside = turn.has_entered = True
        turn.since = timestamp()
        waited = self._clock.seconds() - arrived
        self.stats.user_entered(waited, meets_warmup)
        return waited

    def leave(self, turn: Turn, work: Callable[[], Work] | None) -> None:
        """Let the next user in, after `work`, if there is any.  For `Turn`."""
        # Returns at once in any case: leaving must not be something that can be cancelled, or a client that hangs up in
        # that moment would leave the gate closed for ever.
        if work is None:
            self.stats.turns.remove(turn)
            self._release()
            return
        self._user_has_left = True
        # `fromCoroutine` starts the work in a coroutine of its own.  It belongs to no client, so no client's hang-up
        # can cancel it.  Whatever comes of it, the gate opens: a gate that stays closed would be worse than any error.
        holding = Deferred.fromCoroutine(work())
        holding.addErrback(lambda failure: self.log.failure("while a turn ended", failure))
        holding.addBoth(lambda _: self.leave(turn, None))

    def unavailable(self, reason: str) -> Unavailable:
        """Return the error for a user who is turned away, with the time after which the queue may be shorter."""
        # Clients get it as status 503 with ``Retry-After``, which well-made ones obey.  The time is estimated at the
        # moment of the refusal, from the queue as it is then.
        return Unavailable(reason, self.stats.retry_after())

    def _join_queue(self) -> Deferred[Any]:
        """Join the queue; the Deferred fires when the user may come in.  Raises `Unavailable`."""
        # A plain function and no coroutine, on purpose: nobody else can run between counting those who wait and joining
        # them, so the limit holds exactly.
        if self._closed:
            raise self.unavailable("bioproxy is shutting down")
        # A warm-up inside is no reason to turn anybody away, because it leaves.  Neither is a user who has left while
        # the gate is still held: that is mostly a single quick question to llama-server.
        inside = self._user_inside and not self._user_has_left
        if (inside or self.waiting) and self.waiting >= self.limit:
            raise self.unavailable(f"llama-server is busy, and {self.waiting} requests are waiting already")
        # First join, then preempt: the warm-up releases its token while it is cancelled, and must find the user in the
        # list.  The other way round, a warm-up that starts in that moment would find the gate free.
        acquired = self._semaphore.acquire()
        if not acquired.called:
            # `addTimeout` cancels the Deferred, which takes it out of the list; it then fails with `TimeoutError`.
            # Its timer ends with the Deferred, whichever way that is.
            acquired.addTimeout(self.timeout, self._clock)
        self._preempt()
        self.stats.user_joined()
        return acquired

    def _release(self) -> None:
        """Let the next user in, after a user."""
        # Everything must be tidy before the token is given away, because the next user's coroutine runs inside that
        # call.
        self._user_inside = self._user_has_left = False
        self.stats.user_left()
        # `release` runs the next user's coroutine before it returns.  That one may be through just as fast, and call
        # `_release` from inside this call, and so on: a queue of a thousand would need a stack of thousands of frames.
        # So only the outermost call releases, once for each call that was made meanwhile.
        self._releases_due += 1
        if self._releases_due == 1:
            while self._releases_due:
                self._semaphore.release()
                self._releases_due -= 1

    # Warm-ups.

    async def warmup(self, work: Callable[[], Work]) -> bool:
        """Do `work` inside the gate, if the gate is free now.

        Fires with whether the work was done to its end, which it was not if a user was there or came.  Fails as `work`
        fails; cancelling cancels `work`.

        What happens when a user comes meanwhile, step by step, all within the user's call of `_join_queue`: the user's
        Deferred joins the list; `_preempt` cancels the warm-up's; the `await` inside the work raises, the connection to
        llama-server closes, and the work ends; the ``finally`` below releases the token, which fires the user's
        Deferred.  llama-server itself stops at the end of its current batch, and the user's request waits there for so
        long: that is why warm-ups are sent in small pieces.
        """
        # The token is asked, not `busy`: a user whom a warm-up makes room for has it some moments before being inside.
        if not self._semaphore.tokens or self._closed:
            return False
        await self._semaphore.acquire()  # there is a token, so this fires at once and nobody comes in between
        self._preempted = False
        self.stats.warmup_entered()
        # A coroutine alone cannot be cancelled.  `fromCoroutine` starts it and gives a Deferred that can.
        running = self._warmup = Deferred.fromCoroutine(work())
        # Two may cancel from here on.  `_preempt` cancels `running`.  Whoever awaits this method cancels the ``await``
        # below, which Twisted passes on to what is awaited: `running` again.  In both cases the work ends first, and
        # its ``finally`` blocks have run when the error arrives here.
        try:
            await running
            return True
        except CancelledError:
            # A warm-up that was preempted is nothing unusual: it is tried again.  One that was cancelled otherwise ends
            # because the service stops, and then the error must go on, or the caller would never stop.
            if self._preempted:
                return False
            raise
        finally:
            # Whatever happened, the gate opens.  In this order: the next user's coroutine runs inside `release`, and
            # must not find a warm-up here.
            self._warmup = None
            self._semaphore.release()

    @contextmanager
    def without_preemption(self, last: bool = False) -> Iterator[None]:
        """Inside a warm-up: what is done under this ``with`` is not given up when a user comes.

        It is for saving to a file.  llama-server finishes a save that it has begun even if nobody waits for the answer,
        and serves nobody meanwhile.  Giving up then would gain nothing for the user, and throw the warm-up's work away.
        A plain ``with``, and no waiting of its own: it only sets a flag that `_preempt` looks at.

        On leaving, raises `CancelledError` if a user came meanwhile, so that the warm-up gives way then; unless this
        was the `last` thing that it has to do, which makes it a warm-up that was done.
        """
        self._may_preempt = False
        try:
            yield
        finally:
            # Also after an error: the next warm-up must be one that gives way.
            self._may_preempt = True
        # A user who came meanwhile could not cancel the warm-up, so it is ended here, by the same error.  The same if
        # `close` was called meanwhile: there is no user then, but the service waits for the gate.
        if (self.waiting or self._closed) and not last:
            self._preempted = True
            raise CancelledError()

    def _preempt(self) -> None:
        """Have the warm-up inside leave, if there is one and it may be interrupted now."""
        # If it may not, nothing is lost: `without_preemption` looks who has come when its block ends.
        if self._warmup is not None and self._may_preempt:
            # Set before cancelling: the warm-up's ``except`` runs inside the next line.
            self._preempted = True
            self._warmup.cancel()

    # The end.

    def close(self) -> None:
        """Turn away all who wait, and all who come from now on.  A user who is inside stays, a warm-up leaves."""
        # For the end of the process: those who wait learn at once that they must ask elsewhere, and whoever is just
        # being answered gets the rest of the answer.  The mark is set first, because each coroutine that is cancelled
        # below runs at once, and looks at the mark for the reason.
        self._closed = True
        # A copy, because each cancelled Deferred takes itself out of the list.
        for turn in list(self._semaphore.waiting):
            turn.cancel()
        self._preempt()

    async def until_free(self) -> None:
        """Fire when nobody is inside.  Only for a gate that was closed; cancelling stops waiting."""
        # It waits in the list where users waited, which is why nobody may come any more: it would count as a user who
        # waits, and stand before others.
        await self._semaphore.acquire()
        self._semaphore.release()
