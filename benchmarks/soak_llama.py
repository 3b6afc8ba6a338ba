"""The stand-in for llama-server behind `benchmarks.soak_crowds`: it computes nothing, and takes notes.

With a real llama.cpp a thousand answers would take an hour, and nobody could tell afterwards whose answer a text is.

``python -m benchmarks.soak_llama PORT`` runs it.  Each request has a name, and its answer is made of that name, so an
answer that was cut, or went to somebody else, can be told from the right one.  Like the real one it does not notice by
itself that there is more than one request at a time; but it writes down that there was.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import select
import sys
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field

SECONDS = (0.001, 0.005)
"""How long an answer takes, at least and at most: a crowd of a thousand is served in some seconds."""


def plain(name: str) -> bytes:
    """Return the body of the answer to the request of this name, where it is not streamed."""
    return json.dumps({"choices": [{"message": {"content": words(name)}}]}).encode()


def events(name: str) -> list[bytes]:
    """Return the events of the answer to the request of this name, where it is streamed."""
    deltas = [{"choices": [{"delta": {"content": word}}]} for word in words(name).split()]
    return [b"data: %b\n\n" % json.dumps(delta).encode() for delta in deltas] + [b"data: [DONE]\n\n"]


def words(name: str) -> str:
    """Return a text of which each word says whose it is, and the how manieth.

    So a word that is missing, doubled, or another one's shows, wherever in the answer it is.
    """
    return " ".join(f"{name}:{number}" for number in range(random.Random(name).randint(1, 30)))


@dataclass
class Notes:
    """What happened since they were last asked for: the names in the order of their arrival, the most at once."""

    seen: list[str] = field(default_factory=list)
    """Names of the requests."""
    most_at_once: int = 0
    """Requests that were inside at the same time; bioproxy promises that it is never more than one."""


class LlamaApi:
    """What all connections share."""

    def __init__(self) -> None:
        """Begin with empty notes."""
        self.notes = Notes()
        self.inside: set[Connection] = set()
        self.released = asyncio.Event()

    def enter(self, connection: Connection, name: str) -> None:
        """Note a request that uses the slot.

        Connections whose client has gone do not count: llama-server would stop working for them, too.
        """
        self.inside = {each for each in self.inside if not each.is_closed()} | {connection}
        self.notes.seen.append(name)
        self.notes.most_at_once = max(self.notes.most_at_once, len(self.inside))

    def take_notes(self) -> bytes:
        """Return the notes as JSON, and begin new ones: each crowd is judged by its own."""
        notes, self.notes = self.notes, Notes()
        return json.dumps(asdict(notes)).encode()


class Connection(asyncio.Protocol):
    """One connection, with one request."""

    def __init__(self, llama: LlamaApi) -> None:
        """Answer for `llama`, which all connections share."""
        self._llama = llama
        self._received = b""
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the client.  Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """Nobody waits for the answer: give it up at once, before anybody else is looked at.  Called by asyncio."""
        self._llama.inside.discard(self)
        if self._work is not None:
            self._work.cancel()

    def is_closed(self) -> bool:
        """Tell whether the client has gone, also where asyncio has not come to read it.

        A process that was not let run for a while finds a request, its end and the next request all at the same time,
        and asyncio reads the two requests first.
        """
        # `POLLRDHUP`: the other side has closed, or has said that it sends no more.  Linux only.
        here = select.poll()
        here.register(self._transport.get_extra_info("socket"), select.POLLRDHUP)
        return bool(here.poll(0))

    def eof_received(self) -> None:
        """Count as gone who closed its side.  Called by asyncio, which then closes the connection.

        bioproxy does that when its own client has gone, or when it gives a request up.
        """
        self._llama.inside.discard(self)

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole.  Called by asyncio."""
        # A request may come in pieces, so it is looked at anew with each of them.
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if self._work is None and end and len(body) >= (int(length[1]) if length else 0):
            self._work = asyncio.get_running_loop().create_task(self._answer(head.split(b" ", 2)[1].decode(), body))

    def _answer(self, path: str, body: bytes) -> Coroutine[None, None, None]:
        """Return what answers a request, by its path."""
        # Noted here, and not when the coroutine begins, which may be later.
        if path == "/v1/chat/completions":
            question = json.loads(body)
            self._llama.enter(self, question["name"])
            return self._chat(**question)
        if path == "/release":
            self._llama.released.set()
        if path.startswith("/slots/"):
            return self._send(501, b"{}")
        return self._send(200, self._llama.take_notes() if path == "/notes" else b'{"status": "ok"}')

    async def _chat(self, name: str, stream: bool, hold: bool) -> None:
        """Answer a request that uses the slot; one to `hold` when it is told to."""
        # Whoever is held keeps the slot, so that a whole crowd can gather behind it.
        if hold:
            await self._llama.released.wait()
            self._llama.released.clear()
        # By the name, so that a run with the same seed takes the same time.
        seconds = random.Random(name).uniform(*SECONDS)
        if not stream:
            await asyncio.sleep(seconds)
            return await self._send(200, plain(name))
        self._head(200, b"text/event-stream", b"Transfer-Encoding: chunked")
        pieces = events(name)
        # The pieces are spread over the time of the answer, so that clients can leave in the middle of it.
        for piece in pieces:
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(seconds / len(pieces))
        self._transport.write(b"0\r\n\r\n")
        self._leave()

    async def _send(self, status: int, body: bytes) -> None:
        """Send a whole answer, and close the connection."""
        self._head(status, b"application/json", b"Content-Length: %d" % len(body))
        self._transport.write(body)
        self._leave()

    def _head(self, status: int, kind: bytes, framing: bytes) -> None:
        """Send the head of an answer; `framing` is the header that says where its body ends."""
        rest = b"Content-Type: %b\r\n%b\r\nConnection: close\r\n\r\n" % (kind, framing)
        self._transport.write(b"HTTP/1.1 %d -\r\n" % status + rest)

    def _leave(self) -> None:
        """Note that the slot is free again, and close the connection once all is written."""
        self._llama.inside.discard(self)
        self._transport.close()


async def main(port: int) -> None:
    """Serve on a port of this machine until the process is ended."""
    llama = LlamaApi()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(llama), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
