"""Template files: reading a template with the files that it includes, and filling it with a message.

A template is a text file.  ``<{message}>`` stands for the user's message, and any other ``<{path}>`` for the content
of that file::

    You know this project:
    <{notes/architecture.md}>

    Answer briefly.
    <{message}>

A template is expanded in one pass: what an include or a message brings in is not searched for more places.  This is a
security property.  A user who writes ``<{/etc/passwd}>`` gets exactly these characters, and an included file cannot
include others.

What comes before the first message is the *prefix text*.  All questions on the template begin with it, so llama-server
can evaluate it before anyone asks.  That is why a template should have the message at its end.

Everything here is plain, blocking Python that does not know Twisted, and can be tested with nothing but files.
`bioproxy.prompts.template_poller` calls it in a thread.  Threads do not run Python code at the same time, though: only
one of them holds the global interpreter lock (GIL).  Python hands it on between two bytecode instructions, after 5 ms,
but not in the middle of a single call into C.  So a call that takes 100 ms in a thread stops the reactor for 100 ms as
well.  This is the reason for the limits and slices below.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bioproxy.prompts.digests import digest
from bioproxy.runtime.errors import TemplateError
from bioproxy.runtime.regular_file import read_regular

BEGIN, END = "<{", "}>"
"""What stands before and behind the name of a place.  Both must be on one line."""

MESSAGE = "message"
"""The name of the place where the message goes.  A file of this name can be included as ``<{./message}>``."""

MAX_FILE = 64 * 1024 * 1024
"""Bytes of one file, at most.

No model has a context for so much text.  A larger file was included by mistake, such as a log file.  Decoding so many
bytes is one call into C, during which the reactor stands still: 30 to 50 ms, or 0.3 s if there are emoji in the text.
Doubled, these times double; halved, nothing is lost with today's models.
"""

SLICE = 1 << 20
"""Characters that are escaped for JSON in one call: some milliseconds without the GIL being handed on.

Doubled, the reactor waits up to twice as long; halved, there are more calls, whose overhead is still negligible.
"""

FileStamp = tuple[int, ...] | None
"""What `stat` tells about a file: device, inode, size, and the times of the last change of content and of metadata.

`None` if there is no such file.  If any of these changes, the file has to be read again.  The inode notices a file that
was replaced by renaming another one, and the second time a file whose first one was set back (``rsync -t`` does that).
"""

COARSEST_FILE_CLOCK = 2.0
"""Seconds.  The coarsest resolution in which a file system stores times (FAT).

Two writes within this time may leave the same stamp.  Halved, such a change can be missed on FAT; doubled, a changed
file is read a few times more than needed.
"""


@dataclass(frozen=True)
class Template:
    """A prefix, and the file that it stands for.

    Invariant: `name` consists of letters, digits, ``_`` and ``-``, so it can be used in file names and metric labels.
    """

    name: str
    """The prefix without its leading punctuation: ``code`` for ``@code``."""
    prefix: str
    """What a message has to begin with.  Contains no white space."""
    path: Path
    """The template file."""

    @classmethod
    def of(cls, prefix: str, path: Path) -> Template:
        """Return the template for a prefix, with the name derived from it.  Raises `ValueError` if there is none."""
        # The name becomes part of file names in llama-server's slot folder, of URLs and of metric labels.
        name = re.sub(r"^[\W_]+", "", prefix)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or re.search(r"\s", prefix) or not prefix.isprintable():
            raise ValueError(f"{prefix!r} gives no name of 1 to 64 letters, digits, '_' or '-'")
        return cls(name, prefix, path)


@dataclass(frozen=True)
class TemplateText:
    """A template as it was read, with its includes expanded.

    Invariant: `parts` has at least two entries, because a template without a place for the message is an error.
    """

    parts: tuple[str, ...]
    """The texts before, between and behind the places of the message: one place, two parts."""
    includes: tuple[Path, ...]
    """The files that the template includes, each one once, readable or not."""
    errors: tuple[str, ...]
    """For each include that could not be read, its path and the reason."""

    @property
    def prefix(self) -> str:
        """The prefix text: all that comes before the first message."""
        return self.parts[0]

    @cached_property
    def prefix_digest(self) -> str:
        """A digest of the prefix text.  Only this decides whether a slot file fits."""
        return digest(self.prefix)

    @cached_property
    def digest(self) -> str:
        """A digest of all parts."""
        return digest(*self.parts)

    @cached_property
    def json_escaped(self) -> tuple[bytes, ...]:
        """The parts, escaped for the inside of a JSON string.

        Kept, because all requests that use the template share these bytes instead of escaping the text again.
        """
        return tuple(json_escaped(part) for part in self.parts)

    def fill(self, message: str) -> str:
        """Return the template's text with the message in each of its places.

        For people who want to see the result.  Requests are filled by `bioproxy.prompts.filling`, which copies nothing.
        """
        return message.join(self.parts)


def json_escaped(text: str) -> bytes:
    """Return a text as JSON writes it inside a string: in ASCII, without the quotation marks.

    Escaped slice by slice, so that other threads, above all the reactor's, can run between two slices.
    """
    slices = (text[at : at + SLICE] for at in range(0, len(text), SLICE))
    return b"".join(json.dumps(each)[1:-1].encode() for each in slices)


def read(template: Template) -> TemplateText:
    """Read a template and its includes from disk.  Blocking.

    An include that cannot be read leaves ``[Error reading PATH: reason]`` in the text, so that the rest of the template
    still works and the model can see what is missing.  Raises `TemplateError` if the template itself cannot be read or
    has no place for the message: then a user's message would be lost.
    """
    try:
        source = read_file(template.path)
    except ValueError as error:
        raise TemplateError(f"template {template.name}: {template.path}: {error}") from None

    # Each part is a list of pieces that is joined at the end.  Adding to a long text would copy the text each time,
    # which is quadratic for a template with thousands of includes.
    # `split` yields text and names in turn, so an odd index is the name of a place.
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
            except (ValueError, RuntimeError) as error:
                # `expanduser` raises `RuntimeError` for "~nobody" if there is no user of that name.
                parts[-1].append(f"[Error reading {piece}: {error}]")
                errors.append(f"{piece}: {error}")
    if len(parts) == 1:
        raise TemplateError(f"template {template.name}: {template.path}: no <{{message}}> in it")
    return TemplateText(tuple(map("".join, parts)), tuple(dict.fromkeys(includes)), tuple(errors))


def split(source: str) -> Iterator[str]:
    r"""Yield text, the name of a place, text, the name of a place, ..., text.

    The result is that of ``re.split(r"<\{(.*?)\}>", source)``.  But the regular expression needs quadratic time for a
    line with many ``<{`` and no ``}>``: it searches to the end of the line from each of them.  A template of 1 MB could
    stop the program for minutes, because `re` does not hand on the GIL either.
    """
    done = 0  # everything before this position has been yielded
    begin, end = source.find(BEGIN), 0
    while begin >= 0:
        name = begin + len(BEGIN)
        # The next END is searched only when the last one found lies behind us, so each character is searched once.
        if end < name:
            end = source.find(END, name)
        if end < 0:
            break
        line_end = source.find("\n", name, end)
        if line_end < 0:
            yield source[done:begin]
            yield source[name:end]
            done = end + len(END)
        # If the line ends before END, that holds for all further places that begin on this line.  Skip them.
        begin = source.find(BEGIN, done if line_end < 0 else line_end)
    yield source[done:]


def read_file(path: Path) -> str:
    """Return the content of a text file in UTF-8, without a byte-order mark.  Blocking.

    Raises `ValueError` with a human-readable reason if the file cannot be read, is too large, or is not UTF-8.
    """
    try:
        # One byte more than allowed tells whether the file is too large.  Its size in `stat` would not be reliable: a
        # log file may grow while it is read.
        content = read_regular(path, MAX_FILE + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(content) > MAX_FILE:
        raise ValueError(f"larger than {MAX_FILE >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def stamp(path: Path) -> FileStamp:
    """Return a file's stamp.  Costs one `stat` call and does not read the file."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        # `ValueError`: the path contains a null character.  Any include can be written in a template.
        return None
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
