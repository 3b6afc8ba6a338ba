"""What passes through the proxy on real sockets: everything, as it is and when it comes."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.web.server import Site
from zope.interface import implementer

from tests.integration.support import (
    PATIENCE,
    LlamaServer,
    RunningProxy,
    async_fixture,
    async_test,
    begin,
    conversation,
    defer,
    eventually,
    pause,
    reactor,
    until,
)
from tests.support.fakes import FakeLlama

ProxyOf = Callable[..., RunningProxy]

PER_CONNECTION = {"connection", "keep-alive", "transfer-encoding"}
"""Headers that each side of a proxy makes for itself."""


@dataclass(frozen=True)
class Raw:
    """A request as it is written."""

    method: str
    target: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        extra = "".join(f" {name}" for name in self.headers)
        return f"{self.method} {self.target}{extra} {self.body!r}"


def send(url: str, raw: Raw) -> tuple[int, str, list[tuple[str, str]], bytes]:
    """Send a request just as it is; return status, reason, headers and body.  Blocking: for a thread."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    try:
        connection.putrequest(raw.method, raw.target, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": "llama.example", **raw.headers}.items():
            connection.putheader(name, value)
        if raw.body is not None:
            connection.putheader("Content-Length", str(len(raw.body)))
        connection.endheaders(raw.body)
        response = connection.getresponse()
        body = response.read()
        return response.status, response.reason, response.getheaders(), body
    finally:
        connection.close()


def comparable(answer: tuple[int, str, list[tuple[str, str]], bytes]) -> Any:
    """Leave out what may differ: connections, the proxy's own headers, and the clock."""
    status, reason, headers, body = answer
    kept = sorted(
        (name.lower(), value)
        for name, value in headers
        if name.lower() not in PER_CONNECTION and not name.lower().startswith("x-bioproxy-")
    )
    return status, reason, kept, re.sub(rb'"created":\d+|"(id|prompt_ms|predicted_ms)":[^,}]*', b"", body)


JSON = {"Content-Type": "application/json"}
ORIGIN = {"Origin": "http://web.example"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

REQUESTS = [
    Raw("GET", "/health"),
    Raw("GET", "/props"),
    Raw("GET", "/v1/models"),
    Raw("GET", "/v1/models", headers=ORIGIN),
    Raw("GET", "/lora-adapters"),
    Raw("GET", "/slots"),
    Raw("GET", "/", headers={"Accept-Encoding": "gzip"}),
    Raw("GET", "/"),
    Raw("GET", "/nothing"),
    Raw("GET", "//x"),
    Raw("GET", "/%ff"),
    Raw("GET", "/x?"),
    Raw("GET", "/x?a=1&&b=%2f;c#"),
    Raw("GET", "/a/../health"),
    Raw("GET", "/a%2Fb"),
    Raw("HEAD", "/health"),
    Raw("HEAD", "/nothing"),
    Raw("OPTIONS", "/v1/chat/completions", headers=PREFLIGHT),
    Raw("OPTIONS", "/nothing", headers=ORIGIN),
    Raw("DELETE", "/v1/models"),
    Raw("PUT", "/health", b"{}"),
    Raw("POST", "/tokenize", b'{"content":"the house"}', JSON),
    Raw("POST", "/tokenize", b'{"content":"the house"}'),
    Raw("POST", "/tokenize", b'{"content":"the house"}', {"Content-Type": "application/x-www-form-urlencoded"}),
    Raw("POST", "/tokenize", b'{"content', JSON),
    Raw("POST", "/tokenize", b"", JSON),
    Raw("POST", "/apply-template", b'{"messages":[{"role":"user","content":"\xc3\xa9"}]}', JSON),
    Raw("POST", "/apply-template", b'{"messages":3}', JSON),
    Raw("POST", "/v1/chat/completions", b"[]", JSON),
    Raw("POST", "/v1/chat/completions", b"\xff\x00", JSON),
    Raw("POST", "/v1/chat/completions", b'{"messages":[{"role":"robot"}]}', {**JSON, **ORIGIN}),
    Raw("POST", "/completion", b'{"prompt":3}', JSON),
    Raw("POST", "/embedding", b'{"content":"x"}', JSON),
    Raw("POST", "/slots/0?action=restore", b'{"filename":"nothing.bin"}', JSON),
    Raw("POST", "/slots/0?action=nonsense", b"{}", JSON),
    Raw("POST", "/slots/7?action=erase", b"{}", JSON),
]


@async_test
async def test_byte_for_byte(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Whatever llama-server answers comes through the proxy as it is: status, reason, headers, body."""
    proxy = proxy_of(llama.url, {"code": "Know this. <{message}>"}, warmup=False)
    different = []
    for raw in REQUESTS:
        direct = comparable(await deferToThread(send, llama.url, raw))
        through = comparable(await deferToThread(send, proxy.url, raw))
        if direct != through:
            different.append(f"{raw}\n    direct:  {direct}\n    through: {through}")
    assert not different, "\n".join(different)


@async_test
async def test_the_same_words(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Chats without a template are the same through the proxy, whole and streamed."""
    proxy = proxy_of(llama.url, {"code": "Know this. <{message}>"}, warmup=False)
    for stream in (False, True):
        body = json.dumps(conversation("@codex is no prefix", cache_prompt=False, stream=stream)).encode()
        answers = [
            await deferToThread(send, url, Raw("POST", "/v1/chat/completions", body, JSON))
            for url in (llama.url, proxy.url)
        ]
        for answer in answers:
            assert answer[0] == 200
        direct, through = (re.sub(rb'"(created|id|timings)":("[^"]*"|\{[^}]*\}|[^,}]*)', b"", a[3]) for a in answers)
        assert b"content" in direct
        assert direct == through


@async_test
async def test_unknown_methods(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Which methods there are is for llama-server to say."""
    proxy = proxy_of(llama.url)
    direct = await deferToThread(send, llama.url, Raw("BREW", "/health"))
    through = await deferToThread(send, proxy.url, Raw("BREW", "/health"))
    assert (direct[0], direct[3]) == (through[0], through[3])


# Pieces as they come.


@async_fixture
async def fake() -> AsyncIterator[tuple[FakeLlama, str]]:
    """Return a `FakeLlama` on a socket, which can be halted between two chunks, and its address."""
    server = FakeLlama()
    port = reactor.listenTCP(0, Site(server.app.resource()), interface="127.0.0.1")
    yield server, f"http://127.0.0.1:{port.getHost().port}"
    server.pause_at.clear()
    server.go_on()
    await port.stopListening()


@async_test
async def test_chunks_arrive_as_they_come(fake: tuple[FakeLlama, str], proxy_of: ProxyOf) -> None:
    """Each piece of a streamed answer reaches the client before llama-server makes the next one."""
    server, url = fake
    server.pause_at.add("stream")
    proxy = proxy_of(url)
    response = await begin("POST", proxy.url + "/v1/chat/completions", conversation("hello", stream=True))
    received: list[bytes] = []
    reading = response.collect(received.append)
    for number in range(1, 5):
        await until(lambda number=number: b"".join(received).count(b"data:") == number)  # type: ignore[misc]
        assert server.paused == 1, "the next piece is not made yet"
        server.go_on()
    await reading
    assert b"".join(received).endswith(b"data: [DONE]\n\n")


@async_test
async def test_hang_up_reaches_llama(fake: tuple[FakeLlama, str], proxy_of: ProxyOf) -> None:
    """A client that is gone is gone for llama-server too, and the gate is free for the next one."""
    server, url = fake
    server.pause_at.add("stream")
    proxy = proxy_of(url)
    response = await begin("POST", proxy.url + "/v1/chat/completions", conversation("hello", stream=True))
    received: list[bytes] = []
    response.collect(received.append).addErrback(lambda _: None)
    await until(lambda: received)
    response.original._transport._producer.abortConnection()
    await until(lambda: server.gone == ["stream"])
    server.pause_at.clear()
    assert (await proxy.chat("hello")).status == 200
    statuses = [each["status"] for each in (await proxy.status())["requests"]]
    assert statuses == [200, 499]


@async_test
async def test_users_queue_in_order(fake: tuple[FakeLlama, str], proxy_of: ProxyOf) -> None:
    """Chats go to llama-server one at a time; what does not use the slot is answered meanwhile."""
    server, url = fake
    server.pause_at.add("stream")
    proxy = proxy_of(url)
    first = await begin("POST", proxy.url + "/v1/chat/completions", conversation("first", stream=True))
    received: list[bytes] = []
    reading = first.collect(received.append)
    await until(lambda: server.paused)

    waiting = defer(begin("POST", proxy.url + "/v1/chat/completions", conversation("second", stream=True)))

    async def queued() -> bool:
        return await proxy.gate("user", 1)

    await eventually(queued)
    assert (await proxy.call("GET", "/health")).status == 200
    assert (await proxy.call("POST", "/tokenize", {"content": "x"})).json() == {"tokens": [1, 120]}
    chats = [body for path, body in server.requests if path == "/v1/chat/completions"]
    assert [chat["messages"][0]["content"] for chat in chats] == ["first"]
    server.pause_at.clear()
    server.go_on()
    await reading
    answer = await waiting
    assert answer.code == 200
    await answer.content()
    assert float(answer.headers.getRawHeaders("X-Bioproxy-Queue-Ms")[0]) > 0


# Backpressure.

MEGABYTE = 1024 * 1024
BODY = 60 * MEGABYTE


@implementer(IPushProducer)
class Fast(Protocol):
    """An upstream that answers with 60 MB as fast as they are taken, and counts what it could get rid of."""

    written = 0
    aborted = False
    ended = False
    _request = b""
    _paused = False

    def connectionMade(self) -> None:
        """Keep the kernel from taking much."""
        transport: Any = self.transport
        transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)

    def dataReceived(self, data: bytes) -> None:
        """Begin when the request's head is here."""
        self._request += data
        transport: Any = self.transport
        if b"\r\n\r\n" in self._request and not self.written:
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY)
            transport.registerProducer(self, True)
            self.resumeProducing()

    def pauseProducing(self) -> None:
        """Stop: the buffers are full."""
        self._paused = True

    def stopProducing(self) -> None:
        """Stop for good."""
        self._paused = self.ended = True

    def resumeProducing(self) -> None:
        """Write until told to pause."""
        self._paused = False
        transport: Any = self.transport
        while not self._paused and self.written < BODY:
            transport.write(b"x" * 65536)
            self.written += 65536
        if self.written == BODY and not self.ended:
            self.ended = True
            transport.unregisterProducer()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note that nobody wants the rest."""
        self.aborted = self.written < BODY


class Reader(Protocol):
    """A client that reads when it is told to, and counts."""

    received = 0
    head = b""

    def connectionMade(self) -> None:
        """Ask, and read nothing."""
        transport: Any = self.transport
        transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        transport.pauseProducing()
        transport.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")

    def dataReceived(self, data: bytes) -> None:
        """Count the body."""
        if b"\r\n\r\n" in self.head:
            self.received += len(data)
        else:
            self.head += data
            self.received += len(self.head.partition(b"\r\n\r\n")[2])


@dataclass
class Upstream:
    """A raw upstream: its address, and its connections."""

    url: str = ""
    connections: list[Fast] = field(default_factory=list)

    @property
    def answering(self) -> Fast | None:
        """Return the connection on which the large answer was begun."""
        return next((each for each in self.connections if b"GET /large" in each._request), None)


@async_fixture
async def fast() -> AsyncIterator[Upstream]:
    """Return an upstream that answers everything with 60 MB."""
    upstream = Upstream()

    class Connections(Factory):
        def buildProtocol(self, addr: Any) -> Fast:
            upstream.connections.append(Fast())
            return upstream.connections[-1]

    port = reactor.listenTCP(0, Connections(), interface="127.0.0.1")
    upstream.url = f"http://127.0.0.1:{port.getHost().port}"
    yield upstream
    await port.stopListening()
    for each in upstream.connections:
        transport: Any = each.transport
        transport.abortConnection()


async def settled(value: Callable[[], int]) -> int:
    """Wait until a number stays the same for 20 looks, and return it."""
    last, same = value(), 0
    while same < 20:
        await pause()
        now = value()
        last, same = now, same + 1 if now == last else 0
    return last


@async_test
async def test_client_that_reads_nothing(fast: Upstream, proxy_of: ProxyOf) -> None:
    """For a client that does not read, only buffers are filled; when it reads at last, it gets every byte."""
    proxy = proxy_of(fast.url)
    port = int(proxy.url.rpartition(":")[2])
    reader = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Reader())
    answering = await until(lambda: fast.answering)
    await until(lambda: answering.written > 0)
    taken = await settled(lambda: answering.written)
    # What the kernel holds in its socket buffers is part of it, and the proxy may hold a few MB itself.
    assert taken < BODY // 2
    transport: Any = reader.transport
    transport.resumeProducing()
    await until(lambda: reader.received == BODY)
    assert reader.head.startswith(b"HTTP/1.1 200 OK\r\n")
    transport.abortConnection()


@async_test
async def test_client_that_reads_nothing_and_goes(fast: Upstream, proxy_of: ProxyOf) -> None:
    """A client that goes while its answer is held back ends it for llama-server too."""
    proxy = proxy_of(fast.url)
    port = int(proxy.url.rpartition(":")[2])
    reader = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Reader())
    answering = await until(lambda: fast.answering)
    await settled(lambda: answering.written)
    transport: Any = reader.transport
    transport.abortConnection()
    await until(lambda: answering.aborted)


# The ends of a service's life.


@pytest.mark.parametrize("llama_there", [True, False], ids=["with-llama", "without-llama"])
@async_test
async def test_stop_at_once(llama: LlamaServer, proxy_of: ProxyOf, llama_there: bool) -> None:
    """A service that is stopped while its first round is under way ends without an error in the log."""
    if not llama_there:
        llama.kill()
    for _ in range(3):
        proxy = proxy_of(llama.url, {"code": "Know this. <{message}>", "story": "Once. <{message}>"})
        await proxy.stop()


@async_test
async def test_stop_closes_the_ports(fake: tuple[FakeLlama, str], proxy_of: ProxyOf) -> None:
    """A service that has stopped listens nowhere any more."""
    _, url = fake
    proxy = proxy_of(url)
    assert (await proxy.call("GET", "/health")).status == 200
    await proxy.stop()
    for url in (proxy.url, proxy.admin_url):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0
