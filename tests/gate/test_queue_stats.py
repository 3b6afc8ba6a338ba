"""What is told of the queue: to operators, to Prometheus, and to clients that are turned away."""

from __future__ import annotations

from datetime import datetime, timedelta

from twisted.internet.defer import CancelledError

from tests.support.visitors import GateTest


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
        return None if inside is None else inside.who, [turn.who for turn in self.gate.queue.in_order()]

    def test_users(self) -> None:
        """Who is inside and who waits, in order; whoever leaves, by whichever way, is seen no more."""
        self.user("a")
        second, third = self.user("b"), self.user("c")
        self.assertEqual(("a", ["b", "c"]), self.seen())
        waits_since = self.gate.queue.in_order()[0].since
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
