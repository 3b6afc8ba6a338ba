"""How fast prompts are processed."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.speed import ENOUGH, Speed


class Measuring(SynchronousTestCase):
    """`Speed`."""

    def test_unknown(self) -> None:
        """Until it was measured, others say how many tokens to take, and a token takes no time."""
        self.assertEqual(512, Speed().tokens_in(1, 512))
        self.assertEqual(0, Speed().seconds_per_token)

    def test_latest_counts(self) -> None:
        """The latest measurement counts."""
        speed = Speed()
        speed.measured(1000, 4000)
        self.assertEqual((250, 125), (speed.tokens_in(1, 512), speed.tokens_in(0.5, 512)))
        speed.measured(ENOUGH, ENOUGH * 10)
        self.assertAlmostEqual(0.01, speed.seconds_per_token)

    def test_useless_measurements(self) -> None:
        """Too few tokens, or no time at all, say nothing about the speed."""
        for tokens, ms in ((ENOUGH - 1, 1000), (0, 0), (1000, 0), (1000, -1), (-1, 1000), (1000, float("nan"))):
            speed = Speed()
            speed.measured(tokens, ms)
            self.assertEqual(0, speed.seconds_per_token, (tokens, ms))
