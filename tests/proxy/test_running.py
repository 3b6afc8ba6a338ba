"""Which requests are being served, and waiting until there are none."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.proxy.exchange import Exchange
from bioproxy.proxy.running import RunningRequests


class Running(SynchronousTestCase):
    """`RunningRequests`."""

    def setUp(self) -> None:
        """Make two requests of which nothing is looked at."""
        self.running = RunningRequests()
        self.one, self.other = (cast(Exchange, object()) for _ in range(2))

    def test_finished(self) -> None:
        """It fires at once where nothing runs, else when the last one has gone, also of those that came meanwhile."""
        self.successResultOf(self.running.finished())
        for _ in range(2):
            self.running.add(self.one)
            finished = self.running.finished()
            self.running.add(self.other)
            self.running.remove(self.one)
            self.assertNoResult(finished)
            self.running.remove(self.other)
            self.successResultOf(finished)

    def test_cancelled(self) -> None:
        """Who stops waiting does not end the waiting of others."""
        self.running.add(self.one)
        finished, other = self.running.finished(), self.running.finished()
        finished.cancel()
        self.failureResultOf(finished, CancelledError)
        self.running.remove(self.one)
        self.successResultOf(other)
