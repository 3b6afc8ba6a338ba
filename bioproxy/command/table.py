"""Tables and lines that fit a terminal: widths, cutting, colours.

A terminal has cells.  A Latin letter takes one cell, a Chinese character or most emoji take two, and a combining accent
takes none, so the length of a Python text is not its width.  Texts from outside may also have control characters in
them, with which a terminal can be told to do things; they are replaced before anything is measured.

A table gives way in two steps when it is too wide: first it drops its columns, the least important one first, then it
cuts the texts of its first column, which are names.

Colours are added last, around text that is already cut and padded, because escape sequences have no width.

Pure functions, without Twisted.  Does not know what is in a table.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

GAP = 2
"""Cells between two columns.

Halved, numbers of two columns run into each other for the eye; doubled, a column less fits into a narrow terminal.
"""

NAME_WIDTH = 8
"""Cells of the first column, at least, before another column is dropped instead.

Halved, names become unreadable; doubled, a terminal of 40 columns loses a column that would have fitted.
"""

ELLIPSIS = "~"
"""What stands for the rest of a text that was cut.  One cell in every encoding; ``ls`` and ``nano`` use such marks,
too."""


class Cell(NamedTuple):
    """One cell of a table: a text, and the number of its colour in terminals' escape sequences, or `None`."""

    text: str
    colour: int | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and its cells from top to bottom.  All columns of a table have equally many."""

    title: str
    cells: Sequence[Cell]
    rank: int = 0
    """How early it is dropped: the highest rank first, 0 never."""
    right: bool = False
    """Whether its texts stand at its right edge, as numbers do."""

    @property
    def width(self) -> int:
        """The cells that its widest text takes."""
        return max(width(text) for text in (self.title, *(cell.text for cell in self.cells)))


def plain(text: str) -> str:
    """Return a text without control characters and others that a terminal does not show as they are."""
    # An escape sequence begins with a control character; without that, its rest is harmless text.  Marks that turn the
    # direction of writing are not printable either.
    return "".join(character if character.isprintable() else "?" for character in text)


def width(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    return sum(character_width(character) for character in text)


def character_width(character: str) -> int:
    """Return how many cells a character takes: 0, 1 or 2."""
    # Accents that stand on the character before them.  Of a letter with its accent in one character, this is not true.
    if unicodedata.combining(character):
        return 0
    # Wide (W) and full-width (F) are Unicode's words for characters of two cells.  What is ambiguous (A), such as Greek
    # letters in an East Asian font, takes one cell on today's terminals.
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, cells: int) -> str:
    """Return a text that takes `cells` cells at most, with `ELLIPSIS` at its end if something is missing."""
    if width(text) <= cells:
        return text
    # No more characters than there are cells can fit, so a text of any length costs the same.  Wide ones among them
    # need more room, so the rest is found by trying.
    kept = text[: max(cells, 0)]
    while kept and width(kept) > cells - width(ELLIPSIS):
        kept = kept[:-1]
    return kept + ELLIPSIS if cells > 0 else ""


def coloured(text: str, colour: int | None, colours: bool) -> str:
    """Return a text in a colour, if there is one and `colours` is true."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colours and colour is not None else text


def table(columns: Sequence[Column], cells: int, colours: bool) -> list[str]:
    """Return the lines of a table that is `cells` cells wide at most: its titles, then its rows."""
    # One rank at a time, until the rest fits or only the first column is left, whose rank is 0.
    shown = list(columns)
    # The first column counts with its least width here: it is cut below.
    while needed(shown) > cells and (rank := max(column.rank for column in shown)):
        shown = [column for column in shown if column.rank < rank]
    first, *others = shown
    room = cells - sum(GAP + column.width for column in others)
    widths = [max(min(first.width, room), 1), *(column.width for column in others)]
    # Titles are just the first row, so they are cut and lined up like the others.
    rows = zip(*([Cell(column.title), *column.cells] for column in shown), strict=True)
    return [line(row, shown, widths, colours) for row in rows]


def needed(columns: Sequence[Column]) -> int:
    """Return how many cells a table of these columns takes when its names are cut as far as they may be."""
    # The others are never cut: half a number is a wrong number.
    first, *others = columns
    return min(first.width, NAME_WIDTH) + sum(GAP + column.width for column in others)


def line(row: Sequence[Cell], columns: Sequence[Column], widths: Sequence[int], colours: bool) -> str:
    """Return one row as a line, without spaces at its end."""
    # A cell, its column and the column's width belong together.
    parts = []
    for cell, column, cells in zip(row, columns, widths, strict=True):
        text = cut(cell.text, cells)
        # How much is missing up to the column's width: `str.ljust` counts characters and not cells.
        # The space stays outside of the colour, or a terminal with colours for backgrounds would show it.
        space = " " * (cells - width(text))
        shown = coloured(text, cell.colour, colours)
        parts.append(space + shown if column.right else shown + space)
    return (" " * GAP).join(parts).rstrip()
