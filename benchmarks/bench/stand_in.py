"""A llama-server that computes nothing: it answers at once, so that all there is to measure is the way to it.

``python -m benchmarks.bench.stand_in PORT`` serves it.  A real llama-server takes milliseconds, with a spread far wider
than what a proxy adds.  Any path gets the same answer.  A request with ``"stream": true`` gets `CHUNKS` events, each
written by itself and each with the time at which it was written, on the clock that all processes of this machine share
(``time.monotonic_ns``).  So a client can tell how long each event was under way.

The last message may contain two words to this server:

* ``pace_us=1000``: a stream has this pause between its events, in microseconds, as a model that generates has;
* ``hold``: the answer waits until somebody asks for ``/release``, as behind a request that computes for minutes.

It keeps connections open, also after a stream (the real llama-server does not), or the yardstick of fifteen lines would
fail.  Written with `asyncio`, so that it shares no code with what is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

CHUNKS = 500
"""Events of a streamed answer."""

PACE = re.compile(rb"pace_us=(\d+)")
"""The pause between two events of a stream, in microseconds."""

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
"""How long a request's body is."""

ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"stand-in","choices":[{"index":0,'
    b'"finish_reason":"length","message":{"role":"assistant","content":"word"}}],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":1,"total_tokens":11},'
    b'"timings":{"cache_n":9,"prompt_n":1,"prompt_ms":4.2,"predicted_n":1,"predicted_ms":3.1}}'
)
"""A whole answer, as llama-server writes it, with the numbers that bioproxy looks for."""

EVENT = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":" %d"}}],'
    b'"created":1760000000,"id":"chatcmpl-1","model":"stand-in","object":"chat.completion.chunk"}\n\n'
)
"""An event of a stream, whose one word is the time at which it was written."""

LAST = (
    b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1760000000,"id":"chatcmpl-1",'
    b'"model":"stand-in","object":"chat.completion.chunk"}\n\ndata: [DONE]\n\n'
)
"""The end of a stream."""


class StandIn(asyncio.Protocol):
    """One connection: requests one after the other, each answered once it is whole."""

    released = asyncio.Event()
    """Set when requests that say ``hold`` may be answered; one for all connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio for each client."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""
        self._answering: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole.  Called by asyncio."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        path = head.split(b" ", 2)[1]
        if path == b"/release":
            self.released.set()
        elif path == b"/hold":
            self.released.clear()
        # The usual case is answered here and now: a task would be a turn of the event loop more.
        if b"hold" in body or re.search(rb'"stream": ?true', body):
            self._answering = asyncio.get_running_loop().create_task(self._later(body))
        else:
            self._plain()

    def _plain(self) -> None:
        """Send the whole answer at once."""
        self._head(b"application/json; charset=utf-8", b"Content-Length: %d" % len(ANSWER), ANSWER)

    async def _later(self, body: bytes) -> None:
        """Answer when it is time, with a stream if the request wants one."""
        if b"hold" in body:
            await self.released.wait()
        if not re.search(rb'"stream": ?true', body):
            return self._plain()
        found = PACE.search(body)
        pace = int(found[1]) / 1e6 if found else 0.0
        self._head(b"text/event-stream", b"Transfer-Encoding: chunked")
        # Each event has a time of its own at which it is due, so that a pause that took too long is caught up with.
        due = time.monotonic()
        for _ in range(CHUNKS):
            self._chunk(EVENT % time.monotonic_ns())
            due += pace
            # Also without a pace: each event is to be written by itself, and not all with one call of the system.
            await asyncio.sleep(max(0.0, due - time.monotonic()) if pace else 0.0)
        self._chunk(LAST)
        self._transport.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        """Send one piece of a stream."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _head(self, content_type: bytes, framing: bytes, rest: bytes = b"") -> None:
        """Send the head of an answer, and with it `rest`; `framing` is the header that says where the body ends."""
        # In one call of the system: head and body in two would be two packets, and a measurable difference.
        head = b"HTTP/1.1 200 OK\r\nServer: stand-in\r\nContent-Type: %b\r\n%b\r\n\r\n" % (content_type, framing)
        self._transport.write(head + rest)


async def serve(port: int) -> None:
    """Serve on loopback until the process is ended."""
    json.loads(ANSWER)  # what is sent is JSON: a mistake above ends the process here
    server = await asyncio.get_running_loop().create_server(StandIn, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
