"""The gate's promises, held against whatever order of events hypothesis thinks of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from hypothesis import given, settings
from hypothesis.strategies import integers, lists, sampled_from, tuples
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.errors import Unavailable
from tests.support.visitors import Visitors

LIMIT, TIMEOUT = 3, 10


class Day(Visitors):
    """A gate, and what may happen at it; each thing takes a number that makes it a little different.

    `expected` says of each user who must be gone how his visit must have ended, `ended` how it has.
    """

    def __init__(self) -> None:
        self.build(LIMIT, TIMEOUT)
        self.numbers = count()
        self.closed = False
        self.visits: dict[str, Deferred[float]] = {}
        self.arrived: dict[str, float] = {}
        self.expected: dict[str, type] = {}
        self.ended: dict[str, type] = {}
        self.running: Deferred[bool] | None = None

    def waiting(self) -> list[str]:
        """Return the users who should be waiting now, in the order of their arrival."""
        return [name for name in self.visits if name not in self.entered and name not in self.expected]

    def kind(self) -> str | None:
        """Return what is inside: a user, something after one, a warm-up, or one that is saving."""
        return self.inside[0].split()[0] if self.inside else None

    def user_comes(self, number: int) -> None:
        """Let a user come; every third leaves something to be done."""
        which = next(self.numbers)
        name = f"user {which}"
        if self.closed or len(self.waiting()) >= LIMIT:
            self.expected[name] = Unavailable
        self.arrived[name] = self.clock.seconds()
        saving = list(self.inside) if self.kind() == "saving" else None
        visit = self.visits[name] = self.user(name, then="" if number % 3 else f"after {which}")

        def end(result: object) -> None:
            self.ended[name] = type(result.value if isinstance(result, Failure) else result)

        visit.addBoth(end)
        assert saving in (None, self.inside)

    def warmup_comes(self, number: int) -> None:
        """Let a warm-up come, which works, saves, or does both."""
        which = next(self.numbers)
        work, save = f"warmup {which}", f"saving {which}"
        free = not self.inside and not self.closed
        then = work if number % 3 == 1 else ""
        warmup = self.warmup(work) if number % 3 == 0 else self.saving(then, name=save)
        assert warmup.called != free
        if free:
            self.running = warmup
            warmup.addErrback(lambda failure: failure.trap(CancelledError, ZeroDivisionError))

    def inside_ends(self, number: int) -> None:
        """Let who is inside come to an end, every third time a bad one."""
        if self.inside:
            # What comes after a turn fails elsewhere: it is logged.
            name, fails = self.inside[0], number % 3 == 0 and self.kind() != "after"
            if self.kind() == "user":
                self.expected[name] = ZeroDivisionError if fails else float
            self.leave(name, ZeroDivisionError() if fails else None)

    def user_hangs_up(self, number: int) -> None:
        """Let a user hang up who waits or is inside."""
        if present := [name for name in self.visits if name not in self.expected]:
            name = present[number % len(present)]
            self.expected[name] = CancelledError
            self.visits[name].cancel()

    def warmup_is_stopped(self, number: int) -> None:
        """Stop the warm-up that is inside, whatever it does."""
        if self.running is not None and self.kind() in ("warmup", "saving"):
            self.running.cancel()

    def time_passes(self, number: int) -> None:
        """Let some seconds pass."""
        seconds = number % TIMEOUT + 1
        for name in self.waiting():
            if self.clock.seconds() + seconds - self.arrived[name] >= TIMEOUT:
                self.expected[name] = Unavailable
        self.clock.advance(seconds)

    def closes(self, number: int) -> None:
        """Close the gate, now and then."""
        if number == 7:
            self.expected |= dict.fromkeys(self.waiting(), Unavailable)
            self.closed = True
            self.gate.close()

    def check(self) -> None:
        """Check all that must be so at every moment."""
        # At most one is inside, and the gate says who.
        assert len(self.inside) <= 1
        busy = {"user": "user", "after": "user", "warmup": "warmup", "saving": "warmup", None: None}
        assert self.gate.busy == busy[self.kind()]
        # Users came in in the order of their arrival, and those who wait know their places.
        entered = [name for name in self.entered if name in self.visits]
        assert entered == [name for name in self.visits if name in entered]
        waiting = self.waiting()
        assert self.gate.waiting == len(waiting) <= LIMIT
        places = [self.gate.queue.place(self.turns[name]) for name in waiting]
        assert places == list(range(1, len(waiting) + 1))
        # While a user waits the gate is not free, and no warm-up goes on but one that is saving.
        assert not waiting or self.kind() in ("user", "after", "saving")
        # Whoever had to go is gone, for just this reason, and nobody else is.
        assert self.ended == self.expected

    def close_of_day(self) -> None:
        """Let everybody come to an end: everybody does, the gate is free, and nothing is left behind."""
        while self.inside:
            self.inside_ends(1)
            self.check()
        assert self.ended.keys() == self.visits.keys()
        assert self.running is None or self.running.called
        assert (self.gate.busy, self.gate.waiting, self.clock.getDelayedCalls()) == (None, 0, [])


EVENTS = [
    Day.user_comes,
    Day.user_comes,
    Day.warmup_comes,
    Day.inside_ends,
    Day.user_hangs_up,
    Day.warmup_is_stopped,
    Day.time_passes,
    Day.closes,
]


class AnyOrder(SynchronousTestCase):
    """Users and warm-ups come, end, fail, hang up and wait too long, and the gate is closed, in any order."""

    @settings(max_examples=300, derandomize=True, deadline=None)
    @given(lists(tuples(sampled_from(EVENTS), integers(0, 20)), min_size=15, max_size=60))
    def test_any_day(self, events: list[tuple[Callable[[Day, int], None], int]]) -> None:
        """One at a time, users in order, no warm-up before a user, everyone ends, and the gate is free at the end."""
        day = Day()
        for happen, number in events:
            happen(day, number)
            day.check()
        day.close_of_day()
