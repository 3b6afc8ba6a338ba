"""Everything that is not a template goes through as it is, both ways.

Compared with llama-server itself, and with a server in the test's hands for what llama.cpp does not do.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from tests.integration.support import PATIENCE, LlamaServer, RunningProxy, async_fixture, async_test, reactor, until

ProxyOf = Callable[..., RunningProxy]

PER_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length"}
"""Headers that each side of a proxy makes for itself; that the length is right shows in the body."""


# A client in the test's hands.


def exchange(url: str, data: bytes, method: bytes | None = None) -> Heard:
    """Send bytes, read until the end, and return what was answered to one request.  Blocking: for a thread."""
    with connected(url) as client:
        client.sendall(data)
        try:
            return Heard.read(client, method or data.split(b" ", 1)[0])
        except TimeoutError:
            raise AssertionError(f"no answer to {data[:300]!r}") from None


def connected(url: str) -> socket.socket:
    """Return a connection."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), PATIENCE)


@dataclass(frozen=True)
class Heard:
    """An answer as it was written, its chunks put together."""

    line: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    whole: bool

    @classmethod
    def read(cls, client: socket.socket, method: bytes) -> Heard:
        """Read one answer, and no byte more than that."""
        file = cast("Any", client.makefile("rb"))
        try:
            first = file.readline()
        except ConnectionError:
            return cls(b"", (), b"", False)
        if first.startswith(b"HTTP/1.1 100 "):
            assert file.readline() == b"\r\n"
            first = file.readline()
        head = b""
        while (line := file.readline()) not in (b"\r\n", b""):
            head += line
        pairs = tuple((name, value.strip()) for name, _, value in (each.partition(b":") for each in head.splitlines()))
        response = http.client.HTTPResponse(Replay(first + head + b"\r\n", file), method=method.decode())  # type: ignore[arg-type]
        response.begin()
        try:
            return cls(first.rstrip(b"\r\n"), pairs, response.read(), True)
        except http.client.IncompleteRead as error:
            return cls(first.rstrip(b"\r\n"), pairs, error.partial, False)
        except ConnectionError:
            return cls(first.rstrip(b"\r\n"), pairs, b"", False)

    @property
    def status(self) -> int:
        """The status."""
        return int(self.line.split(b" ")[1])

    def values(self, name: bytes) -> list[bytes]:
        """Return a header's values, in order."""
        return [value for each, value in self.headers if each.lower() == name]

    @property
    def comparable(self) -> object:
        """What must be the same from everywhere: dates, numbers and times are left out."""
        kept = sorted(
            (name.lower(), value)
            for name, value in self.headers
            if name.lower().decode() not in PER_CONNECTION and not name.lower().startswith(b"x-bioproxy-")
        )
        odd = rb'"(created|id|t_[a-z_]*|[a-z_]*_(ms|per_second|second))":\s*("[^"]*"|[^,}]*)|\d{10}'
        # Which version of HTTP is spoken is for each connection to say.
        return self.line.partition(b" ")[2], kept, re.sub(odd, b"", self.body)


class Replay:
    """What `HTTPResponse` reads from: some bytes, and then a file."""

    def __init__(self, begin: bytes, rest: Any) -> None:
        self._begin = BytesIO(begin)
        self._rest = rest

    def makefile(self, _: str) -> Any:
        """Be a socket."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rest, name)

    def readline(self, *limit: int) -> Any:
        """Return the next line."""
        return self._begin.readline(*limit) or self._rest.readline(*limit)


def request(method: str, target: str, body: bytes | None = None, version: str = "1.1", **headers: str) -> bytes:
    """Return a request as it is written; `content_type="x"` is a header."""
    pairs = {"Host": "llama.example", "Connection": "close", **{k.replace("_", "-"): v for k, v in headers.items()}}
    if body is not None and "Transfer-Encoding" not in pairs:
        pairs.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in pairs.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


# Compared with llama.cpp.

JSON: Any = {"Content_Type": "application/json"}
PREFLIGHT: Any = {
    "Origin": "http://web.example",
    "Access_Control_Request_Method": "POST",
    "Access_Control_Request_Headers": "authorization, content-type",
    "Access_Control_Request_Private_Network": "true",
}

REQUESTS = [
    request("GET", "/", Accept_Encoding="gzip, br"),
    request("GET", "/", Accept_Encoding="identity"),
    request("GET", "/index.html"),
    request("GET", "/favicon.ico"),
    request("HEAD", "/", Accept_Encoding="gzip"),
    request("GET", "/", Range="bytes=0-9"),
    request("GET", "/", If_None_Match="*"),
    request("GET", "/v1/health"),
    request("GET", "/models"),
    request("GET", "/metrics"),
    request("GET", "/props?model=x"),
    request("GET", "/health", version="1.0"),
    request("HEAD", "/props"),
    request("HEAD", "/v1/models", version="1.0"),
    request("POST", "/detokenize", b'{"tokens":[1,2,3,4]}', **JSON),
    request("POST", "/detokenize", b'{"tokens":["x"]}', **JSON),
    request("POST", "/detokenize", b"{", **JSON),
    request("POST", "/tokenize", b'{"content":"a b","with_pieces":true,"add_special":true}', **JSON),
    request(
        "POST", "/tokenize", b'9\r\n{"content\r\nb\r\n": "a b c"}\r\n0\r\n\r\n', Transfer_Encoding="chunked", **JSON
    ),
    request("POST", "/tokenize", b'{"content":"' + b"long " * 40_000 + b'"}', **JSON),
    request("POST", "/props", b"{}", **JSON),
    request("POST", "/nothing", b"x", **JSON),
    request("POST", "/health", b""),
    request("OPTIONS", "/props", **PREFLIGHT),
    request("OPTIONS", "/"),
    request("OPTIONS", "/v1/chat/completions"),
    request("PATCH", "/props", b"{}", **JSON),
    request("DELETE", "/nothing"),
    request("DELETE", "/slots/0", b"{}"),
    request("TRACE", "/health"),
    request("PROPFIND", "/"),
    request("GET", "/health/"),
    request("GET", "/./health"),
    request("GET", "/%68ealth"),
    request("GET", "/health?"),
    request("GET", "/health?x=%zz&=&&&"),
    request("GET", "/%2e%2e/%2e%2e/etc/passwd"),
    request("GET", "/a%00b"),
    request("GET", "/%E2%82%AC?%E2%82%AC"),
    request("GET", "/;a=b,c!$'()*+"),
    request("GET", "/" + "a" * 3000),
    request("GET", "/?" + "a=b&" * 500),
    request("POST", "/v1/chat/completions", b'{"messages":"x"}', **JSON),
    request(
        "POST", "/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}],"max_tokens":"many"}', **JSON
    ),
    request("POST", "/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}],"grammar":"(((("}', **JSON),
    request("POST", "/v1/messages", b"{}", **JSON),
    request("POST", "/v1/responses", b"{}", **JSON),
    request("POST", "/v1/embeddings", b'{"input":"x"}', **JSON),
    request("POST", "/v1/rerank", b'{"query":"x"}', **JSON),
    request("POST", "/infill", b"{}", **JSON),
    request("POST", "/v1/messages/count_tokens", b'{"messages":[{"role":"user","content":"x"}]}', **JSON),
    request("POST", "/completion", b"\x00\xff", **JSON),
]


@async_test
async def test_as_from_llama_server(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """The web page, packed and not, questions, preflights, odd targets and errors: through the proxy as without it."""
    proxy = proxy_of(llama.url, {"code": "Know this. <{message}>"}, warmup=False)
    page = (await deferToThread(exchange, llama.url, request("GET", "/"))).body
    named = {name.decode() for name in re.findall(rb"""(?:src|href)=["']([^"':#]+)["']""", page)}
    files = [
        request("GET", "/" + name.removeprefix("./").lstrip("/"), Accept_Encoding="gzip") for name in sorted(named)
    ]
    different = []
    for data in [*REQUESTS, *files]:
        direct = (await deferToThread(exchange, llama.url, data)).comparable
        through = (await deferToThread(exchange, proxy.url, data)).comparable
        if direct != through:
            different.append(f"{data[:300]!r}\n    direct:  {direct!s:.2000}\n    through: {through!s:.2000}")
    assert not different, "\n".join(different)


# A server in the test's hands.


@dataclass
class Scripted:
    """A server that answers `/health`, `/slots` and the like with an error, and everything else as the test says.

    `said` is what it answers, as bytes or as a function of the request's bytes; then it closes the connection, unless
    `keep` is set.  Unless `reads` is set it reads no chats before `read`.  `asked` has the requests that came, `open`
    the connections.
    """

    url: str = ""
    said: bytes | Callable[[bytes], bytes] = b""
    keep: bool = False
    asked: list[bytes] = field(default_factory=list)
    open: list[ScriptedConnection] = field(default_factory=list)
    reads: bool = True
    held: list[ScriptedConnection] = field(default_factory=list)

    def read(self) -> None:
        """Read what it has not read yet, and all that comes."""
        self.reads = True
        for each in self.held:
            each.go_on()


OWN = (b"/health", b"/props", b"/slots", b"/v1/models", b"/tokenize", b"/apply-template", b"/completion")
"""What bioproxy asks for itself."""


class ScriptedConnection(Protocol):
    """One connection to it."""

    def __init__(self, script: Scripted) -> None:
        self._script = script
        self._data = bytearray()

    def connectionMade(self) -> None:
        """Keep the kernel from taking much.  Called by Twisted."""
        transport: Any = self.transport
        transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

    def go_on(self) -> None:
        """Read again."""
        transport: Any = self.transport
        transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """Answer when a request is whole.  Called by Twisted."""
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self._data[: max(end, 0)])
        if not self._script.reads and self._data.startswith(b"POST /v1/chat"):
            transport: Any = self.transport
            transport.pauseProducing()
            self._script.held.append(self)
        if end < 0 or len(self._data) - end - 4 < (int(length[1]) if length else 0):
            return
        asked, self._data = bytes(self._data), bytearray()
        target = asked.split(b" ")[1]
        if target.startswith(OWN):
            return self.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", end=True)
        self._script.asked.append(asked)
        self._script.open.append(self)
        said = self._script.said
        self.say(said(asked) if callable(said) else said, end=not self._script.keep)

    def say(self, data: bytes, end: bool = False) -> None:
        """Say something, and close the connection then if that is all."""
        transport: Any = self.transport
        transport.write(data)
        if end:
            transport.loseConnection()


@async_fixture
async def server() -> AsyncIterator[Scripted]:
    """Return such a server."""
    script = Scripted()

    class Connections(Factory):
        def buildProtocol(self, addr: Any) -> ScriptedConnection:
            return ScriptedConnection(script)

    port = reactor.listenTCP(0, Connections(), interface="127.0.0.1")
    script.url = f"http://127.0.0.1:{port.getHost().port}"
    yield script
    await port.stopListening()
    for each in script.open:
        transport: Any = each.transport
        transport.abortConnection()


async def told(server: Scripted, proxy: RunningProxy, said: bytes, asked: bytes | None = None) -> Heard:
    """Ask for something, and return what comes when the server says that."""
    server.said = said
    return cast("Heard", await deferToThread(exchange, proxy.url, asked or request("GET", "/x")))


ALL_BYTES = bytes(range(256)) * 64
PACKED = gzip.compress(b"a long text " * 1000, mtime=0)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 200 Fine",
        b"HTTP/1.1 201 Created",
        b"HTTP/1.1 299 It went  well, mostly!",
        b"HTTP/1.1 418 I'm a teapot",
        b"HTTP/1.1 500 \xe9\xff",
        b"HTTP/1.1 503 Loading model",
        b"HTTP/1.1 599 x",
        b"HTTP/1.1 999 y",
        b"HTTP/1.1 301 Moved Permanently\r\nLocation: http://elsewhere/",
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x",
    ],
)
@async_test
async def test_status(server: Scripted, proxy_of: ProxyOf, line: bytes) -> None:
    """Statuses and their words come as they are, known or not."""
    heard = await told(server, proxy_of(server.url, warmup=False), line + b"\r\nContent-Length: 3\r\n\r\nabc")
    first, *headers = line.split(b"\r\n")
    assert (heard.line, heard.body, heard.whole) == (first, b"abc", True)
    for header in headers:
        name, value = header.split(b": ")
        assert heard.values(name.lower()) == [value]


@async_test
async def test_headers_of_answers(server: Scripted, proxy_of: ProxyOf) -> None:
    """Repeated headers come in their order, empty and odd ones too; those for the next connection only do not."""
    headers = (
        b"Set-Cookie: b=1; Path=/\r\nX-Empty:\r\nSet-Cookie: a=2\r\nServer: llama\r\nX-High: \xe9\xff\r\n"
        b"Set-Cookie: b=1; Path=/\r\nConnection: x-hop, Keep-Alive\r\nConnection: close\r\nX-Hop: 1\r\n"
        b"Keep-Alive: timeout=5\r\n"
        b'Content-Type: text/plain\r\nDate: yesterday\r\nETag: "x"\r\nLast-Modified: never\r\nProxy-Connection: x\r\n'
    )
    heard = await told(
        server, proxy_of(server.url, warmup=False), b"HTTP/1.1 200 OK\r\n" + headers + b"Content-Length: 1\r\n\r\n."
    )
    assert heard.values(b"set-cookie") == [b"b=1; Path=/", b"a=2", b"b=1; Path=/"]
    assert heard.values(b"x-empty") == [b""]
    assert heard.values(b"x-high") == [b"\xe9\xff"]
    for name, value in (
        (b"server", b"llama"),
        (b"date", b"yesterday"),
        (b"etag", b'"x"'),
        (b"last-modified", b"never"),
    ):
        assert heard.values(name) == [value]
    for name in (b"x-hop", b"keep-alive", b"proxy-connection"):
        assert heard.values(name) == []


@async_test
async def test_no_headers(server: Scripted, proxy_of: ProxyOf) -> None:
    """Nothing is put in that was left out: no type, no date, no name of a server."""
    heard = await told(server, proxy_of(server.url, warmup=False), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert {name.lower() for name, _ in heard.headers} <= {b"content-length", b"connection"}
    assert heard.body == b"hi"


@pytest.mark.parametrize("value", [b"close,", b"", b", ,x-hop", b"close, a b", b'"x"'])
@async_test
async def test_odd_connection(server: Scripted, proxy_of: ProxyOf, value: bytes) -> None:
    """What is odd in the server's `Connection` is nobody's business; what is named in it is left out all the same."""
    said = b"HTTP/1.1 200 OK\r\nX-Hop: 1\r\nConnection: " + value + b"\r\nContent-Length: 2\r\n\r\nhi"
    heard = await told(server, proxy_of(server.url, warmup=False), said)
    assert (heard.status, heard.body) == (200, b"hi")
    assert heard.values(b"x-hop") == ([] if b"x-hop" in value else [b"1"])


@async_test
async def test_no_body(server: Scripted, proxy_of: ProxyOf) -> None:
    """Answers without a body end with their head; what their length would be is told where the server told it."""
    proxy = proxy_of(server.url, warmup=False)
    heard = await told(server, proxy, b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n")
    assert (heard.status, heard.body, heard.values(b"x-a")) == (204, b"", [b"b"])
    assert not heard.values(b"transfer-encoding") and not heard.values(b"content-length")
    heard = await told(server, proxy, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (heard.status, heard.body, heard.values(b"content-length")) == (200, b"", [b"0"])
    for more in (b"", b"Content-Length: 77\r\n", b"Transfer-Encoding: chunked\r\n"):
        heard = await told(server, proxy, b"HTTP/1.1 200 OK\r\n" + more + b"\r\n", request("HEAD", "/x"))
        lengths = [b"77"] if b"77" in more else []
        assert (heard.status, heard.body, heard.values(b"content-length")) == (200, b"", lengths)


@async_test
async def test_not_modified(server: Scripted, proxy_of: ProxyOf) -> None:
    """What was not changed is told with its mark and the length that it has."""
    proxy = proxy_of(server.url, warmup=False)
    said = b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 5\r\n\r\n'
    heard = await told(server, proxy, said, request("GET", "/x", If_None_Match='"x"'))
    assert (heard.line, heard.body, heard.values(b"etag")) == (b"HTTP/1.1 304 Not Modified", b"", [b'"x"'])
    assert b'If-None-Match: "x"' in server.asked[-1]
    assert heard.values(b"content-length") == [b"5"]


@async_test
async def test_ranges(server: Scripted, proxy_of: ProxyOf) -> None:
    """Parts that were asked for are asked for, and come as parts."""
    said = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/9\r\nContent-Length: 3\r\n\r\ncde"
    heard = await told(server, proxy_of(server.url, warmup=False), said, request("GET", "/x", Range="bytes=2-4"))
    assert (heard.line, heard.body) == (b"HTTP/1.1 206 Partial Content", b"cde")
    assert heard.values(b"content-range") == [b"bytes 2-4/9"]
    assert b"Range: bytes=2-4\r\n" in server.asked[-1]


@async_test
async def test_packed(server: Scripted, proxy_of: ProxyOf) -> None:
    """Packed bodies stay packed, both ways."""
    said = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(PACKED), PACKED)
    asked = request("POST", "/x", PACKED, Content_Encoding="gzip", Accept_Encoding="gzip;q=1, *;q=0")
    heard = await told(server, proxy_of(server.url, warmup=False), said, asked)
    assert (heard.body, heard.values(b"content-encoding")) == (PACKED, [b"gzip"])
    assert server.asked[-1].endswith(b"\r\n\r\n" + PACKED)
    assert b"Content-Encoding: gzip\r\n" in server.asked[-1]
    assert b"Accept-Encoding: gzip;q=1, *;q=0\r\n" in server.asked[-1]


@pytest.mark.parametrize("path", ["/x", "/v1/chat/completions"])
@async_test
async def test_every_byte(server: Scripted, proxy_of: ProxyOf, path: str) -> None:
    """Bodies may have any bytes, with a length or in chunks, small and large."""
    proxy = proxy_of(server.url, {"code": "Know this. <{message}>"}, warmup=False)
    for body in (b"", ALL_BYTES, os.urandom(300_000)):
        answer = body[::-1]
        pieces = [answer[at : at + 7000] for at in range(0, len(answer), 7000)]
        chunked = b"".join(b"%X;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Trailer: 1\r\n\r\n"
        for said in (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
            b"HTTP/1.1 200 OK\r\n\r\n" + answer,
            b"HTTP/1.0 200 OK\r\n\r\n" + answer,
        ):
            heard = await told(server, proxy, said, request("POST", path, body))
            assert (heard.status, heard.body == answer, heard.whole) == (200, True, True), said[:80]
            assert server.asked[-1].partition(b"\r\n\r\n")[2] == body


@async_test
async def test_chunked_requests(server: Scripted, proxy_of: ProxyOf) -> None:
    """A body in chunks arrives whole; extensions and trailers, which speak of one connection, do not."""
    chunks = b"3;x=y\r\nabc\r\n1\r\n\r\r\nA\r\n0123456789\r\n0\r\nX-Trailer: 1\r\n\r\n"
    asked = request("PUT", "/x", chunks, Transfer_Encoding="chunked", Trailer="X-Trailer", TE="trailers")
    heard = await told(
        server, proxy_of(server.url, warmup=False), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", asked
    )
    head, _, body = server.asked[-1].partition(b"\r\n\r\n")
    assert (heard.status, body) == (200, b"abc\r0123456789")
    assert head.count(b"Content-Length: 14") == 1
    assert not re.search(rb"(?i)transfer-encoding|trailer|\nTE:", head)


@async_test
async def test_expect(server: Scripted, proxy_of: ProxyOf) -> None:
    """Who waits for a word before it sends a body gets that word; the server is not asked for it."""
    proxy = proxy_of(server.url, warmup=False)
    server.said = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

    def ask() -> tuple[bytes, Heard]:
        with connected(proxy.url) as client:
            client.sendall(request("POST", "/x", Expect="100-continue", Content_Length="4"))
            word = client.recv(25)
            client.sendall(b"body")
            return word, Heard.read(client, b"POST")

    word, heard = await deferToThread(ask)
    assert word == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (heard.status, heard.body) == (200, b"hi")
    assert server.asked[-1].endswith(b"\r\n\r\nbody")
    assert b"xpect" not in server.asked[-1]


@async_test
async def test_old_clients(server: Scripted, proxy_of: ProxyOf) -> None:
    """A client of HTTP/1.0 gets no chunks, and the end of its answer is the connection's."""
    proxy = proxy_of(server.url, warmup=False)
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    heard = await told(server, proxy, said, b"GET /x HTTP/1.0\r\n\r\n")
    assert (heard.line, heard.body, heard.values(b"transfer-encoding")) == (b"HTTP/1.0 200 OK", b"abc", [])
    assert f"Host: {server.url.removeprefix('http://')}\r\n".encode() in server.asked[-1]
    assert server.asked[-1].startswith(b"GET /x HTTP/1.1\r\n")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@async_test
async def test_broken_answers(server: Scripted, proxy_of: ProxyOf, version: bytes) -> None:
    """An answer that breaks off is not whole here either."""
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
    data = b"GET /x HTTP/" + version + b"\r\nHost: x\r\n\r\n"
    heard = await told(server, proxy_of(server.url, warmup=False), said, data)
    assert not heard.whole


@async_test
async def test_headers_of_requests(server: Scripted, proxy_of: ProxyOf) -> None:
    """Headers go on as they are, repeated ones in their order; those for the next connection only do not."""
    data = (
        b"GET /x?y HTTP/1.1\r\nHost: web.example:99\r\nX-Two: 2\r\nAuthorization: Bearer k\r\nX-Two: 1\r\nX-Two: 2\r\n"
        b"Cookie: a=b\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 3\r\nUpgrade: h2c\r\nTE: trailers\r\n"
        b"Proxy-Authorization: x\r\n"
        b"X-Empty:\r\nX-High: \xe9\xff\r\nX-Forwarded-For: 1.2.3.4\r\nUser-Agent: x\r\n\r\n"
    )
    await told(server, proxy_of(server.url, warmup=False), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", data)
    line, *lines = server.asked[-1].removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert line == b"GET /x?y HTTP/1.1"
    kept = [each for each in lines if not each.startswith(b"Connection: ")]
    assert sorted(kept) == sorted(
        [
            *(
                b"Host: web.example:99",
                b"X-Two: 2",
                b"X-Two: 1",
                b"X-Two: 2",
                b"Authorization: Bearer k",
                b"Cookie: a=b",
            ),
            *(b"X-Empty: ", b"X-High: \xe9\xff", b"X-Forwarded-For: 1.2.3.4", b"User-Agent: x"),
        ]
    )
    assert [each for each in lines if each.startswith(b"X-Two")] == [b"X-Two: 2", b"X-Two: 1", b"X-Two: 2"]


@pytest.mark.parametrize("length", [True, False], ids=["length", "no-length"])
@async_test
async def test_events_when_they_come(server: Scripted, proxy_of: ProxyOf, length: bool) -> None:
    """The client has each event, comments and halves too, before the server says the next one."""
    events = [b": hello\n\n", b"data: 1\n\n", b"event: x\ndata", b": 2\n\n", b":\n\n", b"data: [DONE]\n\n"]
    head = b"Content-Length: %d\r\n\r\n" % sum(map(len, events)) if length else b"Transfer-Encoding: chunked\r\n\r\n"
    server.said, server.keep = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + head, True
    proxy = proxy_of(server.url, warmup=False)
    with connected(proxy.url) as client:
        client.sendall(request("GET", "/stream"))
        client.setblocking(False)
        received = bytearray()

        def come(data: bytes) -> bool:
            with suppress(BlockingIOError):
                received.extend(client.recv(65536))
            return bytes(received).replace(b"\r\n", b"").endswith(data)

        await until(lambda: server.open)
        for event in events:
            server.open[0].say(event if length else b"%x\r\n%s\r\n" % (len(event), event))
            await until(lambda event=event: come(event))  # type: ignore[misc]
        server.open[0].say(b"" if length else b"0\r\n\r\n", end=True)
        await until(lambda: come(events[-1] + (b"" if length else b"0")))


@pytest.mark.parametrize("reads", [True, False], ids=["all-sent", "being-sent"])
@async_test
async def test_large_request_that_waits(server: Scripted, proxy_of: ProxyOf, reads: bool) -> None:
    """Who asks for a stream with a large request has comments while it waits too, and the request arrives whole."""
    proxy = proxy_of(server.url, warmup=False, ping_interval=0.2)
    server.keep, server.reads = True, reads
    text = "long " * (60_000 if reads else 2_000_000)
    body = json.dumps({"messages": [{"role": "user", "content": text}], "stream": True}).encode()
    with connected(proxy.url) as client:
        await deferToThread(client.sendall, request("POST", "/v1/chat/completions", body))
        heard = b""
        while b": being prepared\n\n" not in heard:
            data = await deferToThread(client.recv, 4000)
            assert data, heard
            heard += data
        assert not server.open or reads
        server.read()
        await until(lambda: server.open)
        assert server.asked[-1].partition(b"\r\n\r\n")[2] == body
        events = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: [DONE]\n\n"
        server.open[0].say(events, end=True)
        while not heard.endswith(b"0\r\n\r\n"):
            data = await deferToThread(client.recv, 4000)
            assert data
            heard += data
        assert b"data: [DONE]\n\n" in heard


@async_test
async def test_star(server: Scripted, proxy_of: ProxyOf) -> None:
    """A target that is no path is refused, also the one that means a whole server."""
    proxy = proxy_of(server.url, warmup=False)
    for target in ("*", "nothing", "ftp://x/y"):
        heard = await told(server, proxy, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", request("OPTIONS", target))
        assert (heard.status, server.asked) == (400, []), target


# Made up.

TOKENS = st.text(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~", min_size=1, max_size=12
)
VALUES = st.binary(max_size=30).map(lambda value: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value).strip(b" \t"))
RESERVED = re.compile(
    "(?i)connection|keep-alive|te|trailers?|transfer-encoding|upgrade|proxy-.*|host|content-length|expect|x-bioproxy-.*|date|server"
)
NAMES = TOKENS.filter(lambda name: not RESERVED.fullmatch(name)).map(str.encode)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"BREW", b"x-y"])
# A % stands in front of two hexadecimal digits: another one is refused in a path.
VISIBLE = [chr(code) for code in range(0x21, 0x7F) if chr(code) != "%"]
TARGETS = st.lists(st.sampled_from([*VISIBLE, "%e4"]), max_size=30).map(lambda parts: b"/z" + "".join(parts).encode())
BODIES = st.one_of(
    st.just(b""), st.binary(max_size=100), st.binary(min_size=1, max_size=50).map(lambda part: part * 4000)
)
REASONS = VALUES.filter(bool)


@dataclass(frozen=True)
class Turn:
    """A request and the answer to it."""

    method: bytes
    target: bytes
    asked: list[tuple[bytes, bytes]]
    sent: bytes
    status: int
    reason: bytes
    answered: list[tuple[bytes, bytes]]
    back: bytes
    chunked: bool


TURNS = st.builds(
    Turn,
    METHODS,
    TARGETS,
    HEADERS,
    BODIES,
    st.integers(200, 599).filter(lambda code: code not in (204, 304)),
    REASONS,
    HEADERS,
    BODIES,
    st.booleans(),
)


@async_test
async def test_made_up(server: Scripted, proxy_of: ProxyOf) -> None:
    """Whatever a client asks is what the server is asked, and whatever that answers is what the client hears."""
    proxy = proxy_of(server.url, {"code": "Know this. <{message}>"}, warmup=False)

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(TURNS)
    def check(turn: Turn) -> None:
        head = b"".join(b"%s: %s\r\n" % pair for pair in turn.answered)
        framing = b"Transfer-Encoding: chunked" if turn.chunked else b"Content-Length: %d" % len(turn.back)
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(turn.back), turn.back) if turn.chunked and turn.back else turn.back
        body = b"0\r\n\r\n" if turn.chunked and not turn.back else body
        server.said = b"HTTP/1.1 %d %s\r\n%s%s\r\n\r\n%s" % (turn.status, turn.reason, head, framing, body)
        server.asked.clear()
        lines = b"".join(b"%s: %s\r\n" % pair for pair in turn.asked)
        data = b"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s"
        heard = exchange(proxy.url, data % (turn.method, turn.target, lines, len(turn.sent), turn.sent))
        assert heard.line == b"HTTP/1.1 %d %s" % (turn.status, turn.reason)
        assert (heard.body, heard.whole) == (turn.back, True)
        assert ordered(heard.headers) == ordered(turn.answered)
        (asked,) = server.asked
        first, _, rest = asked.partition(b"\r\n")
        assert first == b"%s %s HTTP/1.1" % (turn.method, turn.target)
        head, _, sent = rest.partition(b"\r\n\r\n")
        pairs = [(name, value) for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n"))]
        assert ordered(pairs) == ordered([*turn.asked, (b"Host", b"x")])
        assert sent == turn.sent

    await deferToThread(check)


def ordered(headers: Any) -> Mapping[bytes, list[bytes]]:
    """Return each header's values in their order."""
    result: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name.lower().decode() not in PER_CONNECTION:
            result.setdefault(name.lower(), []).append(value)
    return result
