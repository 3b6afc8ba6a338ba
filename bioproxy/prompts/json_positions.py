"""Finds where single values stand inside a JSON text, so that they can be replaced and every other byte left as it was.

The usual way, `json.loads`, change, `json.dumps`, would say most things again in the same way, but not all:
``1e400`` becomes ``Infinity`` (which is not JSON), ``1.10`` becomes ``1.1``, a key given twice is given once.
A proxy has no business changing what it does not understand.  So the text is kept, and only the places of the
values to be replaced are looked up in it, by following a path of keys and indices from the top.

The work inside is done by the standard library's own scanner (`JSONDecoder.raw_decode`), which tells for each
value where it ends.

All positions are indices of characters in the text.  Each function expects valid JSON, takes time in proportion to the
text's length, however many values are looked for, and raises `RecursionError` where the JSON nests too deep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from json.decoder import JSONDecoder

Path = tuple[str | int, ...]
"""Where a value stands, e.g. ``("messages", 0, "content")``."""

Span = tuple[int, int]
"""Where something begins, and where it ends: the position behind its last character."""


def parse_int(digits: str) -> int | float:
    """Read a whole number.  Of thousands of digits Python refuses to make one; as for llama.cpp, it is a float then."""
    return int(digits) if len(digits) < 1000 else float(digits)


_decode = JSONDecoder(parse_int=parse_int).raw_decode
_skip_space = re.compile(r"[ \t\n\r]*").match


def find(text: str, paths: Iterable[Path], start: int = 0) -> dict[Path, Span]:
    """Return the spans of the values that `paths` lead to, without those paths that lead nowhere.

    The paths begin at the value at `start`.
    """
    below: dict[str | int, list[Path]] = {}
    for path in paths:
        below.setdefault(path[0], []).append(path[1:])
    # Of a key given twice the last one counts, as in `json.loads` and in llama.cpp: later ones replace earlier ones.
    members = {key: place for key, *place in _members(text, start) if key in below}
    found: dict[Path, Span] = {}
    for key, (begin, end) in members.items():
        if () in below[key]:
            found[key,] = begin, end
        if deeper := [rest for rest in below[key] if rest]:
            found.update({(key, *path): place for path, place in find(text, deeper, begin).items()})
    return found


def first_member(text: str) -> tuple[int, bool]:
    """Return where a new first member of the outermost object can be put, and whether the object is empty now."""
    inside = _space(text, 0) + 1
    return inside, text[_space(text, inside)] == "}"


def trimmed(text: str, span: Span, value: str, left: int, right: int) -> Span:
    r"""Return the span of a string's inside, without its first `left` and its last `right` characters.

    `span` is that of the string with its quotation marks, and `value` what the string means.  A character may be
    spelled in several ways (``\n`` or ``\u000a``); of which the text has, the characters themselves tell.  Those to be
    left out at the right must be white space, which no other escape ends with.
    """
    begin, end = span[0] + 1, span[1] - 1
    for character in value[:left]:
        if text[begin] != "\\":
            begin += 1
        elif text[begin + 1] != "u":
            begin += 2
        else:  # two of them make one character from beyond the first 65,536
            begin += 12 if character > "\uffff" else 6
    for character in reversed(value[len(value) - right :]):
        if text[end - 1] == character:
            end -= 1
        else:
            end -= 2 if text[end - 2] == "\\" else 6
    return begin, end


def _members(text: str, start: int) -> Iterator[tuple[str | int, int, int]]:
    """Yield key or index, beginning and end of each value in the object or array that begins at `start`."""
    start = _space(text, start)
    opening = text[start]
    if opening not in "{[":
        return
    at = _space(text, start + 1)
    index = 0
    while text[at] not in "}]":
        key: str | int = index
        if opening == "{":
            key, at = _decode(text, at)
            at = _space(text, _space(text, at) + 1)  # the colon, with space around it
        _, end = _decode(text, at)
        yield key, at, end
        at = _space(text, end)
        if text[at] == ",":
            at = _space(text, at + 1)
        index += 1


def _space(text: str, at: int) -> int:
    """Return the position of the next character that is no white space."""
    match = _skip_space(text, at)
    assert match is not None  # the pattern matches the empty text too
    return match.end()
