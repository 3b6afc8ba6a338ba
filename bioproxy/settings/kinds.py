"""What the value of a setting may be: one small function for each kind.

Each gets the raw value, as JSON has it, and the folder at which relative paths start; it returns the value to use, or
raises `ValueError` with a text that goes on after the setting's name: ``port: must be a whole number from 0 to 65535``.

Pure.  Knows nothing of which settings there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bioproxy.prompts.templates import Template

Check = Callable[[Any, Path], Any]
"""Turns a raw value into the setting's value; relative paths start at the given folder.  Raises `ValueError`."""


def text(value: Any, _folder: Path) -> str:
    """Accept a text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a text, not {json.dumps(value)}")
    return value


def flag(value: Any, _folder: Path) -> bool:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {json.dumps(value)}")
    return value


def one_of(*names: str) -> Check:
    """Accept one of these names."""

    def check(value: Any, _folder: Path) -> str:
        if value not in names:
            raise ValueError(f"must be {' or '.join(names)}, not {json.dumps(value)}")
        return str(value)

    return check


def whole(low: int, high: int) -> Check:
    """Accept a whole number in the range."""

    def check(value: Any, _folder: Path) -> int:
        # In Python True is an int; in a configuration it is a mistake.
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {json.dumps(value)}")
        return value

    return check


def seconds(low: float, high: float) -> Check:
    """Accept a number in the range, with or without a fraction."""

    def check(value: Any, _folder: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}, not {json.dumps(value)}")
        return float(value)

    return check


def path(value: Any, folder: Path) -> Path:
    """Accept a path: `~` is the home folder, a relative one starts at `folder`."""
    name = text(value, folder)
    if "\0" in name:
        raise ValueError(f"must be a path, not {json.dumps(name)}")
    try:
        return folder / Path(name).expanduser()
    except RuntimeError as error:  # "~nobody": there is no such user
        raise ValueError(f"{name}: {error}") from None


def url(value: Any, folder: Path) -> str:
    """Accept the address of an HTTP server: scheme, host, perhaps a port and the beginning of a path."""
    address = text(value, folder).rstrip("/")
    complaint = f"must be an address like http://127.0.0.1:8080, not {json.dumps(value)}"
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or a bracket left open
        raise ValueError(complaint) from None
    # Whatever else an address may have (a user, a query) has no place in front of a request's own path.
    if not valid or "@" in parts.netloc or re.search(r"[?#]|[^!-~]", address):
        raise ValueError(complaint)
    return address


def names(value: Any, folder: Path) -> tuple[str, ...]:
    """Accept a list of host names, or a text with commas between them."""
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f'must be a list like ["bioproxy"], not {json.dumps(value)}')
    found = [each.strip() for each in found if each.strip()]
    for name in found:
        # Without a port: any will do.
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ValueError(f"must have host names like bioproxy.lan, not {json.dumps(name)}")
    return tuple(found)


def prefixes(value: Any, folder: Path) -> Mapping[str, Path]:
    """Accept an object that maps prefixes to template files."""
    if not isinstance(value, dict):
        raise ValueError(f'must be an object like {{"@code": "code.txt"}}, not {json.dumps(value)}')
    return with_names({prefix: path(file, folder) for prefix, file in value.items()})


def with_names(files: Mapping[str, Path]) -> Mapping[str, Path]:
    """Return `files` unchanged; raise `ValueError` where a prefix gives no name, or two give the same."""
    owners: dict[str, str] = {}
    for prefix, file in files.items():
        name = Template.of(prefix, file).name
        if name in owners:
            raise ValueError(f"{owners[name]!r} and {prefix!r} both have the name {name!r}")
        owners[name] = prefix
    return files
