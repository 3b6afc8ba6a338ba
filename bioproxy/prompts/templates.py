"""Templates: reading one with the files that it includes, and filling it with a message.

A template is a text file.  ``<{message}>`` stands for the user's message, any other ``<{path}>`` for the content
of that file::

    You know this project:
    <{notes/architecture.md}>

    Answer briefly.
    <{message}>

Reading happens in one pass: what an include or a message brings in is never looked through again, so a
user who writes ``<{/etc/passwd}>`` gets exactly these characters.

What comes before the first message is the *prefix text*.  Every question on the template shares it, so this
is what llama-server can process before anyone asks.

Everything here is plain, blocking Python that knows nothing of Twisted: `bioproxy.prompts.template_poller` calls it in
a thread.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bioproxy.prompts.digests import digest
from bioproxy.runtime.errors import TemplateError

BEGIN, END = "<{", "}>"
"""What stands around the name of a place, on one line."""

MESSAGE = "message"

MAX_FILE = 64 * 1024 * 1024
"""Bytes of one file at most.  No model has a context for so much; a log file included by mistake has more.

Decoding so many is one step in which no other thread of Python's runs: it takes 30 to 50 ms, or 0.3 s where there are
emoji among them.
"""


SLICE = 1 << 20
"""Characters of a text that are spelled at a time: some milliseconds' work."""


@dataclass(frozen=True)
class Template:
    """A prefix and the file that it stands for."""

    name: str
    prefix: str
    path: Path

    @classmethod
    def of(cls, prefix: str, path: Path) -> Template:
        """Derive the name: the prefix without its leading punctuation.  Raises `ValueError`."""
        name = re.sub(r"^[\W_]+", "", prefix)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or re.search(r"\s", prefix) or not prefix.isprintable():
            raise ValueError(f"{prefix!r} gives no name of 1 to 64 letters, digits, '_' or '-'")
        return cls(name, prefix, path)


@dataclass(frozen=True)
class Text:
    """A template as read: its text with the includes put in.

    `parts` are the texts around the places of the message: one place, two parts.  `includes` are the files that
    the template names, `errors` says which of them could not be read and why.
    """

    parts: tuple[str, ...]
    includes: tuple[Path, ...]
    errors: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """The text before the first place of the message."""
        return self.parts[0]

    @cached_property
    def prefix_digest(self) -> str:
        """A digest of the prefix."""
        return digest(self.prefix)

    @cached_property
    def digest(self) -> str:
        """A digest of all of it."""
        return digest(*self.parts)

    @cached_property
    def spelled(self) -> tuple[bytes, ...]:
        """The parts as JSON spells them inside a string, ready to be put into requests."""
        return tuple(spelled(part) for part in self.parts)

    def fill(self, message: str) -> str:
        """Put the message into each of its places."""
        return message.join(self.parts)


def spelled(text: str) -> bytes:
    """Return a text as JSON spells it inside a string: in ASCII, without the quotation marks.

    Slice by slice, because Python lets no other thread run while it spells one, and that is where everybody is served.
    """
    slices = (text[at : at + SLICE] for at in range(0, len(text), SLICE))
    return b"".join(json.dumps(each)[1:-1].encode() for each in slices)


def read(template: Template) -> Text:
    """Read a template and its includes from disk.

    An include that cannot be read leaves ``[Error reading PATH: reason]`` in the text.  Raises `TemplateError`
    where the template itself cannot be read or has no place for the message.
    """
    try:
        source = read_file(template.path)
    except ValueError as error:
        raise TemplateError(f"template {template.name}: {template.path}: {error}") from None

    # Lists of pieces: adding to a long text would copy it each time.
    parts: list[list[str]] = [[]]
    includes, errors = [], []
    for index, piece in enumerate(split(source)):
        if index % 2 == 0:
            parts[-1].append(piece)
        elif piece == MESSAGE:
            parts.append([])
        else:
            try:
                include = template.path.parent / Path(piece).expanduser()
                includes.append(include)
                parts[-1].append(read_file(include))
            except (ValueError, RuntimeError) as error:  # RuntimeError: "~nobody", there is no such user
                parts[-1].append(f"[Error reading {piece}: {error}]")
                errors.append(f"{piece}: {error}")
    if len(parts) == 1:
        raise TemplateError(f"template {template.name}: {template.path}: no <{{message}}> in it")
    return Text(tuple(map("".join, parts)), tuple(dict.fromkeys(includes)), tuple(errors))


def split(source: str) -> Iterator[str]:
    r"""Yield text, the name of a place, text, the name of a place, ..., text.

    As ``re.split(r"<\{(.*?)\}>", source)`` does, which takes the square of the time for many beginnings on one line
    that has no end, and lets no other thread run meanwhile.
    """
    behind = 0  # the last place
    begin, end = source.find(BEGIN), 0
    while begin >= 0:
        name = begin + len(BEGIN)
        if end < name:
            end = source.find(END, name)
        if end < 0:
            break
        line_end = source.find("\n", name, end)
        if line_end < 0:
            yield source[behind:begin]
            yield source[name:end]
            behind = end + len(END)
        # Where the line ends first, it does so for each place that begins on it from here on.
        begin = source.find(BEGIN, behind if line_end < 0 else line_end)
    yield source[behind:]


def read_file(path: Path) -> str:
    """Read a text file; a byte-order mark is dropped.  Raises `ValueError` with the reason, fit for a person."""
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait, perhaps forever, for somebody to write to it.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("not a regular file")
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(content) > MAX_FILE:
        raise ValueError(f"larger than {MAX_FILE >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


FileStamp = tuple[int, ...] | None
"""What `stat` tells of a file: equal stamps, unchanged file.  `None`: there is no such file."""

COARSE = 2.0
"""Seconds.  The coarsest clock by which a file system dates changes (FAT)."""


def stamp(path: Path) -> FileStamp:
    """Look at a file without reading it."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path with a null character
        return None
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
