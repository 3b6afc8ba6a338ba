"""Pauses after failures."""

from __future__ import annotations

from datetime import datetime, timezone

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.backoff import JITTER, REST, Backoff


class Pauses(SynchronousTestCase):
    """How long to wait."""

    def pauses(self, backoff: Backoff, clock: Clock, count: int, took: float = 0.0) -> list[float]:
        """Fail so many times, each time as soon as that is allowed; return the seconds between."""
        found = []
        for _ in range(count):
            backoff.failed("code", took=took)
            waiting = backoff.waiting("code")
            retry_at = clock.seconds() if waiting is None else waiting.retry_at
            assert retry_at is not None
            found.append(retry_at - clock.seconds())
            clock.advance(retry_at - clock.seconds())
        return found

    def test_doubles(self) -> None:
        """The pause begins with the shortest, and doubles up to the longest; the first failures may be free."""
        for shortest, longest, free, expected in (
            (2.0, 60.0, 0, [2, 4, 8, 16, 32, 60, 60]),
            (4.0, 60.0, 2, [0, 0, 4, 8, 16, 32, 60]),
            (30.0, 600.0, 0, [30, 60, 120, 240, 480, 600, 600]),
        ):
            clock = Clock()
            backoff = Backoff(clock, shortest, longest, free, jitter=0)
            self.assertEqual(expected, self.pauses(backoff, clock, 7))

    def test_jitter(self) -> None:
        """Each pause is longer by a part that is drawn anew, up to a fifth."""
        clock = Clock()
        pauses = self.pauses(Backoff(clock, 10.0, 10.0), clock, 50)
        self.assertTrue(all(10 <= pause <= 10 * (1 + JITTER) for pause in pauses), pauses)
        self.assertGreater(len(set(pauses)), 40)

    def test_costly(self) -> None:
        """A try that took long is followed by a pause in proportion, even beyond the longest."""
        clock = Clock()
        self.assertEqual([10.0 * REST] * 2, self.pauses(Backoff(clock, 2.0, jitter=0), clock, 2, took=10.0))

    def test_very_many(self) -> None:
        """Thousands of failures in a row do not overflow anything."""
        clock = Clock()
        self.assertEqual(60.0, self.pauses(Backoff(clock, 2.0, jitter=0), clock, 3000)[-1])

    def test_useless(self) -> None:
        """Where another try would be useless, it has to wait until the failure would be about something else."""
        clock = Clock()
        backoff = Backoff(clock, 2.0)
        backoff.failed("code", "text", took=None)
        clock.advance(1e9)
        waiting = backoff.waiting("code", "text")
        assert waiting is not None
        self.assertEqual((None, None), (waiting.retry_at, waiting.retry_at_utc))
        self.assertIsNone(backoff.waiting("code", "other text"))

    def test_wall_clock(self) -> None:
        """The end of a pause is also told as a time of day."""
        backoff = Backoff(Clock(), 60.0, jitter=0)
        backoff.failed("code")
        trouble = backoff.current("code")
        assert trouble is not None and trouble.retry_at_utc is not None
        ahead = datetime.fromisoformat(trouble.retry_at_utc) - datetime.now(timezone.utc)
        self.assertTrue(50 < ahead.total_seconds() <= 60, ahead)


class Failures(SynchronousTestCase):
    """What is remembered of failures."""

    def setUp(self) -> None:
        """Have nothing failed yet."""
        self.clock = Clock()
        self.backoff = Backoff(self.clock, 2.0)

    def test_news(self) -> None:
        """The first failure is news, and one with another text or about something else; the same once more is not."""
        news = [self.backoff.failed("code", about, text) for about, text in ((1, "a"), (1, "a"), (1, "b"), (2, "b"))]
        self.assertEqual([True, False, True, True], news)
        self.assertTrue(self.backoff.failed("story", 2, "b"))

    def test_about(self) -> None:
        """A failure does not count for anything that it was not about, and begins anew there."""
        self.backoff.failed("code", 1, "a")
        self.backoff.failed("code", 1, "a")
        self.assertIsNone(self.backoff.current("code", 2))
        self.assertIsNone(self.backoff.waiting("code", 2))
        self.backoff.failed("code", 2, "a")
        trouble = self.backoff.current("code", 2)
        assert trouble is not None
        self.assertEqual(1, trouble.failures)

    def test_over(self) -> None:
        """After a success nothing is left of the failures before."""
        self.backoff.over("code")
        self.backoff.failed("code", 1, "a")
        self.backoff.over("code")
        self.assertIsNone(self.backoff.current("code", 1))
        self.assertTrue(self.backoff.failed("code", 1, "a"))

    def test_afterwards(self) -> None:
        """When the pause is over the failure is still told, but nobody has to wait."""
        self.backoff.failed("code", 1, "a")
        self.clock.advance(3)
        self.assertIsNone(self.backoff.waiting("code", 1))
        self.assertIsNotNone(self.backoff.current("code", 1))
