"""Who may use llama-server, and in which order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.errors import Unavailable
from bioproxy.gate import Gate
from bioproxy.metrics import Metrics


class GateTest(SynchronousTestCase):
    """A gate, and users and warm-ups that stay inside until the test lets them go."""

    def setUp(self) -> None:
        """Make the gate: two may wait, for ten seconds."""
        self.build(limit=2)

    def build(self, limit: int) -> None:
        """Make another gate."""
        self.clock, self.metrics = Clock(), Metrics()
        self.gate = Gate(self.clock, self.metrics, limit, timeout=10)
        self.inside: list[str] = []
        self.most = 0
        self.stays: dict[str, Deferred[None]] = {}
        self.addCleanup(self.empty)

    async def stay(self, name: str) -> None:
        """Be inside until `leave`."""
        inside = self.inside
        inside.append(name)
        self.most = max(self.most, len(inside))
        stay = self.stays[name] = Deferred()
        try:
            await stay
        finally:
            inside.remove(name)

    def leave(self, name: str, error: Exception | None = None) -> None:
        """Let one go, with an error perhaps."""
        if error is None:
            self.stays.pop(name).callback(None)
        else:
            self.stays.pop(name).errback(error)

    def empty(self) -> None:
        """Let everybody go."""
        while self.inside:
            self.leave(self.inside[0])

    def user(self, name: str) -> Deferred[float]:
        """Let a user come; fires with the seconds waited."""

        async def visit() -> float:
            async with self.gate.user() as waited:
                await self.stay(name)
            return waited

        return Deferred.fromCoroutine(visit())

    def warmup(self, name: str = "warmup") -> Deferred[bool]:
        """Let a warm-up come."""
        return Deferred.fromCoroutine(self.gate.warmup(lambda: self.stay(name)))

    def saving(self, then: str = "") -> Deferred[bool]:
        """Let a warm-up come that is not to be disturbed, but for what it does then, if anything."""

        async def work() -> None:
            with self.gate.let_finish(last=not then):
                await self.stay("saving")
            if then:
                await self.stay(then)

        return Deferred.fromCoroutine(self.gate.warmup(work))

    def gauge(self, name: str, **labels: str) -> float | None:
        """Return a metric's value."""
        return self.metrics.registry.get_sample_value(f"bioproxy_{name}", labels)


class Users(GateTest):
    """Users among themselves."""

    def test_in_order(self) -> None:
        """Users come in the order of their arrival, one at a time, and learn how long they waited."""
        visits = [self.user(name) for name in "abc"]
        for name in "abc":
            self.assertEqual([name], self.inside)
            self.clock.advance(1)
            self.leave(name)
        self.assertEqual([0, 1, 2], [self.successResultOf(visit) for visit in visits])
        self.assertIsNone(self.gate.busy)

    def test_leaving_the_queue(self) -> None:
        """Cancelling one who waits takes him out; the one behind him is next."""
        first, second, third = (self.user(name) for name in "abc")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(1, self.gate.waiting)
        self.leave("a")
        self.assertEqual(["c"], self.inside)
        self.successResultOf(first)
        self.assertNoResult(third)

    def test_cancelled_inside(self) -> None:
        """Cancelling the one inside frees the gate at once."""
        first, _second = self.user("a"), self.user("b")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(["b"], self.inside)

    def test_failing(self) -> None:
        """What fails inside fails outside too, and frees the gate."""
        first, _second = self.user("a"), self.user("b")
        self.leave("a", ZeroDivisionError())
        self.failureResultOf(first, ZeroDivisionError)
        self.assertEqual(["b"], self.inside)

    def test_limit(self) -> None:
        """Where as many wait as may, the next is refused, with a hint to come again; a place given up is free."""
        _first, second, _third = (self.user(name) for name in "abc")
        self.assertIsNotNone(self.failureResultOf(self.user("d"), Unavailable).value.retry_after)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertNoResult(self.user("e"))

    def test_limit_of_none(self) -> None:
        """With room for nobody in the queue a free gate still lets users in, and a warm-up keeps nobody out."""
        self.build(limit=0)
        first = self.user("a")
        self.leave("a")
        self.successResultOf(first)
        self.warmup()
        self.user("b")
        self.assertEqual(["b"], self.inside)
        self.failureResultOf(self.user("c"), Unavailable)

    def test_timeout(self) -> None:
        """Who has waited for the timeout is refused, and no longer in the queue; being inside has no limit."""
        first, second = self.user("a"), self.user("b")
        self.clock.advance(9)
        self.assertNoResult(second)
        self.clock.advance(1)
        self.failureResultOf(second, Unavailable)
        self.assertEqual(0, self.gate.waiting)
        self.clock.advance(100)
        self.assertNoResult(first)
        self.leave("a")
        self.assertIsNone(self.gate.busy)


class Warmups(GateTest):
    """Warm-ups between users."""

    def test_done(self) -> None:
        """A warm-up alone is done to its end, and says so."""
        warmup = self.warmup()
        self.assertEqual("warmup", self.gate.busy)
        self.leave("warmup")
        self.assertTrue(self.successResultOf(warmup))
        self.assertIsNone(self.gate.busy)

    def test_not_beside_others(self) -> None:
        """A warm-up does not begin while a user or another warm-up is inside."""
        for first in (self.user, self.warmup):
            first("first")
            self.assertFalse(self.successResultOf(self.warmup("second")))
            self.assertEqual(["first"], self.inside)
            self.leave("first")

    def test_preempted(self) -> None:
        """A user who comes ends a warm-up, is inside at once, and the warm-up says that it was not done."""
        warmup = self.warmup()
        self.user("a")
        self.assertEqual(["a"], self.inside)
        self.assertFalse(self.successResultOf(warmup))

    def test_let_finish(self) -> None:
        """What must be finished is finished before the user's turn; if it was the last thing, the warm-up was done."""
        warmup = self.saving()
        user = self.user("a")
        self.assertEqual((["saving"], 1), (self.inside, self.gate.waiting))
        self.clock.advance(3)
        self.leave("saving")
        self.assertTrue(self.successResultOf(warmup))
        self.assertEqual(["a"], self.inside)
        self.leave("a")
        self.assertEqual(3, self.successResultOf(user))
        # The permission was for that one: the next warm-up gives way again.
        self.warmup()
        self.user("b")
        self.assertEqual(["b"], self.inside)

    def test_let_finish_in_the_middle(self) -> None:
        """Where it was not the last thing, a user who came meanwhile is next, and the warm-up was not done."""
        warmup = self.saving(then="more")
        self.user("a")
        self.assertEqual((["saving"], 1), (self.inside, self.gate.waiting))
        self.leave("saving")
        self.assertEqual(["a"], self.inside)
        self.assertFalse(self.successResultOf(warmup))

    def test_nobody_came(self) -> None:
        """If nobody came meanwhile, or who came gave up, the warm-up goes on, and gives way again."""
        warmup = self.saving(then="more")
        visit = self.user("a")
        visit.cancel()
        self.failureResultOf(visit, CancelledError)
        self.leave("saving")
        self.assertEqual(["more"], self.inside)
        self.user("b")
        self.assertEqual(["b"], self.inside)
        self.assertFalse(self.successResultOf(warmup))

    def test_failing_meanwhile(self) -> None:
        """A failure of what must be finished is told, whoever waits; then it is the user's turn."""
        warmup = self.saving(then="more")
        self.user("a")
        self.leave("saving", ZeroDivisionError())
        self.failureResultOf(warmup, ZeroDivisionError)
        self.assertEqual(["a"], self.inside)

    def test_stopped(self) -> None:
        """A warm-up cancelled from outside is not reported as one that gave way, not even after one that did."""
        self.warmup()
        self.user("a")
        self.leave("a")
        warmup = self.warmup()
        warmup.cancel()
        self.failureResultOf(warmup, CancelledError)
        self.assertEqual(([], None), (self.inside, self.gate.busy))

    def test_failing(self) -> None:
        """A warm-up that fails tells how, and frees the gate."""
        warmup = self.warmup()
        self.leave("warmup", ZeroDivisionError())
        self.failureResultOf(warmup, ZeroDivisionError)
        self.user("a")
        self.assertEqual(["a"], self.inside)


class Idle(GateTest):
    """For how long no user was here."""

    def test_idle(self) -> None:
        """It counts from the start, or from when the last user left; while one is inside or waits it is nought."""

        def idle_after(seconds: float) -> float:
            self.clock.advance(seconds)
            return self.gate.idle_seconds()

        self.assertEqual(5, idle_after(5))
        self.user("a")
        self.assertEqual(0, idle_after(5))
        self.user("b")
        self.leave("a")
        self.assertEqual(0, idle_after(5))
        self.leave("b")
        self.assertEqual(2, idle_after(2))

    def test_warmups(self) -> None:
        """A warm-up is nobody, but a user who waits for one to leave is somebody."""
        self.warmup()
        self.clock.advance(5)
        self.assertEqual(5, self.gate.idle_seconds())
        self.leave("warmup")
        self.assertEqual(5, self.gate.idle_seconds())
        saving = self.saving()
        self.user("a")
        self.clock.advance(1)
        self.assertEqual((1, 0), (self.gate.waiting, self.gate.idle_seconds()))
        self.leave("saving")
        self.successResultOf(saving)

    def test_gave_up(self) -> None:
        """A user who failed inside was here; one who gave up in the queue was not inside."""
        failed, waiting = self.user("a"), self.user("b")
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.clock.advance(3)
        self.leave("a", ZeroDivisionError())
        self.failureResultOf(failed, ZeroDivisionError)
        self.clock.advance(1)
        self.assertEqual(1, self.gate.idle_seconds())


class Numbers(GateTest):
    """What the metrics say."""

    def test_gauges(self) -> None:
        """Depth and use of the gate are right at each moment."""

        def numbers() -> tuple[float | None, ...]:
            return (
                self.gauge("queue_depth"),
                self.gauge("gate_busy", kind="user"),
                self.gauge("gate_busy", kind="warmup"),
            )

        self.assertEqual((0, 0, 0), numbers())
        self.warmup()
        self.assertEqual((0, 0, 1), numbers())
        self.user("a")
        self.assertEqual((0, 1, 0), numbers())
        waiting = self.user("b")
        self.user("c")
        self.assertEqual((2, 1, 0), numbers())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual((1, 1, 0), numbers())
        self.leave("a")
        self.leave("c")
        self.assertEqual((0, 0, 0), numbers())

    def test_preempting(self) -> None:
        """The time from a user's arrival in a warm-up to the free gate is measured, and only that."""
        self.user("a")
        self.user("b")
        self.leave("a")
        self.leave("b")
        self.assertEqual(0, self.gauge("preempt_seconds_count"))
        self.warmup()
        self.user("c")
        self.assertEqual(1, self.gauge("preempt_seconds_count"))


class Anything(GateTest):
    """Whatever comes, in whatever order."""

    def test_random_visits(self) -> None:
        """Never two inside, users in order, no warm-up while a user waits, and nobody is left behind."""
        for seed in range(30):
            self.build(limit=5)
            self.run_day(random.Random(seed))

    def run_day(self, chance: random.Random) -> None:
        """Let users and warm-ups come, leave, fail and give up, 200 times."""
        names: Iterator[int] = count()
        visits: dict[str, Deferred[object]] = {}
        queue: list[str] = []  # the users that should be waiting or inside, in order
        for _ in range(200):
            what = chance.choice(["user", "user", "warmup", "leave", "leave", "fail", "cancel", "time"])
            if what == "user" and len(queue) <= 5:
                name = f"user {next(names)}"
                visits[name] = self.user(name).addErrback(lambda _: None)
                queue.append(name)
            elif what == "warmup":
                self.warmup(f"warmup {next(names)}").addErrback(lambda _: None)
            elif what in ("leave", "fail") and self.inside:
                name = self.inside[0]
                self.leave(name, ZeroDivisionError() if what == "fail" else None)
                queue = [each for each in queue if each != name]
            elif what == "cancel" and queue:
                name = chance.choice(queue)
                queue.remove(name)
                visits[name].cancel()
            elif what == "time":
                self.clock.advance(1)
                if self.gate.waiting < len(queue) - 1:  # some waited too long: the first ones
                    del queue[1 : len(queue) - self.gate.waiting]
            if queue:
                self.assertEqual([queue[0]], self.inside)
            self.assertEqual(max(0, len(queue) - 1), self.gate.waiting)
            busy = {"u": "user", "w": "warmup"}[self.inside[0][0]] if self.inside else None
            self.assertEqual(busy, self.gate.busy)
        self.empty()
        self.assertEqual((None, 0, 1), (self.gate.busy, self.gate.waiting, self.most))
