"""Time: it cannot be set, and it stands still while bioproxy does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from twisted.internet.base import ReactorBase
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.clock import BEAT, GRACE, NOTED, Heartbeat, UsableTime, install
from tests.support.world import logged

LONGEST = BEAT + GRACE
"""Seconds that pass between two beats at most."""


class Passing(SynchronousTestCase):
    """`UsableTime` on a monotonic clock that is moved by hand."""

    def setUp(self) -> None:
        """Begin at 1000."""
        self.now = 5.0
        self.usable = UsableTime(1000.0, lambda: self.now)

    def test_without_beats(self) -> None:
        """As long as nobody beats all time counts."""
        self.assertEqual(1000, self.usable.seconds())
        self.now += 1e6
        self.assertEqual(1000 + 1e6, self.usable.seconds())

    def test_on_time(self) -> None:
        """With beats on time, and with such as come a little late, all time counts."""
        for late in (0.0, NOTED, GRACE):
            self.usable.beat()
            before = self.usable.seconds()
            self.now += BEAT + late
            self.assertAlmostEqual(before + BEAT + late, self.usable.seconds())
            self.assertAlmostEqual(late, self.usable.beat())
            self.assertAlmostEqual(before + BEAT + late, self.usable.seconds())

    def test_stands_still(self) -> None:
        """A moment after a beat is overdue time stands still, also for who asks often, and goes on with the beat."""
        self.usable.beat()
        for _ in range(400):
            self.now += 0.1
            self.assertLessEqual(self.usable.seconds(), 1000 + LONGEST)
        self.assertAlmostEqual(40 - BEAT, self.usable.beat())
        self.assertAlmostEqual(1000 + LONGEST, self.usable.seconds())
        self.now += BEAT
        self.assertAlmostEqual(1000 + LONGEST + BEAT, self.usable.seconds())

    def test_rest(self) -> None:
        """What was lost before a rest stays lost; all that follows counts, and none of it is late."""
        self.usable.beat()
        self.now += 40
        self.usable.rest()
        self.assertAlmostEqual(1000 + LONGEST, self.usable.seconds())
        self.now += 100
        self.assertAlmostEqual(1100 + LONGEST, self.usable.seconds())
        self.assertEqual(0, self.usable.beat())
        self.assertAlmostEqual(1100 + LONGEST, self.usable.seconds())

    @given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(["look", "beat", "rest"]))))
    def test_any_course(self, course: list[tuple[float, str]]) -> None:
        """Time never goes back and never runs ahead; between two beats no more passes than that."""
        self.setUp()
        seen, at_beat, beats = self.usable.seconds(), 0.0, False
        for seconds, what in course:
            self.now += seconds
            now = self.usable.seconds()
            self.assertTrue(-1e-6 <= now - seen <= seconds + 1e-6, (seen, now, seconds))
            if beats:
                self.assertLessEqual(now - at_beat, LONGEST + 1e-6)
            if what != "look":
                getattr(self.usable, what)()
                self.assertAlmostEqual(now, self.usable.seconds())
                at_beat, beats = now, what == "beat"
            seen = self.usable.seconds()


class Bare(ReactorBase):
    """Twisted's own keeping of timers, without a network; its wall clock and the monotonic one are set by hand."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1.7e9, 5.0
        self.seconds = lambda: self.wall
        super().__init__()

    def installWaker(self) -> None:
        """Do nothing: nothing sleeps here."""

    def pass_time(self, seconds: float) -> None:
        """Let time pass on both clocks, then do what is due, in turns as a running reactor does."""
        self.wall += seconds
        self.monotonic += seconds
        self.runUntilCurrent()
        self.runUntilCurrent()


class Installed(SynchronousTestCase):
    """A reactor that goes by `UsableTime`."""

    def setUp(self) -> None:
        """Make one with two calls pending, in 10 and in 20 seconds."""
        self.reactor = Bare()
        self.called: list[str] = []
        self.first = self.reactor.callLater(10, self.called.append, "first")
        self.second = self.reactor.callLater(20, self.called.append, "second")
        self.usable = install(self.reactor, lambda: self.reactor.monotonic)

    def test_pending_calls(self) -> None:
        """Calls that were pending come when they would have come, whatever the wall clock says."""
        self.reactor.wall += 86400
        self.reactor.pass_time(9.9)
        self.assertEqual([], self.called)
        self.reactor.wall -= 2 * 86400
        self.reactor.pass_time(0.2)
        self.assertEqual(["first"], self.called)
        self.reactor.pass_time(9.8)
        self.assertEqual(["first"], self.called)
        self.reactor.pass_time(0.2)
        self.assertEqual(["first", "second"], self.called)

    def test_pending_calls_are_moved(self) -> None:
        """Calls that were pending can be put off and brought forward, whatever the wall clock says."""
        self.reactor.wall += 86400
        self.first.reset(30)
        self.second.reset(5)
        self.reactor.pass_time(4.9)
        self.assertEqual([], self.called)
        self.reactor.pass_time(0.2)
        self.assertEqual(["second"], self.called)
        self.reactor.pass_time(24.8)
        self.assertEqual(["second"], self.called)
        self.reactor.pass_time(0.2)
        self.assertEqual(["second", "first"], self.called)

    def test_twice(self) -> None:
        """Installing it once more changes nothing."""
        self.usable.beat()
        self.reactor.pass_time(40)
        before = self.reactor.seconds()
        self.assertIs(self.usable, install(self.reactor, lambda: self.reactor.monotonic))
        self.assertEqual(before, self.reactor.seconds())


class Beating(SynchronousTestCase):
    """`Heartbeat`, on a clock that is moved by hand: one step of it is a time in which nothing ran."""

    def setUp(self) -> None:
        """Start it, after a start that took long."""
        self.clock = Clock()
        usable = install(self.clock, lambda: self.clock.rightNow)
        self.registry = CollectorRegistry()
        self.stalls = Histogram("stall_seconds", "x", registry=self.registry)
        self.heartbeat = Heartbeat(self.clock, usable, self.stalls)
        self.clock.advance(30)
        self.heartbeat.startService()

    def value(self, suffix: str) -> float:
        """Return a number that the histogram has."""
        found = self.registry.get_sample_value(f"stall_seconds_{suffix}")
        assert found is not None
        return found

    def run_for(self, seconds: float) -> None:
        """Let time pass as it does where nothing is in the way."""
        self.clock.pump([BEAT / 4] * round(4 * seconds / BEAT))

    def test_regular(self) -> None:
        """Where nothing is in the way nothing is lost or told, whatever came before the start."""
        with capturedLogs() as events:
            before = self.clock.seconds()
            self.run_for(60)
        self.assertAlmostEqual(before + 60, self.clock.seconds())
        self.assertEqual(([], 0), (logged(events), self.value("count")))

    def test_timers(self) -> None:
        """No timer counts the time in which bioproxy stood still, before or after which it was set."""
        called: list[int] = []
        self.clock.callLater(30, called.append, 30)
        self.clock.callLater(5, called.append, 5)
        self.run_for(4)
        self.clock.advance(40)
        self.assertEqual([], called)
        self.run_for(1)
        self.assertEqual([5], called)
        self.clock.callLater(5, called.append, 5)
        self.clock.advance(3600)
        self.run_for(23)
        self.assertEqual([5, 5], called)
        self.run_for(1.5)
        self.assertEqual([5, 5, 30], called)

    def test_told(self) -> None:
        """A stall of more than 50 ms is counted, one of more than a second is told in one line as well."""
        with capturedLogs() as events:
            self.clock.advance(BEAT + 0.04)
            self.assertEqual(0, self.value("count"))
            self.clock.advance(BEAT + 0.06)
            self.clock.advance(BEAT + 0.3)
            self.assertEqual(2, self.value("count"))
            self.assertAlmostEqual(0.36, self.value("sum"))
            self.assertEqual([], logged(events))
            self.clock.advance(BEAT + 12.3)
            self.run_for(5)
        self.assertEqual(3, self.value("count"))
        self.assertAlmostEqual(12.66, self.value("sum"))
        (line,) = logged(events)
        self.assertTrue(line.startswith("bioproxy was stopped or busy for 12.3 s: "), line)

    def test_stop(self) -> None:
        """After it has stopped no call is left, and all time counts; it can start again."""
        self.heartbeat.stopService()
        self.assertEqual([], self.clock.getDelayedCalls())
        before = self.clock.seconds()
        self.clock.advance(100)
        self.assertAlmostEqual(before + 100, self.clock.seconds())
        self.heartbeat.startService()
        self.clock.advance(100)
        self.assertEqual(1, self.value("count"))
