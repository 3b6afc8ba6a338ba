"""Is a request read by everybody in the same way?  What is sent on to llama-server, and what came from the client.

If two programs in a row read the same bytes as different requests, an attacker can hide one request in another
("request smuggling", RFC 9112, section 11.2).  So requests are made up, good ones and ones that were spoiled in the
ways that are tried in practice; the proxy must refuse each one, or send on what three independent readers (h11,
httptools and Twisted) take for the same thing.

``DIFFERENTIAL=100000`` in the environment makes so many requests, ``DIFFERENTIAL_SEED=7`` other ones.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import h11
import httptools
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel, HTTPFactory, Request

from bioproxy.http.connection_limits import LARGEST_BODIES
from tests.support.network import Call, Wire
from tests.support.world import WorldTest

EXAMPLES = int(os.environ.get("DIFFERENTIAL", "1500"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "1"))

ANSWER = b"HTTP/1.1 299 Seen\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""What the server behind the proxy says to everything: a status that nobody else uses."""

MAX_BODY = 400


@dataclass(frozen=True)
class Read:
    """A request as somebody reads it; names of headers are in lower case."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def meaning(self) -> tuple[bytes, bytes, bytes]:
        """What must not change on the way through the proxy."""
        target = re.sub(rb"(?i)^https?://[^/?]*", b"", self.target)
        target = target if target.startswith(b"/") else b"/" + target
        return self.method, re.sub(rb"[^!-~]", lambda odd: b"%%%02X" % odd[0][0], target), self.body


@dataclass(frozen=True)
class Reading:
    """What somebody reads in some bytes: requests, whether what follows was refused or ignored, and what is left."""

    requests: tuple[Read, ...]
    refused: bool = False
    rest: bytes = b""
    ignored: bool = False


# The readers.


def read_h11(data: bytes) -> Reading:
    """Read as h11 does."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    requests: list[Read] = []
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                rest = connection.trailing_data[0] if event is h11.NEED_DATA else b""
                return Reading(tuple(requests), rest=rest)
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                headers = tuple((name, value) for name, value in head.headers)
                requests.append(Read(head.method, head.target, headers, body))
                if connection.their_state is not h11.DONE and connection.their_state is not h11.MUST_CLOSE:
                    return Reading(tuple(requests), refused=True)  # it would be a tunnel from here on
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    return Reading(tuple(requests), rest=connection.trailing_data[0], ignored=True)
                connection.start_next_cycle()
    except h11.RemoteProtocolError:
        return Reading(tuple(requests), refused=True)


class Collector:
    """Takes what httptools reads."""

    def __init__(self) -> None:
        self.requests: list[Read] = []
        self._parser = httptools.HttpRequestParser(self)

    def read(self, data: bytes) -> Reading:
        """Read."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # something else than HTTP might come now
            return Reading(tuple(self.requests[:-1]), refused=True)
        except httptools.HttpParserError:
            return Reading(tuple(self.requests), refused=True)
        return Reading(tuple(self.requests), rest=b"" if self._complete else b"?")

    _complete = True

    def on_message_begin(self) -> None:
        """A request begins.  Called by httptools, as all of these."""
        self._complete = False
        self._target = self._body = b""
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, target: bytes) -> None:
        """A piece of the target."""
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, also one behind a body in chunks."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Nothing but a body comes now."""
        self._head = tuple(self._headers)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._body += data

    def on_message_complete(self) -> None:
        """That was it."""
        self._complete = True
        self.requests.append(Read(self._parser.get_method(), self._target, self._head, self._body))


def read_httptools(data: bytes) -> Reading:
    """Read as httptools does, which is llhttp, the reader of Node.js."""
    return Collector().read(data)


@cache
def llhttp_knows(method: bytes) -> bool:
    """Tell whether it is one of the methods that httptools can read."""
    return bool(read_httptools(method + b" / HTTP/1.1\r\n\r\n").requests)


def read_twisted(data: bytes) -> Reading:
    """Read as Twisted does where nobody has changed it."""
    requests: list[Read] = []

    class Taker(Request):
        def process(self) -> None:
            pairs = self.requestHeaders.getAllRawHeaders()
            headers = tuple((name.lower(), value) for name, values in pairs for value in values)
            assert self.content is not None
            requests.append(Read(self.method, self.uri, headers, self.content.read()))
            self.setHeader("content-length", "0")
            self.finish()

    factory = HTTPFactory(reactor=Clock())
    channel: Any = HTTPChannel()
    channel.requestFactory = Taker
    channel.callLater = factory.reactor.callLater
    channel.timeOut = None
    channel.site = channel.factory = factory
    transport = StringTransport()
    channel.makeConnection(transport)
    channel.dataReceived(data)
    refused = b"HTTP/1.1 400" in transport.value()
    rest = b"?" if channel.requests else bytes(channel.clearLineBuffer())
    return Reading(tuple(requests), refused, rest)


READERS: dict[str, Callable[[bytes], Reading]] = {
    "h11": read_h11,
    "httptools": read_httptools,
    "Twisted": read_twisted,
}


# What is read.

METHODS = (b"GET", b"POST", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"PROPFIND", b"M-SEARCH")
ODD_METHODS = (
    b"get",
    b"GE T",
    b"GET\t",
    b"",
    b"G\x00T",
    b"P\xff",
    b"CONNECT",
    b"BREW",
    b"PRI",
    b" GET",
    b"GET:",
    b"\xef\xbb\xbfGET",
)
TARGETS = (
    b"/",
    b"/x",
    b"/a/../b",
    b"/x?a=1&b=%2f;c",
    b"//x",
    b"/%00",
    b"/v1/models",
    b"/tokenize",
    b"/a'\"<>{}|\\^`[]",
)
ODD_TARGETS = (
    b"http://other/x",
    b"HTTP://other:99?y",
    b"http://a@b/x",
    b"http:/x",
    b"https://[::1]:8/x",
    b"http://",
    b"*",
    b"x",
    b"",
    b"/x#y",
    b"/\x80\xb0",
    b"/\x7f",
    b"/\xff",
    b"/a b",
    b"/a\tb",
    b"/\x00",
    b"/x\rGET",
    b"/x\nHost: y",
    b"//a:b:c/x",
    b"//[",
    b"/x HTTP/1.1\r\nX: y",
    b"other:80",
    b"?x",
    b"http://h\\x",
    b"/" + b"a" * 20000,
)
ODD_VERSIONS = (
    b"HTTP/1.0",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.10",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"HTTP/ 1.1",
    b"",
    b"HTTP/1.1\x00",
    b"HTTP/11",
)
HEADERS = (
    b"X-One: 1",
    b"x-one: 2",
    b"Accept: */*",
    b"Cookie: a=b; c",
    b"X-High: \xe9\xff",
    b"X-Tab: a\tb",
    b"X-Empty:",
    b"X-Space:   y  ",
    b"Connection: close",
    b"Connection: keep-alive, X-One",
    b"Connection: Content-Length",
    b"Connection: Host",
    b"Connection: ,",
    b"TE: trailers",
    b"Trailer: X",
    b"Upgrade: websocket",
    b"Connection: upgrade",
    b"Keep-Alive: 5",
    b"Proxy-Connection: x",
    b"Expect: 100-continue",
    b"Expect: other",
    b"Content-Type: application/json",
    b"Content-Encoding: gzip",
    b"!#$%&'*+-.^_`|~: y",
)
ODD_HEADERS = (
    b"X-Space : y",
    b" X-Lead: y",
    b"X\tY: z",
    b": y",
    b"X-None",
    b"X-Nul: a\x00b",
    b"X\x00: y",
    b"X-Cr: a\rb",
    b"X-Lf: a\nb",
    b"X-Lf: a\nContent-Length: 3",
    b"X-Cr: a\rTransfer-Encoding: chunked",
    b"X-Del: \x7f",
    b"X-Bell: \x07",
    b"X-Fold: a\r\n b",
    b"X-Fold: a\r\n\tContent-Length: 3",
    b"X-Fold:\r\n chunked",
    b"\xc3\xa9: y",
    b"X: y\r\n\r",
    b"(x): y",
    b"X\xa0: y",
    b"X-F: \x0b\x0c",
    b"X: " + b"y" * 20000,
    b"\r",
)
ODD_HOSTS = (
    b"Host: a\r\nHost: b",
    b"Host: a\r\nHost: a",
    b"Host:",
    b"Host: a b",
    b"Host: a,b",
    b"Host: a/b",
    b"Host: a@b",
    b"Host: [::1]:80",
    b"Host: [::1",
    b"Host: a:b",
    b"Host: \xe9",
    b"Host : a",
    b"Host: a\r\n b",
    b"Host: a\x00",
    b"hOST: a:80",
    b"Host:\ta\t",
    b"X-Host: a",
    b"",
    b"Host: http://a",
    b"Host: a?b",
    b"Host: 'a'",
)
LENGTHS = (
    b"Content-Length: %d",
    b"content-length:%d",
    b"Content-Length:  %d\t",
    b"Content-Length: +%d",
    b"Content-Length: -%d",
    b"Content-Length : %d",
    b"Content-Length: 0%d",
    b"Content-Length: 0x%x",
    b"Content-Length: %d, %d",
    b"Content-Length: %d\r\nContent-Length: %d",
    b"Content-Length: %d;",
    b"Content-Length: %d\r\nContent-Length: 0",
    b"Content-Length: \x0b%d",
    b"Content-Length:\r\n %d",
    b"Content_Length: %d",
    b"Content-Length: %d.0",
    b"Content-Length: \xd9\xa3%d",
    b"Content-Length:",
    b"Content-Length: 9999999999999999999999%d",
    b"Content-Length: %d 1",
    b"Content-Length: 1_%d",
    b"X-Content-Length: %d",
    b"Content-Length\x00: %d",
    b"Content-Length: %d\x00",
    b"\x00Content-Length: %d",
    b"Content-Length: '%d'",
)
ODD_CODINGS = (
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    b"Transfer-Encoding: x, chunked",
    b"Transfer-Encoding: chunked, x",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: \tchunked ",
    b"transfer-encoding:CHUNKED",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked;x=y",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding: chu\x00nked",
    b"Transfer-Encoding:",
    b'Transfer-Encoding: "chunked"',
    b"TE: chunked",
    b"\rTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: ,chunked",
)
ODD_SIZES = (
    b"0x%x",
    b"%x ",
    b" %x",
    b"+%x",
    b"-%x",
    b"%x;a=b",
    b'%x;a="b;c"',
    b"%x ;a",
    b"%x;\x00",
    b"%x;a\n",
    b"0%x",
    b"%X",
    b"%x\t",
    b"%x_",
    b"%x;a\rb",
    b"%xg",
    b"",
    b"00000000000000000%x",
    b"ffffffffffffffff%x",
    b"%x;",
    b"%x\x00",
)
TRAILERS = (
    b"X: y\r\n",
    b"X: y\n\nGET /t HTTP/1.1\r\nHost: a\r\n",
    b"X y\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b" x\r\n",
    b"X: \x00\r\n",
    b"X: a\rb\r\n",
    b": y\r\n",
    b"X : y\r\n",
)
BODIES_HERE = (
    b"",
    b"x",
    b'{"a": 1}',
    b"GET /in HTTP/1.1\r\nHost: a\r\n\r\n",
    b"0\r\n\r\n",
    b"\r\n",
    b"\x00\xff\r\n\r\n",
    bytes(range(256)),
    b"0\r\n\r\nGET /in HTTP/1.1\r\nHost: a\r\n\r\n",
    b"y" * 500,
)
EMPTY_LINES = (b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" \r\n", b"\x00")


FOUND = (
    b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\nGET /y HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a@b/x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://h\\x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\nGET /t HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\nPOST /t HTTP/1.1\r\nHost: a\r\n\r\n",
)
"""What was read in different ways once."""


class Maker:
    """Makes up bytes for connections; each one is spoiled in no, one or several places."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._odds = 0.0

    def connections(self, count: int) -> Iterator[list[bytes]]:
        """Yield so many of them, after those that were found before."""
        yield from ([data] for data in FOUND)
        yield from (self.connection() for _ in range(count))

    def connection(self) -> list[bytes]:
        """Return what comes on one connection, in the pieces in which it arrives."""
        self._odds = self._random.choice((0, 0.05, 0.1, 0.2))
        data = b"".join(self._request() for _ in range(self._random.choice((1, 1, 1, 2, 3))))
        if self._random.random() < self._odds:
            data = self._flip(data)
        cuts = sorted(self._random.randrange(len(data) + 1) for _ in range(self._random.choice((0, 0, 1, 5))))
        return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def _pick(self, good: Sequence[bytes], odd: Sequence[bytes]) -> bytes:
        return self._random.choice(odd if self._random.random() < self._odds else good)

    def _request(self) -> bytes:
        end = self._pick((b"\r\n",), (b"\n", b"\r", b"\r\r\n", b" \r\n", b"\x00\r\n"))
        words = (
            self._pick(METHODS, ODD_METHODS),
            self._pick(TARGETS, ODD_TARGETS),
            self._pick((b"HTTP/1.1",), ODD_VERSIONS),
        )
        space = self._pick((b" ",), (b"  ", b"\t", b"\x0b", b""))
        body = self._random.choice(BODIES_HERE)
        framing, sent = self._framed(body)
        lines = [self._pick(HEADERS, ODD_HEADERS) for _ in range(self._random.randrange(4))]
        lines += [self._pick((b"Host: localhost",), ODD_HOSTS), *framing]
        self._random.shuffle(lines)
        before = self._pick((b"",), EMPTY_LINES)
        after = self._pick((b"\r\n",), (b"\n", b"\r", b"\r\n\r\n", b" \r\n", b""))
        head = (
            before
            + space.join(words)
            + end
            + b"".join(line + self._pick((b"\r\n",), (b"\n", b"\r")) for line in lines if line)
        )
        return head + after + sent

    def _framed(self, body: bytes) -> tuple[list[bytes], bytes]:
        """Return headers that say where the body ends, and the body with its marks."""
        length = self._pick(LENGTHS[:3], LENGTHS)
        length = re.sub(rb"%[dx]", lambda found: found[0] % len(body), length)
        coding = self._pick((b"Transfer-Encoding: chunked",), ODD_CODINGS)
        kind = self._random.random()
        if self._random.random() < self._odds:  # both, or what does not fit
            return [length, coding], self._random.choice((body, self._chunked(body)))
        if kind < 0.3:
            return [], b""
        return ([length], body) if kind < 0.6 else ([coding], self._chunked(body))

    def _chunked(self, body: bytes) -> bytes:
        pieces = [body[at : at + 40] for at in range(0, len(body), 40)] if len(body) < MAX_BODY else [body]
        result = b""
        for piece in pieces:
            size = self._pick((b"%x", b"%x", b"%X", b"%x;a=b"), ODD_SIZES)
            size = size % len(piece) if b"%" in size else size
            result += (
                size + self._pick((b"\r\n",), (b"\n", b"\r")) + piece + self._pick((b"\r\n",), (b"\n", b"", b"xx"))
            )
        last = self._pick((b"0", b"0", b"000", b"0;a"), (b"-0", b"0x0", b"", b"0 ", b"+0"))
        trailers = self._random.choice((b"", b"", TRAILERS[0], self._pick((b"",), TRAILERS)))
        return result + last + b"\r\n" + trailers + self._pick((b"\r\n",), (b"\n", b"", b"\r"))

    def _flip(self, data: bytes) -> bytes:
        """Return it with one byte changed, put in or left out."""
        at = self._random.randrange(len(data) + 1)
        byte = self._random.choice((b"\x00", b"\r", b"\n", b" ", b"\t", b":", b"\xff", b"\x7f", b"\x85", b"", b"0"))
        return data[:at] + byte + data[at + self._random.randrange(2) :]


# The proxy.


@dataclass(frozen=True)
class Passed:
    """What became of a connection: for each answer the request that was sent on, `None` where it was refused.

    `between` tells whether all that came was read, and no request is unfinished.
    """

    sent: tuple[bytes | None, ...]
    between: bool


class DifferentialTest(WorldTest):
    """Bytes go in, and what comes out at the other side is read by all."""

    def use(self) -> None:
        """Build a proxy."""
        self.wire = Wire()
        self.built = self.world(agents=self.wire.agents("http://127.0.0.1:8080"), max_body=MAX_BODY)

    def through(self, pieces: Sequence[bytes]) -> Passed:
        """Let these pieces arrive on a connection."""
        call = Call(self.built.clients_port, pieces[0])
        for piece in pieces[1:]:
            call.send(piece)
        sent = []
        while True:
            self.built.http_clock.advance(0)
            if not self.wire.asked:
                break
            line = self.wire.accept()
            sent.append(line.received)
            line.send(ANSWER)
            line.lose()
        said = [status for status in re.findall(rb"HTTP/1\.[01] (\d+) ", call.received) if status != b"100"]
        self.assertEqual(said.count(b"299"), len(sent), (pieces, call.received))
        requests = iter(sent)
        passed = Passed(tuple(next(requests) if status == b"299" else None for status in said), call.between)
        call.hang_up()
        return passed

    def test_all_read_the_same(self) -> None:
        """What is sent on is one request, whole and with nothing behind it, and the same to every reader."""
        self.use()
        maker, passed, wrong = Maker(SEED), 0, []
        for pieces in maker.connections(EXAMPLES):
            for sent in self.through(pieces).sent:
                if sent is not None:
                    passed += 1
                    known = llhttp_knows(sent.split(b" ")[0])
                    readings = {name: read(sent) for name, read in READERS.items() if known or name != "httptools"}
                    if len({one_request(reading) for reading in readings.values()}) > 1:
                        wrong.append(f"{pieces}\n    becomes {sent!r}\n    and {readings}")
        self.assertEqual([], wrong[:20], "\n".join(wrong[:20]))
        self.assertGreater(passed, EXAMPLES // 2, "most of what is good goes through")

    def test_nothing_is_read_into_it(self) -> None:
        """What goes on is what others read in the client's bytes, unless they or the proxy refuse it."""
        self.use()
        maker, agreed, wrong = Maker(SEED + 1), 0, []
        for pieces in maker.connections(EXAMPLES):
            passed = self.through(pieces)
            went = [sent and read_twisted(sent).requests[0].meaning for sent in passed.sent]
            for name in ("h11", "httptools"):
                reading = READERS[name](b"".join(pieces))
                read = [request.meaning for request in reading.requests]
                both = list(zip(went, read, strict=False))
                agreed += sum(one == other for one, other in both)
                more = len(read) > len(went) and passed.between and None not in went
                less = any(went[len(read) :]) and not reading.refused and not reading.ignored
                if more or less or any(one is not None and one != other for one, other in both):
                    wrong.append(f"{pieces}\n    becomes {went}\n    but {name} reads {reading}")
        self.assertEqual([], wrong[:20], "\n".join(wrong[:20]))
        self.assertGreater(agreed, EXAMPLES // 2)

    def test_nothing_is_kept(self) -> None:
        """However a connection went, nothing of it counts when it has gone."""
        self.use()
        maker = Maker(SEED + 2)
        for pieces in maker.connections(EXAMPLES // 10):
            self.through(pieces)
        self.assertEqual(0, len(self.built.limits))
        self.assertEqual(
            [None] * LARGEST_BODIES, [self.built.limits.reserve_body_bytes(0, MAX_BODY) for _ in range(LARGEST_BODIES)]
        )


def one_request(reading: Reading) -> object:
    """Return the request that was read; headers with different names may stand in any order.

    What is not exactly one request is never the same as anything.
    """
    if len(reading.requests) != 1 or reading.refused or reading.rest:
        return object()
    read = reading.requests[0]
    return Read(read.method, read.target, tuple(sorted(read.headers, key=lambda pair: pair[0])), read.body)
