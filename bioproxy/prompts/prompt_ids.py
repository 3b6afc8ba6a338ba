"""The names of prompts and conversations: in slot files, in `/status`, and in metrics.

A template's prompt is called as the template.  A prompt that was learned from requests has no name of its own, so it is
called ``auto-`` and the beginning of a digest, and so is a conversation.  That name is in file names and in
``X-Bioproxy-Prompt``, but never in a metric: each label would be a time series of its own, and learned prompts come and
go.  In metrics all of them are ``auto``.

Pure: texts in, texts out.
"""

from __future__ import annotations

import re

DIGITS = 12
"""Hexadecimal digits of the digest in a name: 48 bits.

Among 10,000 names two are equal with a probability of 2 in 10 million, and then one file replaces the other; it is
never taken for it, because the whole digest is compared before a file is used.  Halved, that would happen each year;
doubled, nobody could read the names.
"""

LEARNED = re.compile(rf"auto-[0-9a-f]{{{DIGITS}}}", re.ASCII)
"""What the name of a learned prompt or a conversation looks like.  No template may be called like that."""

LEARNED_LABEL = "auto"
"""What stands for all of these in metrics."""


def learned_id(digest: str) -> str:
    """Return the name for the digest, in hexadecimal, of a learned prompt or a conversation."""
    return f"auto-{digest[:DIGITS]}"


def is_learned(id: str) -> bool:
    """Tell whether a name is that of a learned prompt or a conversation, and not a template's."""
    return LEARNED.fullmatch(id) is not None


def metric_label(id: str) -> str:
    """Return what metrics call a prompt: a template's name as it is, ``auto`` for all others, empty for none."""
    return LEARNED_LABEL if is_learned(id) else id
