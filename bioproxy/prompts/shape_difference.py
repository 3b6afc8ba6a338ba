"""Describes where two JSON values first differ, without quoting any text of them.

An operator who sees that a template had to be evaluated again asks why.  "The system message differs from character 58
on" is the answer that helps: at that position there is usually a clock, a user's name or a random id.  The text itself
would help even more, but it is private, and bioproxy keeps no text of any message in logs, headers or `/status`.

The first difference is the one that matters.  Tokens in front of it can be reused, and everything behind it has to be
evaluated again, whether it differs or not.  So the search goes in the order of the prompt and stops at the first hit.

This module is pure.  It does not know what the values are; `bioproxy.prompts.prompt_shape` compares shapes with it.
"""

from __future__ import annotations

from typing import Any


def first_difference(path: str, one: Any, other: Any) -> str | None:
    """Describe where two JSON values first differ; `path` is what leads to them, in the notation of Python.

    Returns ``None`` if they are equal except for the order of keys.  "New" and "missing" are meant as seen from `one`.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        # All names of both objects, each one once, in the order of the first object: a set would have no fixed order,
        # and the same difference should be described in the same words each time.
        for name in dict.fromkeys((*one, *other)):
            # A shape groups the request's fields under "fields" and "message".  The client knows only the names inside.
            below = path if not path and name in ("fields", "message") else f"{path}.{name}".lstrip(".")
            if name not in one or name not in other:
                return f"{below} is {'new' if name in other else 'missing'}"
            if found := first_difference(below, one[name], other[name]):
                return found
        return None

    # Lists are messages, content parts or tools; their entries are compared one by one, in order.
    if isinstance(one, list) and isinstance(other, list):
        # First the entries that both have: "messages[0].content differs" says more than "messages has 3 entries".
        for index, (first, second) in enumerate(zip(one, other, strict=False)):
            if found := first_difference(f"{path}[{index}]", first, second):
                return found
        entries = "entry" if len(other) == 1 else "entries"
        return None if len(one) == len(other) else f"{path} has {len(other)} {entries} instead of {len(one)}"

    if isinstance(one, str) and isinstance(other, str) and one != other:
        # Counted from 1, as editors do.  If one text is the beginning of the other, they differ behind its end.
        same = next((at for at, (first, second) in enumerate(zip(one, other, strict=False)) if first != second), None)
        return f"{path} differs from character {(min(len(one), len(other)) if same is None else same) + 1} on"

    # The type is compared as well: in Python `1 == True` and `1 == 1.0`, but a chat template writes them differently.
    return None if one == other and type(one) is type(other) else f"{path} has another value"
