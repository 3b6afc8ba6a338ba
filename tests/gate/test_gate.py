"""Who may use llama-server, and in which order."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from bioproxy.runtime.errors import Unavailable
from tests.support.visitors import GateTest


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

    def test_timeout_changes(self) -> None:
        """Another timeout counts for those who come later, and each is told how long it was itself."""
        self.user("a")
        early = self.user("b")
        self.gate.timeout = 20
        late = self.user("c")
        self.clock.advance(10)
        self.assertEqual("waited 10 s for llama-server to be free", self.refusal(early).message)
        self.clock.advance(10)
        self.assertEqual("waited 20 s for llama-server to be free", self.refusal(late).message)

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
        return [self.gate.queue.place(turn) for turn in self.turns.values()]

    def test_place(self) -> None:
        """The next one has place 1; who is inside, has been, or gave up has none, and the others move up."""
        self.assertEqual(0, self.gate.queue.place(self.gate.user()))
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
