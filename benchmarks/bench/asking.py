"""One question to a real llama-server, alone or through a proxy, and what it took until the first word.

The answer is streamed, and the clock stops at the first piece of text.  llama-server's own numbers, in the last event
of the stream, say how many tokens of the prompt were computed and how many were reused.  That is the other half of each
measurement: seconds depend on the machine, tokens do not.

A fresh connection for each question, because llama-server closes its connection after each stream.

Does not know who is asked, or in which state.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

PATH = "/v1/chat/completions"
"""Where questions go."""

ANSWER_TOKENS = 4
"""Tokens of an answer: a few, because what is measured ends with the first."""

PATIENCE = 600.0
"""Seconds that an answer may take: 6,000 tokens on a slow processor take minutes."""

Message = dict[str, str]


@dataclass(frozen=True)
class Asked:
    """One answered question."""

    seconds: float
    """Until the first piece of text."""
    computed: int
    """Tokens of the prompt that llama-server computed."""
    reused: int
    """Tokens of the prompt that it had."""
    cache: str
    """What bioproxy's header says, empty without bioproxy."""
    text: str
    """The answer."""


def ask(port: int, messages: Sequence[Message]) -> Asked:
    """Ask, and return what it took.  Raises `AssertionError` with the answer if that is not a success."""
    body = {"model": "bench", "messages": messages, "stream": True, "max_tokens": ANSWER_TOKENS, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    began, first, text = time.perf_counter(), None, ""
    timings: dict[str, int] = {}
    try:
        connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, (response.status, response.read()[:500])
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event.get("choices", ()):
                said = choice["delta"].get("content") or ""
                if said and first is None:
                    first = time.perf_counter() - began
                text += said
            timings = event.get("timings", timings)
        cache = response.headers.get("X-Bioproxy-Cache") or ""
    finally:
        connection.close()
    assert first is not None, "an answer without text"
    return Asked(first, timings["prompt_n"], timings["cache_n"], cache, text)
