"""The kinds of values that a setting may have: one small function for each kind.

Such a function is a `Check`.  It gets the raw value, as JSON has it, and the folder at which relative paths start.  It
returns the value to use, which may be of another type (a `Path`, a tuple), or raises `ValueError`.  The error's text
continues a sentence after the setting's name: ``port: must be a whole number from 0 to 65535, not "x"``.  It quotes the
value as JSON, so that a text and a number look different, and a control character is visible.

A kind with limits, such as `whole`, is a function that returns a `Check`.

Pure functions, without Twisted.  Does not know which settings there are; `bioproxy.settings.configuration` does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bioproxy.prompts.prompt_ids import is_learned
from bioproxy.prompts.templates import Template

SIZE = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,6})?)([KMGkmg])")
"""A size as a text: a number, with or without a fraction, and a unit.

The number of digits is limited, because Python refuses to convert a text of more than 4,300 digits, with an error that
says nothing about settings.
"""

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
"""The bytes in each unit of a size."""

# In each function `_folder` is the folder for relative paths, and is unused if the value is no path.

Check = Callable[[Any, Path], Any]
"""Turns a raw value into the setting's value; relative paths start at the folder.  Raises `ValueError`."""


def text(value: Any, _folder: Path) -> str:
    """Accept a text that has more than white space."""
    # An empty host or path would be understood as something by the operating system, and not as a mistake.
    if not isinstance(value, str) or not value.strip() or not is_known_to_system(value):
        raise ValueError(f"must be a text, not {json.dumps(value)}")
    return value


def is_known_to_system(value: str) -> bool:
    """Tell whether the operating system can have such a text, as a path or a word of a command line.

    It cannot have a null character, nor half of a surrogate pair, which JSON can have as an escape.  Python would raise
    an exception later, where it is not caught.
    """
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def flag(value: Any, _folder: Path) -> bool:
    """Accept true and false, and nothing that only counts as such in Python, like 0 or an empty text."""
    # Configuration files written by hand often have ``"yes"`` or ``1``; guessing what is meant would hide mistakes.
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {json.dumps(value)}")
    return value


def one_of(*names: str) -> Check:
    """Return a check that accepts one of these names, in the same case."""

    def check(value: Any, _folder: Path) -> str:
        """Accept one of `names`."""
        # A value of another type equals no name.  Compared with each name, since a list or an object from JSON cannot
        # be looked up in a set: it has no hash.
        if value not in names:
            raise ValueError(f"must be {' or '.join(names)}, not {json.dumps(value)}")
        return str(value)

    return check


def whole(low: int, high: int) -> Check:
    """Return a check that accepts whole numbers from `low` to `high`, both included.

    ``8081.0`` is refused: in JSON it is a number with a fraction.
    """

    def check(value: Any, _folder: Path) -> int:
        """Accept a whole number in the range."""
        # In Python, `True` is an `int`; in a configuration it is a mistake.
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {json.dumps(value)}")
        return value

    return check


def size(low: int, high: int) -> Check:
    """Return a check that accepts sizes from `low` to `high` bytes, both included.

    A size is a whole number of bytes, or a text with a unit, such as ``8G`` or ``1.5g``.  The units K, M and G are
    powers of 1024.  The result is always a number of bytes, so that no part has to know how a size is written.
    """

    def check(value: Any, _folder: Path) -> int:
        """Accept a size in the range."""
        found = SIZE.fullmatch(value) if isinstance(value, str) else None
        # A text without a unit is refused like any number in quotation marks.  On the command line a number without a
        # unit has become a number already (`bioproxy.operator.options`).
        # A `float` is exact for all whole numbers up to 2**53, which is more than any `high` in use; a fraction of a
        # unit is cut to whole bytes.
        count = int(float(found[1]) * UNITS[found[2].upper()]) if found else value
        # A fraction of a byte, such as the number 1.5, is most likely a text whose unit was forgotten.
        if isinstance(count, bool) or not isinstance(count, int) or not low <= count <= high:
            raise ValueError(
                f'must be a number of bytes, or a text like "8G" with K, M or G, from {low} to {high >> 30}G,'
                f" not {json.dumps(value)}"
            )
        return count

    return check


def seconds(low: float, high: float) -> Check:
    """Return a check that accepts numbers of seconds from `low` to `high`, with or without a fraction.

    The result is always a `float`, so that no part has to expect both.
    """

    def check(value: Any, _folder: Path) -> float:
        """Accept a number of seconds in the range."""
        # Python's JSON reads ``NaN``; comparing it is always false, so it is refused, too.  So is ``Infinity``, because
        # `high` is finite: no timer can wait for either.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}, not {json.dumps(value)}")
        return float(value)

    return check


def path(value: Any, folder: Path) -> Path:
    """Accept a path.  ``~`` is the home folder; a relative path starts at `folder`.  The file need not exist."""
    name = text(value, folder)
    try:
        return folder / Path(name).expanduser()  # `/` returns its right side alone if that is an absolute path
    except RuntimeError as error:  # a user after "~" who does not exist
        raise ValueError(f"{name}: {error}") from None


def url(value: Any, folder: Path) -> str:
    """Accept the address of an HTTP server: scheme and host, with or without port and the beginning of a path.

    A slash at the end is removed, because a request's path, which follows, begins with one.
    """
    address = text(value, folder).rstrip("/")
    # One text for all mistakes, with an example: which rule was broken is usually obvious then.
    complaint = f"must be an address like http://127.0.0.1:8080, not {json.dumps(value)}"
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is not a number, or a bracket that is not closed
        raise ValueError(complaint) from None
    # The path of each request is appended to this text.  A query or a fragment in it would swallow that path; a user
    # and password would be sent along; and white space would break the request line.
    if not valid or "@" in parts.netloc or re.search(r"[?#]|[^!-~]", address):
        raise ValueError(complaint)
    return address


def port_of(address: str) -> int:
    """Return the port of an HTTP server, by its address as `url` accepts it."""
    parts = urlsplit(address)
    return parts.port or (443 if parts.scheme == "https" else 80)


def bracketed(host: str) -> str:
    """Return a host as URLs have it: an IPv6 address stands in brackets."""
    return f"[{host}]" if ":" in host else host


def program(value: Any, folder: Path) -> str:
    """Accept a program: a name, which is looked for on the path, or a path, which has a slash in it."""
    name = text(value, folder)
    return str(path(name, folder)) if "/" in name else name


def words(value: Any, _folder: Path) -> tuple[str, ...]:
    """Accept the words of a command line: a list of texts, or one text, which is split as a shell does."""
    complaint = f'must be a list like ["-c", "8192"], not {json.dumps(value)}'
    try:
        found = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:  # a quotation mark that is not closed
        raise ValueError(f"{complaint}: {error}") from None
    # Numbers are texts on a command line, and in JSON it is easy to leave out their quotation marks.
    if not isinstance(found, list) or not all(isinstance(each, str) and is_known_to_system(each) for each in found):
        raise ValueError(complaint)
    return tuple(found)


def names(value: Any, folder: Path) -> tuple[str, ...]:
    """Accept a list of host names, or a text with commas between them, as the command line has it."""
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f'must be a list like ["bioproxy"], not {json.dumps(value)}')
    # White space around a comma is allowed, and so is a comma at the end.
    # An empty list is valid and the default.
    found = [each.strip() for each in found if each.strip()]
    for name in found:
        # No port, because the port of a request to these names does not matter.
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ValueError(f"must have host names like bioproxy.lan, not {json.dumps(name)}")
    return tuple(found)


def prefixes(value: Any, folder: Path) -> Mapping[str, Path]:
    """Accept an object that maps prefixes to the paths of template files."""
    # The paths are checked one by one, so that the error quotes the one that is wrong.
    if not isinstance(value, dict):
        raise ValueError(f'must be an object like {{"@code": "code.txt"}}, not {json.dumps(value)}')
    # The names are checked last, because a wrong path says more about the mistake.
    return with_names({prefix: path(file, folder) for prefix, file in value.items()})


def with_names(files: Mapping[str, Path]) -> Mapping[str, Path]:
    """Return `files` unchanged if each prefix gives a valid name of its own.

    A template's name, the prefix without its punctuation, is part of file names, of paths on the operator's port and
    of metrics.  Two templates with one name would overwrite each other's slot files.  So would a template with
    the name of a learned prompt; and its file could be removed to keep within `prompts_limit`, which never happens to
    the file of a template.
    """
    # The prefix that has each name, to quote both in the error.  `Template.of` raises `ValueError` for a prefix without
    # a valid name.
    owners: dict[str, str] = {}
    for prefix, file in files.items():
        name = Template.of(prefix, file).name
        if name in owners:
            raise ValueError(f"{owners[name]!r} and {prefix!r} both have the name {name!r}")
        if is_learned(name):
            raise ValueError(f"{prefix!r} gives the name {name!r}, which looks like that of a learned prompt")
        owners[name] = prefix
    return files
