"""What is remembered of a warm-up between its tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.prompt_shape import Key
from bioproxy.warmup.progress import BATCH, LEAST, PIECE_SECONDS, PIECES, Progress, exact_end, piece_end

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


class Pieces(SynchronousTestCase):
    """Where a warm-up is cut."""

    @given(st.integers(1, 20_000), st.integers(1, 600), st.integers(0, 20_000))
    def test_ends(self, total: int, piece: int, done: int) -> None:
        """Every piece brings the warm-up on, and none goes beyond its end."""
        if done < total:
            end = piece_end(done, piece, total)
            self.assertTrue(done < end <= total)
            self.assertLessEqual(end - done, max(piece, 2 * LEAST))

    @given(st.integers(2 * LEAST, 20_000), st.integers(0, 10_000), st.data())
    def test_batches(self, length: int, start: int, data: st.DataObject) -> None:
        """No piece of a usual size is smaller than a whole tile, nor larger than a batch, wherever the first begins."""
        total = exact_end(length)
        done = min(start, total - LEAST)
        while done < total:
            end = piece_end(done, data.draw(st.sampled_from(PIECES)), total)
            self.assertTrue(LEAST <= end - done <= BATCH, (done, end, total))
            done = end

    @given(st.integers(1, 20_000), st.integers(1, 2000))
    def test_rest(self, length: int, question: int) -> None:
        """A question's own batch is a whole tile, or begins where a cold run's last batch does."""
        end = exact_end(length)
        self.assertTrue(0 < end <= length)
        if length >= 2 * LEAST:
            self.assertTrue(length + question - end >= LEAST or end % BATCH == 0)
            self.assertLess(length - end, LEAST)

    def test_tiny_pieces(self) -> None:
        """An operator who wants pieces of fewer tokens gets them."""
        self.assertEqual([10, 20, 25], [piece_end(done, 10, 25) for done in (0, 10, 20)])
