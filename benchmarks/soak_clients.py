"""The clients of `benchmarks.soak`: each asks one question, and judges what it gets.

They read raw bytes, so that nothing is put right or overlooked on the way: client libraries skip comments, accept a
body that ends early, and hide what came after it.  What is expected is known to the byte, since `benchmarks.soak_llama`
makes each answer of the request's name.

On asyncio: each visitor is a coroutine, so a thousand of them need one thread.  Leaving is cancelling, and closing the
connection without a word, as a client does that is killed.

Does not know when visitors come and which of them leave (`benchmarks.soak_crowds`).
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.soak_llama import events, plain

PATIENCE = 90.0
"""Seconds that anything may take: the last of a crowd waits for about ten."""

COMMENTS = re.compile(rb"(?:: [^\n]*\n\n)*")
"""The comments with which a stream begins that has waited."""

PLACE = re.compile(rb": waiting, (\d+)[a-z]+ of \d+[^\n]*\n")
"""A comment that tells a place in the queue."""

TROUBLE = re.compile(r"Traceback|Unhandled|#(?:error|critical)\]")
"""What a log has where something was a fault of bioproxy's own."""


@dataclass
class Visitor:
    """A client with one question.

    `leaves`: after so many seconds at most, if it does not stay.  One that is `hasty` leaves in the middle of a stream.
    """

    name: str
    """Its own; the stand-in makes its answer of it."""
    stream: bool
    """Whether it wants its answer piece by piece."""
    leaves: float | None = None
    hasty: bool = False
    hold: bool = False
    """Whether the stand-in is to keep it inside until it is told otherwise."""
    received: bytes = b""
    """All that has come so far, head included."""

    async def come(self, port: int) -> None:
        """Connect and ask."""
        question = {"name": self.name, "stream": self.stream, "hold": self.hold}
        body = json.dumps(question).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._writer.write(head % len(body) + body)
        self._reading = asyncio.ensure_future(self._read())

    async def end(self) -> None:
        """Read until the end, or leave."""
        try:
            await asyncio.wait_for(self._reading, PATIENCE if self.leaves is None else self.leaves)
        except asyncio.TimeoutError:
            assert self.leaves is not None, f"{self.name} has no whole answer after {PATIENCE:g} s"
        finally:
            self._writer.transport.abort()

    async def _read(self) -> None:
        """Read until the answer ends; one that is hasty ends in the middle of it."""
        with suppress(ConnectionError):  # then the answer is not whole
            while data := await self._reader.read(65536):
                self.received += data
                if self.hasty and b"data:" in self.received:
                    return

    def check(self) -> None:
        """Look at what was received: all that belongs to this one, and nothing else; part of it for one who left."""
        expected = b"".join(events(self.name)) if self.stream else plain(self.name)
        status, body, whole = parsed(self.received)
        answer = body[COMMENTS.match(body).end() :]  # type: ignore[union-attr]
        if self.leaves is None:
            assert (status, whole, answer) == (200, True, expected), f"{self.name} got ...{self.received[-400:]!r}"
        else:
            assert expected.startswith(answer), f"{self.name}, who left, got ...{self.received[-400:]!r}"
        # Nobody may be passed by those who came later: each comment has a smaller number, or the same.
        places = self.places()
        assert places == sorted(places, reverse=True) and 0 not in places, f"{self.name} was told {places}"

    def places(self) -> list[int]:
        """Return the places in the queue that it was told."""
        return [int(place) for place in PLACE.findall(self.received)]


class Received:
    """Received bytes, in the shape in which Python's parser of answers wants them."""

    def __init__(self, data: bytes) -> None:
        """Stand for a connection on which all of this has come."""
        self._data = data

    def makefile(self, _: str) -> io.BytesIO:
        """Called by `http.client`."""
        return io.BytesIO(self._data)


def parsed(data: bytes) -> tuple[int, bytes, bool]:
    """Return the status of an answer (0 where there is none yet), its body, and whether that is whole."""
    # Python's own parser, since it knows what is whole: by `Content-Length`, or by the last chunk.
    response = http.client.HTTPResponse(Received(data))  # type: ignore[arg-type]
    try:
        response.begin()
        return response.status, response.read(), True
    except http.client.IncompleteRead as error:
        return response.status, error.partial, False
    except http.client.HTTPException:
        return 0, b"", False


def look_for_trouble(log: Path) -> None:
    """Fail if the log has an error in it: none of what happens here is one."""
    text = log.read_text()
    found = TROUBLE.search(text)
    assert found is None, f"in {log.name}: ...{text[max(0, found.start() - 500) : found.start() + 1500]}"
