"""Reads values out of llama-server's JSON, and checks the type of each.

JSON may have any type anywhere: a list where an object was expected, text instead of a number, a number of a thousand
digits, or ``1e400``, which Python reads as infinity.  Code that takes such a value unchecked fails much later, in a
place where nobody suspects llama-server, perhaps with an exception that looks like a bug of bioproxy.  So each value is
requested by its name and its type, and a value of another type is an `UpstreamError` at once, with a text that says
what was wrong.

That matters for other programs, too: what answers at `llama_url` may be something else than llama-server, a proxy with
an error page or a newer build with other fields.

Pure functions and values, without Twisted.  Does not know which answers llama-server has; `bioproxy.llama.api` does.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any, TypeVar

from bioproxy.runtime.errors import UpstreamError

T = TypeVar("T")
"""The type of a default: `None`, for example, so that the caller has to handle a value that is missing."""

LARGEST = 2**63 - 1
"""The largest whole number that is accepted: llama-server counts with 64 bits, one of them for the sign."""

LARGEST_TOKEN = 2**31 - 1
"""The largest token: llama.cpp's tokens are numbers of 32 bits, and none that it returns is negative."""

LONGEST_LINE = 1000
"""Characters of llama-server's texts that are shown in logs, on the page and in errors.

Half of it would cut long paths; twice as much lets a hostile server fill the log with fewer requests.
"""


def misfit(what: str) -> UpstreamError:
    """Return the error for an answer that is not as llama-server's should be; `what` says in which respect."""
    return UpstreamError(f"llama-server's answer is not understood: {what}")


class Table:
    """A JSON object, whose values are requested by name and type.

    Each method raises `UpstreamError` if the value is of another type, and most do if it is missing.  The methods that
    end in ``_or`` return a default if the value is missing or null; a value of a wrong type is still an error there.
    """

    def __init__(self, value: Any, name: str = "it") -> None:
        """Take a decoded value, which has to be an object; `name` is what errors call it."""
        if not isinstance(value, dict):
            raise misfit(f"{name} is no object")
        self.values: dict[str, Any] = value

    # The methods are small on purpose, one for each type: the caller reads like a description of the answer.

    def whole(self, name: str) -> int:
        """Return a whole number, at least 0."""
        return whole(self.values.get(name), name)

    def whole_or(self, name: str, other: T, least: int = 0) -> int | T:
        """Return a whole number, at least `least`; or `other`."""
        value = self.values.get(name)
        return other if value is None else whole(value, name, least=least)

    def number(self, name: str) -> float:
        """Return a number that is neither infinite nor NaN."""
        value = self.values.get(name)
        # Python's JSON reads ``1e400`` as infinity, and whole numbers of any size, which `float` would refuse with an
        # exception of its own.  `not ... <=` also catches NaN, for which each comparison is false.  `bool` is excluded
        # because Python's true is the number 1.
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            raise misfit(f"{name} is no number of a usual size")
        return float(value)

    def number_or(self, name: str, other: T) -> float | T:
        """Return a number; or `other`, also for infinity and NaN.

        llama.cpp writes null where it computed such a number, so both mean the same: it is not known.
        """
        # `json` reads ``NaN`` and ``Infinity``, although they are no JSON, and too large numbers as infinity.
        value = self.values.get(name)
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        return other if missing else self.number(name)

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise misfit(f"{name} is neither true nor false")
        return value

    def flag_or(self, name: str, other: bool) -> bool:
        """Return a boolean, or `other`.  The numbers 0 and 1 are no booleans."""
        return other if self.values.get(name) is None else self.flag(name)

    def text(self, name: str) -> str:
        """Return a text that can be encoded in UTF-8, so that it can be logged, stored and sent on."""
        value = self.values.get(name)
        if not isinstance(value, str):
            raise misfit(f"{name} is no text")
        try:
            value.encode()
        # JSON can spell half of a surrogate pair (``"\ud800"``), which is no character and cannot be encoded.
        except UnicodeEncodeError:
            raise misfit(f"{name} is no proper text") from None
        return value

    def text_or(self, name: str, other: T) -> str | T:
        """Return a text that can be encoded in UTF-8, or `other`."""
        return other if self.values.get(name) is None else self.text(name)

    def table(self, name: str) -> Table:
        """Return an object, as a `Table`."""
        return Table(self.values.get(name), name)

    def table_or_empty(self, name: str) -> Table:
        """Return an object, or an empty one if it is missing or null."""
        return Table({}) if self.values.get(name) is None else self.table(name)

    def tables(self, name: str) -> list[Table]:
        """Return a list of objects, each as a `Table`."""
        return tables(self.values.get(name), name)

    def token(self, name: str) -> int:
        """Return a token: a whole number that llama.cpp can use as one."""
        return whole(self.values.get(name), name, LARGEST_TOKEN)

    def tokens(self, name: str) -> list[int]:
        """Return a list of tokens."""
        return [whole(each, name, LARGEST_TOKEN) for each in listed(self.values.get(name), name)]


def whole(value: Any, name: str, largest: int = LARGEST, least: int = 0) -> int:
    """Return a value if it is a whole number from `least` to `largest`; otherwise raise `UpstreamError`.

    `name` is what the error calls the value.
    """
    # In Python `True` is an `int`, too; in JSON it is not a number.
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise misfit(f"{name} is no whole number from {least} to {largest}")
    return value


def listed(value: Any, name: str = "it") -> list[Any]:
    """Return a value if it is a list; otherwise raise `UpstreamError`."""
    if not isinstance(value, list):
        raise misfit(f"{name} is no list")
    return value


def tables(value: Any, name: str = "it") -> list[Table]:
    """Return a value as a list of `Table` if it is a list of objects; otherwise raise `UpstreamError`."""
    return [Table(each, f"one of {name}") for each in listed(value, name)]


def to_compare(value: Any) -> str:
    """Return any decoded JSON as a text that differs if the values do.  Raises `UpstreamError`."""
    # `json` and `repr` have different limits for how deep values may nest.
    try:
        return repr(value)
    except RecursionError:
        raise misfit("it is nested too deeply") from None


def decoded(body: bytes | bytearray) -> Any:
    """Return JSON decoded.

    Raises `ValueError` if it is none, with a text that continues a sentence after "it is".
    """
    try:
        return json.loads(body)
    except RecursionError:
        # The parser calls itself for each bracket that opens, and Python limits how deep calls may nest.
        raise ValueError("JSON that is nested too deeply") from None
    except ValueError:
        raise ValueError("something that is not JSON") from None


def shown(text: str, longest: int = LONGEST_LINE) -> str:
    """Return a text from llama-server so that it can be shown: one line, at most `longest` characters.

    Line ends and control characters become escapes: they could forge a log line or move a terminal's cursor.
    """
    # Cut before the escapes are made, so that what is kept in memory is limited, too.
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text[:longest])
    return line if len(text) <= longest else line + "…"
