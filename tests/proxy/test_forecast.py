"""How long until each place in the queue, and how much work that takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.gate.estimate import Experience, Served
from bioproxy.gate.gate import Gate
from bioproxy.gate.turn import Turn
from bioproxy.proxy.forecast import SHARED, Forecast
from bioproxy.proxy.request_log import Record
from bioproxy.proxy.waits import Waits
from bioproxy.runtime.metrics import Metrics
from tests.support.world import World, WorldTest

CLIENTS = 300
CHAT = "/v1/chat/completions"


class ForecastTest(SynchronousTestCase):
    """`Forecast`, with numbers in the place of requests: the seconds that each needs, `None` for "not known"."""

    def setUp(self) -> None:
        """Build a gate, and count the questions."""
        self.clock = Clock()
        self.gate = Gate(self.clock, Metrics(), 1000, 600.0)
        self.asked: list[float | None] = []
        self.forecast = Forecast(self.gate, self.rest, self.clock)

    def rest(self, seconds: float | None) -> float | None:
        """Return what the request needs."""
        self.asked.append(seconds)
        return seconds

    def join(self, seconds: float | None, filling: str | None = None) -> tuple[Turn, Deferred[float]]:
        """Have a user come who needs so many seconds."""
        turn = self.gate.user(seconds, fills_for=filling)
        return turn, Deferred.fromCoroutine(turn.__aenter__())

    def seconds(self, *turns: Turn) -> list[float | None]:
        """Return how long these wait."""
        return [self.forecast.seconds_until(turn) for turn in turns]

    def test_sums(self) -> None:
        """A turn waits for the one inside and all ahead of it; one that comes now, for all but who lets it pass."""
        self.assertIsNone(self.forecast.for_next(), "nobody waits at a free gate")
        self.join(1.0)
        self.assertEqual(1.0, self.forecast.for_next())
        first, _ = self.join(2.0)
        filling, _ = self.join(100.0, filling="client")
        last, _ = self.join(4.0)
        self.assertEqual([1.0, 3.0, 7.0], self.seconds(first, last, filling))
        self.assertEqual(7.0, self.forecast.for_next())

    def test_only_filling(self) -> None:
        """Who comes while only such requests wait that let it pass waits for the one inside alone."""
        self.join(1.0)
        self.join(5.0, filling="client")
        self.assertEqual(1.0, self.forecast.for_next())

    def test_filling_inside(self) -> None:
        """One of these that is inside lets nobody pass any more."""
        self.join(5.0, filling="client")
        self.join(3.0, filling="other")
        self.assertEqual(5.0, self.forecast.for_next())

    def test_unknown(self) -> None:
        """Behind a request of which nothing is known, nothing is told."""
        self.join(1.0)
        before, _ = self.join(None)
        behind, _ = self.join(2.0)
        self.assertEqual([1.0, None], self.seconds(before, behind))
        self.assertIsNone(self.forecast.for_next())

    def test_shared(self) -> None:
        """All who ask at about the same moment share one pass over the queue, whatever order they ask in."""
        turns = [self.join(1.0)[0] for _ in range(CLIENTS)][1:]
        self.assertEqual([float(place) for place in range(1, CLIENTS)], self.seconds(*turns))
        self.clock.advance(SHARED / 2)
        self.seconds(*reversed(turns))
        self.assertEqual(CLIENTS, len(self.asked))
        self.clock.advance(SHARED / 2)
        self.seconds(*turns)
        self.assertEqual(2 * CLIENTS, len(self.asked))

    def test_changes_show_at_once(self) -> None:
        """Whoever leaves the queue is not counted from that moment on, wherever it stood."""
        self.join(1.0)
        waiting = [self.join(seconds) for seconds in (2.0, 4.0, 8.0)]
        turns = [turn for turn, _ in waiting]
        self.assertEqual([1.0, 3.0, 7.0], self.seconds(*turns))
        waiting[1][1].addErrback(lambda _: 0.0)
        waiting[1][1].cancel()
        self.assertEqual([1.0, 3.0], self.seconds(turns[0], turns[2]))


class Counted(WorldTest):
    """The work for estimates in a long queue, counted."""

    def setUp(self) -> None:
        """Know a gate with one inside, and what such requests took."""
        super().setUp()
        self.medians = 0
        self.built: World = self.ready_world()
        self.experience = Experience(self.median)
        parts = self.built.parts
        self.gate = self.built.gate
        self.waits = Waits(
            self.gate,
            parts.prompt_learning,
            self.built.speed,
            parts.upstream,
            self.built.clock,
            self.experience,
        )
        for _ in range(3):
            self.experience.learn((CHAT,), Served(100, 100, 10, 4.0, 1.0))

    def median(self, seconds: Sequence[float]) -> float:
        """Count an estimate: each takes one median."""
        self.medians += 1
        return statistics.median(seconds)

    def test_comments(self) -> None:
        """A comment to each of 300 waiting clients takes an estimate for each, not one for each that is ahead of it."""
        self.gate.limit = CLIENTS
        turns = []
        for _ in range(CLIENTS):
            record = Record(CHAT, self.built.clock.seconds())
            self.waits.arrived(record, None, 100)
            turns.append(turn := self.gate.user(record))
            Deferred.fromCoroutine(turn.__aenter__()).addErrback(lambda _: 0.0)
        self.assertLessEqual(self.medians, CLIENTS, "arrivals")
        self.waits.entered(turns[0].who)
        self.assertEqual((CLIENTS - 1) * 4000, turns[-1].who.estimate_ms)
        for _ in range(3):
            self.built.clock.advance(1)
            self.medians = 0
            for turn in turns[1:]:
                self.assertIsNotNone(self.waits.seconds_until(turn))
            self.assertLessEqual(self.medians, CLIENTS)
