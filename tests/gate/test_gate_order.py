"""The gate with patience: passing, lingering, and requests that only fill the cache."""

from __future__ import annotations

from collections.abc import Hashable

from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, lists, sampled_from, tuples
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.gate.gate import Gate
from bioproxy.gate.turn import Turn
from bioproxy.runtime.metrics import Metrics
from tests.support.visitors import GateTest


class OrderTest(GateTest):
    """A gate with ten seconds of patience, where the slot holds the conversation of the last user who was inside.

    A user's name begins with a letter, which is the conversation.
    """

    def build(self, limit: int, timeout: float) -> None:
        """Make the gate."""
        super().build(limit, timeout)
        self.gate = Gate(self.clock, self.metrics, limit, timeout, patience=10, linger=0.5)
        self.holds = ""
        self.switch_seconds = 1.0

    def setUp(self) -> None:
        """Many may wait."""
        super().setUp()
        self.build(limit=5, timeout=100)

    def comes(self, name: str, lingers: bool = False, fills_for: Hashable = None) -> Deferred[float]:
        """Let a user come; `lingers`: the answer will end with tool calls."""
        turn = self.gate.user(name, lambda: self.holds == name[0], fills_for, lambda: self.switch_seconds)
        self.turns[name] = turn

        async def visit() -> float:
            async with turn as waited:
                await self.stay(name)
                self.holds, turn.lingers = name[0], lingers
            return waited

        return Deferred.fromCoroutine(visit())

    def lingered(self, result: str) -> float | None:
        """Return how often lingering ended so."""
        return self.gauge("linger_total", result=result)

    def check_free(self) -> None:
        """Check that nothing is left behind."""
        self.assertEqual((None, 0, False), (self.gate.busy, self.gate.waiting, self.gate.queue.lingering))
        self.assertEqual([], self.clock.getDelayedCalls())


class Passing(OrderTest):
    """Users who go on with what the slot holds."""

    def test_passes(self) -> None:
        """The one who goes on is next; then it is the others' turn in their order, and the time was counted."""
        self.comes("a")
        for name in ("b", "c", "a2"):
            self.comes(name)
        self.leave("a")
        self.assertEqual(["a2"], self.inside)
        self.clock.advance(4)
        self.comes("d")
        self.leave("a2")
        self.assertEqual(["b"], self.inside)
        self.assertEqual([4, 4, 0], [self.turns[name].passed_s for name in "bcd"])
        self.leave("b")
        self.assertEqual(["c"], self.inside)
        # The two who got in after waiting, and the one who passed them, are in the histogram; others' time is not.
        self.assertEqual((8, 3), (self.gauge("passed_over_seconds_sum"), self.gauge("passed_over_seconds_count")))

    def test_until_patience_ends(self) -> None:
        """One who goes on and on passes others until their patience would be exceeded."""
        self.comes("a")
        self.comes("b")
        for number in range(4):
            self.comes(f"a{number}")
            self.leave(self.inside[0])
            self.clock.advance(3)
        # Three passed in nine seconds; a fourth would take three more.
        self.assertEqual(["b"], self.inside)
        self.assertEqual(9, self.turns["b"].passed_s)

    def test_no_patience(self) -> None:
        """Without patience it is the order of arrival, and nobody is asked."""
        self.gate.queue.patience = 0
        for name in ("a", "b", "a2"):
            self.comes(name, lingers=True)
        self.leave("a")
        self.assertEqual(["b"], self.inside)
        self.leave("b")
        self.assertEqual(["a2"], self.inside)

    def test_long_answers_are_forgotten(self) -> None:
        """An answer longer than the patience ends passing, until many others were served."""
        self.comes("a")
        self.comes("b")
        self.comes("a2")
        self.leave("a")
        self.clock.advance(20)
        self.comes("a3")
        self.leave("a2")
        # The patience of this one was exceeded by this one request; nobody passes any more.
        self.assertEqual((["b"], 20), (self.inside, self.turns["b"].passed_s))
        self.comes("c")
        self.comes("b2")
        self.leave("b")
        self.assertEqual(["a3"], self.inside)
        self.empty()
        for _ in range(64):
            self.comes("x")
            self.leave("x")
        for name in ("a", "b", "a2"):
            self.comes(name)
        self.leave("a")
        self.assertEqual(["a2"], self.inside)


class Lingering(OrderTest):
    """The moment after an answer with tool calls."""

    def lingers(self, *waiting: str) -> list[Deferred[float]]:
        """Let the gate linger for conversation "a" while these wait."""
        self.comes("a", lingers=True)
        visits = [self.comes(name) for name in waiting]
        self.leave("a")
        self.assertEqual(([], None, len(waiting)), (self.inside, self.gate.busy, self.gate.waiting))
        self.assertEqual(bool(waiting), self.gate.queue.lingering)
        return visits

    def test_comes(self) -> None:
        """The request that is lingered for enters at once; the others have lost that time, and what it takes."""
        self.lingers("b", "c")
        self.clock.advance(0.25)
        visit = self.comes("a2")
        self.assertEqual((["a2"], False), (self.inside, self.gate.queue.lingering))
        self.clock.advance(1)
        self.leave("a2")
        self.assertEqual(0, self.successResultOf(visit))
        self.assertEqual(["b"], self.inside)
        self.assertEqual([1.25, 1.25], [self.turns[name].passed_s for name in "bc"])
        self.assertEqual([1, 0, 0], [self.lingered(each) for each in ("came", "timeout", "abandoned")])
        self.empty()
        self.check_free()

    def test_cheap_switch(self) -> None:
        """Where the conversation is quickly brought back the next one enters at once."""
        self.switch_seconds = 0.2
        self.comes("a", lingers=True)
        self.comes("b")
        self.leave("a")
        self.assertEqual((["b"], False), (self.inside, self.gate.queue.lingering))
        self.empty()
        self.check_free()

    def test_does_not_come(self) -> None:
        """After the time the next one in order enters; a second answer's time is its own."""
        self.lingers("b", "c")
        self.clock.advance(0.4)
        self.assertEqual([], self.inside)
        self.clock.advance(0.1)
        self.assertEqual((["b"], 1), (self.inside, self.lingered("timeout")))
        self.assertEqual(0.5, self.turns["c"].passed_s)
        self.leave("b")
        self.assertEqual(["c"], self.inside)
        self.empty()
        self.check_free()

    def test_another_comes(self) -> None:
        """Another conversation's request waits for the rest of the time, behind those who wait already."""
        self.lingers("b")
        self.clock.advance(0.25)
        self.comes("d")
        self.assertEqual([], self.inside)
        self.clock.advance(0.25)
        self.assertEqual(["b"], self.inside)
        self.assertEqual([0.5, 0.25], [self.turns[name].passed_s for name in "bd"])

    def test_nobody_waited(self) -> None:
        """Where nobody waits the gate is free; who comes within the time waits for the rest of it."""
        self.lingers()
        self.clock.advance(0.375)
        self.comes("b")
        self.assertEqual(([], True), (self.inside, self.gate.queue.lingering))
        self.clock.advance(0.125)
        self.assertEqual(["b"], self.inside)
        self.empty()
        self.lingers()
        self.comes("a2")
        self.assertEqual(["a2"], self.inside)
        self.empty()
        self.lingers()
        self.clock.advance(0.5)
        self.comes("b")
        self.assertEqual(["b"], self.inside)
        self.empty()
        self.check_free()

    def test_hangs_up(self) -> None:
        """A client that hangs up while the gate lingers leaves the queue; with the last one lingering ends."""
        first, second = self.lingers("b", "c")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual((1, True), (self.gate.waiting, self.gate.queue.lingering))
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(1, self.lingered("abandoned"))
        self.check_free()
        # The time is not over, and the next request is still expected.
        self.comes("b")
        self.assertEqual([], self.inside)
        self.clock.advance(0.5)
        self.assertEqual(["b"], self.inside)

    def test_times_out(self) -> None:
        """Who has waited too long while the gate lingers is turned away, and the next one keeps waiting."""
        self.gate.timeout = 0.25
        self.comes("a", lingers=True)
        late = self.comes("b")
        self.gate.timeout = 100
        self.comes("c")
        self.leave("a")
        self.clock.advance(0.25)
        self.assertIn("waited", self.refusal(late).message)
        self.assertEqual(([], True), (self.inside, self.gate.queue.lingering))
        self.clock.advance(0.25)
        self.assertEqual(["c"], self.inside)

    def test_closes(self) -> None:
        """Closing while the gate lingers turns everybody away; nothing is left, and the gate is free."""
        visits = self.lingers("b", "c")
        self.gate.close()
        for visit in visits:
            self.assertEqual("bioproxy is shutting down", self.refusal(visit).message)
        self.successResultOf(Deferred.fromCoroutine(self.gate.until_free()))
        self.assertEqual(1, self.lingered("abandoned"))
        self.check_free()

    def test_closed_before(self) -> None:
        """A gate that was closed does not linger."""
        self.comes("a", lingers=True)
        self.gate.close()
        self.leave("a")
        self.check_free()

    def test_no_warmup(self) -> None:
        """No warm-up runs while the gate lingers; one that runs when nobody waits ends the time to linger."""
        self.lingers("b")
        self.assertFalse(self.successResultOf(self.warmup()))
        self.clock.advance(0.5)
        self.assertEqual(["b"], self.inside)
        self.empty()
        self.lingers()
        warmup = self.warmup()
        self.comes("b")
        self.assertEqual(["b"], self.inside)
        self.assertFalse(self.successResultOf(warmup))

    def test_unknown_slot(self) -> None:
        """Where the slot does not hold the conversation then, its next request could not be told: no lingering."""
        turn = self.gate.user("a", lambda: False)

        async def visit() -> None:
            async with turn:
                await self.stay("a")
                turn.lingers = True

        first = Deferred.fromCoroutine(visit())
        self.leave("a")
        self.successResultOf(first)
        self.comes("b")
        self.assertEqual(["b"], self.inside)

    def test_patience_ends(self) -> None:
        """The gate lingers only as long as the most impatient one allows."""
        self.gate.queue.patience = 0.25
        self.lingers("b")
        self.clock.advance(0.25)
        self.assertEqual((["b"], 0.25), (self.inside, self.turns["b"].passed_s))

    def test_full(self) -> None:
        """The request that is lingered for needs no place in a full queue; others are turned away."""
        self.gate.limit = 1
        self.lingers("b")
        self.refusal(self.comes("c"))
        self.comes("a2")
        self.assertEqual(["a2"], self.inside)

    def test_idle(self) -> None:
        """A lingering gate is not idle."""
        self.lingers("b")
        self.clock.advance(0.25)
        self.assertEqual(0, self.gate.stats.idle_seconds())


class Filling(OrderTest):
    """Requests that only fill the cache."""

    def test_last(self) -> None:
        """They wait until nobody else does."""
        self.comes("a")
        for name, client in (("f", "vim"), ("b", None), ("g", "emacs"), ("c", None)):
            self.comes(name, fills_for=client)
        for expected in "abcfg":
            self.assertEqual([expected], self.inside)
            self.leave(expected)
        self.check_free()

    def test_replaced(self) -> None:
        """A newer one of the same client replaces the one that waits, and takes its place where the queue is full."""
        self.gate.limit = 2
        self.comes("a")
        old, other = self.comes("f", fills_for="vim"), self.comes("g", fills_for="emacs")
        new = self.comes("h", fills_for="vim")
        error = self.refusal(old)
        self.assertEqual(("replaced by a newer request of the same client", 503), (error.message, error.status))
        self.assertEqual(1, error.retry_after)
        self.assertEqual(["g", "h"], [turn.who for turn in self.gate.queue.in_order()])
        self.empty()
        self.assertEqual([0, 0], [self.successResultOf(each) for each in (other, new)])
        self.check_free()

    def test_inside(self) -> None:
        """One that is inside is not replaced."""
        visit = self.comes("f", fills_for="vim")
        self.comes("g", fills_for="vim")
        self.assertNoResult(visit)
        self.assertEqual(["f"], self.inside)


STEP = 0.125
"""Seconds; a fraction that floats add without error."""


class Traffic:
    """Users who come at given times and stay for given times, at a real gate, with a clock of its own."""

    def __init__(self, patience: float, longest_known: float = 0.0) -> None:
        self.clock = Clock()
        self.gate = Gate(self.clock, Metrics(), 1000, 10000, patience, linger=0.5)
        self.holds: int | None = None
        self.turns: list[Turn] = []
        self.order: list[int] = []
        self.went_on: list[int] = []
        self.came: dict[int, float] = {}
        self.entered: dict[int, float] = {}
        self.left: dict[int, float] = {}
        if longest_known:
            known = self.gate.user()
            known.went_on = True
            self.gate.queue.user_left(known, longest_known)

    async def visit(self, number: int, conversation: int, seconds: float, lingers: bool) -> None:
        """Be one of the users."""
        turn = self.gate.user(number, lambda: self.holds == conversation)
        self.turns.append(turn)
        self.came[number] = self.clock.seconds()
        async with turn:
            self.order.append(number)
            self.entered[number] = self.clock.seconds()
            if self.holds == conversation:
                self.went_on.append(number)
            stay: Deferred[None] = Deferred()
            self.clock.callLater(seconds, stay.callback, None)
            await stay
            self.holds, turn.lingers = conversation, lingers
            self.left[number] = self.clock.seconds()

    def run(self, users: list[tuple[int, int, int, bool]]) -> None:
        """Let all of them come and go: steps after the one before, conversation, steps inside, tool calls."""
        visits = []
        for number, (after, conversation, steps, lingers) in enumerate(users):
            for _ in range(after):
                self.clock.advance(STEP)
            visits.append(Deferred.fromCoroutine(self.visit(number, conversation, steps * STEP, lingers)))
        # No more than all times together, and the longest time to linger after each.
        for _ in range(sum(steps + 5 for _, _, steps, _ in users)):
            self.clock.advance(STEP)
        assert all(visit.called for visit in visits)
        assert (self.gate.busy, self.gate.waiting, self.clock.getDelayedCalls()) == (None, 0, [])

    def passed(self, number: int) -> float:
        """Return by how many seconds a user was passed over, worked out from who was inside when."""
        came, entered = self.came[number], self.entered[number]
        inside = [(self.entered[each], self.left[each], each) for each in self.order]
        total = sum(left - begin for begin, left, each in inside if each > number and begin < entered)
        # While the user waited somebody was inside, or the gate lingered.
        idle = (entered - came) - sum(
            max(0.0, min(left, entered) - max(begin, came)) for begin, left, _ in inside if begin < entered
        )
        return total + idle


USERS = lists(tuples(integers(0, 12), sampled_from([1, 2, 3]), integers(1, 16), booleans()), min_size=2, max_size=14)
LONGEST = 16 * STEP


class AnyTraffic(SynchronousTestCase):
    """What holds for any arrivals and durations."""

    @settings(max_examples=500, derandomize=True, deadline=None)
    @given(USERS, integers(1, 60))
    def test_bound(self, users: list[tuple[int, int, int, bool]], patience: int) -> None:
        """Everybody gets in, and nobody is passed over for more than the patience if no answer exceeds the estimate."""
        traffic = Traffic(patience * STEP, longest_known=LONGEST)
        traffic.run(users)
        self.check(traffic, patience * STEP)

    @settings(max_examples=500, derandomize=True, deadline=None)
    @given(USERS, integers(1, 60))
    def test_bound_without_estimate(self, users: list[tuple[int, int, int, bool]], patience: int) -> None:
        """Where nothing is known of durations, one request's time may come on top, and no more."""
        traffic = Traffic(patience * STEP)
        traffic.run(users)
        self.check(traffic, patience * STEP + LONGEST)

    def check(self, traffic: Traffic, bound: float) -> None:
        """Check who came in when."""
        for number, turn in enumerate(traffic.turns):
            # The gate has counted right, and kept the bound.
            self.assertEqual(traffic.passed(number), turn.passed_s)
            self.assertLessEqual(turn.passed_s, bound)
            # Nobody waits for anything but those who were there before, and what was counted.
            before = sum(
                max(0.0, traffic.left[each] - max(traffic.entered[each], traffic.came[number]))
                for each in range(number)
            )
            self.assertLessEqual(traffic.entered[number] - traffic.came[number], before + turn.passed_s)
        # Those who did not go on with what the slot held came in in the order of their arrival.
        others = [number for number in traffic.order if number not in traffic.went_on]
        self.assertEqual(sorted(others), others)

    @settings(max_examples=200, derandomize=True, deadline=None)
    @given(USERS)
    def test_no_patience(self, users: list[tuple[int, int, int, bool]]) -> None:
        """Without patience it is the order of arrival, and the gate is never free while somebody waits."""
        traffic = Traffic(0)
        traffic.run(users)
        self.assertEqual(list(range(len(users))), traffic.order)
        self.assertEqual([0] * len(users), [turn.passed_s for turn in traffic.turns])
