"""The users who wait at the gate: in which order they leave the queue, and what the waiting has cost them.

`bioproxy.gate.order` decides who goes next; it is pure and gets values.  This module makes these values: it has the
list of waiting turns, measures by how many seconds each was passed over, and keeps the timer of a lingering gate.
`bioproxy.gate.token` has the token that guards the slot, a `DeferredSemaphore`.  The gate asks here for the next turn
whenever the token is free.

Each waiting turn has a `Deferred` of its own, which its coroutine awaits and which the gate fires.  Twisted's
`DeferredSemaphore` has such a list, too, but gives its token always to the first in it.  So the turns wait here, and
the token is asked for only when it is known for whom.

A Deferred may have a *canceller*: a function that Twisted calls when the Deferred is cancelled.  Here it takes the turn
out of the queue.  A client that hangs up and a time-out both cancel the Deferred, so both leave the queue by the same
way, and nobody has to look for turns whose clients have gone.

A lingering gate waits for something that may never come, so it needs a timer: `callLater` of the reactor returns an
`IDelayedCall`, which can be cancelled until it has fired.  Invariant of all code below: there is such a timer if and
only if the gate lingers, and a decision cancels it before it looks at anything.

This module does not know requests, conversations or the slot: it asks a turn whether it goes on with what is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from bioproxy.gate.order import RECENT_TURNS, Linger, Policy, WaitingTurn, decide, expected_s, in_order, worth_lingering
from bioproxy.gate.turn import Turn
from bioproxy.runtime.errors import Unavailable
from bioproxy.runtime.metrics import Metrics


class WaitingQueue:
    """The turns that wait, in the order of arrival.

    Invariants: a turn is in the queue if and only if its Deferred has not fired.  While the gate lingers, at least one
    turn waits and nobody is inside.
    """

    patience: float
    """Seconds by which a request may be passed over in all; 0 for the order of arrival.  May be changed at any time."""

    linger: float
    """Seconds to wait for the next request after an answer with tool calls.  Applies to the answers that end later."""

    lingering: bool
    """Whether users wait although nobody is inside, because a request of the last conversation is expected."""

    def __init__(
        self, clock: IReactorTime, metrics: Metrics, patience: float, linger: float, reconsider: Callable[[], None]
    ) -> None:
        """Make an empty queue; `reconsider` is called when waiting turns may enter for another reason than the token.

        There are two such reasons: the time to linger is over, or a turn has left the queue while the gate lingered.
        """
        self.patience, self.linger, self.lingering = patience, linger, False
        self._clock = clock
        self._metrics = metrics
        self._reconsider = reconsider
        self._turns: list[Turn] = []
        # The same turns as `in_order` returns them; `None` after each change of `_turns`.  Each method that changes
        # `_turns` sets it to `None` in the next line, before any other code can run.
        self._ordered: list[Turn] | None = None
        # Until when the gate may linger, by the clock; `None` if there is no reason to.  This window is open also while
        # nobody waits: who comes then has to wait for the rest of it.
        self._linger_until: float | None = None
        # The reactor's timer that ends lingering.  It belongs to the gate and to no client, so no hang-up cancels it.
        self._timer: IDelayedCall | None = None
        # For each of the latest turns the seconds inside, or 0 if it did not go on with the slot's conversation.
        self._recent: deque[float] = deque(maxlen=RECENT_TURNS)

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def may_be_bypassed(self) -> bool:
        """Whether a user who finds the gate free may enter at once, because there is nothing to decide."""
        # The usual case of a single client, so it costs two comparisons and no Deferred.
        return not self._turns and self._linger_until is None

    def in_order(self) -> list[Turn]:
        """Return the turns in the order in which they will come in, as far as that is known.  Not to be changed."""
        # Who will pass is not known before the slot is free: until then it is being changed, and holds nothing that
        # could be gone on with.
        # So the order of arrival is the best guess, and only those that let everybody pass are behind it.
        #
        # Each waiting client asks for its place every few seconds, so the list is kept until the queue changes.
        if self._ordered is None:
            self._ordered = [
                self._turns[index] for index in in_order([turn.fills_for is not None for turn in self._turns])
            ]
        return self._ordered

    def place(self, turn: Turn) -> int:
        """Return a turn's place in that order, 1 for the first; 0 for a turn that does not wait."""
        # Searched every few seconds, when a client is sent its place, instead of being kept up to date for all users.
        return self.in_order().index(turn) + 1 if turn in self._turns else 0

    # Joining and leaving.

    def join(self, turn: Turn, timeout: float) -> Deferred[Any]:
        """Add a turn; the Deferred fires with `None` when the gate lets the user in.

        It fails with `TimeoutError` after `timeout` seconds, and with `Unavailable` if a newer request of the same
        client replaces this one.  Cancelling it leaves the queue.
        """
        acquired: Deferred[Any] = Deferred(lambda _: self._give_up(turn))
        # The timer is stopped when the Deferred fires or fails.
        acquired.addTimeout(timeout, self._clock)
        turn.acquired = acquired
        self._turns.append(turn)
        self._ordered = None
        return acquired

    def replace(self, client: object, error: Unavailable) -> None:
        """Turn away the waiting request of a client that only fills the cache, because a newer one is here."""
        # Taken out first: failing a Deferred runs the other request's coroutine at once, inside `errback`, and that
        # reads the queue.  The place that becomes free is counted when the newer request joins.
        #
        # llama.vim sends such a request about a second after each change, with all that the cache should hold, and
        # ignores the answer.  Only the newest request is of use.
        for turn in [each for each in self._turns if each.fills_for == client]:
            self._turns.remove(turn)
            self._ordered = None
            turn.acquired.errback(error)

    def _give_up(self, turn: Turn) -> None:
        """Take a turn out, because its Deferred was cancelled.  Called by Twisted, before the Deferred fails."""
        # A turn that gave up was passed over as well.  Without its time, the histogram would show only the patient
        # ones.
        self._charge()
        self._turns.remove(turn)
        self._ordered = None
        self._observe(turn)
        # It may have been the impatient one who kept the gate from lingering longer, or the last one who waited.
        if self.lingering:
            self._reconsider()

    def close(self) -> None:
        """Turn away everybody: each Deferred is cancelled."""
        # First the timer: each cancelled turn below would otherwise have it decided again who goes next.
        self._end_lingering("abandoned")
        self._linger_until = None
        # A copy, because each cancelled Deferred takes its turn out of the list.
        for turn in list(self._turns):
            turn.acquired.cancel()

    # What happens inside.

    def user_left(self, turn: Turn, seconds: float) -> None:
        """Note that a user's turn has ended, after so many seconds inside."""
        # Only now is it known how long this turn has taken, so only now those that it passed have lost that time.
        self._charge(ends=True)
        self._recent.append(seconds if turn.went_on else 0.0)
        # The next request can be recognised only if the slot is known to hold this conversation now.  Otherwise
        # lingering would delay the others, and that very request as well.
        # What a switch would cost is asked at this moment, too, since the answer has just made the conversation longer.
        if turn.lingers and self.patience > 0 and turn.goes_on():
            linger = worth_lingering(self.linger, turn.switch_seconds())
            self._linger_until = self._clock.seconds() + linger if linger else None

    def warmup_entered(self) -> None:
        """Note that a warm-up came in: it changes what the slot holds, so nothing is waited for any more."""
        self._linger_until = None

    def next(self) -> Turn | None:
        """Take out the turn that goes next; `None` if nobody waits, or if the gate lingers.

        For the gate, when nobody is inside.  The caller must let that user in.
        """
        if not self._turns:
            # The usual case of a single client.  The time to linger goes on, for the next user who comes.
            if self.lingering:
                self._end_lingering("abandoned")
            return None
        # Everything is computed anew at each call, so it does not matter what has changed since the last one: somebody
        # came, somebody gave up, or the time is over.
        self._charge(ends=True)
        self._stop_timer()
        # Each turn is asked whether it goes on with what the slot holds at this moment; no answer of an earlier call is
        # kept, because every request changes the slot.
        decision = decide([self._value(turn) for turn in self._turns], self._policy())
        if isinstance(decision, Linger):
            # Everybody who waits now loses the time from now on, also those who came just now; the time before this
            # call has been charged above.  The next user who comes causes another call, and is charged from then on.
            self.lingering = True
            self._begin_charging(self._turns)
            self._timer = self._clock.callLater(decision.seconds, self._linger_is_over)
            return None
        assert decision is not None  # somebody waits
        # The turn leaves the list here, before its coroutine runs: the gate fires its Deferred after this call, and
        # from then on the turn can no longer give up waiting.
        turn = self._turns[decision.index]
        turn.went_on = self._goes_on(turn)
        self._end_lingering("came" if turn.went_on else "timeout")
        self._linger_until = None
        del self._turns[decision.index]
        self._ordered = None
        self._observe(turn)
        # From now on these are being passed over.  All others have come later than `turn`, and lose nothing by it.
        self._begin_charging(self._turns[: decision.index])
        return turn

    def _policy(self) -> Policy:
        """Return what the decision depends on apart from the queue."""
        left = 0.0 if self._linger_until is None else self._linger_until - self._clock.seconds()
        return Policy(self.patience, expected_s(self._recent), left)

    def _value(self, turn: Turn) -> WaitingTurn:
        """Return a turn as the decision sees it."""
        return WaitingTurn(self._goes_on(turn), turn.passed_s, turn.fills_for is not None)

    def _goes_on(self, turn: Turn) -> bool:
        """Tell whether a turn goes on with what the slot holds; not asked where nobody may pass anyway."""
        # Also where a turn is the first and passes nobody: its time inside counts for the estimate.
        return self.patience > 0 and turn.goes_on()

    # Lingering.

    def _linger_is_over(self) -> None:
        """Let the next one in, because the expected request did not come in time.  Called by the clock."""
        # A timer that has fired must not be cancelled: Twisted raises `AlreadyCalled`.  Without the second line the
        # next decision might find a tiny rest of the time, and linger again.
        self._timer = None
        self._linger_until = None
        self._reconsider()

    def _stop_timer(self) -> None:
        """Cancel the timer, if there is one."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _end_lingering(self, result: str) -> None:
        """Count the end of lingering, if the gate did linger: `result` says what ended it."""
        self._stop_timer()
        if self.lingering:
            self.lingering = False
            self._metrics.linger.labels(result).inc()

    # Seconds by which turns are passed over.

    def _begin_charging(self, turns: list[Turn]) -> None:
        """Count the time from now on as time by which these turns are passed over."""
        now = self._clock.seconds()
        for turn in turns:
            turn.passed_since = now

    def _charge(self, ends: bool = False) -> None:
        """Add the time until now to each turn that is being passed over; `ends` tells that passing has ended."""
        now = self._clock.seconds()
        for turn in self._turns:
            if turn.passed_since is not None:
                turn.passed_s += now - turn.passed_since
                turn.passed_since = None if ends else now

    def _observe(self, turn: Turn) -> None:
        """Count by how many seconds a turn that has waited was passed over."""
        self._metrics.passed_over_seconds.observe(turn.passed_s)
