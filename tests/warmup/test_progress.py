"""What is remembered of a warm-up between its tries."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.prompt_shape import Key
from bioproxy.warmup.progress import PIECE_SECONDS, Progress

OLD, NEW = Key("old", "shape"), Key("new", "shape")


class Numbers(SynchronousTestCase):
    """`Progress`."""

    def test_about_a_key(self) -> None:
        """How far a warm-up came is told for its key only; what users left time for does not depend on the key."""
        progress = Progress(OLD)
        progress.reached(OLD, 0.5)
        progress.at_risk = 3.0
        progress.interrupted_early()
        self.assertEqual((0.5, 0.0), (progress.of(OLD), progress.of(NEW)))
        progress.reached(NEW, 0.25)
        self.assertEqual((0.0, 0.25), (progress.of(OLD), progress.of(NEW)))
        self.assertEqual((3.0, PIECE_SECONDS / 2), (progress.at_risk, progress.piece_seconds))

    def test_shorter_pieces(self) -> None:
        """Each interruption before the first piece was done halves the next one."""
        progress = Progress(OLD)
        for part in (2, 4, 8):
            progress.interrupted_early()
            self.assertEqual(PIECE_SECONDS / part, progress.piece_seconds)
