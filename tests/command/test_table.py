"""`bioproxy.command.table`: tables that fit a terminal."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.command.table import Cell, Column, character_width, coloured, cut, plain, table, width


def columns(name: str = "a-long-name-of-a-prompt", state: str = "warm", count: str = "1,234") -> list[Column]:
    """Return a table of one row."""
    return [
        Column("NAME", [Cell(name)]),
        Column("STATE", [Cell(state, 32)], rank=1),
        Column("TOKENS", [Cell(count)], rank=2, right=True),
    ]


class Widths(SynchronousTestCase):
    """Texts are measured in cells."""

    def test_width(self) -> None:
        """A Chinese character and an emoji take two cells, an accent of its own none, everything else one."""
        for text, cells in (("", 0), ("abc", 3), ("提示", 4), ("e\u0301", 1), ("🙂", 2), ("\uff46", 2)):
            self.assertEqual(cells, width(text), text)
        self.assertEqual([1, 2, 0], [character_width(each) for each in ("x", "示", "\u0301")])

    def test_cut(self) -> None:
        """A text that is too wide ends with a mark, and takes no more cells than it may."""
        for text, cells, expected in (
            ("abc", 3, "abc"),
            ("abcd", 3, "ab~"),
            ("提示词", 6, "提示词"),
            ("提示词", 5, "提示~"),
            ("提示词", 4, "提~"),
            ("提示词", 1, "~"),
            ("abc", 0, ""),
        ):
            self.assertEqual(expected, cut(text, cells))
            self.assertLessEqual(width(cut(text, cells)), cells)

    def test_plain(self) -> None:
        """What could tell the terminal to do something is replaced."""
        self.assertEqual("a?[31mb?c", plain("a\x1b[31mb\u202ec"))
        self.assertEqual("提示 é", plain("提示 é"))

    def test_coloured(self) -> None:
        """A colour is put around a text if there is one, and if colours are wanted."""
        self.assertEqual("\x1b[32mx\x1b[0m", coloured("x", 32, True))
        self.assertEqual(["x", "x"], [coloured("x", 32, False), coloured("x", None, True)])


class Tables(SynchronousTestCase):
    """Columns give way, and line up."""

    def test_room(self) -> None:
        """With room for everything, each column is as wide as its widest text; numbers stand at the right."""
        expected = ["NAME  STATE  TOKENS", "code  warm    1,234"]
        self.assertEqual(expected, table(columns("code"), 80, False))

    def test_name_is_cut(self) -> None:
        """A table that is too wide cuts its first column."""
        expected = ["NAME           STATE  TOKENS", "a-long-name-~  warm    1,234"]
        self.assertEqual(expected, table(columns(), 28, False))

    def test_columns_are_dropped(self) -> None:
        """Where cutting is not enough, the column of the highest rank goes first, and the first column stays."""
        self.assertEqual(["NAME      STATE", "a-long-~  warm"], table(columns(), 15, False))
        self.assertEqual(["NAME", "a-long-na~"], table(columns(), 10, False))
        self.assertEqual(["N~", "a~"], table(columns(), 2, False))

    def test_always_fits(self) -> None:
        """Whatever the width is, no line is wider, with wide characters too."""
        for cells in range(1, 60):
            for line in table(columns("提示词和代码的说明", "错误"), cells, False):
                self.assertLessEqual(width(line), cells, line)

    def test_wide_characters_line_up(self) -> None:
        """Columns behind a name with wide characters line up."""
        rows = [Column("NAME", [Cell("提示"), Cell("code")]), Column("STATE", [Cell("warm"), Cell("cold")], rank=1)]
        self.assertEqual(["NAME  STATE", "提示  warm", "code  cold"], table(rows, 80, False))

    def test_colours(self) -> None:
        """Colours change no width: without the escape sequences, the lines are the same."""
        with_colours = table(columns("code"), 80, True)
        self.assertEqual("code  \x1b[32mwarm\x1b[0m    1,234", with_colours[1])
        without = [line.replace("\x1b[32m", "").replace("\x1b[0m", "") for line in with_colours]
        self.assertEqual(table(columns("code"), 80, False), without)
