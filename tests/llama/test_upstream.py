"""Requests to llama-server, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionLost, ConnectionRefusedError, DNSLookupError, TimeoutError
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from bioproxy.http.request_body import BytesProducer
from bioproxy.llama.connections import CONNECT_TIMEOUT, Agents
from bioproxy.llama.upstream import SMALL, Upstream
from bioproxy.runtime.errors import BadTarget, LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.settings.api_keys import ApiKeys
from tests.support.bodies import body as body_of
from tests.support.network import Line, Wire

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    """Return an answer as it comes over the wire."""
    return (JSON % (len(body), body)).replace(b"200 OK", status)


class WireTest(SynchronousTestCase):
    """An `Upstream` on a simulated network, on which the test plays llama-server."""

    def setUp(self) -> None:
        """Build an `Upstream` for the usual address."""
        self.build("http://llama:8080")

    def build(self, url: str) -> None:
        """Build a network, and an `Upstream` for this address."""
        self.wire = Wire()
        self.upstream = Upstream(url, self.wire.agents(url), self.wire.reactor, ApiKeys(None, None))

    def ask(self, method: str = "GET", question: Any = None, fresh: bool = False) -> Deferred[Any]:
        """Make one of the proxy's own calls."""
        return Deferred.fromCoroutine(self.upstream.ask(method, "/x", question, fresh=fresh))

    def relay(
        self, method: bytes = b"GET", target: bytes = b"/x", body: bytes = b"", *headers: tuple[bytes, bytes]
    ) -> Deferred[IResponse]:
        """Relay a client's request."""
        sent = Headers()
        for name, value in headers:
            sent.addRawHeader(name, value)
        return Deferred.fromCoroutine(self.upstream.relay(method, target, sent, body_of(body)))


class Failures(WireTest):
    """Failures, and how they are reported."""

    def test_each_failure(self) -> None:
        """Each failure, of own calls and of relayed requests, is an `UpstreamError` that says what happened."""

        def refused() -> None:
            self.wire.refuse(ConnectionRefusedError())

        def unknown() -> None:
            self.wire.refuse(DNSLookupError("no such host"))

        def slow() -> None:
            self.assertEqual(CONNECT_TIMEOUT, self.wire.asked[0][2])
            self.wire.refuse(TimeoutError())

        def closed() -> None:
            self.wire.accept().lose()

        def reset() -> None:
            self.wire.accept().lose(ConnectionLost())

        def half_a_head() -> None:
            line = self.wire.accept()
            line.send(b"HTTP/1.1 200 OK\r\nContent-")
            line.lose()

        def nonsense() -> None:
            self.wire.accept().send(b"SSH-2.0-OpenSSH_9.2\r\n")

        for call in (self.ask, self.relay):
            for happens, words in (
                (refused, "refuses connections"),
                (unknown, "cannot be reached"),
                (slow, "did not accept a connection within 5 s"),
                (closed, "broke off before its answer was complete"),
                (reset, "broke off before its answer was complete"),
                (half_a_head, "broke off before its answer was complete"),
                (nonsense, "broke off before its answer was complete"),
            ):
                self.build("http://llama:8080")
                result = call()
                happens()
                self.assertIn(words, str(self.failureResultOf(result, UpstreamError).value))

    def test_own_calls(self) -> None:
        """The proxy's own calls fail by status and content of the answer too."""
        not_json, nothing = "is not JSON", "no reason given"
        for content, error, words in (
            (answer(b"<html>"), UpstreamError, not_json),
            (answer(b"\xff"), UpstreamError, not_json),
            (answer(b'{"a": ')[:-3], UpstreamError, "broke off"),
            (answer(b'{"error": {"message": "Loading model"}}', b"503 No"), LlamaError, "503: Loading model"),
            (answer(b'{"error": "a word"}', b"500 No"), LlamaError, f"500: {nothing}"),
            (answer(b"[]", b"404 No"), LlamaError, f"404: {nothing}"),
            (answer(b"<html>", b"404 No"), LlamaError, f"404: {nothing}"),
            (answer(b"[" * 100_000), UpstreamError, "nested too deeply"),
            (answer(b"[" * 100_000, b"404 No"), LlamaError, f"404: {nothing}"),
            (answer(b"", b"302 Found\r\nLocation: http://elsewhere/"), LlamaError, f"302: {nothing}"),
        ):
            self.build("http://llama:8080")
            result = self.ask()
            line = self.wire.accept()
            line.send(content)
            line.lose()
            self.assertIn(words, str(self.failureResultOf(result, error).value))
            self.assertEqual([], self.wire.asked)

    def test_error_messages(self) -> None:
        """llama-server's message is quoted if it is text, as one line of limited length."""
        for message, words in (
            ("Loading model", "503: Loading model"),
            ("two\nlines \x1b[2J", "503: two\\nlines \\x1b[2J"),
            ("x" * 100_000, "503: " + "x" * 1000 + "…"),
            ("\ud800", "503: \\ud800"),
            *((value, "503: no reason given") for value in (None, "", 5, ["x"], {"a": "b"}, float("inf"))),
        ):
            self.build("http://llama:8080")
            result = self.ask()
            self.wire.accept().send(answer(json.dumps({"error": {"message": message}}).encode(), b"503 No"))
            self.assertEqual(words, str(self.failureResultOf(result, LlamaError).value))

    def test_longest(self) -> None:
        """An answer of exactly the allowed size is accepted; with one byte more the connection is closed at once."""
        for method, question, growth, longest in (
            ("GET", None, 0, SMALL),
            ("POST", "x" * 1000, 0, SMALL),
            ("POST", "x" * 998, 12, SMALL + 12_000),
        ):
            for size in (longest, longest + 1):
                self.build("http://llama:8080")
                result = Deferred.fromCoroutine(self.upstream.ask(method, "/x", question, growth=growth))
                line = self.wire.accept()
                line.send(b"HTTP/1.1 200 OK\r\n\r\n[]")
                for rest in range(size - 2, 0, -100_000):
                    self.assertFalse(line.closed)
                    line.send(b" " * min(rest, 100_000))
                self.assertEqual(size > longest, line.closed)
                if size > longest:
                    words = f"{method} /x is longer than {longest} bytes"
                    self.assertIn(words, str(self.failureResultOf(result, UpstreamError).value))
                else:
                    line.lose()
                    self.assertEqual([], self.successResultOf(result))

    def test_announced(self) -> None:
        """An answer whose `Content-Length` is too large fails without waiting for its body."""
        result = self.ask()
        line = self.wire.accept()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 400000000\r\n\r\n")
        self.assertIn("is longer than", str(self.failureResultOf(result, UpstreamError).value))
        self.assertTrue(line.closed)

    def test_slow(self) -> None:
        """After its head an answer has a few seconds, more if it may be longer; the head itself may take hours."""
        for growth, seconds in ((0, 4), (2**20 // 128, 8)):
            self.build("http://llama:8080")
            result = Deferred.fromCoroutine(self.upstream.ask("POST", "/x", "x" * 126, fresh=True, growth=growth))
            line = self.wire.accept()
            self.wire.reactor.advance(3600)  # a long prompt
            line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")
            for _ in range(seconds - 1):
                self.wire.reactor.advance(1)
                line.send(b" ")
            self.assertNoResult(result)
            self.wire.reactor.advance(1)
            error = self.failureResultOf(result, UpstreamTimeout).value
            self.assertIn(f"POST /x within {seconds} s", str(error))
            self.assertTrue(line.closed)
            self.assertEqual([], self.wire.reactor.getDelayedCalls())

    def test_cancelled(self) -> None:
        """Cancelling in any phase fails with `CancelledError` and ends the connection."""
        head = answer(b'{"a": 1}')[:-4]

        def connecting() -> Callable[[], bool]:
            return lambda: not self.wire.asked

        def asking() -> Callable[[], bool]:
            line = self.wire.accept()
            return lambda: line.closed

        def reading() -> Callable[[], bool]:
            line = self.wire.accept()
            line.send(head)
            return lambda: line.closed

        for call, phase in ((c, p) for c in (self.ask, self.relay) for p in (connecting, asking, reading)):
            if (call, phase) == (self.relay, reading):
                continue  # the body is not `relay`'s to read
            self.build("http://llama:8080")
            result = call()
            closed = phase()
            self.assertNoResult(result)
            result.cancel()
            self.failureResultOf(result, CancelledError)
            self.assertTrue(closed(), f"{call.__name__}, {phase.__name__}: still open")

    def test_given_up(self) -> None:
        """`give_up` fails all pending calls, in each phase, with `UpstreamTimeout`; later calls are not affected."""
        asked = [self.ask(fresh=True), self.relay(), self.ask(fresh=True)]
        self.wire.accept()
        line = self.wire.accept()
        self.wire.reactor.advance(4)
        self.upstream.pending.give_up()
        for each in asked:
            self.assertIn("for 4 s", str(self.failureResultOf(each, UpstreamTimeout).value))
        self.assertTrue(line.closed)
        later = self.ask(fresh=True)
        self.wire.accept()
        self.assertNoResult(later)
        later.cancel()
        self.failureResultOf(later, CancelledError)

    def test_heard(self) -> None:
        """Each answer is a sign of life, whatever its status; an accepted or refused connection is none."""
        for happens, heard in (
            (lambda: self.wire.accept(), 0.0),
            (lambda: self.wire.refuse(ConnectionRefusedError()), 0.0),
            (lambda: self.wire.accept().send(answer(b"{}", b"500 No")), 1.0),
        ):
            self.build("http://llama:8080")
            result = self.ask()
            self.wire.reactor.advance(1)
            happens()
            self.assertEqual(heard, self.upstream.pending.last_heard)
            result.addErrback(lambda _: None)


class AsSent(WireTest):
    """A relayed request arrives as it was sent."""

    def test_whole_request(self) -> None:
        """Method, target, headers and body arrive, and nothing but what HTTP needs is added."""
        for method, body, headers, expected in (
            (
                b"GET",
                b"",
                [(b"Host", b"a"), (b"X-Odd", b"1"), (b"X-Odd", b"2")],
                [b"Host: a", b"X-Odd: 1", b"X-Odd: 2"],
            ),
            (b"GET", b"", [], [b"Host: llama:8080"]),
            (b"POST", b"{}", [(b"Host", b"a")], [b"Content-Length: 2", b"Host: a"]),
            (b"POST", b"", [(b"Host", b"a")], [b"Content-Length: 0", b"Host: a"]),
            (b"GET", b"x", [(b"Host", b"a")], [b"Content-Length: 1", b"Host: a"]),
            (b"DELETE", b"", [(b"Host", b"a")], [b"Host: a"]),
            (b"BREW", b"\0\xff", [(b"Host", b"a")], [b"Content-Length: 2", b"Host: a"]),
        ):
            self.build("http://llama:8080")
            self.relay(method, b"/x?y", body, *headers).addErrback(lambda _: None)
            head, _, rest = self.wire.accept().received.partition(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            self.assertEqual(method + b" /x?y HTTP/1.1", first)
            # Whether the connection is kept is between the proxy and llama-server.
            self.assertEqual(expected, sorted(line for line in lines if not line.startswith(b"Connection: ")))
            self.assertEqual(body, rest)

    def test_targets(self) -> None:
        """Targets arrive unchanged."""
        self.build("http://llama:8080/base")
        for target, expected in (
            (b"/", b"/"),
            (b"//two//slashes/", b"//two//slashes/"),
            (b"/%2F%2e%ff?a=%00&a&&", b"/%2F%2e%ff?a=%00&a&&"),
            (b"/?", b"/?"),
            (b"/a;b?c#d", b"/a;b?c#d"),
            (b"/x:y@z", b"/x:y@z"),
            (b'/{|}\\^`"<>', b'/{|}\\^`"<>'),
        ):
            self.relay(target=target).addErrback(lambda _: None)
            line = self.wire.accept()
            self.assertEqual(b"GET /base" + expected + b" HTTP/1.1", line.received.split(b"\r\n")[0])
            line.lose()

    def test_always_llama(self) -> None:
        """No target can name another host: it is taken as a path, or refused."""
        for target in (b"//evil.example/", b"//evil.example:80/x", b"/@evil.example", b"//[x", b"//[::1"):
            self.build("http://llama:8080")
            result = self.relay(target=target)
            if self.wire.asked:
                line = self.wire.accept()
                self.assertIn(b"\r\nHost: llama:8080\r\n", line.received)
                line.lose()
                self.failureResultOf(result, UpstreamError)
            else:
                self.failureResultOf(result, BadTarget)

    def test_no_way_out(self) -> None:
        """If llama-server is below a path, no target leads out of it; otherwise such a target is relayed unchanged."""
        for target in (b"/../admin", b"/%2e%2e/admin", b"/x/..", b"/x%2f..%2fy", b"/./v1", b"/.?x"):
            self.build("http://llama/base")
            self.failureResultOf(self.relay(target=target), BadTarget)
            self.build("http://llama")
            self.arrives(target, target)
        self.build("http://llama/base")
        self.arrives(b"/...?x=/../y", b"/base/...?x=/../y")

    def arrives(self, target: bytes, expected: bytes) -> None:
        """Check what arrives of a target."""
        result = self.relay(target=target)
        line = self.wire.accept()
        self.assertEqual(b"GET " + expected + b" HTTP/1.1", line.received.split(b"\r\n")[0])
        line.lose()
        self.failureResultOf(result, UpstreamError)

    def test_bad_method(self) -> None:
        """A method or a target that cannot be sent is the client's mistake."""
        self.failureResultOf(self.relay(method=b"G(T"), BadTarget)
        self.failureResultOf(self.relay(target=b"/\xff"), BadTarget)

    def test_not_tidied(self) -> None:
        """An answer's head is relayed as it came: no redirect is followed, nothing is unpacked."""
        result = self.relay()
        self.wire.accept().send(
            b"HTTP/1.1 302 Look There\r\nLocation: /y\r\nContent-Encoding: gzip\r\nSet-Cookie: a=1\r\n"
            b"Content-Length: 0\r\n\r\n"
        )
        response = self.successResultOf(result)
        self.assertEqual((302, b"Look There"), (response.code, response.phrase))
        self.assertEqual([b"gzip"], response.headers.getRawHeaders(b"content-encoding"))
        self.assertEqual([], self.wire.asked)


class Addresses(WireTest):
    """Which Agent a call takes, and where that connects."""

    def test_agents(self) -> None:
        """Each kind of call takes the Agent that is meant for it, so that no POST is ever repeated."""
        used: list[str] = []

        @implementer(IAgent)
        class Named:
            def __init__(self, name: str) -> None:
                self.name = name

            def request(
                self,
                method: bytes,
                uri: bytes,
                headers: Headers | None = None,
                bodyProducer: IBodyProducer | None = None,
            ) -> Deferred[IResponse]:
                used.append(self.name)
                return fail(ConnectionRefusedError())

        agents = Agents(
            Named("relay once"), Named("relay fresh"), Named("relay shared"), Named("own fresh"), Named("own shared")
        )
        self.upstream = Upstream("http://llama", agents, self.wire.reactor, ApiKeys(None, None))
        for call, expected in (
            (lambda: self.ask(), "own shared"),
            (lambda: self.ask("POST", {}, fresh=True), "own fresh"),
            *((lambda m=m: self.relay(m), "relay shared") for m in (b"GET", b"HEAD", b"OPTIONS")),
            (lambda: self.relay(b"POST"), "relay once"),
            *((lambda m=m: self.relay(m), "relay fresh") for m in (b"PUT", b"DELETE", b"BREW")),
            *((lambda m=m: self.relay(m, body=b"{}"), "relay fresh") for m in (b"GET", b"HEAD", b"OPTIONS")),
        ):
            self.failureResultOf(call(), UpstreamError)
            self.assertEqual(expected, used.pop())

    def test_addresses(self) -> None:
        """If the URL names no port, the scheme decides; https uses TLS."""
        for url, port in (("http://llama", 80), ("http://llama:99", 99), ("https://llama", 443), ("http://[::1]", 80)):
            for own in (True, False):
                self.build(url)
                (self.ask() if own else self.relay()).addErrback(lambda _: None)
                self.assertEqual(port, self.wire.asked[0][1])
                line: Line = self.wire.accept()
                self.assertEqual(b"\x16\x03" if url.startswith("https") else b"GE", line.received[:2])


class Producing(SynchronousTestCase):
    """A request's body."""

    def test_nothing_to_steer(self) -> None:
        """A body in memory is written at once; pausing and stopping it change nothing."""
        written: list[bytes] = []

        class Consumer:
            write = staticmethod(written.append)

        body = BytesProducer(b"abc")
        consumer: Any = Consumer()
        self.successResultOf(body.startProducing(consumer))
        body.pauseProducing()
        body.resumeProducing()
        body.stopProducing()
        self.assertEqual(([b"abc"], 3), (written, body.length))
