"""The processes that `benchmarks.bench` measures, and how they are started and ended.

Each is a process of its own, as in real life: one thread of Python has one processor core, and a stand-in or a
yardstick that shared it with the client would be measured together with it.

``python -m benchmarks.servers stand-in PORT`` and ``... pass-through PORT URL`` run the two that are made here.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHUNKS = 500
"""Pieces of a streamed answer of the stand-in."""

TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "--pidfile=", "-n")
"""What ``twistd -n`` is, for this very Python and whether or not it has scripts installed."""


def pass_through(port: int, url: str) -> None:
    """The yardstick: the least that anybody would write with Klein and treq for a proxy that streams.

    It is neither good nor complete: it knows no faults, no backpressure and no limits, leaves the server computing for
    a client that has gone, and logs nothing.  And it keeps its connections to the server, which bioproxy may do
    only where a request can be repeated: llama-server closes them when it likes.
    """
    import treq
    from klein import Klein
    from twisted.internet import reactor
    from twisted.web.server import Request, Site

    app = Klein()

    # The fifteen lines.
    @app.route("/", branch=True)
    async def relay(request: Request) -> None:
        headers = request.requestHeaders.copy()
        for name in ("host", "connection", "content-length"):
            headers.removeHeader(name)
        assert request.content is not None
        body, target = request.content.read(), url + request.uri.decode()
        response = await treq.request(request.method.decode(), target, headers=headers, data=body, unbuffered=True)
        request.setResponseCode(response.code)
        for key, values in response.headers.getAllRawHeaders():
            request.responseHeaders.setRawHeaders(key, values)
        if isinstance(response.length, int):
            request.setHeader("content-length", str(response.length))
        await treq.collect(response, request.write)

    listening: object = reactor
    listening.listenTCP(port, Site(app.resource()), interface="127.0.0.1")  # type: ignore[attr-defined]
    listening.run()  # type: ignore[attr-defined]


class StandIn(asyncio.Protocol):
    """A llama-server that computes nothing: a fixed answer at once, so that all there is to measure is the way to it.

    It answers any path alike, and with `CHUNKS` events where the request says ``"stream": true``, each written by
    itself.  It keeps connections open, also after a stream (the real one does not), or the yardstick would fail.
    """

    ANSWER = (
        b'{"choices":[{"finish_reason":"length","index":0,"message":{"role":"assistant","content":"word"}}],'
        b'"created":1760000000,"model":"stand-in","object":"chat.completion","tokens":[1,2,3],'
        b'"timings":{"cache_n":9,"prompt_n":1,"prompt_ms":4.2,"predicted_n":1,"predicted_ms":3.1}}'
    )
    EVENT = (
        b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" word"}}],"created":1760000000,'
        b'"id":"chatcmpl-0123456789abcdef","model":"stand-in","object":"chat.completion.chunk"}\n\n'
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio for each client."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""
        self._streaming: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole.  Called by asyncio."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        if b'"stream": true' in body:
            self._streaming = asyncio.get_running_loop().create_task(self._stream())
        else:
            self._head(b"application/json; charset=utf-8", b"Content-Length: %d" % len(self.ANSWER), self.ANSWER)

    def _head(self, content_type: bytes, framing: bytes, rest: bytes = b"") -> None:
        head = b"HTTP/1.1 200 OK\r\nServer: stand-in\r\nContent-Type: %b\r\n%b\r\n\r\n" % (content_type, framing)
        self._transport.write(head + rest)

    async def _stream(self) -> None:
        self._head(b"text/event-stream", b"Transfer-Encoding: chunked")
        for _ in range(CHUNKS):
            self._transport.write(b"%x\r\n%b\r\n" % (len(self.EVENT), self.EVENT))
            await asyncio.sleep(0)
        self._transport.write(b"0\r\n\r\n")


async def stand_in(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(StandIn, "127.0.0.1", port, backlog=128)
    await server.serve_forever()


@dataclass
class Child:
    """A process that listens on `port`."""

    process: subprocess.Popen[bytes]
    port: int

    def memory(self) -> float:
        """Return the megabytes (10^6 bytes) that it holds in memory: ``VmRSS``, its resident set.  Linux only."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024 / 1e6

    def cpu(self) -> float:
        """Return the seconds of processor time that it has used.  Linux only."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # in its own code, and in the kernel

    def end(self) -> None:
        """End it, gently at first."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Children:
    """Starts processes in a scratch folder; the stack given ends them all, whatever happens."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        # Whatever the user has configured must not have a say here.
        self._env = dict(os.environ, XDG_CONFIG_HOME=str(folder / "config"), XDG_STATE_HOME=str(folder / "state"))

    def start(self, name: str, arguments: Sequence[object], port: int, patience: float = 30.0) -> Child:
        """Start Python with these arguments and wait until it listens; `name` is that of its log file."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdin=subprocess.PIPE,  # llama_child lives as long as this pipe
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self._env,
            )
        child = Child(process, port)
        self._stack.callback(child.end)
        deadline = time.monotonic() + patience
        while not listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        return child

    def bioproxy(self, name: str, port: int, admin_port: int, url: str, *options: object) -> Child:
        """Start bioproxy as a user would, with no settings but these."""
        where = ("--port", port, "--admin-port", admin_port, "--llama-url", url)
        return self.start(name, [*TWISTD, "bioproxy", *where, "--state-dir", self._folder / name, *options], port)


def listens(port: int) -> bool:
    """Tell whether somebody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on now, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


if __name__ == "__main__":
    if sys.argv[1] == "stand-in":
        asyncio.run(stand_in(int(sys.argv[2])))
    else:
        pass_through(int(sys.argv[2]), sys.argv[3])
