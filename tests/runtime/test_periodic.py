"""Doing something again and again."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.periodic import Periodic


class PeriodicTest(SynchronousTestCase):
    """A service that works every two seconds; each round lasts until the test ends it."""

    def setUp(self) -> None:
        """Start it."""
        self.clock = Clock()
        self.rounds: list[Deferred[None]] = []
        self.cancelled = 0
        self.service = Periodic(self.clock, 2.0, self.work, "worker")
        self.service.startService()

    async def work(self) -> None:
        """Do one round."""
        self.rounds.append(Deferred())
        try:
            await self.rounds[-1]
        except CancelledError:
            self.cancelled += 1
            raise

    def test_at_once_and_again(self) -> None:
        """The first round comes at once, the next one an interval later."""
        self.assertEqual(1, len(self.rounds))
        self.rounds[0].callback(None)
        self.clock.advance(1.9)
        self.assertEqual(1, len(self.rounds))
        self.clock.advance(0.1)
        self.assertEqual(2, len(self.rounds))

    def test_goes_on(self) -> None:
        """A round that fails is logged, by the service's name, and the next one comes all the same."""
        self.rounds[0].errback(ZeroDivisionError())
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.clock.advance(2)
        self.assertEqual(2, len(self.rounds))

    def test_no_overlap(self) -> None:
        """A round that takes long has no second one beside it; the next one keeps to the beat."""
        self.clock.advance(5)
        self.assertEqual(1, len(self.rounds))
        self.rounds[0].callback(None)
        self.clock.advance(0.9)
        self.assertEqual(1, len(self.rounds))
        self.clock.advance(0.1)
        self.assertEqual(2, len(self.rounds))

    def test_stop_in_a_round(self) -> None:
        """Stopping cancels the round, waits until it is over, and no other follows; none of it is an error."""
        cleaning: Deferred[None] = Deferred()

        async def slow_to_stop() -> None:
            try:
                await Deferred()
            finally:
                await cleaning

        service = Periodic(self.clock, 2.0, slow_to_stop, "slow")
        service.startService()
        stopped = service.stopService()
        assert stopped is not None
        self.assertNoResult(stopped)
        cleaning.callback(None)
        self.successResultOf(stopped)

        stopped = self.service.stopService()
        assert stopped is not None
        self.successResultOf(stopped)
        self.clock.advance(10)
        self.assertEqual((1, 1), (len(self.rounds), self.cancelled))
        self.assertEqual([], self.flushLoggedErrors())

    def test_stop_between_rounds(self) -> None:
        """Stopping between two rounds waits for nothing, and no other follows."""
        self.rounds[0].callback(None)
        self.assertIsNone(self.service.stopService())
        self.clock.advance(10)
        self.assertEqual(1, len(self.rounds))

    def test_again_after_stop(self) -> None:
        """A stopped service can be started again."""
        self.service.stopService()
        self.service.startService()
        self.assertEqual(2, len(self.rounds))
