r"""Finds where single values stand in a JSON text, so that they can be replaced and every other byte stays as it was.

The usual way is `json.loads`, change the value, `json.dumps`.  That would write most requests in the same way again,
but not all of them:

* ``1e400`` becomes ``Infinity``, which is not JSON, and llama-server refuses the request;
* ``1.10`` becomes ``1.1``, and ``12345678901234567890.0`` loses digits;
* a key that is given twice is given once;
* white space and the choice of escapes (``\u00e9`` or ``é``) are lost.

A proxy must not change what it does not understand.  It also must not hold a second copy of a large body.  So the text
stays as it is, and only the positions of the values to be replaced are determined, by following a path of keys and
indices from the top.

The parsing itself is done by the standard library: `JSONDecoder.raw_decode`, written in C, decodes one value at a given
position and returns where it ends.  To find the position of a value, the values before it are decoded and dropped.
For example, in ``{"a": [1, "x"], "b": 2}`` the path ``("a", 1)`` is found in two steps: the members of the outermost
object are scanned (``a`` at 6 to 14, ``b`` at 21 to 22), then those of the array at position 6.

All positions are indices of characters in the text; `ByteOffsets` converts them into bytes.  Every function expects
valid JSON, takes time linear in the length of the text, however many values are looked for, and raises
`RecursionError` if the JSON nests too deep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from json.decoder import JSONDecoder

Path = tuple[str | int, ...]
"""The keys and indices that lead to a value, e.g. ``("messages", 0, "content")``."""

Span = tuple[int, int]
"""Where something begins, and where it ends: the position behind its last character (or byte)."""

MOST_DIGITS = 1000
"""Digits from which on a whole number is read as a float.

Python's own limit is 4300 digits by default and 640 at least, because decoding takes time quadratic in the digits.
Doubled or halved, nothing changes for a real request: no field needs so many digits, and those of the body are sent as
they are.
"""


def parse_int(digits: str) -> int | float:
    """Decode a whole number, even one with so many digits that Python's `int` raises `ValueError`.

    llama.cpp reads such a number as a float.  If it were an error here, the request would be taken for invalid JSON and
    be sent unfilled, although llama-server accepts it.
    """
    return int(digits) if len(digits) < MOST_DIGITS else float(digits)


# `raw_decode` is stricter about one thing than `json.loads`: it does not skip white space before the value.  So each
# position has to be moved to the value's first character, with `_skip_space`.
_decode = JSONDecoder(parse_int=parse_int).raw_decode
_skip_space = re.compile(r"[ \t\n\r]*").match  # JSON's white space; `\s` would skip more


def find(text: str, paths: Iterable[Path], start: int = 0) -> dict[Path, Span]:
    """Return the span of each value that one of `paths` leads to; paths that lead nowhere are left out.

    The paths begin at the value at the position `start`.  A span begins at the value's first character, which is the
    quotation mark of a string, and ends behind its last one.  No path may be empty.
    """
    # Grouped by their first step, so that the members at each level are scanned once for all paths together.
    below: dict[str | int, list[Path]] = {}
    for path in paths:
        below.setdefault(path[0], []).append(path[1:])

    # If a key is given twice, the last one counts: `json.loads` and llama.cpp both do it so.  If the first one were
    # replaced here, llama-server would read the other one, unfilled.  The dict does the same: later members win.
    members = {key: place for key, *place in _members(text, start) if key in below}

    # What lies inside a member is scanned again, one level deeper.  A path has at most five steps, so each character is
    # decoded a few times, not once for each path.  The rest of a path is empty if the path ends at this member; for the
    # same member one path may end here, and another one go on.
    found: dict[Path, Span] = {}
    for key, (begin, end) in members.items():
        if () in below[key]:
            found[key,] = begin, end
        if deeper := [rest for rest in below[key] if rest]:
            found.update({(key, *path): place for path, place in find(text, deeper, begin).items()})
    return found


def first_member(text: str) -> tuple[int, bool]:
    """Return where a new first member of the outermost object can be inserted, and whether the object is empty.

    Inserted in front, because the place is easy to find: behind the opening brace.  The caller has to add a comma if
    the object is not empty.
    """
    # The outermost value is an object, so its first character is the opening brace.
    inside = _space(text, 0) + 1
    return inside, text[_space(text, inside)] == "}"


def trimmed(text: str, span: Span, value: str, left: int, right: int) -> Span:
    r"""Return the span of a string's inside, without its first `left` and its last `right` characters.

    `span` is that of the string in `text`, with its quotation marks, and `value` is the decoded string.  `left` and
    `right` count characters of `value`.  The `right` ones must be white space.

    The string is not decoded a second time.  Each character of `value` is matched with the way in which it is written:
    ``\n`` may also be written ``\u000a``, so the same character takes 1, 2, 6 or 12 characters of the text.
    """
    # The inside of the quotation marks.
    begin, end = span[0] + 1, span[1] - 1

    # Only these few characters at both ends are looked at, and never the message in the middle, which may be megabytes.
    # From the left an escape is recognised by its backslash, and its length by the character behind that.
    for character in value[:left]:
        if text[begin] != "\\":
            begin += 1
        elif text[begin + 1] != "u":
            begin += 2
        else:  # a character beyond U+FFFF is written as a surrogate pair: two escapes of 6 characters
            begin += 12 if character > "\uffff" else 6

    # From the right an escape is recognised by its end.  That is only certain because the character is white space:
    # it is either written as it is, or as a short escape (`\n`), or as `\u` with four digits.
    for character in reversed(value[len(value) - right :]):
        if text[end - 1] == character:
            end -= 1
        else:
            # Not the character itself, so it is an escape.  `\n` has a backslash just before its last character, and
            # `\u000a` has a digit there.
            end -= 2 if text[end - 2] == "\\" else 6
    return begin, end


class ByteOffsets:
    """Converts positions in a text, in characters, into positions in its UTF-8 encoding, in bytes.

    Bodies are kept and sent as bytes, but JSON is decoded as text, and the two count differently: ``é`` is one
    character and two bytes.  A table of all positions would need more memory than the body.  So only the last position
    is kept, and the next one is counted from there.

    Invariant: `_last` is a character's position together with the same position in bytes.
    """

    def __init__(self, text: str, before: int) -> None:
        """Prepare for `text`, whose encoding begins `before` bytes after the beginning of the body."""
        self._text = text
        self._before = before
        # The common case.  Python knows this of each string, without looking at its characters.
        self._ascii = text.isascii()
        self._last = (0, 0)

    def __call__(self, index: int) -> int:
        """Return the byte at which the character at `index` begins.

        Only the text between the last position and this one is encoded.  So positions that are asked for in ascending
        order, or nearly so, take linear time together.
        """
        # In ASCII each character is one byte, so there is nothing to count.
        if self._ascii:
            return self._before + index
        # Backwards as well: `id_slot` is converted last but may stand in front.  `encode` copies a part of the text for
        # a moment; that is quicker than a loop over its characters in Python.
        character, byte = self._last
        if index >= character:
            byte += len(self._text[character:index].encode())
        else:
            byte -= len(self._text[index:character].encode())
        self._last = index, byte
        return self._before + byte

    def span(self, span: Span) -> Span:
        """Return a span of characters as a span of bytes."""
        return self(span[0]), self(span[1])


def _members(text: str, start: int) -> Iterator[tuple[str | int, int, int]]:
    """Yield the key or index, the beginning and the end of each value in the object or array that begins at `start`.

    Yields nothing for any other value: a path that leads into a number leads nowhere.  A generator, so that the decoded
    values are dropped one by one instead of being held all at the same time.
    """
    start = _space(text, start)
    opening = text[start]
    if opening not in "{[":
        return
    at = _space(text, start + 1)
    # The JSON is known to be valid, so there is no need to check for missing commas, colons or the end of the text.
    index = 0
    while text[at] not in "}]":
        key: str | int = index
        if opening == "{":
            # Decoded, not compared as text: a key can be written with escapes, too.
            key, at = _decode(text, at)
            at = _space(text, _space(text, at) + 1)  # the colon, with white space before and behind it
        _, end = _decode(text, at)
        yield key, at, end
        # Behind the value comes either a comma or the closing bracket, with which the loop ends.
        at = _space(text, end)
        if text[at] == ",":
            at = _space(text, at + 1)
        index += 1


def _space(text: str, at: int) -> int:
    """Return the position of the next character from `at` on that is not white space."""
    match = _skip_space(text, at)
    assert match is not None  # the pattern matches the empty text, too
    return match.end()
