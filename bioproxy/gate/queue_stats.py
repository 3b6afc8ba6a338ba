"""Numbers about the queue at the gate: what operators see, and when a client that is turned away should come again.

`bioproxy.gate.gate` decides who comes in; it reports each arrival and departure here, and nothing here ever changes a
decision.  The only number that leaves the operator's world is `QueueStats.retry_after`: an estimate, because nobody
knows how long the answers before will take, but a better one than a constant.

There is one idea of Prometheus's here.  A *gauge* is a number that goes up and down.  The obvious way is to set it at
each change, and to forget one of them.  These gauges are given a function instead, which is called when Prometheus
asks, so they cannot lag behind the gate.

All durations are by the clock that is handed in, which is the reactor's and monotonic (`bioproxy.runtime.clock`).  Only
`timestamp` reads the wall clock, and only for people.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timezone

from twisted.internet.interfaces import IReactorTime

from bioproxy.gate.turn import Turn
from bioproxy.runtime.metrics import Metrics

RECENT = 0.3
"""The weight of the last user's time in the mean service time, from 0 to 1.

With 0.15, the estimate still follows yesterday's short answers when somebody begins to ask long ones; with 0.6, a
single long answer makes all clients wait too long.
"""

RETRY_AFTER = (1, 600)
"""The least and the most seconds after which a client that was turned away is told to come again.

Less than one second would have clients hammer at a full queue.  Twice the most would only be another way to say
"never": a queue that takes longer than ten minutes has been cut short by ``queue_timeout`` already, by default.
"""


class QueueStats:
    """What has happened at the gate.  Invariant: it has heard of every user who came in or left, in that order."""

    inside: Turn | None
    """The turn of the user who is inside, `None` for a warm-up or nobody."""

    def __init__(
        self, clock: IReactorTime, metrics: Metrics, waiting: Callable[[], int], busy: Callable[[], str | None]
    ) -> None:
        """Count at a gate; `waiting` and `busy` tell how it is there at the moment of the call."""
        # They are functions and no numbers because they change without notice: a turn whose Deferred is
        # cancelled leaves the queue by itself.
        self.inside = None
        self._clock = clock
        self._metrics = metrics
        self._warmup_since = ""
        self._waiting = waiting
        self._busy = busy
        self._peak = 0
        self._entered_at = self._user_left_at = clock.seconds()
        self._service_seconds = 0.0
        metrics.queue_depth.set_function(waiting)
        metrics.gate_busy.labels("user").set_function(lambda: busy() == "user")
        metrics.gate_busy.labels("warmup").set_function(lambda: busy() == "warmup")

    # What the gate reports.

    def user_joined(self) -> None:
        """Note that one more user may be waiting."""
        # May be, because a user who finds the gate free, or whom a warm-up makes room for, is let in at once.  The peak
        # is what the live page draws, and a queue that nobody stood in must not show there.
        self._peak = max(self._peak, self._waiting())

    def user_entered(self, turn: Turn, waited: float, behind_warmup: bool) -> None:
        """Note that a user came in after so many seconds; `behind_warmup`: a warm-up was inside at the arrival."""
        self.inside = turn
        self._entered_at = self._clock.seconds()
        # How quickly warm-ups give way is a promise of its own, so it has a metric of its own.
        if behind_warmup:
            self._metrics.preempt_seconds.observe(waited)

    def user_left(self) -> float:
        """Note that the turn of the user who was inside has ended, with all work that had to be done afterwards.

        Return for how many seconds the user was inside.
        """
        self.inside = None
        self._user_left_at = self._clock.seconds()
        # An exponential moving average: old users count less and less, and there is no list of them to keep.
        seconds, known = self._user_left_at - self._entered_at, self._service_seconds
        self._service_seconds = seconds if not known else known + RECENT * (seconds - known)
        return seconds

    def warmup_entered(self) -> None:
        """Note that a warm-up came in."""
        self._warmup_since = timestamp()

    # What others ask.

    @property
    def inside_since(self) -> str | None:
        """When the user or warm-up inside came in, in ISO 8601; `None` if nobody is inside."""
        # A moment and not a duration, so that it stays the same while nothing happens and need not be sent to the page
        # again each second.
        turn = self.inside
        return turn.since if turn is not None else self._warmup_since if self._busy() == "warmup" else None

    def idle_seconds(self) -> float:
        """Return for how many seconds no user has been inside or waiting, 0 if one is.

        A warm-up counts as idleness: this is how warm-ups and the saving of conversations find a quiet moment.
        """
        if self._busy() == "user" or self._waiting():
            return 0.0
        return self._clock.seconds() - self._user_left_at

    def take_peak(self) -> int:
        """Return how many users waited at most since this was last called."""
        # Those who wait now are counted for the next call as well: they are still waiting in its time.
        peak, self._peak = max(self._peak, self._waiting()), self._waiting()
        return peak

    def retry_after(self) -> int:
        """Return the seconds after which the queue will probably be shorter."""
        least, most = RETRY_AFTER
        # As if those who wait now would be served one after the other, each in the mean time.
        # Nobody waiting still counts as one: a client that was turned away then has met a gate that is closed, or full.
        seconds = math.ceil(self._service_seconds * max(1, self._waiting()))
        return min(max(seconds, least), most)


def timestamp() -> str:
    """Return the present time in ISO 8601, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
