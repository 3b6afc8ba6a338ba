"""Does one client keep the others waiting?  ``python -m benchmarks.stalls`` sends bodies that are hard to read.

Each kind of body (`KINDS`) is sent in growing sizes, up to the default of `max_body`, to a real bioproxy with a
template. Meanwhile another client asks for `/healthz` again and again, which bioproxy answers by itself: the longest
that it had to wait is the longest time for which bioproxy stood still.  Another one's chat is answered beside it, too.

bioproxy has one thread, so whatever it computes for one client keeps all others waiting for just so long.  Python's
JSON parser is the one thing that can take seconds, and it cannot be interrupted.  That is why large bodies are parsed
by a second process, and why the searches in them must be linear.

Time that grows in proportion to the size is linear: the last column tells microseconds for each kilobyte.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.servers import Children, free_ports, get, wait_for

SIZES = (16 << 10, 128 << 10, 1 << 20, 8 << 20, 64_000_000)
"""Bytes of a body: up to the largest that is read at once, then those that are read in another process."""

TRIES = 3
"""How often each body is sent; the try with the shortest stall counts.  What is bioproxy's own comes back each time,
and what other programs do to the machine does not."""

LONGEST = 0.05
"""Seconds that nobody may keep everybody else waiting.

A person does not notice twice as much; a stream of forty tokens a second would show gaps.
"""

PATH = "/v1/chat/completions"
"""Where most bodies go."""


def repeated(unit: str, before: str, behind: str, joint: str = ",") -> Callable[[int], bytes]:
    """Return what makes a body of a size in bytes: a unit as often as there is room for it, between two texts."""

    def make(size: int) -> bytes:
        """Return the body of about this size."""
        times = max(1, (size - len(before) - len(behind)) // (len(unit) + len(joint)))
        return (before + joint.join([unit] * times) + behind).encode()

    return make


USER = '{"role":"user","content":"@s"}'
"""A message that names the template."""

KINDS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "messages that name a template": (PATH, repeated(USER, '{"messages":[', "]}")),
    "prompts that name a template": ("/completion", repeated('"@s"', '{"prompt":[', "]}")),
    "empty messages": (PATH, repeated("{}", f'{{"messages":[{USER},', "]}")),
    "empty lists, one escape": (PATH, repeated("[]", '{"x":"\\u0041","messages":[', "]}")),
    "tools of empty objects": (PATH, repeated("{}", f'{{"messages":[{USER}],"tools":[', "]}")),
    "deep lists": (PATH, repeated("[", '{"messages":["@s",', "", "")),
    "one long text": (PATH, repeated("x ", '{"messages":[{"role":"user","content":"@s ', '"}]}', "")),
    "one long text of escapes": (PATH, repeated(r"\u0020", '{"messages":[{"role":"user","content":"@s ', '"}]}', "")),
    "a word without end": (PATH, repeated("@", '{"messages":[{"role":"user","content":"@s', '"}]}', "")),
    "white space": (PATH, repeated(" ", "", f'{{"messages":[{USER}]}}', "")),
    "streams that are none": (PATH, repeated('"stream"  :', '{"x":"', '"}', "")),
}


@dataclass
class Beside(threading.Thread):
    """A client that asks again and again, and notes how long it waited: `longest` and how often, in seconds."""

    port: int
    path: str
    body: bytes | None = None
    longest: float = 0.0
    answers: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def __hash__(self) -> int:
        return id(self)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        """Ask until it is over.  Called by `start`, in its own thread."""
        # One connection for all questions: opening them would be measured as well.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.over.wait(0.002):
            began = time.monotonic()
            connection.request("GET" if self.body is None else "POST", self.path, self.body)
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            self.longest = max(self.longest, time.monotonic() - began)
            self.answers += 1


class Sink(asyncio.Protocol):
    """A server that swallows each request, however long, and answers it with a word."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio for each client."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._head, self._left = b"", -1

    def data_received(self, data: bytes) -> None:
        """Count, and answer when all is here.  Called by asyncio."""
        if self._left < 0:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            self._left = int(lengths[0]) if lengths else 0
            data = rest
        self._left -= len(data)
        if self._left <= 0:
            self._head, self._left = b"", -1
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")


async def sink(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port)
    await server.serve_forever()


def send(port: int, path: str, body: bytes) -> tuple[int, float]:
    """Send a body; return the status, and the seconds that the answer took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.monotonic()
    connection.request("POST", path, body)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, time.monotonic() - began


def measure(port: int, admin: int, path: str, body: bytes, chat: bytes) -> tuple[int, float, Beside, Beside]:
    """Send a body while two others ask; return status, seconds, and the two who asked for `/healthz` and for a chat."""
    health, other = Beside(admin, "/healthz"), Beside(port, PATH, chat)
    for each in (health, other):
        each.start()
    status, took = send(port, path, body)
    for each in (health, other):
        each.over.set()
        each.join()
    return status, took, health, other


def main() -> None:
    """Send each kind of body in each size, and print what the others noticed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        template = folder / "s.txt"
        template.write_text("short <{message}>")
        port, admin, behind = free_ports(3)
        children = Children(stack, folder)
        children.start("sink", ["-m", "benchmarks.stalls", "sink", behind], behind)
        url = f"http://127.0.0.1:{behind}"
        children.bioproxy("bioproxy", port, admin, url, "--prefix", f"@s={template}", "--no-warmup")
        wait_for("bioproxy", lambda: get(admin, "/status") is not None)
        send(port, PATH, KINDS["one long text"][1](1 << 20))  # the process that reads is started when it is needed
        chat = json.dumps({"messages": [{"role": "user", "content": "@s hello"}]}).encode()
        worst = 0.0
        print(f"{'':32}{'bytes':>12}{'status':>8}{'took ms':>10}{'longest stall ms':>18}{'chat ms':>10}{'us/kB':>8}")
        for kind, (path, make) in KINDS.items():
            for size in SIZES:
                body = make(size)
                status, took, health, other = min(
                    (measure(port, admin, path, body, chat) for _ in range(TRIES)), key=lambda each: each[2].longest
                )
                worst = max(worst, health.longest)
                print(
                    f"{kind:32}{len(body):12}{status:8}{took * 1000:10.1f}{health.longest * 1000:18.1f}"
                    f"{other.longest * 1000:10.1f}{took * 1e6 / len(body) * 1000:8.0f}"
                )
        print(
            f"longest stall {worst * 1000:.1f} ms, goal {LONGEST * 1000:.0f}: {'ok' if worst <= LONGEST else 'MISSED'}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["sink"]:
        asyncio.run(sink(int(sys.argv[2])))
    else:
        main()
