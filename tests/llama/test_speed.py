"""How fast prompts are processed and files are written."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.speed import ENOUGH, RECENT, Speed


class Measuring(SynchronousTestCase):
    """`Speed`."""

    def test_unknown(self) -> None:
        """Before the first measurement the given default is returned, and a token takes 0 s."""
        self.assertEqual(512, Speed().tokens_in(1, 512))
        self.assertEqual(0, Speed().seconds_per_token)

    def test_latest_counts(self) -> None:
        """The latest measurement counts."""
        speed = Speed()
        speed.measured(1000, 4000)
        self.assertEqual((250, 125), (speed.tokens_in(1, 512), speed.tokens_in(0.5, 512)))
        speed.measured(ENOUGH, ENOUGH * 10)
        self.assertAlmostEqual(0.01, speed.seconds_per_token)

    def test_slowest_counts_for_pieces(self) -> None:
        """How much is done in a time is told by the slowest of the latest measurements; an estimate, by the last."""
        speed = Speed()
        for ms in (1000, 4000, *[1000] * (RECENT - 1)):
            speed.measured(1000, ms)
        self.assertEqual((250, 0.001), (speed.tokens_in(1, 512), speed.seconds_per_token))
        speed.measured(1000, 1000)
        self.assertEqual(1000, speed.tokens_in(1, 512))

    def test_useless_measurements(self) -> None:
        """Too few tokens, or no time at all, are no measurement."""
        for tokens, ms in ((ENOUGH - 1, 1000), (0, 0), (1000, 0), (1000, -1), (-1, 1000), (1000, float("nan"))):
            speed = Speed()
            speed.measured(tokens, ms)
            self.assertEqual(0, speed.seconds_per_token, (tokens, ms))

    def test_out_of_bounds(self) -> None:
        """Whatever time llama-server claims, `tokens_in` can compute a number."""
        for ms in (5e-324, 1e-305, 1e-100, 1e14, 1e300, float("inf")):
            speed = Speed()
            speed.measured(1000, ms)
            self.assertGreaterEqual(speed.tokens_in(1, 512), 0, ms)
            self.assertLess(speed.seconds_per_token * 1e15, float("inf"), ms)

    def test_saving_unknown(self) -> None:
        """Before the first save the time is unknown, and the size counts as 0."""
        self.assertEqual((None, 0), (Speed().save_seconds(1000), Speed().bytes_of(1000)))

    def test_saving(self) -> None:
        """The latest save tells how long one of another length will take, and how large it will be."""
        speed = Speed()
        speed.saved(100, 1000, 9.0)
        speed.saved(1000, 16_000_000, 0.5)
        self.assertEqual((1.0, 32_000_000), (speed.save_seconds(2000), speed.bytes_of(2000)))
        speed.saved(1000, 16_000_000, 0.0)  # too quick to measure is quick
        self.assertEqual(0.0, speed.save_seconds(2000))

    def test_restoring(self) -> None:
        """The latest restore tells how long one of another length will take; a short one is no measurement."""
        speed = Speed()
        speed.restored(ENOUGH - 1, 1.0)
        self.assertIsNone(speed.restore_seconds(1000))
        speed.restored(1000, 9.0)
        speed.restored(1000, 0.5)
        self.assertEqual(1.0, speed.restore_seconds(2000))

    def test_useless_save(self) -> None:
        """A save of no tokens is no measurement."""
        speed = Speed()
        speed.saved(0, 36, 1.0)
        self.assertEqual((None, 0), (speed.save_seconds(1000), speed.bytes_of(1000)))
