"""Requests and answers of 50 MB: they arrive whole, and the proxy needs little memory for them.

bioproxy runs as a user would start it, so that its memory is its own, and is looked at in ``/proc``.  What counts is
the memory of its own that it has at most (``VmHWM`` counts mapped files too, which belong to the system's cache).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers import Child, Children, free_ports, get, wait_for

MEGABYTE = 1_000_000
SIZE = 50 * MEGABYTE
AT_ONCE = 8
LITTLE = 30.0
"""Megabytes that the proxy may take more than at rest."""

PATIENCE = 60.0
PIECE = bytes(random.Random(1).randbytes(65536))
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"


class Server:
    """A server that tells the digest of each body that it gets, and answers a GET with 50 MB, which are `PIECE`s.

    It closes each connection behind its answer, and says so: otherwise the next request may be on its way there.

    A body of chat completions is read as JSON: it tells the text that is in it, and the digest of the image.
    """

    def __init__(self) -> None:
        self.written = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            digest, kept = hashlib.sha256(), b""
            left = int(length[1]) if length else 0
            while left:
                data = await reader.read(min(left, 1 << 20))
                if not data:
                    return
                left -= len(data)
                digest.update(data)
                kept = (kept + data)[:200]
            if head.startswith(b"GET /large "):
                await self._large(writer)
            else:
                body = json.dumps({"digest": digest.hexdigest(), "begin": kept.decode("latin-1")}).encode()
                writer.write(HEAD % len(body) + body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _large(self, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % SIZE)
        left = SIZE
        while left:
            piece = PIECE[:left]
            writer.write(piece)
            await writer.drain()
            left -= len(piece)
            self.written += len(piece)


@contextmanager
def serving() -> Iterator[tuple[Server, int]]:
    """Run such a server in a thread; yield it and its port."""
    server, loop = Server(), asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server, listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


class Memory(threading.Thread):
    """Looks at a process's own memory, again and again; `most` has the most megabytes that it had."""

    def __init__(self, child: Child) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{child.process.pid}/status")
        self._over = threading.Event()
        self.rest = self.now()
        self.most = self.rest

    def now(self) -> float:
        """Return the megabytes that it has now (``RssAnon``)."""
        return self._kilobytes("RssAnon") * 1024 / MEGABYTE

    def peak(self) -> float:
        """Return the megabytes that it ever had, mapped files included (``VmHWM``)."""
        return self._kilobytes("VmHWM") * 1024 / MEGABYTE

    def _kilobytes(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", self._status.read_text())
        assert found is not None
        return int(found[1])

    def run(self) -> None:
        """Look."""
        while not self._over.wait(0.005):
            self.most = max(self.most, self.now())

    def end(self) -> float:
        """Return how many megabytes more than at rest it had at most."""
        self._over.set()
        self.join()
        self.most = max(self.most, self.now())
        return self.most - self.rest


Large = tuple[int, Child, Server]


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Large]:
    """Yield the port of a bioproxy with one template, that process, and the server behind it."""
    template = tmp_path / "code.txt"
    template.write_text("Know this. <{message}>")
    with ExitStack() as stack:
        server, behind = stack.enter_context(serving())
        port, admin = free_ports(2)
        children = Children(stack, tmp_path)
        options = ("--prefix", f"@code={template}", "--no-warmup")
        child = children.bioproxy("bioproxy", port, admin, f"http://127.0.0.1:{behind}", *options)
        wait_for("bioproxy", lambda: get(admin, "/status") is not None)
        ask(port, chat("hello", b"x" * 300_000))  # all that is loaded when it is needed is loaded now
        yield port, child, server


def chat(text: str, image: bytes) -> bytes:
    """Return the body of a chat with an image."""
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return json.dumps({"messages": [{"role": "user", "content": parts}]}, separators=(",", ":")).encode()


IMAGE = PIECE * (SIZE * 3 // 4 // len(PIECE))


def ask(port: int, body: bytes) -> Any:
    """Send a chat, and return what the server says of it."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(head)
        client.sendall(body)
        answer = b""
        while data := client.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:500]
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def all_at_once(work: Callable[[], None]) -> None:
    """Do something several times at once; fail if one of them fails."""
    done: list[bool] = []

    def note() -> None:
        work()
        done.append(True)

    threads = [threading.Thread(target=note) for _ in range(AT_ONCE)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(done) == AT_ONCE


@pytest.mark.parametrize("at_once", [False, True], ids=["one", "eight"])
def test_large_requests(proxy: Large, at_once: bool) -> None:
    """A body of 50 MB that names no template arrives as it is, and hardly takes memory, eight at a time neither."""
    port, child, _ = proxy
    body = chat("what is this?", IMAGE)
    expected = hashlib.sha256(body).hexdigest()
    memory = Memory(child)
    memory.start()

    def check() -> None:
        assert ask(port, body)["digest"] == expected

    if at_once:
        all_at_once(check)
    else:
        check()
    more = memory.end()
    print(f"{len(body)} bytes: {memory.rest:.1f} MB at rest, {more:.1f} more; VmHWM {memory.peak():.1f}")
    assert more < LITTLE


def test_large_request_with_template(proxy: Large) -> None:
    """With a template named, the same is filled and arrives whole; afterwards the memory is free again."""
    port, child, _ = proxy
    body = chat("@code what is this?", IMAGE)
    filled = b'{"id_slot": 0, ' + body.replace(b"@code", b"Know this.")[1:]
    memory = Memory(child)
    memory.start()
    said = ask(port, body)
    more = memory.end()
    assert said["digest"] == hashlib.sha256(filled).hexdigest(), said["begin"]
    wait_for("the memory to be free again", lambda: memory.now() - memory.rest < LITTLE)
    print(f"{len(body)} bytes: {memory.rest:.1f} MB at rest, {more:.1f} more, {memory.now():.1f} afterwards")
    assert more < 8 * SIZE / MEGABYTE


def test_large_answers(proxy: Large) -> None:
    """An answer of 50 MB that is read slowly arrives whole; the proxy holds a few megabytes of it."""
    port, child, server = proxy
    memory = Memory(child)
    memory.start()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        before, still = -1, 0
        deadline = time.monotonic() + PATIENCE
        while still < 20:  # the server gets rid of no more: all buffers are full
            assert time.monotonic() < deadline
            time.sleep(0.01)
            before, still = server.written, still + 1 if server.written == before and before else 0
        assert server.written < SIZE
        digest, size, head = hashlib.sha256(), 0, b""
        while data := client.recv(65536):
            if not head.endswith(b"\r\n\r\n"):
                first, end, data = (head + data).partition(b"\r\n\r\n")
                head = first + end
            digest.update(data)
            size += len(data)
    more = memory.end()
    print(f"{memory.rest:.1f} MB at rest, {more:.1f} more; the server had {before} bytes sent when nothing was read")
    expected = hashlib.sha256((PIECE * (SIZE // len(PIECE) + 1))[:SIZE])
    assert (size, digest.hexdigest()) == (SIZE, expected.hexdigest())
    assert more < LITTLE
