"""Reads from an answer that passes by how many tokens of its prompt came from the cache.

That number is the only proof that a warm-up or a restored file was of use: what bioproxy believes about the slot is a
belief, `cache_n` is what llama-server did.  Each API tells it in its own words (llama.cpp b11549,
tools/server/server-task.cpp), always near the end of the answer, except for Anthropic's streams, which begin with it:

* OpenAI's chat completions, plain completions and streamed responses have llama.cpp's own `timings`: tokens reused
  (`cache_n`), tokens computed (`prompt_n`), and the milliseconds that took (`prompt_ms`);
* Anthropic's messages have `usage`, where `input_tokens` are those that were computed;
* OpenAI's responses, not streamed, have `usage`, where `input_tokens` are all of them.

On Twisted: an answer is not a value here but a series of calls, one for each piece as it arrives from the network, cut
anywhere.  So this is a small state machine that is fed, and never asks for more.  The answer may be long and is not
ours: nothing of it is parsed as a whole, and nothing is kept but its last few bytes.

Searching for JSON keys as bytes is safe: inside any JSON *text* their quotation marks would have a backslash before
them, so what a model writes can never be mistaken for a key.

Pure: knows neither the request nor its client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

# Repetitions and numbers are bounded, so that no answer can make a search slow or a number huge.
TIMINGS = re.compile(rb'"timings":(\{[^{}]{,1900}\})')
ANTHROPIC = re.compile(rb'"cache_read_input_tokens":(\d{1,15}),"input_tokens":(\d{1,15})')
RESPONSES = re.compile(rb'"input_tokens":(\d{1,15}),[^{}]{,200}"input_tokens_details":\{"cached_tokens":(\d{1,15})')

WORDS = (b'"timings":', b'"input_tokens":')
"""Each of the three patterns contains one of these."""

BEGINNING = 64
"""Bytes of the end of the answer that are kept while there was no word: a match has at most 56 before its word is
complete.

Halved, some numbers would be missed where the network has cut them; doubled, a little more copying for each piece.
"""

LONGEST = 2048
"""Bytes of the end of the answer that are kept, more than the longest match of any pattern.

Halved, `timings` with many extra fields could be missed when they are cut by the network; doubled, a little more
copying for each piece.
"""


class Timings:
    """Is fed with an answer, piece by piece.

    Invariant: `values` does not depend on where the answer was cut into pieces.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        """What was found, under llama.cpp's names (`cache_n`, `prompt_n`, `prompt_ms`); empty if nothing was."""
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Search the next piece of the body, together with the end of what came before."""
        text = self._tail + data
        # Nearly every piece ends here: `in` is a fast search, and most pieces are a token of a stream.  Of those, only
        # what can be the beginning of a match is kept.
        if WORDS[0] not in text and WORDS[1] not in text:
            self._tail = text[-BEGINNING:]
            return
        # The end is kept because a match may begin in this piece and be complete only in the next.
        before, self._tail = len(self._tail), text[-LONGEST:]
        matches = [(match.end(), match, read) for pattern, read in READERS for match in pattern.finditer(text)]
        for end, match, read in sorted(matches, key=lambda each: each[0]):
            # The last match counts: a stream may tell numbers in between (`timings_per_token`), and its end has the
            # final ones.  What ends within the old tail was found with the piece before.
            if end > before:
                self.values = read(*match.groups()) or self.values

    @property
    def prompt_tokens(self) -> int | None:
        """How many tokens the prompt has, reused and computed ones; `None` if the answer does not say."""
        if "cache_n" not in self.values or "prompt_n" not in self.values:
            return None
        return int(self.values["cache_n"]) + int(self.values["prompt_n"])


def from_timings(found: bytes) -> dict[str, float]:
    """Return the numbers in llama.cpp's own `timings`, and nothing where that is not a JSON object."""
    try:
        values = json.loads(found)
    except (ValueError, RecursionError):
        return {}
    # None of them can be negative or infinite.  Such a number is not llama-server's, and would spoil the metrics.
    return {key: value for key, value in values.items() if isinstance(value, int | float) and 0 <= value < 1e15}


def from_anthropic(cached: bytes, computed: bytes) -> dict[str, float]:
    """Return the two numbers in Anthropic's `usage`, under llama.cpp's names."""
    return {"cache_n": int(cached), "prompt_n": int(computed)}


def from_responses(tokens: bytes, cached: bytes) -> dict[str, float]:
    """Return the two numbers in the `usage` of OpenAI's responses, where the total has the reused ones in it."""
    return {"cache_n": int(cached), "prompt_n": max(0, int(tokens) - int(cached))}


READERS: tuple[tuple[re.Pattern[bytes], Callable[..., dict[str, float]]], ...] = (
    (ANTHROPIC, from_anthropic),
    (RESPONSES, from_responses),
    (TIMINGS, from_timings),
)
"""Each pattern, and the function that turns its groups into numbers."""
