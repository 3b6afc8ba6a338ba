"""Values of llama-server's answers, asked for by name and type.  `tests.test_bounds` tries them with all calls."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.errors import UpstreamError
from bioproxy.runtime.expect import LARGEST, LARGEST_TOKEN, LONGEST_LINE, Table, decoded, shown, to_compare


class Values(SynchronousTestCase):
    """`Table` and its like."""

    def fails(self, method: str, value: Any, *more: Any) -> None:
        """Check that a value is refused, by its name."""
        with self.assertRaises(UpstreamError) as caught:
            getattr(Table({"x": value}), method)("x", *more)
        self.assertIn(": x is n", str(caught.exception))

    def test_edges(self) -> None:
        """The largest and the smallest values are taken, and none beyond."""
        cases: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]], ...] = (
            ("whole", (), (0, LARGEST), (-1, LARGEST + 1, 1.0, True, None)),
            ("whole_or", (None, -1), (-1, 0, LARGEST), (-2, "", False)),
            ("token", (), (0, LARGEST_TOKEN), (-1, LARGEST_TOKEN + 1)),
            ("number", (), (-1e300, 0, 10**20), (float("inf"), float("-inf"), float("nan"), 10**400, "1", True, None)),
            ("number_or", (None,), (0.5,), (10**400, "1", True)),
            ("flag", (), (True, False), (None, 0, 1, "true")),
            ("flag_or", (True,), (False,), (0, "no")),
            ("text", (), ("", "é"), (None, 5, "\ud800")),
            ("text_or", (None,), ("",), (5, "\udfff")),
        )
        for method, more, good, bad in cases:
            for value in good:
                self.assertEqual(value, getattr(Table({"x": value}), method)("x", *more))
            for value in bad:
                self.fails(method, value, *more)

    def test_missing(self) -> None:
        """What is missing, or null, is what the caller says, where he says something."""
        for table in (Table({}), Table({"x": None})):
            for method in ("whole_or", "number_or", "flag_or", "text_or"):
                self.assertEqual("other", getattr(table, method)("x", "other"))
            self.assertEqual({}, table.table_or_empty("x").values)
        for value in (float("inf"), float("nan")):
            self.assertEqual("other", Table({"x": value}).number_or("x", "other"))

    def test_too_deep_to_compare(self) -> None:
        """What is too deep to be written as text is refused; what is not, differs where the values differ."""
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        with self.assertRaises(UpstreamError):
            to_compare(deep)
        self.assertNotEqual(to_compare([1]), to_compare(["1"]))

    def test_decoded(self) -> None:
        """JSON is decoded, and nothing else."""
        self.assertEqual({"a": [1]}, decoded(b' {"a": [1]}\n'))
        for body in (b"", b"{", b"\xff", b"[1] 2", b"[" * 100_000):
            with self.assertRaises(ValueError):
                decoded(body)

    def test_shown(self) -> None:
        """Text for people is one line, of a length that can be read, in which nothing is hidden."""
        for text, expected in (
            ("/models/é 日本.gguf", "/models/é 日本.gguf"),
            ("a\nb\r\t\x1b[2J\x7f\u202e", "a\\nb\\r\\t\\x1b[2J\\x7f\\u202e"),
            ("\ud800\ufffd", "\\ud800\ufffd"),
            ("x" * LONGEST_LINE, "x" * LONGEST_LINE),
            ("x" * (LONGEST_LINE + 1), "x" * LONGEST_LINE + "…"),
        ):
            self.assertEqual(expected, shown(text))
