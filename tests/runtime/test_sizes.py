"""Sizes for human readers."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.sizes import shown_size


class ShownSize(SynchronousTestCase):
    """`shown_size`."""

    def test_each_unit(self) -> None:
        """Each unit is 1024 times the one before; the number never looks like 1024 of a smaller unit."""
        for count, shown in (
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1.0 KB"),
            (1536, "1.5 KB"),
            (1024**2 - 1, "1.0 MB"),
            (300 * 1024**2, "300.0 MB"),
            (1_500_000_000, "1.4 GB"),
            (8 * 1024**3, "8.0 GB"),
            (1024**4, "1.0 TB"),
            (1024**5, "1.0 PB"),
            (5000 * 1024**5, "5000.0 PB"),
        ):
            self.assertEqual(shown, shown_size(count))
