"""Digests of texts and of tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis.strategies import integers
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.digests import DigestedTokens, digest, prefix_digests


class Texts(SynchronousTestCase):
    """`digest`."""

    def test_digest(self) -> None:
        """Equal texts have equal digests; other texts, or the same characters divided in another way, have others."""
        self.assertEqual(digest("a", "b"), digest("a", "b"))
        all_texts = [
            (),
            ("",),
            ("", ""),
            ("ab", "c"),
            ("a", "bc"),
            ("abc",),
            ("c", "ab"),
            ("1:a",),
            ("é",),
            ("\ud800",),
        ]
        self.assertEqual(len(all_texts), len({digest(*texts) for texts in all_texts}))


class Tokens(SynchronousTestCase):
    """`prefix_digests` and `DigestedTokens`."""

    def test_prefix_digests(self) -> None:
        """There is a digest for each 64 tokens and one for the rest; equal beginnings have equal digests."""
        counts = {0: 0, 1: 1, 63: 1, 64: 1, 65: 2, 128: 2, 150: 3}
        self.assertEqual(counts, {length: len(prefix_digests(range(length))) for length in counts})
        self.assertEqual(prefix_digests(range(150))[:2], prefix_digests(range(128)))
        self.assertEqual(prefix_digests(range(150)), prefix_digests(list(range(150))))
        self.assertEqual(6, len({*prefix_digests(range(150)), *prefix_digests([7, *range(1, 150)])}))

    def test_large_numbers(self) -> None:
        """Large token numbers are told apart: vocabularies have hundreds of thousands of tokens."""
        self.assertNotEqual(prefix_digests([1 << 20]), prefix_digests([1 << 40]))

    def test_shared_with(self) -> None:
        """The result is the length of the saved list or a multiple of 64, and never too large."""
        for saved, other, expected in (
            (150, [*range(150)], 150),
            (150, [*range(250)], 150),  # all of it, and more behind
            (30, [*range(150)], 30),
            (150, [*range(149)], 128),  # shorter
            (150, [*range(64)], 64),
            (150, [*range(63)], 0),
            (150, [*range(75), 7, *range(76, 150)], 64),
            (150, [*range(149), 7], 128),
            (150, [*range(128), 7, *range(129, 250)], 128),
            (150, [*range(64), 7, *range(65, 250)], 64),
            (128, [*range(127), 7, *range(128, 250)], 64),
            (128, [*range(250)], 128),
            (150, [7, *range(1, 150)], 0),
            (30, [*range(29), 7], 0),
            (150, [], 0),
            (0, [*range(150)], 0),
        ):
            self.assertEqual(
                expected,
                DigestedTokens(other).shared_with(prefix_digests(range(saved)), saved),
                (saved, other[:3], len(other)),
            )

    def test_no_digests(self) -> None:
        """Without digests nothing is known to be shared."""
        self.assertEqual(0, DigestedTokens(range(600)).shared_with((), 600))

    def test_other_digests(self) -> None:
        """Digests of other blocks of tokens, as earlier versions wrote them, share nothing."""
        self.assertEqual(0, DigestedTokens(range(600)).shared_with(prefix_digests(range(600))[3::4], 600))

    @given(integers(0, 300), integers(0, 300), integers(0, 300))
    def test_as_a_simple_comparison(self, saved: int, length: int, different: int) -> None:
        """Whatever two lists share, the result is that number, rounded down to 64, or all of the saved list."""
        other = [token if token < different else token + 1000 for token in range(length)]
        shared = min(saved, length, different)
        expected = saved if shared == saved else shared // 64 * 64
        self.assertEqual(expected, DigestedTokens(other).shared_with(prefix_digests(range(saved)), saved))
