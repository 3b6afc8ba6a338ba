"""Requests that are ambiguous, slow or too large, and large ones that are fine."""

from __future__ import annotations

import json
import os
from typing import Any

from bioproxy.assembly.parts import LARGEST_ACTION
from bioproxy.http.deadlines import BODY_BYTES, BODY_SECONDS, CLIENT_STALL_SECONDS, HEAD_SECONDS, REFUSAL_SECONDS
from bioproxy.runtime.spool import SMALL
from tests.support.raw import Raw, RawTest
from tests.support.world import World

CHAT = "/v1/chat/completions"
HOST = b"Host: example.com\r\n"

# The beginnings of a request: whoever has sent so much is waited for.
BEGINNINGS = (
    *(b"G", b"GE", b"GET", b"GET ", b"GET /", b"GET / ", b"GET / H", b"GET / HTTP/1.", b"GET / HTTP/1.1"),
    *(b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHos", b"GET / HTTP/1.1\r\nHost:"),
    *(b"GET / HTTP/1.1\r\n" + HOST, b"GET / HTTP/1.1\r\n" + HOST + b"\r"),
)

# The other cases of h1spec: what is sent, and the statuses that come back.
REQUESTS: dict[str, tuple[bytes, list[int]]] = {
    "no version": (b"GET /\r\n" + HOST + b"\r\n", [400]),
    "expects 100": (b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", [200]),
    "GET": (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", [200]),
    "odd but right": (b"GET / HTTP/1.1\r\nhoSt:\texample.com\r\nempty:\r\n\r\n", [200]),
    "brackets in a name": (b"GET / HTTP/1.1\r\n" + HOST + b"X-Invalid[]: x\r\n\r\n", [400]),
    "no host": (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", [400]),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST + b"Host: example.org\r\n\r\n", [400]),
    "far below zero": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -" + b"123456789" * 3 + b"\r\n\r\n", [400]),
    "below zero": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1234\r\n\r\n", [400]),
    "no number": (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: abc\r\n\r\n", [400]),
    "empty value": (b"GET / HTTP/1.1\r\n" + HOST + b"X-Empty: \r\n\r\n", [200]),
    "bell": (b"GET / HTTP/1.1\r\n" + HOST + b"X-Bell: a\x07b\r\n\r\n", [400]),
    "other version": (b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", [400]),
    "line before": (b"Extra lineGET / HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    "return in front": (b"GET / HTTP/1.1\r\n" + HOST + b"\rSome-Header: x\r\n\r\n", [400]),
    "POST": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}", [200]),
    "two lengths of kinds": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        [400],
    ),
    "two kinds of lengths": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        [400],
    ),
}


def head(*lines: bytes, target: bytes = b"POST / HTTP/1.1", host: bytes = HOST) -> bytes:
    """Return a head with these headers."""
    return target + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
CHUNK = b"2\r\n{}\r\n0\r\n\r\n"

# What others may read in another way than we do: refused, whole or in pieces.
ODD: dict[str, bytes] = {
    "a header over two lines": head(b"X-Long: a", b" b"),
    "with a tab": head(b"X-Long: a", b"\tb"),
    "a length over two lines": head(b"Content-Length: 2", b" 0") + b"{}",
    "a space in front of all": b" " + head(),
    "a space in front of the first header": b"POST / HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
    "a space behind a name": head(b"Content-Length : 2") + b"{}",
    "a bare line feed": head(b"X-One: a\nX-Two: b"),
    "a bare line feed at the end": head(b"X-One: a\n"),
    "a bare line feed behind the request line": b"POST / HTTP/1.1\n" + HOST + b"\r\n",
    "a bare return": head(b"X-One: a\rX-Two: b"),
    "a bare return in the request line": head(target=b"POST /\r HTTP/1.1"),
    "a null": head(b"X-One: a\0b"),
    "a null in the target": head(target=b"POST /\0 HTTP/1.1"),
    "a null in a name": head(b"X\0: a"),
    "a delete": head(b"X-One: a\x7f"),
    "no colon": head(b"Content-Length"),
    "no name": head(b": x"),
    "a space in the target": head(target=b"POST /a b HTTP/1.1"),
    "two spaces": head(target=b"POST  / HTTP/1.1"),
    "no target": head(target=b"POST HTTP/1.1"),
    "an older version": head(target=b"POST / HTTP/0.9"),
    "a version in small letters": head(target=b"POST / http/1.1"),
    "a preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two empty lines in front": b"\r\n\r\n" + head(),
    "gzip": head(b"Transfer-Encoding: gzip") + CHUNK,
    "gzip, chunked": head(b"Transfer-Encoding: gzip, chunked") + CHUNK,
    "chunked, chunked": head(b"Transfer-Encoding: chunked, chunked") + CHUNK,
    "chunked twice": head(CHUNKED, CHUNKED) + CHUNK,
    "identity": head(b"Transfer-Encoding: identity") + CHUNK,
    "identity and chunked": head(b"Transfer-Encoding: identity", CHUNKED) + CHUNK,
    "no encoding": head(b"Transfer-Encoding:") + CHUNK,
    "chunked in quotes": head(b'Transfer-Encoding: "chunked"') + CHUNK,
    "a vertical tab before chunked": head(b"Transfer-Encoding: \x0bchunked") + CHUNK,
    "chunks before HTTP/1.1": head(CHUNKED, target=b"POST / HTTP/1.0") + CHUNK,
    "thousands of digits": head(b"Content-Length: " + b"1" * 5000),
    "nineteen digits": head(b"Content-Length: " + b"0" * 18 + b"2") + b"{}",
    "a length with a sign": head(b"Content-Length: +2") + b"{}",
    "a length in hexadecimal": head(b"Content-Length: 0x2") + b"{}",
    "a length with a line": head(b"Content-Length: 1_0") + b"{}",
    "a length with a fraction": head(b"Content-Length: 2.0") + b"{}",
    "an empty length": head(b"Content-Length:"),
    "two equal lengths": head(b"Content-Length: 2", b"Content-Length: 2") + b"{}",
    "two lengths": head(b"Content-Length: 2", b"Content-Length: 20") + b"{}",
    "a list of lengths": head(b"Content-Length: 2, 2") + b"{}",
    "a host with a space": head(host=b"Host: a b\r\n"),
    "a host with a user": head(host=b"Host: you@example.com\r\n"),
    "a host with a path": head(host=b"Host: example.com/x\r\n"),
    "a host with a query": head(host=b"Host: example.com?x\r\n"),
    "a host with a word as port": head(host=b"Host: example.com:http\r\n"),
    "a host with two ports": head(host=b"Host: example.com:80:81\r\n"),
    "a host with half a bracket": head(host=b"Host: [::1\r\n"),
    "a host beyond ASCII": head(host=b"Host: ex\xc3\xa4mple\r\n"),
    "a backslash in the host": head(host=b"Host: example.com\\x\r\n"),
    "the same host twice": head(host=HOST + HOST),
    "two hosts before HTTP/1.1": head(host=HOST + HOST, target=b"POST / HTTP/1.0"),
    "too many headers": head(*(b"X: y" for _ in range(500))),
    "a line too long": head(b"X: " + b"y" * 17_000),
    "a target too long": head(target=b"GET /" + b"y" * 17_000 + b" HTTP/1.1"),
    "a head too long": head(*(b"X-%d: " % number + b"y" * 400 for number in range(50))),
    "no length of a chunk": head(CHUNKED) + b"x\r\n{}\r\n0\r\n\r\n",
    "a chunk below zero": head(CHUNKED) + b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk in C's hexadecimal": head(CHUNKED) + b"0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": head(CHUNKED) + b"1\r\n{}\r\n0\r\n\r\n",
    "a space behind the length of a chunk": head(CHUNKED) + b"2 \r\n{}\r\n0\r\n\r\n",
    "a bare line feed behind the length of a chunk": head(CHUNKED) + b"2\n{}\r\n0\r\n\r\n",
}

# Odd, but there is only one way to read it.
RIGHT: dict[str, bytes] = {
    "an address as host": head(host=b"Host: [::1]:8081\r\n"),
    "no name as host": head(host=b"Host:\r\n"),
    "no host before HTTP/1.1": head(host=b"", target=b"POST / HTTP/1.0"),
    "CHUNKED": head(b"transfer-ENCODING:\tCHUNKED ") + CHUNK,
    "extensions and trailers": head(CHUNKED) + b'2;a=b;c="d"\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n',
    "zeros": head(b"Content-Length: 002") + b"{}",
    "an empty line in front": b"\r\n" + head(b"Content-Length: 2") + b"{}",
    "a whole address as target": head(target=b"POST http://elsewhere/ HTTP/1.1"),
    "letters beyond ASCII in a value": head(b"X-One: \xc3\xa4\xff"),
    "a tab in a value": head(b"X-One: a\tb"),
    "many headers": head(*(b"X: y" for _ in range(490))),
}


class ChannelTest(RawTest):
    """A world whose llama-server answers ``/`` with 200."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        self.use()

    def use(self, **settings: Any) -> World:
        """Build another."""
        self.built = self.world(state_dir=self.folder / f"state{len(os.listdir(self.folder))}", **settings)
        self.built.llama_server.answers = {"/": {"ok": True}}
        return self.built

    def arrived(self) -> list[tuple[bytes, bytes]]:
        """Return method and body of what reached llama-server."""
        return [(method, body) for method, _, body in self.built.llama_server.raw]

    def check_refused(self, client: Raw, status: int, what: str) -> None:
        """Check that a client got one error with a reason and a length, and that its connection ends soon."""
        answer = client.answers[0]
        self.assertEqual([status], client.statuses, what)
        self.assertEqual("close", answer.headers["connection"], what)
        self.assertEqual(str(len(answer.body)), answer.headers["content-length"], what)
        self.assertTrue(json.loads(answer.body)["error"]["message"], what)
        self.assertNotIn(b" 100 ", client.received, what)
        self.built.http_clock.advance(REFUSAL_SECONDS)
        self.assertTrue(client.closing, what)

    def nothing_left(self) -> None:
        """Check that no time is counted any more, nobody is there, and nothing was logged as a failure."""
        self.assertEqual(([], 0), (self.built.http_clock.getDelayedCalls(), len(self.built.limits)))
        self.assertEqual([], self.flushLoggedErrors())


class Odd(ChannelTest):
    """What is not plainly right."""

    def test_beginnings(self) -> None:
        """Whoever has sent only the beginning of a request is waited for, and answered once the rest is here."""
        whole = head(target=b"GET / HTTP/1.1")
        for beginning in BEGINNINGS:
            self.assertTrue(whole.startswith(beginning))
            client = self.connect(self.built).say(beginning)
            self.assertEqual((b"", False), (client.received, client.closing), beginning)
            client.say(whole[len(beginning) :])
            self.assertEqual([200], client.statuses, beginning)

    def test_each_request(self) -> None:
        """Each request is answered as it should be, in one piece and byte by byte; what is refused reaches nobody."""
        self.assertEqual(33, len(BEGINNINGS) + len(REQUESTS))
        for name, (data, statuses) in REQUESTS.items():
            for way in (Raw.say, Raw.trickle):
                before = len(self.arrived())
                client = self.connect(self.built)
                way(client, data)
                self.assertEqual(statuses, client.statuses, name)
                self.assertEqual(before + (statuses == [200]), len(self.arrived()), name)
                if statuses == [400]:
                    self.check_refused(client, 400, name)

    def test_continue(self) -> None:
        """Who asks whether the body may come is told so once, before it comes, and then gets the answer."""
        data, _ = REQUESTS["expects 100"]
        client = self.connect(self.built).say(data[:-2])
        self.assertEqual(b"HTTP/1.1 100 Continue\r\n\r\n", client.received)
        client.say(data[-2:])
        self.assertEqual([200], client.statuses)
        self.assertEqual([(b"POST", b"{}")], self.arrived())

    def test_further(self) -> None:
        """Whatever two programs may read in two ways is refused, in one piece and byte by byte, and reaches nobody."""
        for name, data in ODD.items():
            for way in (Raw.say, Raw.trickle):
                client = self.connect(self.built)
                way(client, data)
                self.check_refused(client, 400, name)
                client.hang_up()
        self.assertEqual([], self.arrived())

    def test_only_line_feeds(self) -> None:
        """A request with line feeds alone is none: it is never answered as one, and ends as a slow one does."""
        client = self.connect(self.built).say(head().replace(b"\r\n", b"\n"))
        self.built.http_clock.advance(HEAD_SECONDS)
        self.assertEqual([408], client.statuses)
        self.assertEqual([], self.arrived())

    def test_right(self) -> None:
        """What is odd but clear passes, in one piece and byte by byte."""
        for name, data in RIGHT.items():
            for way in (Raw.say, Raw.trickle):
                client = self.connect(self.built)
                way(client, data)
                self.assertEqual([200], client.statuses, name)

    def test_behind(self) -> None:
        """What follows a refused request on its connection is neither answered nor sent on, however it comes."""
        refused = {**{name: data for name, (data, statuses) in REQUESTS.items() if statuses == [400]}, **ODD}
        for name, data in refused.items():
            client = self.connect(self.built).say(data + head(target=b"GET /smuggled HTTP/1.1"))
            client.say(head(target=b"GET /smuggled HTTP/1.1"))
            self.check_refused(client, 400, name)
            client.say(head(target=b"GET /smuggled HTTP/1.1"))
            self.assertEqual([400], client.statuses, name)
            client.hang_up()
        self.assertEqual([], self.arrived())

    def test_before(self) -> None:
        """What came before it on the same connection is answered first, and as ever."""
        good, bad = head(b"Content-Length: 2") + b"{}", ODD["gzip"]
        for client in (self.connect(self.built).say(good + bad), self.connect(self.built).say(good).say(bad)):
            self.assertEqual([200, 400], client.statuses)
            self.built.http_clock.advance(REFUSAL_SECONDS)
            self.assertTrue(client.closing)
        self.assertEqual([(b"POST", b"{}")] * 2, self.arrived())

    def test_lingering(self) -> None:
        """The connection of a refused client stays open for a moment, so that it can read why; what comes is lost."""
        for data in (ODD["gzip"], ODD["two equal lengths"], ODD["a host with a space"]):
            client = self.connect(self.built).say(data)
            self.built.http_clock.advance(REFUSAL_SECONDS - 0.1)
            self.assertFalse(client.closing, data)
            client.say(b"x" * 500_000).say(b"x" * 500_000)
            self.assertEqual("producing", client.transport.producerState)  # what is not read takes the answer along
            self.built.http_clock.advance(0.1)
            self.assertEqual(([400], True), (client.statuses, client.closing), data)

    def test_closing(self) -> None:
        """A connection that is to be closed, but whose client does not read what is left, is ended after a minute."""
        client = self.connect(self.built)
        self.patch(client.transport, "loseConnection", lambda: None)  # as where there is something left to write
        client.say(head(b"Connection: close", target=b"GET / HTTP/1.1"))
        self.built.http_clock.advance(CLIENT_STALL_SECONDS - 1)
        self.assertEqual(([200], False), (client.statuses, client.closing))
        self.built.http_clock.advance(1)
        self.assertTrue(client.closing)

    def test_hanging_up(self) -> None:
        """Whoever hangs up, refused or in the middle of a request, leaves nothing behind."""
        for data in (ODD["gzip"], ODD["a host with a space"], *BEGINNINGS, head(b"Content-Length: 9") + b"{}", b""):
            self.connect(self.built).say(data).hang_up()
            self.nothing_left()

    def test_star(self) -> None:
        """A star in place of a target is refused like other targets that are no path, without a host too."""
        for method in (b"OPTIONS", b"GET", b"POST"):
            for host in (HOST, b""):
                client = self.connect(self.built).say(head(target=method + b" * HTTP/1.1", host=host))
                self.check_refused(client, 400, repr((method, host)))
        self.assertEqual([], self.arrived())

    def test_operators_port(self) -> None:
        """On the operator's port the same is refused."""
        for name in ("gzip", "two equal lengths", "two hosts before HTTP/1.1", "a null"):
            client = self.connect(self.built, operator=True).say(ODD[name])
            self.check_refused(client, 400, name)


class Slow(ChannelTest):
    """What takes too long."""

    def test_head(self) -> None:
        """A head has ten seconds from its first byte on, however steadily it comes."""
        client = self.connect(self.built)
        for byte in (b"G", b"E"):
            self.assertEqual((b"", False), (client.received, client.closing), byte)
            client.say(byte)
            self.built.http_clock.advance(HEAD_SECONDS / 2)
        self.assertEqual([408], client.statuses)
        self.assertEqual("close", client.answers[0].headers["connection"])
        self.built.http_clock.advance(REFUSAL_SECONDS)
        self.assertTrue(client.closing)
        self.assertEqual([], self.arrived())

    def test_nothing_after_it(self) -> None:
        """A head that is complete only after that is not answered a second time, and reaches nobody."""
        client = self.connect(self.built).say(b"GET / HTTP/1.1\r\n")
        self.built.http_clock.advance(HEAD_SECONDS)
        client.say(HOST + b"\r\n").say(head())
        self.assertEqual(([408], []), (client.statuses, self.arrived()))

    def test_just_in_time(self) -> None:
        """A head that is complete in time is answered, and its time is not that of the next one."""
        client = self.connect(self.built)
        for _ in range(3):
            client.say(b"GET / HTTP/1.1\r\n")
            self.built.http_clock.advance(HEAD_SECONDS - 0.1)
            client.say(HOST + b"\r\n")
        self.assertEqual([200] * 3, client.statuses)

    def test_second_head(self) -> None:
        """The time of a head counts for the second one on a connection too, if it began behind the first one."""
        first = head(b"Content-Length: 0")
        for pieces in ((first + b"GET /",), (first, b"GET /")):
            self.built.llama_server.pause_at = {"/"}
            client = self.connect(self.built)
            for piece in pieces:
                client.say(piece)
            self.built.http_clock.advance(HEAD_SECONDS * 2)
            self.assertEqual((b"", False), (client.received, client.closing))
            self.built.llama_server.go_on()
            self.built.settle()
            self.built.http_clock.advance(HEAD_SECONDS)
            self.assertEqual([200, 408], client.statuses)

    def test_answer(self) -> None:
        """An answer may take its time: nothing ends the connection of a client that waits for it."""
        self.built.llama_server.pause_at = {"/"}
        for data in (head(b"Content-Length: 2") + b"{}", head(CHUNKED) + CHUNK, head(target=b"GET / HTTP/1.1")):
            client = self.connect(self.built).say(data)
            self.built.http_clock.advance(3600)
            self.assertEqual((b"", False), (client.received, client.closing))
            self.built.llama_server.go_on()
            self.built.settle()
            self.assertEqual([200], client.statuses)

    def test_idle(self) -> None:
        """A connection on which nothing happens ends after a minute, before a request and between two."""
        fresh, kept = self.connect(self.built), self.connect(self.built).say(head(target=b"GET / HTTP/1.1"))
        self.built.http_clock.advance(59)
        kept.say(head(target=b"GET / HTTP/1.1"))
        self.assertEqual(([200, 200], False, False), (kept.statuses, kept.closing, fresh.closing))
        self.built.http_clock.advance(1)
        self.assertEqual((b"", True, False), (fresh.received, fresh.closing, kept.closing))
        fresh.hang_up()
        self.built.http_clock.advance(59)
        self.assertEqual(([200, 200], True), (kept.statuses, kept.closing))

    def drip(self, client: Raw, piece: bytes) -> None:
        """Send a piece every second, until the connection is refused, at most for a minute."""
        for _ in range(60):
            if client.received:
                return
            client.say(piece)
            self.built.http_clock.advance(1)

    def test_body(self) -> None:
        """A body that brings less than a kilobyte a second is refused, in the shape of its API, and recorded."""
        rate = BODY_BYTES // int(BODY_SECONDS)
        for path in (CHAT, "/v1/messages", "/other"):
            client = self.connect(self.built)
            client.say(head(b"Content-Length: 100000", b"Origin: http://page", target=f"POST {path} HTTP/1.1".encode()))
            self.drip(client, b"x" * (rate - 1))
            self.check_refused(client, 408, path)
            answer = client.answers[0]
            shape = json.loads(answer.body)
            self.assertEqual("timeout_error", shape["error"]["type"])
            self.assertEqual("error" if path == "/v1/messages" else None, shape.get("type"))
            self.assertEqual("http://page", answer.headers["access-control-allow-origin"])
        records = json.loads(self.built.operate("GET", "/status").body)["requests"]
        self.assertEqual([("/v1/messages", 408), (CHAT, 408)], [(each["path"], each["status"]) for each in records])
        self.assertEqual(1, self.built.sample("requests_total", endpoint=CHAT, template="", code="408"))
        self.assertEqual([], self.arrived())

    def test_body_in_chunks(self) -> None:
        """So is one that comes in chunks, and one that never comes, wherever it stops."""
        for data in (
            head(CHUNKED),
            head(CHUNKED) + b"2\r",
            head(CHUNKED) + b"2\r\n{",
            head(CHUNKED) + b"2\r\n{}\r\n0\r\n",
        ):
            client = self.connect(self.built).say(data)
            self.built.http_clock.advance(BODY_SECONDS)
            self.check_refused(client, 408, repr(data))

    def test_body_just_fast_enough(self) -> None:
        """A body that brings just so much goes through, however long it takes."""
        rate, seconds = BODY_BYTES // int(BODY_SECONDS), 60
        client = self.connect(self.built).say(head(b"Content-Length: %d" % (rate * seconds)))
        self.drip(client, b"x" * rate)
        self.assertEqual([200], client.statuses)
        self.assertEqual([(b"POST", b"x" * rate * seconds)], self.arrived())

    def test_body_that_stops(self) -> None:
        """What came fast at first does not count later."""
        client = self.connect(self.built).say(head(b"Content-Length: 1000000") + b"x" * 900_000)
        self.built.http_clock.advance(BODY_SECONDS)
        self.assertEqual(b"", client.received)
        self.built.http_clock.advance(BODY_SECONDS)
        self.check_refused(client, 408, "stopped")
        self.assertEqual(0, self.built.limits._bytes)

    def test_after_a_slow_body(self) -> None:
        """What comes on the connection of a slow client later, its body's rest included, reaches nobody."""
        client = self.connect(self.built).say(head(b"Content-Length: 2") + b"{")
        self.built.http_clock.advance(BODY_SECONDS)
        client.say(b"}" + head(target=b"GET /smuggled HTTP/1.1"))
        self.check_refused(client, 408, "rest")
        self.assertEqual([], self.arrived())


LIMIT = 1000


class TooMuch(ChannelTest):
    """Bodies that are larger than they may be, alone or together."""

    def setUp(self) -> None:
        """Build a world for small bodies."""
        super().setUp()
        self.use(max_body=LIMIT)

    def post(self, *lines: bytes, path: str = "/") -> bytes:
        """Return the head of a POST."""
        return head(*lines, target=f"POST {path} HTTP/1.1".encode())

    def test_announced(self) -> None:
        """A body that says it is too large is refused before any of it has come, in the shape of its API."""
        for path in (CHAT, "/v1/messages", "/v1/responses", "/other"):
            data = self.post(b"Content-Length: %d" % (LIMIT + 1), b"Origin: http://page", path=path)
            client = self.connect(self.built).say(data)
            self.check_refused(client, 413, path)
            answer = client.answers[0]
            shape = json.loads(answer.body)
            self.assertEqual("invalid_request_error", shape["error"]["type"])
            self.assertEqual("error" if path == "/v1/messages" else None, shape.get("type"), path)
            self.assertEqual(None if path == "/v1/messages" else 413, shape["error"].get("code"), path)
            self.assertEqual("http://page", answer.headers["access-control-allow-origin"])
            client.hang_up()
        self.assertEqual([], self.arrived())
        self.nothing_left()

    def test_counted(self) -> None:
        """It is counted, and in the list of the latest requests where its path is one that uses the slot."""
        for path in (CHAT, "/other"):
            self.connect(self.built).say(self.post(b"Content-Length: 9999", path=path))
        self.assertEqual(1, self.built.sample("requests_total", endpoint=CHAT, template="", code="413"))
        self.assertEqual(1, self.built.sample("requests_total", endpoint="other", template="", code="413"))
        requests = json.loads(self.built.operate("GET", "/status").body)["requests"]
        self.assertEqual([(CHAT, 413)], [(each["path"], each["status"]) for each in requests])

    def test_just_fits(self) -> None:
        """One byte less is fine, with a length and in chunks."""
        body = b"x" * LIMIT
        for data in (self.post(b"Content-Length: %d" % LIMIT) + body, self.post(CHUNKED) + chunked(body, 300)):
            self.assertEqual([200], self.connect(self.built).say(data).statuses)
        self.assertEqual([(b"POST", body)] * 2, self.arrived())

    def test_in_chunks(self) -> None:
        """A body without a length is refused as soon as it is too large, before its end has come."""
        client = self.connect(self.built).say(self.post(CHUNKED, path=CHAT))
        client.say(chunked(b"x" * LIMIT, 300).removesuffix(b"0\r\n\r\n"))
        self.built.http_clock.advance(0)
        self.assertEqual(b"", client.received)
        client.say(b"1\r\nx\r\n")
        self.built.http_clock.advance(0)
        self.check_refused(client, 413, "chunks")
        self.assertEqual([], self.arrived())
        client.hang_up()
        self.assertEqual(0, self.built.limits._bytes)
        self.nothing_left()

    def test_all_in_one_piece(self) -> None:
        """So it is where all of it came in one piece, whatever that is cut into."""
        for size in (1, LIMIT, 5 * LIMIT):
            client = self.connect(self.built).say(self.post(CHUNKED) + chunked(b"x" * 5 * LIMIT, size))
            self.built.http_clock.advance(0)
            self.assertEqual([413], client.statuses, size)
            client.hang_up()
        self.assertEqual(([], 0), (self.arrived(), self.built.limits._bytes))
        self.nothing_left()

    def test_small_behind_large(self) -> None:
        """What is small enough behind what was too large does not make it a request again."""
        chunks = b"%x\r\n%s\r\n" % (2 * LIMIT, b"x" * 2 * LIMIT) + chunked(b"{}", 2)
        for size in (len(chunks), 500):
            client = self.connect(self.built).say(self.post(CHUNKED))
            for at in range(0, len(chunks), size):
                client.say(chunks[at : at + size])
            self.built.http_clock.advance(0)
            self.assertEqual([413], client.statuses, size)
        self.assertEqual([], self.arrived())

    def test_nonsense_behind(self) -> None:
        """It gets one answer where nonsense follows in the same piece."""
        data = self.post(CHUNKED) + chunked(b"x" * 5 * LIMIT, LIMIT).removesuffix(b"0\r\n\r\n") + b"nonsense\r\n"
        client = self.connect(self.built).say(data)
        self.built.http_clock.advance(0)
        self.assertEqual(1, len(client.statuses))
        self.assertIn(client.statuses[0], (400, 413))
        self.built.http_clock.advance(REFUSAL_SECONDS)
        self.assertTrue(client.closing)
        self.assertEqual([], self.arrived())

    def test_no_invitation(self) -> None:
        """Who asks whether such a body may come is told no, and not yes before it."""
        client = self.connect(self.built).say(self.post(b"Content-Length: 9999", b"Expect: 100-continue"))
        self.check_refused(client, 413, "expected")

    def test_lingering(self) -> None:
        """The client may go on sending for a moment, and then reads why it should not have."""
        client = self.connect(self.built).say(self.post(b"Content-Length: 9999"))
        for _ in range(9):
            client.say(b"x" * 1111)
        self.assertEqual(([413], False), (client.statuses, client.closing))
        client.say(head(target=b"GET /smuggled HTTP/1.1"))
        self.built.http_clock.advance(REFUSAL_SECONDS)
        self.assertEqual(([413], True), (client.statuses, client.closing))
        self.assertEqual([], self.arrived())

    def test_all_together(self) -> None:
        """Sixteen bodies of the largest size may be here; who comes then is told to come back, and later may."""
        self.built.llama_server.pause_at = {"/"}
        data = self.post(b"Content-Length: %d" % LIMIT) + b"x" * LIMIT
        clients = [self.connect(self.built).say(data) for _ in range(16)]
        late = self.connect(self.built).say(self.post(b"Content-Length: 9", path="/v1/messages")).say(b"x")
        self.built.http_clock.advance(0)
        self.check_refused(late, 503, "late")
        self.assertEqual("5", late.headers["retry-after"])
        self.assertEqual("unavailable_error", late.json()["error"]["type"])
        clients.pop().hang_up()
        self.built.settle()
        clients.append(self.connect(self.built).say(data))
        self.assertEqual([b""] * 16, [client.received for client in clients])
        self.built.llama_server.go_on()
        self.built.settle()
        self.assertEqual([[200]] * 16, [client.statuses for client in clients])
        self.assertEqual(0, self.built.limits._bytes)

    def test_operators_port(self) -> None:
        """On the operator's port a body has no business: it may be small at most."""
        data = head(
            b"Content-Length: %d" % (LARGEST_ACTION + 1), target=b"POST /reload HTTP/1.1", host=b"Host: localhost\r\n"
        )
        self.check_refused(self.connect(self.built, operator=True).say(data), 413, "reload")


class Large(ChannelTest):
    """Bodies that are too large for memory, and not too large."""

    BODY = b'{"prompt": "' + bytes(range(32, 127)).replace(b'"', b"").replace(b"\\", b"") * 11_000 + b'"}'

    def pump(self) -> None:
        """Let what is sent piece by piece be sent."""
        for _ in range(2 + len(self.BODY) // 2**16):
            self.built.advance(0)

    def ways(self) -> list[bytes]:
        """Return the body with a length, in small chunks, in one chunk, and one that is just not large."""
        return [
            head(b"Content-Length: %d" % len(self.BODY)) + self.BODY,
            head(CHUNKED) + chunked(self.BODY, 7001),
            head(CHUNKED) + chunked(self.BODY, len(self.BODY)),
        ]

    def test_unchanged(self) -> None:
        """It arrives as it was sent, with a length and in chunks, in one piece and in many."""
        for data in self.ways():
            for size in (len(data), 65_536, 9973):
                client = self.connect(self.built)
                for at in range(0, len(data), size):
                    client.say(data[at : at + size])
                self.pump()
                self.assertEqual([200], client.statuses, size)
                self.assertEqual((b"POST", self.BODY), self.arrived()[-1])
                self.assertEqual(0, self.built.limits._bytes)
                client.hang_up()
        self.nothing_left()

    def test_around_the_border(self) -> None:
        """It makes no difference on which side of the border between memory and file a body is."""
        for size in (SMALL - 1, SMALL, SMALL + 1):
            client = self.connect(self.built).say(head(b"Content-Length: %d" % size) + b"x" * size)
            self.pump()
            self.assertEqual([200], client.statuses)
            self.assertEqual((b"POST", b"x" * size), self.arrived()[-1])

    def test_same_connection(self) -> None:
        """After it the connection is good for more: small, large, and without a body."""
        client = self.connect(self.built)
        for data in self.ways():
            for each in (data, head(b"Content-Length: 2") + b"{}", head(target=b"GET / HTTP/1.1")):
                client.say(each)
                self.pump()
        self.assertEqual([200] * 9, client.statuses)
        one_way = [(b"POST", self.BODY), (b"POST", b"{}"), (b"GET", b"")]
        self.assertEqual(one_way * 3, self.arrived())

    def test_several(self) -> None:
        """Several at once, in turns, do not mix."""
        clients = [self.connect(self.built) for _ in range(3)]
        for client in clients:
            client.say(head(b"Content-Length: %d" % len(self.BODY)))
        letters = (b"a", b"b", b"c")
        for at in range(0, len(self.BODY), 50_000):
            for client, letter in zip(clients, letters, strict=True):
                client.say(letter * len(self.BODY[at : at + 50_000]))
        self.pump()
        self.assertEqual([[200]] * 3, [client.statuses for client in clients])
        self.assertEqual(
            sorted(letter * len(self.BODY) for letter in letters), sorted(body for _, body in self.arrived())
        )
        self.assertEqual(0, self.built.limits._bytes)

    def test_hanging_up(self) -> None:
        """Who hangs up, whenever, leaves neither file nor count behind."""
        self.built.llama_server.pause_at = {"/"}
        whole = self.ways()[0]
        for sent, turns in ((len(whole) // 2, 0), (len(whole), 0), (len(whole), 2), (len(whole), 40)):
            client = self.connect(self.built).say(whole[:sent])
            content = client._protocol.requests[0].content
            self.assertTrue(content._rolled)
            self.assertGreater(self.built.limits._bytes, SMALL)
            for _ in range(turns):
                self.built.advance(0)
            client.hang_up()
            self.built.settle()
            self.assertEqual((True, 0), (content.closed, self.built.limits._bytes), (sent, turns))
            self.built.advance(0)
            self.assertEqual([], self.built.clock.getDelayedCalls())
            self.nothing_left()

    def test_closed_after_answer(self) -> None:
        """An answered request leaves no file behind either, though its connection stays."""
        client = self.connect(self.built).say(self.ways()[0])
        content = client._protocol.requests[0].content
        self.pump()
        self.assertEqual(([200], True, False), (client.statuses, content.closed, client.closing))

    def test_away(self) -> None:
        """Where llama-server is away, the client is told so, and nothing is left behind."""
        self.built.llama_server.down = True
        client = self.connect(self.built).say(self.ways()[1])
        self.pump()
        self.assertEqual([502], client.statuses)
        client.hang_up()
        self.nothing_left()

    def test_filled(self) -> None:
        """A template in a large request is filled."""
        self.built = self.ready_world()
        self.built.llama_server.answers = {CHAT: {"choices": []}}
        text = "@code " + "x" * 1_000_000
        body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
        client = self.connect(self.built)
        client.say(head(b"Content-Length: %d" % len(body), target=f"POST {CHAT} HTTP/1.1".encode()) + body)
        self.pump()
        self.assertEqual([200], client.statuses)
        (sent,) = (asked for path, asked in self.built.llama_server.requests if path == CHAT)
        self.assertEqual("Know this: abc. " + "x" * 1_000_000, sent["messages"][0]["content"])
        self.assertEqual(0, sent["id_slot"])

    def test_comments(self) -> None:
        """Who waits for a stream hears something meanwhile, whether a large body is still being sent or long gone."""
        for turns in (1, 40):
            self.built = self.ready_world(state_dir=self.folder / f"comments{turns}")
            self.built.llama_server.pause_at = {CHAT}
            request = {"stream": True, "messages": [{"role": "user", "content": "x" * 1_000_000}]}
            body = json.dumps(request).encode()
            client = self.connect(self.built)
            client.say(head(b"Content-Length: %d" % len(body), target=f"POST {CHAT} HTTP/1.1".encode()) + body)
            for _ in range(turns):
                self.built.advance(0)
            self.built.advance(10)
            self.assertIn(b": being prepared", client.received, turns)
            self.pump()
            # The other one asks how far the prompt is.
            self.assertEqual([body], [each[1] for each in self.arrived() if each[1]][-1:], turns)
            self.assertEqual([], self.flushLoggedErrors())


def chunked(body: bytes, size: int) -> bytes:
    """Return a body in chunks of this size."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
