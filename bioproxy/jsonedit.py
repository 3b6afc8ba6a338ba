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
from collections.abc import Iterable, Iterator, Mapping
from json.decoder import JSONDecoder
from typing import Any

Path = tuple[str | int, ...]
"""Where a value stands, e.g. ``("messages", 0, "content")``."""


def parse_int(digits: str) -> int | float:
    """Read a whole number.  Of thousands of digits Python refuses to make one; as for llama.cpp, it is a float then."""
    return int(digits) if len(digits) < 1000 else float(digits)


_decode = JSONDecoder(parse_int=parse_int).raw_decode
_skip_space = re.compile(r"[ \t\n\r]*").match


def replace(text: str, values: Mapping[Path, Any]) -> str:
    """Return the text with other values in the given places.

    `text` must be valid JSON, and each path must lead to a value in it, or to a key that is missing in the
    outermost object: then it is added there, in front.  Raises `KeyError` for any other path.  Takes time in
    proportion to the text's length, however many values there are.
    """
    start = _space(text, 0)
    places = find(text, values, start)
    # ASCII only: a half character ("\ud800") that came in as an escape goes out as one.
    edits = [(*place, json.dumps(values[path])) for path, place in places.items()]
    missing = [path for path in values if path not in places]
    if missing:
        if text[start] != "{" or any(len(path) != 1 or not isinstance(path[0], str) for path in missing):
            raise KeyError(missing)
        added = ", ".join(f"{json.dumps(path[0])}: {json.dumps(values[path])}" for path in missing)
        empty = text[_space(text, start + 1)] == "}"
        edits.append((start + 1, start + 1, added if empty else f"{added}, "))
    pieces, done = [], 0
    for begin, end, new in sorted(edits):
        pieces += [text[done:begin], new]
        done = end
    return "".join([*pieces, text[done:]])


def find(text: str, paths: Iterable[Path], start: int = 0) -> dict[Path, tuple[int, int]]:
    """Return where the values begin and end that `paths` lead to, without those paths that lead nowhere.

    The paths begin at the value at `start`.
    """
    below: dict[str | int, list[Path]] = {}
    for path in paths:
        below.setdefault(path[0], []).append(path[1:])
    # Of a key given twice the last one counts, as in `json.loads` and in llama.cpp: later ones replace earlier ones.
    members = {key: place for key, *place in _members(text, start) if key in below}
    found: dict[Path, tuple[int, int]] = {}
    for key, (begin, end) in members.items():
        if () in below[key]:
            found[key,] = begin, end
        if deeper := [rest for rest in below[key] if rest]:
            found.update({(key, *path): place for path, place in find(text, deeper, begin).items()})
    return found


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
