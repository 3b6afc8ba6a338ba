"""Removes from a recorded request what must not be in a repository, and keeps what bioproxy looks at.

A client's request contains names of people and machines, ids, keys, and long texts that belong to the client's makers.
bioproxy only needs the form of a request: which fields it has, how long its texts are, where two requests are equal
and where they differ.  So each of these is replaced by something of the same form:

* names (of the user, the host, the home folder) by fixed ones;
* ids by numbered ones of the same length.  Equal ids stay equal and different ids stay different, so that it still can
  be seen which requests belong to one session;
* the words of long texts by common English words.  A word always becomes the same word, so a text that two requests
  share stays shared, and a date or a number in the middle of it still differs.

Everything here is pure but for the count of the ids seen.  This module knows nothing of Twisted, and nothing of how
requests are recorded: that is `tools.record_client`.
"""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bioproxy.demo.vocabulary import COMMON_WORDS

UNIMPORTANT = re.compile(
    r"(?i)host|connection|content-length|accept.*|.*encoding|sec-fetch-.*|x-stainless-.*|traceparent|tracestate"
)
"""Headers that are left out: bioproxy and llama-server do not look at them, and some name the client's machine."""

SECRET = re.compile(r"(?i)authorization|x-api-key|api-key|cookie")
"""Headers whose value is replaced as a whole."""

TEXTS = frozenset(
    {"text", "content", "description", "instructions", "input", "output", "system", "prompt"}
    # The text before and behind the cursor, in requests to fill something in.
    | {"input_prefix", "input_suffix"}
)
"""Fields with texts that the client's makers or its user wrote."""

LONG = 60
"""Characters above which a text is masked.

With half as many, short questions and names of models would be masked as well; with twice as many, whole sentences of
the client's makers would stay.
"""

ID = re.compile(
    r"(?i)(?<![0-9a-z])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"  # a UUID
    r"|(?<![0-9a-z])[0-9a-f]{16,}\b"  # a digest
    r"|(?<=_)(?=[a-z]*[0-9])[0-9a-z]{16,}\b"  # `ses_` and random letters and digits
)
"""What is taken for an id."""

NOT_TEXT = re.compile(r"x-[\w-]+: ")
"""Beginning of a text that is a line of marks instead, as Claude Code's ``x-anthropic-billing-header``."""

WORD = re.compile(r"[A-Za-z]{3,}")
"""What is replaced in a long text.  Digits, punctuation and line ends stay."""

EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")
"""An address of electronic mail."""

COLUMN = {size: [word for word in COMMON_WORDS if len(word) == size] for size in range(3, 9)}
"""The words that replace others, by their length; longer words are replaced by those of eight letters."""


def masked(text: str) -> str:
    """Return a text with other words, each of about the same length; equal words stay equal."""

    def other(match: re.Match[str]) -> str:
        word = match[0].lower()
        column = COLUMN[min(len(word), max(COLUMN))]
        # A checksum and not `hash`, which differs from one process to the next.
        return column[zlib.crc32(word.encode()) % len(column)]

    return WORD.sub(other, text)


def here(*folders: Path) -> dict[str, str]:
    """Return the names that this machine and these folders would give away, and what stands for each."""
    names = {str(folder): "/home/user/project" for folder in folders}
    names[str(Path.home())] = "/home/user"
    # Names of three letters and less are left: they occur in too many words.
    words = {getpass.getuser(): "user", socket.gethostname(): "machine", platform.release(): "6.0.0"}
    return names | {name: other for name, other in words.items() if len(name) > 3 and name != "root"}


class Scrub:
    """Scrubs the requests of one recording, in which equal ids stay equal."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """Replace these names, the longest first: a folder before the folder that it is in."""
        self._names = sorted(names.items(), key=lambda pair: -len(pair[0]))
        self._ids: dict[str, str] = {}

    def headers(self, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return the headers that matter, with names in lower case, in alphabetical order."""
        kept = {name.lower(): value for name, value in sorted(pairs) if not UNIMPORTANT.fullmatch(name)}
        return {name: "secret" if SECRET.fullmatch(name) else self.plain(value) for name, value in kept.items()}

    def body(self, value: Any, key: str = "") -> Any:
        """Return a JSON value of the same form.  `key` is the name of the field that has it."""
        if isinstance(value, dict):
            return {name: self.body(each, name) for name, each in value.items()}
        if isinstance(value, list):
            return [self.body(each, key) for each in value]
        return self.text(value, key) if isinstance(value, str) else value

    def text(self, text: str, key: str) -> str:
        """Return what stands for a text in this field."""
        text = self.plain(text)
        long = key in TEXTS and len(text) > LONG and not NOT_TEXT.match(text)
        return masked(text) if long else text

    def plain(self, text: str) -> str:
        """Return a text without names and ids, its words unchanged."""
        for name, other in self._names:
            text = text.replace(name, other)
        return ID.sub(self._numbered, EMAIL.sub("user@example.com", text))

    def _numbered(self, match: re.Match[str]) -> str:
        """Return what stands for an id: zeros in the place of letters and digits, and its number at the end."""
        found = match[0]
        if found not in self._ids:
            zeros = re.sub(r"[0-9A-Za-z]", "0", found)
            number = f"{len(self._ids) + 1:04}"
            self._ids[found] = zeros[: -len(number)] + number
        return self._ids[found]


def compact(body: Any) -> bytes:
    """Write JSON as JavaScript's `JSON.stringify` does: no spaces, and letters of other languages as they are."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
