"""Finds what llama-server says of the prompt in an answer that passes by: how much of it came from the cache.

Each API says it in its own words, always near the answer's end, but for Anthropic's streams, which begin with it:

* OpenAI's chat completions, plain completions and streamed responses have llama.cpp's own `timings`: tokens reused
  (`cache_n`), tokens computed (`prompt_n`), and how long that took (`prompt_ms`, in milliseconds);
* Anthropic's messages have `usage`, where `input_tokens` are those that were computed;
* OpenAI's responses, not streamed, have `usage`, where `input_tokens` are all of them.

(llama.cpp b11549, tools/server/server-task.cpp.)

The answer comes in pieces, cut anywhere, and may be long: so nothing of it is parsed or kept but the end of what came
so far.  Looking for keys as bytes is safe: inside any JSON *text* their quotation marks would have a backslash before
them.

Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

TIMINGS = re.compile(rb'"timings":(\{[^{}]{,1900}\})')
COMPUTED = re.compile(rb'"cache_read_input_tokens":(\d{1,15}),"input_tokens":(\d{1,15})')
IN_ALL = re.compile(rb'"input_tokens":(\d{1,15}),[^{}]{,200}"input_tokens_details":\{"cached_tokens":(\d{1,15})')

WORDS = (b'"timings":', b'"input_tokens":')
"""One of these is in each of them."""

LONGEST = 2048
"""Bytes of the longest of these, and more."""


class Timings:
    """Gets an answer piece by piece; `values` has what it said."""

    def __init__(self) -> None:
        self._tail = b""
        self._found: dict[str, float] = {}

    def feed(self, data: bytes) -> None:
        """Look at the next piece of the body; any cuts will do."""
        text = self._tail + data
        # Enough for a whole one, if it began in this piece and ends in the next.
        before, self._tail = len(self._tail), text[-LONGEST:]
        if not any(word in text for word in WORDS):  # nearly always, and much quicker than to look properly
            return
        matches = [(match.end(), match, read) for pattern, read in READERS for match in pattern.finditer(text)]
        for end, match, read in sorted(matches, key=lambda each: each[0]):
            # The last one counts.  What ends in the tail was seen before.
            if end > before:
                self._found = read(*match.groups()) or self._found

    @property
    def values(self) -> dict[str, float]:
        """The timings, named as llama.cpp does; empty where there were none."""
        return self._found


def timings(found: bytes) -> dict[str, float]:
    """Read llama.cpp's own."""
    try:
        values = json.loads(found)
    except (ValueError, RecursionError):
        return {}
    # None of them can be negative or without end; whoever sends such a number is no llama-server.
    return {key: value for key, value in values.items() if isinstance(value, int | float) and 0 <= value < 1e15}


def computed(cached: bytes, computed: bytes) -> dict[str, float]:
    """Read Anthropic's usage."""
    return {"cache_n": int(cached), "prompt_n": int(computed)}


def in_all(tokens: bytes, cached: bytes) -> dict[str, float]:
    """Read the usage of OpenAI's responses."""
    return {"cache_n": int(cached), "prompt_n": max(0, int(tokens) - int(cached))}


READERS: tuple[tuple[re.Pattern[bytes], Callable[..., dict[str, float]]], ...] = (
    (COMPUTED, computed),
    (IN_ALL, in_all),
    (TIMINGS, timings),
)
"""What to look for, and how to read it."""
