"""The estimates on a recorded run (`benchmarks/estimates.json`): 100 requests of five clients, on a real llama.cpp."""

from __future__ import annotations

import statistics
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.estimates import AVERAGES, Visit, errors, learn, load, replay
from bioproxy.gate.estimate import Experience
from bioproxy.llama.speed import Speed


class Replay(SynchronousTestCase):
    """Nothing is measured: the record has all durations."""

    def test_good_enough(self) -> None:
        """Half of the estimates are within 30 % of the real time, and in sum they are neither far over nor under it."""
        found = replay(load())
        self.assertGreater(len(found), 90)
        self.assertLess(statistics.median(errors(found)), 0.3)
        ratio = sum(estimate for estimate, _ in found) / sum(waited for _, waited in found)
        self.assertTrue(0.7 < ratio < 1.3, ratio)

    def test_the_average(self) -> None:
        """The one that is used has a smaller median error than the others, on this run."""
        medians = {name: statistics.median(errors(replay(load(), each))) for name, each in AVERAGES.items()}
        self.assertEqual("median", min(medians, key=lambda name: medians[name]))

    def test_by_hand(self) -> None:
        """Requests of one kind, two seconds each: exact, but for the first, of which nothing is known."""
        first = Visit(("/completion",), 100, 0.0, 0.0, 2.0, 0.5, 10, 10, None)
        second = replace(first, arrived=1.0, waited=1.0)
        third = replace(first, arrived=2.5, waited=1.5)
        fourth = replace(first, arrived=3.0, waited=3.0)
        self.assertEqual([(1.5, 1.5), (3.0, 3.0)], replay([first, second, third, fourth]))

    def test_reading_that_is_not_told(self) -> None:
        """It is then taken from the tokens and the speed measured before."""
        experience, speed = Experience(), Speed()
        visit = Visit(("/v1/messages",), 1000, 0.0, 0.0, 3.0, 2.0, 200, 200, None)
        learn(experience, speed, visit)
        for _ in range(3):
            learn(experience, speed, replace(visit, kind=("/v1/responses",), reading=-0.001))
        expected = experience.expected(("/v1/responses",), 1000)
        assert expected is not None
        self.assertEqual((2.0, 1.0), (expected.reading, expected.answering))
