"""Who may use llama-server, and in which order."""

from __future__ import annotations

from datetime import datetime, timedelta

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.errors import Unavailable
from tests.support.visitors import Visitors


class GateTest(Visitors, SynchronousTestCase):
    """A gate where two may wait, for ten seconds."""

    def setUp(self) -> None:
        """Make it."""
        self.build(limit=2, timeout=10)
        self.addCleanup(lambda: self.empty())

    def refusal(self, visit: Deferred[float]) -> Unavailable:
        """Return why a user was turned away."""
        error = self.failureResultOf(visit, Unavailable).value
        assert isinstance(error, Unavailable)
        return error

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
        """Where as many wait as may, the next is refused and told so; a place given up is free."""
        _first, second, _third = (self.user(name) for name in "abc")
        self.assertEqual(
            "llama-server is busy, and 2 requests are waiting already", self.refusal(self.user("d")).message
        )
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertNoResult(self.user("e"))

    def test_limit_of_none(self) -> None:
        """With room for nobody in the queue a free gate still lets users in, and a warm-up keeps nobody out."""
        self.build(limit=0, timeout=10)
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
        self.clock.advance(4)
        third = self.user("c")
        self.clock.advance(5.9)
        self.assertNoResult(second)
        self.clock.advance(0.1)
        self.assertEqual("waited 10 s for llama-server to be free", self.refusal(second).message)
        self.assertNoResult(third)
        self.leave("a")
        self.assertEqual(["c"], self.inside)
        self.clock.advance(100)
        self.leave("c")
        self.assertEqual((0, 6), (self.successResultOf(first), self.successResultOf(third)))
        self.assertIsNone(self.gate.busy)

    def test_timeout_behind_a_save(self) -> None:
        """The time to wait is over behind a warm-up that must be finished, too; then it goes on."""
        self.saving(then="more")
        visit = self.user("a")
        self.clock.advance(10)
        self.assertIn("waited 10 s", self.refusal(visit).message)
        self.leave("saving")
        self.assertEqual(["more"], self.inside)

    def test_no_timers_left(self) -> None:
        """Whoever does not wait any more is not timed: who came in, gave up, or was turned away."""
        visits = [self.user(name) for name in "abcd"]
        visits[1].cancel()
        self.failureResultOf(visits[1], CancelledError)
        self.refusal(visits[3])
        self.leave("a")
        self.assertEqual((["c"], []), (self.inside, self.clock.getDelayedCalls()))

    def test_in_and_out(self) -> None:
        """However many come in and leave in one moment, all get their turn."""
        self.build(limit=1000, timeout=10)
        served: list[int] = []

        async def visit(number: int) -> None:
            async with self.gate.user():
                served.append(number)

        self.user("a")
        visits = [Deferred.fromCoroutine(visit(number)) for number in range(1000)]
        self.leave("a")
        self.assertEqual(list(range(1000)), served)
        self.assertEqual([None] * 1000, [self.successResultOf(each) for each in visits])
        self.assertEqual((None, 0), (self.gate.busy, self.gate.waiting))


class Places(GateTest):
    """The place in the queue."""

    def places(self) -> list[int]:
        """Return everybody's place."""
        return [turn.place for turn in self.turns.values()]

    def test_place(self) -> None:
        """The next one has place 1; who is inside, has been, or gave up has none, and the others move up."""
        self.assertEqual(0, self.gate.user().place)
        self.build(limit=4, timeout=10)
        visits = [self.user(name) for name in "abcde"]
        self.assertEqual([0, 1, 2, 3, 4], self.places())
        visits[2].cancel()
        self.failureResultOf(visits[2], CancelledError)
        self.assertEqual([0, 1, 0, 2, 3], self.places())
        self.leave("a")
        self.assertEqual([0, 0, 0, 1, 2], self.places())
        self.clock.advance(10)
        self.assertEqual([0] * 5, self.places())
        self.refusal(visits[3])
        self.refusal(visits[4])

    def test_behind_a_warmup(self) -> None:
        """Who waits for nobody but a warm-up is the next one."""
        self.saving()
        self.user("a")
        self.assertEqual([1], self.places())


class ComingAgain(GateTest):
    """When those who are turned away are told to come again."""

    def serve(self, *seconds: float) -> None:
        """Let users be inside for so long, one after the other."""
        for number, each in enumerate(seconds):
            self.user(f"served {number}")
            self.clock.advance(each)
            self.leave(f"served {number}")

    def again(self) -> int | None:
        """Return after how many seconds."""
        return self.gate.unavailable("why").retry_after

    def test_nothing_known(self) -> None:
        """Before anybody was served, soon."""
        self.assertEqual(1, self.again())

    def test_queue(self) -> None:
        """It is the time for as many as wait, at the time that one takes; with nobody waiting, for one."""
        self.serve(7)
        self.assertEqual(7, self.again())
        for name in "abc":
            self.user(name)
        self.assertEqual(14, self.again())
        self.assertEqual(14, self.refusal(self.user("d")).retry_after)

    def test_waited_too_long(self) -> None:
        """Who has waited for too long is told, too; those who go on waiting count."""
        self.serve(7)
        self.user("a")
        visit = self.user("b")
        self.clock.advance(1)
        self.user("c")
        self.clock.advance(9)
        self.assertEqual(7, self.refusal(visit).retry_after)

    def test_mean(self) -> None:
        """The latest users count most; seconds are rounded up."""
        self.serve(10, 20)
        self.assertEqual(13, self.again())
        self.serve(13.5)
        self.assertEqual(14, self.again())

    def test_limits(self) -> None:
        """It is never less than a second and never more than ten minutes."""
        for seconds, expected in ((0.001, 1), (1, 1), (1.001, 2), (600, 600), (601, 600), (1e9, 600)):
            self.build(limit=2, timeout=10)
            self.serve(seconds)
            self.assertEqual(expected, self.again(), seconds)

    def test_what_counts(self) -> None:
        """What counts is the time inside, however it ended: not the time waited, and no warm-ups."""
        self.user("a")
        second = self.user("b")
        self.clock.advance(4)
        self.leave("a")
        self.clock.advance(4)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.warmup()
        self.clock.advance(100)
        self.leave("warmup")
        self.assertEqual(4, self.again())


class Closing(GateTest):
    """The end."""

    def test_waiting(self) -> None:
        """Whoever waits is turned away at once and told why; who is inside stays to the end."""
        self.user("served")
        self.clock.advance(5)
        self.leave("served")
        first, *others = (self.user(name) for name in "abc")
        self.gate.close()
        for visit in others:
            error = self.refusal(visit)
            self.assertEqual("bioproxy is shutting down", error.message)
            self.assertEqual(5, error.retry_after)
        self.assertEqual((["a"], "user", 0), (self.inside, self.gate.busy, self.gate.waiting))
        self.leave("a")
        self.successResultOf(first)
        self.assertIsNone(self.gate.busy)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_coming(self) -> None:
        """Nobody comes in any more, whether the gate is free or not, and no warm-up; closing again changes nothing."""
        self.user("a")
        for _ in range(2):
            self.gate.close()
            self.assertEqual("bioproxy is shutting down", self.refusal(self.user("b")).message)
            self.assertEqual(["a"], self.inside)
        self.leave("a")
        self.assertEqual("bioproxy is shutting down", self.refusal(self.user("c")).message)
        self.assertFalse(self.successResultOf(self.warmup()))
        self.assertIsNone(self.gate.busy)

    def test_hanging_up_inside(self) -> None:
        """Who is inside and hangs up afterwards has hung up, and was not turned away."""
        visit = self.user("a")
        self.gate.close()
        visit.cancel()
        self.failureResultOf(visit, CancelledError)
        self.assertIsNone(self.gate.busy)

    def test_warmup_inside(self) -> None:
        """A warm-up that is inside leaves, at once or when it has saved what it is just saving."""
        warmup = self.saving(then="more")
        visit = self.user("a")
        self.gate.close()
        self.refusal(visit)
        self.assertEqual(["saving"], self.inside)
        self.leave("saving")
        self.assertEqual([], self.inside)
        self.assertFalse(self.successResultOf(warmup))
        self.build(limit=2, timeout=10)
        warmup = self.warmup()
        self.gate.close()
        self.assertEqual([], self.inside)
        self.assertFalse(self.successResultOf(warmup))


class Staying(GateTest):
    """Keeping the gate after leaving."""

    def test_stays(self) -> None:
        """The user has gone at once, however he leaves; the gate is taken until the work is done."""
        for number, how in enumerate(("done", "failed", "gone")):
            self.build(limit=2, timeout=10)
            visit = self.user("a", then="work")
            if how == "gone":
                visit.cancel()
                self.failureResultOf(visit, CancelledError)
            elif how == "failed":
                self.leave("a", ZeroDivisionError())
                self.failureResultOf(visit, ZeroDivisionError)
            else:
                self.leave("a")
                self.successResultOf(visit)
            self.assertEqual((["work"], "user"), (self.inside, self.gate.busy), how)
            self.assertFalse(self.successResultOf(self.warmup()))
            following = self.user("b")
            self.assertEqual(1, self.gate.waiting)
            self.clock.advance(number)
            self.assertEqual(0, self.gate.stats.idle_seconds())
            self.leave("work")
            self.assertEqual(["b"], self.inside)
            self.leave("b")
            self.assertEqual(number, self.successResultOf(following))
            self.assertIsNone(self.gate.busy)

    def test_failing(self) -> None:
        """If the work fails the gate is free all the same, and it is logged: nobody else would hear of it."""
        visit = self.user("a", then="work")
        visit.cancel()
        self.failureResultOf(visit, CancelledError)
        self.user("b")
        self.leave("work", ZeroDivisionError())
        self.assertEqual(["b"], self.inside)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_no_reason_to_be_refused(self) -> None:
        """Whoever comes while only something is left to do after a turn waits for that, even where nobody may wait."""
        self.build(limit=0, timeout=10)
        visit = self.user("a", then="work")
        self.refusal(self.user("b"))
        self.leave("a")
        self.successResultOf(visit)
        self.user("c")
        self.refusal(self.user("d"))
        self.leave("work")
        self.assertEqual(["c"], self.inside)

    def test_nothing_to_do(self) -> None:
        """Work that is done at once does not keep the gate."""

        async def nothing() -> None:
            pass

        async def visit() -> None:
            turn = self.gate.user()
            async with turn:
                turn.hold_gate_for(nothing)

        self.successResultOf(Deferred.fromCoroutine(visit()))
        self.assertIsNone(self.gate.busy)

    def test_counts(self) -> None:
        """The time that the work takes is part of the time that a user takes."""
        self.user("a", then="work")
        self.clock.advance(2)
        self.leave("a")
        self.clock.advance(3)
        self.leave("work")
        self.assertEqual(5, self.gate.unavailable("why").retry_after)

    def test_closing(self) -> None:
        """Closing the gate does not end the work."""
        self.user("a", then="work")
        self.leave("a")
        self.gate.close()
        self.assertEqual("user", self.gate.busy)
        self.leave("work")
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

    def test_again_at_once(self) -> None:
        """A warm-up that begins while another one makes room for a user does not stand before or behind that user."""
        again: list[Deferred[bool]] = []
        self.warmup().addCallback(lambda _: again.append(self.warmup("again")))
        self.user("a")
        self.assertEqual((["a"], 0), (self.inside, self.gate.waiting))
        self.assertFalse(self.successResultOf(again[0]))

    def test_without_preemption(self) -> None:
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

    def test_without_preemption_in_the_middle(self) -> None:
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
            return self.gate.stats.idle_seconds()

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
        self.assertEqual(5, self.gate.stats.idle_seconds())
        self.leave("warmup")
        self.assertEqual(5, self.gate.stats.idle_seconds())
        saving = self.saving()
        self.user("a")
        self.clock.advance(1)
        self.assertEqual((1, 0), (self.gate.waiting, self.gate.stats.idle_seconds()))
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
        self.assertEqual(1, self.gate.stats.idle_seconds())


class Seen(GateTest):
    """What an operator sees."""

    def seen(self) -> tuple[str | None, list[str]]:
        """Return who is inside, of the users, and who waits."""
        inside = self.gate.stats.inside
        return None if inside is None else inside.who, [turn.who for turn in self.gate.stats.queue]

    def test_users(self) -> None:
        """Who is inside and who waits, in order; whoever leaves, by whichever way, is seen no more."""
        self.user("a")
        second, third = self.user("b"), self.user("c")
        self.assertEqual(("a", ["b", "c"]), self.seen())
        waits_since = self.gate.stats.queue[0].since
        self.assertEqual(self.turns["b"].since, waits_since)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(("a", ["c"]), self.seen())
        self.clock.advance(10)  # one may wait so long
        self.refusal(third)
        self.assertEqual(("a", []), self.seen())
        self.user("d")
        self.leave("a")
        self.assertEqual(("d", []), self.seen())
        self.assertEqual(self.turns["d"].since, self.gate.stats.inside_since)
        self.gate.close()
        self.refusal(self.user("e"))
        self.leave("d")
        self.assertEqual((None, []), self.seen())
        self.assertIsNone(self.gate.stats.inside_since)

    def test_failing_and_staying(self) -> None:
        """Somebody who failed has gone; somebody who left something to be done has not."""
        failed = self.user("a")
        self.leave("a", ZeroDivisionError())
        self.failureResultOf(failed, ZeroDivisionError)
        self.assertEqual((None, []), self.seen())
        self.user("b", then="rest")
        self.leave("b")
        self.assertEqual(("b", []), self.seen())
        self.leave("rest")
        self.assertEqual((None, []), self.seen())

    def test_warmup(self) -> None:
        """A warm-up is no user, but it is inside since some time."""
        self.warmup()
        self.assertEqual((None, []), self.seen())
        since = datetime.fromisoformat(self.gate.stats.inside_since or "")
        self.assertEqual(timedelta(0), since.utcoffset())
        self.leave("warmup")
        self.assertIsNone(self.gate.stats.inside_since)

    def test_peak(self) -> None:
        """The peak is how many waited at most since the last look, and at least how many wait now."""
        for name in "abc":
            self.user(name)
        self.leave("a")
        self.assertEqual([2, 1], [self.gate.stats.take_peak(), self.gate.stats.take_peak()])
        self.leave("b")
        self.assertEqual([1, 0], [self.gate.stats.take_peak(), self.gate.stats.take_peak()])
        self.leave("c")
        self.warmup()
        self.user("d")  # for whom a warm-up leaves at once: nobody waited
        self.assertEqual(0, self.gate.stats.take_peak())


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
