"""Looks into llama-server's answers, and believes nothing of them but what was asked for.

JSON has few types, and any of them may stand anywhere: a list where an object was expected, text for a number, a number
of a thousand digits, ``1e400``, which Python reads as infinity.  Whoever takes such a value as it is fails much later,
where nobody thinks of llama-server any more.  So each value is asked for by its name and its type, and what is not so
is an `UpstreamError` at once, which says what was wrong.

Pure.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any, TypeVar

from bioproxy.runtime.errors import UpstreamError

T = TypeVar("T")

LARGEST = 2**63 - 1
"""What llama-server can count to."""

LARGEST_TOKEN = 2**31 - 1
"""llama.cpp's tokens are numbers of 32 bits, none of them negative."""

LONGEST_LINE = 1000
"""Characters of a text that is for people: enough for any path or message that somebody will read."""


def misfit(what: str) -> UpstreamError:
    """Return the error for an answer of another shape than llama-server's."""
    return UpstreamError(f"llama-server's answer is not understood: {what}")


class Table:
    """A JSON object.  Each method fails with `UpstreamError` where the value is of another type.

    The methods that end in ``_or`` give something else where there is no such value, or where it is null.
    """

    def __init__(self, value: Any, name: str = "it") -> None:
        if not isinstance(value, dict):
            raise misfit(f"{name} is no object")
        self.values: dict[str, Any] = value

    def whole(self, name: str) -> int:
        """Return a whole number from 0 on."""
        return whole(self.values.get(name), name)

    def whole_or(self, name: str, other: T, least: int = 0) -> int | T:
        """Return a whole number from `least` on."""
        value = self.values.get(name)
        return other if value is None else whole(value, name, least=least)

    def number(self, name: str) -> float:
        """Return a number that is neither infinite nor NaN."""
        value = self.values.get(name)
        # A whole number may be too large to become a float.
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            raise misfit(f"{name} is no number of a usual size")
        return float(value)

    def number_or(self, name: str, other: T) -> float | T:
        """Return a number; infinite ones and NaN count as missing, as they do where llama.cpp writes null for them."""
        value = self.values.get(name)
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        return other if missing else self.number(name)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise misfit(f"{name} is neither true nor false")
        return value

    def flag_or(self, name: str, other: bool) -> bool:
        """Return true or false."""
        return other if self.values.get(name) is None else self.flag(name)

    def text(self, name: str) -> str:
        """Return a text that has a place in UTF-8."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise misfit(f"{name} is no text")
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell it, and little else can take it
            raise misfit(f"{name} is no proper text") from None
        return value

    def text_or(self, name: str, other: T) -> str | T:
        """Return a text that has a place in UTF-8."""
        return other if self.values.get(name) is None else self.text(name)

    def table(self, name: str) -> Table:
        """Return an object."""
        return Table(self.values.get(name), name)

    def table_or_empty(self, name: str) -> Table:
        """Return an object."""
        return Table({}) if self.values.get(name) is None else self.table(name)

    def tables(self, name: str) -> list[Table]:
        """Return a list of objects."""
        return tables(self.values.get(name), name)

    def token(self, name: str) -> int:
        """Return a token."""
        return whole(self.values.get(name), name, LARGEST_TOKEN)

    def tokens(self, name: str) -> list[int]:
        """Return a list of tokens."""
        return [whole(each, name, LARGEST_TOKEN) for each in listed(self.values.get(name), name)]


def whole(value: Any, name: str, largest: int = LARGEST, least: int = 0) -> int:
    """Return a value if it is a whole number between two others.  In Python true is one, too: 1; in JSON it is not."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise misfit(f"{name} is no whole number from {least} to {largest}")
    return value


def listed(value: Any, name: str = "it") -> list[Any]:
    """Return a value if it is a list."""
    if not isinstance(value, list):
        raise misfit(f"{name} is no list")
    return value


def tables(value: Any, name: str = "it") -> list[Table]:
    """Return a value if it is a list of objects."""
    return [Table(each, f"one of {name}") for each in listed(value, name)]


def to_compare(value: Any) -> str:
    """Return any JSON as text, to be compared.  What `json` could still read may be too deep for `repr`."""
    try:
        return repr(value)
    except RecursionError:
        raise misfit("it is nested too deeply") from None


def decoded(body: bytes | bytearray) -> Any:
    """Return JSON decoded.  Raises `ValueError` for what is none, with a text that goes on after "it is"."""
    try:
        return json.loads(body)
    except RecursionError:
        # Each bracket is a call in the program that reads it, and calls have a limit.
        raise ValueError("JSON that is nested too deeply") from None
    except ValueError:
        raise ValueError("something that is not JSON") from None


def shown(text: str, longest: int = LONGEST_LINE) -> str:
    """Return a text of llama-server's for people to read: in one line, not too long, nothing that moves a cursor."""
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:longest])
    return line if len(text) <= longest else line + "…"
