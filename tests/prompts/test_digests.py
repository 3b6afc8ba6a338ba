"""Digests of texts and of tokens."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.digests import digest, prefix_digests, shared_prefix_length


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
    """`prefix_digests` and `shared_prefix_length`."""

    def test_prefix_digests(self) -> None:
        """There is a digest for each 256 tokens and one for the rest; equal beginnings have equal digests."""
        counts = {0: 0, 1: 1, 255: 1, 256: 1, 257: 2, 512: 2, 600: 3}
        self.assertEqual(counts, {length: len(prefix_digests(range(length))) for length in counts})
        self.assertEqual(prefix_digests(range(600))[:2], prefix_digests(range(512)))
        self.assertEqual(prefix_digests(range(600)), prefix_digests(list(range(600))))
        self.assertEqual(6, len({*prefix_digests(range(600)), *prefix_digests([7, *range(1, 600)])}))

    def test_large_numbers(self) -> None:
        """Large token numbers are told apart: vocabularies have hundreds of thousands of tokens."""
        self.assertNotEqual(prefix_digests([1 << 20]), prefix_digests([1 << 40]))

    def test_shared_prefix_length(self) -> None:
        """The result is the length of the saved list or a multiple of 256, and never too large."""
        for saved, other, expected in (
            (600, [*range(600)], 600),
            (600, [*range(1000)], 600),  # all of it, and more behind
            (100, [*range(600)], 100),
            (600, [*range(599)], 512),  # shorter
            (600, [*range(256)], 256),
            (600, [*range(255)], 0),
            (600, [*range(300), 7, *range(301, 600)], 256),
            (600, [*range(599), 7], 512),
            (600, [*range(512), 7, *range(513, 1000)], 512),
            (600, [*range(256), 7, *range(257, 1000)], 256),
            (512, [*range(511), 7, *range(512, 1000)], 256),
            (600, [7, *range(1, 600)], 0),
            (100, [*range(99), 7], 0),
            (600, [], 0),
            (0, [*range(600)], 0),
        ):
            self.assertEqual(
                expected,
                shared_prefix_length(prefix_digests(range(saved)), saved, other),
                (saved, other[:3], len(other)),
            )

    def test_no_digests(self) -> None:
        """Without digests nothing is known to be shared."""
        self.assertEqual(0, shared_prefix_length((), 600, range(600)))
