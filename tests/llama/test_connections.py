"""Which request to llama-server may follow another one on its connection, and that none is sent twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from bioproxy.llama.connections import IDLE, STANDSTILL, IdleConnections
from bioproxy.llama.upstream import Upstream
from bioproxy.runtime.errors import UpstreamError
from bioproxy.settings.api_keys import ApiKeys
from tests.llama.test_upstream import WireTest
from tests.support.network import Line

OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: 2\r\n\r\n{}"
"""An answer that a request may follow."""


class ConnectionTest(WireTest):
    """An `Upstream` whose answers are read at once."""

    def chat(self) -> Deferred[Any]:
        """Relay a POST, and read its answer."""
        return self.relay(b"POST", body=b"{}").addCallback(read)

    def answered(self, call: Callable[[], Deferred[Any]], answer: bytes = WHOLE) -> Line:
        """Make a call over a new connection, have it answered, and return that connection."""
        result = call()
        line = self.wire.accept()
        line.send(answer)
        self.successResultOf(result)
        return line


class Followed(ConnectionTest):
    """A connection that is used again."""

    def test_who(self) -> None:
        """What is relayed follows on a connection, and so do the proxy's small questions; its long ones never do."""
        for call, connections in (
            (lambda: self.ask(), 0),
            (lambda: self.ask("POST", {}, fresh=True), 1),
            (lambda: self.relay(b"GET").addCallback(read), 0),
            (lambda: self.chat(), 0),
            *((lambda m=m: self.relay(m).addCallback(read), 1) for m in (b"DELETE", b"PUT")),
            *((lambda m=m: self.relay(m, body=b"{}").addCallback(read), 1) for m in (b"GET", b"OPTIONS")),
        ):
            self.build("http://llama:8080")
            line = self.answered(call)
            result = call()
            self.assertEqual(connections, len(self.wire.asked))
            # The new one is accepted; else the answer comes over the old one.
            line = self.wire.accept() if connections else line
            line.send(WHOLE)
            self.successResultOf(result)

    def test_unread_body(self) -> None:
        """Nothing follows a POST that was refused: its body may be unread, and would be taken for the next request."""
        for status in (b"400 Bad Request", b"401 Unauthorized", b"503 Service Unavailable"):
            line = self.answered(self.chat, WHOLE.replace(b"200 OK", status))
            self.assertTrue(line.closed, status)
        # A GET has no body, so it is followed in any case.
        line = self.answered(lambda: self.relay(b"GET").addCallback(read), WHOLE.replace(b"200 OK", b"503 Loading"))
        self.assertFalse(line.closed)

    def test_other_methods(self) -> None:
        """Other requests with a body, and DELETE, say that their connection ends with them."""
        for method, body in ((b"OPTIONS", b"{}"), (b"GET", b"{}"), (b"PUT", b"{}"), (b"DELETE", b"")):
            self.relay(method, body=body)
            self.assertIn(b"\r\nConnection: close\r\n", self.wire.accept().received, method)
        self.chat()
        self.assertNotIn(b"\r\nConnection:", self.wire.accept().received)

    def test_kinds_apart(self) -> None:
        """A request that may be repeated and one that may not never share a connection."""
        self.answered(self.chat)
        self.relay(b"GET")
        self.assertEqual(1, len(self.wire.asked))

    def test_answers_that_end_it(self) -> None:
        """Nothing follows a streamed answer, or one whose head says in whatever words that the connection is over."""
        stream = OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        old = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        closing = [
            OK + b"Connection: %b\r\nContent-Length: 2\r\n\r\n{}" % words
            for words in (b"close", b"Close", b"keep-alive, close", b"x\r\nConnection: close")
        ]
        for call in (self.chat, lambda: self.relay(b"GET").addCallback(read)):
            for answer in (stream, old, *closing):
                self.assertTrue(self.answered(call, answer).closed, answer)
        # Without a length, an answer ends with its connection.
        result = self.chat()
        line = self.wire.accept()
        line.send(OK + b"\r\n{}")
        line.lose()
        self.successResultOf(result)
        self.chat()
        self.assertEqual(1, len(self.wire.asked))

    def test_not_idle_for_long(self) -> None:
        """It is closed before llama-server would close it."""
        line = self.answered(self.chat)
        self.wire.reactor.advance(IDLE - 0.1)
        self.assertFalse(line.closed)
        self.wire.reactor.advance(0.2)
        self.assertTrue(line.closed)
        self.answered(self.chat)

    def test_standstill(self) -> None:
        """After a standstill that the timers do not know of, none that was kept is used, neither for own questions."""
        for call in (self.chat, self.ask):
            line = self.answered(call)
            self.wire.stood_still += STANDSTILL - 0.1
            call()
            self.assertEqual([], self.wire.asked)
            line.send(WHOLE)
            self.wire.stood_still += 0.2
            self.answered(call)
            self.assertTrue(line.closed)

    def test_one_is_kept(self) -> None:
        """Of two requests at the same time each has a connection, and one of these is kept."""
        results = [self.chat(), self.chat()]
        lines = [self.wire.accept(), self.wire.accept()]
        for line, result in zip(lines, results, strict=True):
            line.send(WHOLE)
            self.successResultOf(result)
        self.assertEqual([True, False], [line.closed for line in lines])

    def test_cancelled(self) -> None:
        """A request that is cancelled takes its connection with it; the next one has a new one."""
        for sent in (b"", OK):
            line = self.answered(self.chat)
            result = self.chat().addErrback(lambda _: None)
            line.send(sent)
            result.cancel()
            self.assertTrue(line.transport.disconnected or line.closed, sent)
            line.lose()
        self.answered(self.chat)


class Closed(ConnectionTest):
    """The end of bioproxy."""

    def test_stop(self) -> None:
        """At the stop all connections that wait for another request are closed, and no timer stays for them."""
        agents = self.wire.agents()
        self.upstream = Upstream("http://llama", agents, self.wire.reactor, ApiKeys(None, None))
        lines = [self.answered(self.chat), self.answered(lambda: self.ask())]
        service = IdleConnections(agents)
        service.startService()
        service.stopService()
        self.assertEqual([True, True], [line.closed for line in lines])
        self.assertEqual([], self.wire.reactor.getDelayedCalls())


class Once(ConnectionTest):
    """A request that is lost."""

    def test_not_repeated(self) -> None:
        """If llama-server closes a kept connection when a request is on its way, that request is not sent again."""
        line = self.answered(self.chat)
        result = self.chat()
        self.assertEqual(2, line.received.count(b"POST /x"))
        line.lose()
        self.failureResultOf(result, UpstreamError)
        self.assertEqual([], self.wire.asked)
        # A DELETE is idempotent, so Twisted would repeat it on a connection that was kept.
        result = self.relay(b"DELETE")
        self.wire.accept().lose()
        self.failureResultOf(result, UpstreamError)
        self.assertEqual([], self.wire.asked)

    def test_closed_before(self) -> None:
        """One that llama-server has closed before is not used: the request takes a new one."""
        line = self.answered(self.chat)
        line.lose()
        self.answered(self.chat)
        self.assertEqual(1, line.received.count(b"POST"))

    def test_harmless(self) -> None:
        """A GET that is lost in this way is sent again, over a new connection."""
        line = self.answered(lambda: self.relay(b"GET").addCallback(read))
        result = self.relay(b"GET").addCallback(read)
        line.lose()
        self.wire.accept().send(WHOLE)
        self.successResultOf(result)


class Sink:
    """A protocol that takes a body and ignores it."""

    def makeConnection(self, transport: object) -> None:
        """Called at the beginning."""

    def dataReceived(self, data: bytes) -> None:
        """Called for each piece."""

    def connectionLost(self, reason: object) -> None:
        """Called at the end."""


def read(response: Any) -> Any:
    """Read the body of a relayed answer, as its caller has to."""
    response.deliverBody(Sink())
    return response
