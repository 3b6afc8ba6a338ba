"""Replaces single values inside a JSON text and leaves every other byte as it was.

The usual way, `json.loads`, change, `json.dumps`, would say most things again in the same way, but not all:
``1e400`` becomes ``Infinity`` (which is not JSON), ``1.10`` becomes ``1.1``, a key given twice is given once.
A proxy has no business changing what it does not understand.  So the text is kept, and only the places of the
values to be replaced are looked up in it, by following a path of keys and indices from the top.

The work inside is done by the standard library's own scanner (`JSONDecoder.raw_decode`), which tells for each
value where it ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from json.decoder import JSONDecoder
from typing import Any

Path = tuple[str | int, ...]
"""Where a value stands, e.g. ``("messages", 0, "content")``."""

_decode = JSONDecoder().raw_decode
_skip_space = re.compile(r"[ \t\n\r]*").match


def replace(text: str, values: Mapping[Path, Any]) -> str:
    """Return the text with other values in the given places.

    `text` must be valid JSON, and each path must lead to a value in it, or to a key that is missing in the
    outermost object: then it is added there, in front.  Raises `KeyError` for any other path.
    """
    edits: list[tuple[int, int, str]] = []
    added: list[str] = []
    opening = _space(text, 0)
    for path, value in values.items():
        # ASCII only: a half character ("\ud800") that came in as an escape goes out as one.
        new = json.dumps(value)
        try:
            edits.append((*find(text, path), new))
        except KeyError:
            if len(path) != 1 or not isinstance(path[0], str) or text[opening] != "{":
                raise
            added.append(f"{json.dumps(path[0])}: {new}")
    if added:
        empty = text[_space(text, opening + 1)] == "}"
        edits.append((opening + 1, opening + 1, ", ".join(added) + ("" if empty else ", ")))
    # From the back to the front, so that the places found stay right.
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def find(text: str, path: Path) -> tuple[int, int]:
    """Return where the value at `path` begins and ends.  Raises `KeyError` if there is none."""
    start, end = _space(text, 0), len(text)
    for step in path:
        places = [place for key, *place in _members(text, start) if key == step]
        if not places:
            raise KeyError(path)
        # Of a key given twice the last one counts, as in `json.loads` and in llama.cpp.
        start, end = places[-1]
    return start, end


def _members(text: str, start: int) -> Iterator[tuple[str | int, int, int]]:
    """Yield key or index, beginning and end of each value in the object or array that begins at `start`."""
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
