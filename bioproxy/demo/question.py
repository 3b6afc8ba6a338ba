"""Asks bioproxy one question, as any client would, and measures how long the answer takes.

The demonstration compares a question that is computed completely with one whose document was prepared.  For that to
be honest, it must be measured where a user is: outside, at the clients' port, from the moment at which the request is
sent.  So this is a client in the same process as the server.  It uses a socket nevertheless, and waits at the gate like
everybody else.

On Twisted: that a program talks to itself works, because nothing here blocks.  While this coroutine waits for the
answer, the same reactor serves the request.  The answer is streamed, and its body arrives as calls of a function, one
for each piece (`bioproxy.http.response_body`).  The first of them that has a word in it gives the time to the first
word.

Does not know what is asked, nor what is made of the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from bioproxy.http.request_body import BytesProducer
from bioproxy.http.response_body import receive
from bioproxy.llama.failures import translated
from bioproxy.llama.timings import Timings
from bioproxy.runtime.errors import UpstreamError

LONGEST_ERROR = 300
"""Characters of an error answer that are shown.

Halved, the reason may be cut off; doubled, an answer that is no error of bioproxy's fills the terminal.
"""


class QuestionFailed(Exception):
    """bioproxy has not answered; the text says why."""


@dataclass(frozen=True)
class Answer:
    """One answer, and what it took."""

    text: str
    """What the model has written."""
    first_word: float
    """Seconds from sending the request to the first piece of the text."""
    total: float
    """Seconds from sending the request to the end of the answer."""
    reused: int
    """Tokens of the prompt that llama-server did not have to compute."""
    computed: int
    """Tokens of the prompt that it had to compute."""
    cache: str
    """Where the reused tokens were, in bioproxy's words: ``hot``, ``restored`` or ``cold``."""


class AnswerReader:
    """Is fed with a streamed chat completion, piece by piece.

    Invariant: `text` and the numbers do not depend on where the answer was cut into pieces; only `first_word` does.
    """

    def __init__(self, clock: IReactorTime) -> None:
        """Read an answer to a question that is sent now, by `clock`."""
        # A clock that only goes forward: the time of day may be set while an answer is coming.
        self._clock = clock
        self._began = clock.seconds()
        # Bytes of a line that has not all arrived.
        self._rest = b""
        self._text = ""
        self._first_word: float | None = None
        self._timings = Timings()

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body.  Called as it arrives."""
        self._timings.feed(data)
        # Events are lines.  The last one may have arrived in part.
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._text += "".join(words_of(line) for line in lines)
        # The first event only names the role.  The clock runs until a user would see something.
        if self._text and self._first_word is None:
            self._first_word = self._clock.seconds() - self._began

    def answer(self, cache: str) -> Answer:
        """Return the whole answer, to be called at its end; `cache` is what its head says of the cache.

        Raises `QuestionFailed` if it is not whole.
        """
        counts = self._timings.values
        # llama-server tells the numbers with the last piece, so without them the answer was broken off by an error.
        if self._first_word is None or "cache_n" not in counts or "prompt_n" not in counts:
            raise QuestionFailed("the answer broke off")
        # llama-server sends its last event with the numbers when everything is done, so the end is now.
        total = self._clock.seconds() - self._began
        reused, computed = int(counts["cache_n"]), int(counts["prompt_n"])
        return Answer(self._text.strip(), self._first_word, total, reused, computed, cache)


def words_of(line: bytes) -> str:
    """Return the piece of text in one line of a stream, empty where there is none."""
    # Other lines are empty, or comments for a client that waits.
    if not line.startswith(b"data: {"):
        return ""
    # One answer was asked for, so there is one choice.  Errors have none, and are noticed at the end.
    choices = json.loads(line.removeprefix(b"data:")).get("choices") or [{}]
    return choices[0].get("delta", {}).get("content") or ""


async def ask(agent: IAgent, url: str, request: Mapping[str, Any], clock: IReactorTime) -> Answer:
    """Send a chat completion to `url` through `agent`, and fire with the answer, with times by `clock`.

    Fails with `QuestionFailed` if bioproxy is not reached or refuses, or if the answer breaks off.  Cancelling closes
    the connection.
    """
    # In Twisted a request's body is an object that writes it to the connection.
    body = BytesProducer(json.dumps({**request, "stream": True}).encode())
    headers = Headers({b"Content-Type": [b"application/json"]})
    # From here on time is measured.  Connecting belongs to it, because a user waits for that, too.
    reader = AnswerReader(clock)
    # An error answer is collected, because it is no stream.  bioproxy's own are short.
    refusal: list[bytes] = []
    try:
        # Twisted has another exception for each phase of a call, also for cancelling.  After `translated` there is one
        # for each of both.
        with translated():
            response = await agent.request(b"POST", url.encode(), headers, body)
            done, _ = receive(response, reader.feed if response.code == 200 else refusal.append)
            await done
    except UpstreamError:
        raise QuestionFailed(f"there is no whole answer at {url}") from None
    # They say what to do, for example that a key is needed.
    if response.code != 200:
        raise QuestionFailed(f"{response.code} {b''.join(refusal).decode(errors='replace')[:LONGEST_ERROR]}")
    return reader.answer(response.headers.getRawHeaders("X-Bioproxy-Cache", ["unknown"])[0])
