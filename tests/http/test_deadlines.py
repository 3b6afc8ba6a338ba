"""The deadlines of a connection, by themselves; `test_channel` has them on a connection."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http.deadlines import BODY_BYTES, BODY_SECONDS, HEAD_SECONDS, ArrivalDeadline, Deadline
from bioproxy.runtime.errors import TooSlow


class Deadlines(SynchronousTestCase):
    """`Deadline` and `ArrivalDeadline`, with a clock that stands still."""

    def setUp(self) -> None:
        """Make the clock and a list of what has expired."""
        self.clock = Clock()
        self.expired: list[object] = []

    def test_expires_once(self) -> None:
        """The function is called once, after so many seconds; the deadline is no longer running then."""
        deadline = Deadline(self.clock.callLater)
        self.assertEqual((False, False), (deadline.is_running, deadline.was_started))
        deadline.start(5, lambda: self.expired.append(deadline.is_running))
        self.assertEqual((True, True), (deadline.is_running, deadline.was_started))
        self.clock.advance(4.9)
        self.assertEqual([], self.expired)
        self.clock.advance(100)
        self.assertEqual(([False], False, True), (self.expired, deadline.is_running, deadline.was_started))

    def test_stopped(self) -> None:
        """A deadline that is stopped in time calls nothing; stopping one that is not running is fine."""
        deadline = Deadline(self.clock.callLater)
        deadline.stop()
        deadline.start(5, lambda: self.expired.append(1))
        deadline.stop()
        deadline.stop()
        self.assertEqual(([], False, True), (self.clock.getDelayedCalls(), deadline.is_running, deadline.was_started))

    def test_started_again(self) -> None:
        """Starting a running deadline replaces its call; a function may start or stop the deadline that calls it."""
        deadline = Deadline(self.clock.callLater)
        deadline.start(5, lambda: self.expired.append("first"))
        deadline.start(7, lambda: deadline.start(1, deadline.stop))
        self.clock.advance(7)
        self.assertEqual(([], True), (self.expired, deadline.is_running))
        self.clock.advance(1)
        self.assertEqual(([], False), (self.clock.getDelayedCalls(), deadline.is_running))

    def test_head(self) -> None:
        """A late head is told as `TooSlow`."""
        ArrivalDeadline(self.clock.callLater).expect_head(self.expired.append)
        self.clock.advance(HEAD_SECONDS)
        self.assertIsInstance(self.expired.pop(), TooSlow)

    def test_body(self) -> None:
        """Each interval of a body is judged by itself: earlier bytes do not count, and the limit itself is enough."""
        received = [5 * BODY_BYTES]
        deadline = ArrivalDeadline(self.clock.callLater)
        deadline.expect_body(lambda: sum(received), self.expired.append)
        for more in (BODY_BYTES, 3 * BODY_BYTES, BODY_BYTES):
            received.append(more)
            self.clock.advance(BODY_SECONDS)
            self.assertEqual([], self.expired)
        received.append(BODY_BYTES - 1)
        self.clock.advance(BODY_SECONDS)
        self.assertIsInstance(self.expired.pop(), TooSlow)
        self.assertFalse(deadline.is_running)
