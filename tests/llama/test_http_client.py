"""Where `Client` differs from Twisted's: a limit for the head, valid statuses, and headers for one connection."""

from __future__ import annotations

from twisted.internet.error import ConnectionAborted

from bioproxy.llama.http_client import LONGEST_HEAD
from tests.support.network import Call, Line, Wire
from tests.support.world import World, WorldTest

OK = b"HTTP/1.1 200 OK\r\n"
CHAT = "/v1/chat/completions"


class ClientTest(WorldTest):
    """A world in which the test plays llama-server, byte by byte."""

    def setUp(self) -> None:
        """Build the world and its network."""
        super().setUp()
        self.wire = Wire()
        self.built: World = self.world(agents=self.wire.agents())

    def ask(self, method: str = "GET", path: str = "/x", body: bytes = b"", **headers: str) -> tuple[Call, Line]:
        """Send a request; return the client's connection and llama-server's."""
        call = self.built.send(method, path, body, **headers)
        return call, self.wire.accept()

    def check_cut(self, call: Call, line: Line) -> None:
        """Check that llama-server's connection was closed, and that the client got a 502."""
        self.assertTrue(line.transport.disconnected)
        line.lose(ConnectionAborted())
        self.assertEqual((502, "upstream_error"), (call.status, call.json()["error"]["type"]))
        self.assertEqual([], self.flushLoggedErrors())


class Heads(ClientTest):
    """Heads that never end."""

    def test_many_headers(self) -> None:
        """A head of many headers is cut at its limit, and the client gets a 502."""
        for method, path in (("GET", "/x"), ("POST", CHAT)):
            call, line = self.ask(method, path, b"{}" if method == "POST" else b"")
            line.send(OK)
            for _ in range((LONGEST_HEAD - len(OK)) // 1024):
                self.assertFalse(line.transport.disconnected)
                line.send(b"X-Header: %s\r\n" % (b"x" * 1012))
            self.assertEqual(b"", call.received)
            line.send(b"x" * 1024)
            self.check_cut(call, line)

    def test_one_line(self) -> None:
        """The same holds for a header line, and for a status line, that does not end."""
        for begin in (b"", OK, OK + b"X: "):
            call, line = self.ask()
            line.send(begin)
            for _ in range(LONGEST_HEAD // 4096 + 1):
                if not (line.transport.disconnected or line.closed):
                    line.send(b"x" * 4096)
            self.assertTrue(line.transport.disconnected or line.closed, begin)
            line.lose(ConnectionAborted())
            self.assertEqual(502, call.status, begin)
        self.assertEqual([], self.flushLoggedErrors())

    def test_many_before_the_answer(self) -> None:
        """The same holds for an endless sequence of 1xx answers."""
        call, line = self.ask()
        for _ in range(LONGEST_HEAD // 25 + 1):
            if not line.transport.disconnected:
                line.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.check_cut(call, line)

    def test_long(self) -> None:
        """A long head within the limit is accepted, and so is a long body that comes in the same pieces."""
        call, line = self.ask()
        head = OK + b"".join(b"X-%d: %s\r\n" % (number, b"x" * 1000) for number in range(200))
        line.send(head + b"Content-Length: 1000000\r\n\r\n")
        for _ in range(10):
            line.send(b"y" * 100_000)
        self.assertEqual((200, b"y" * 1_000_000), (call.status, call.received[-1_000_000:]))
        self.assertEqual(200, call.received.count(b"\r\nX-"))

    def test_next_answer(self) -> None:
        """On a reused connection each head has its own limit."""
        for number in range(4):
            call = self.built.send("GET", "/x")
            if not number:
                line = self.wire.accept()
            line.send(OK + b"X: %s\r\n" % (b"x" * 10_000) * 10 + b"Content-Length: 1\r\n\r\nx")
            self.assertEqual((200, b"x"), (call.status, call.received[-1:]))
        self.assertEqual([], self.wire.asked)


class Statuses(ClientTest):
    """Impossible statuses."""

    def test_odd(self) -> None:
        """A status without exactly three digits is refused (RFC 9110, section 15); an unknown one is relayed."""
        for status in (b"0", b"99", b"1000", b"-404", b"99999", b"1_0"):
            call, line = self.ask()
            line.send(b"HTTP/1.1 %s Odd\r\nContent-Length: 2\r\n\r\nok" % status)
            self.check_cut(call, line)
        call, line = self.ask()
        line.send(b"HTTP/1.1 799 Odd\r\nContent-Length: 2\r\n\r\nok")
        self.assertEqual((799, b"ok"), (call.status, call.body))


class Crossing(ClientTest):
    """What is not relayed."""

    def test_named(self) -> None:
        """Headers that `Connection` names are not relayed, in whatever case they are written."""
        call, line = self.ask()
        line.send(OK + b"X-One: 1\r\nConnection: keep-alive, x-ONE ,\tX-Two\r\nX-Two: 2\r\nConnection: X-Four\r\n")
        line.send(b"X-Three: 3\r\nx-four: 4\r\nX-Two: 5\r\nContent-Length: 2\r\n\r\nok")
        names = sorted(name.lower() for name in call.headers if name.lower().startswith("x-"))
        self.assertEqual((["x-three"], b"ok"), (names, call.body))

    def test_close(self) -> None:
        """If llama-server closes its connection, the client's stays open."""
        call, line = self.ask()
        line.send(OK + b"Connection: close\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok")
        self.assertEqual((None, None, b"ok"), (call.headers["connection"], call.headers["keep-alive"], call.body))
        self.assertFalse(call.transport.disconnecting)

    def test_before_the_answer(self) -> None:
        """Interim answers (100, 103) are not relayed and do not count as the answer."""
        early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        for before in (b"HTTP/1.1 100 Continue\r\n\r\n", early, early + b"HTTP/1.1 100 Continue\r\n\r\n" + early):
            for size in (1, 1000):
                call, line = self.ask("POST", "/x", b"{}")
                # Closed afterwards, so that each of these requests has a connection of its own.
                data = before + OK + b"X-Own: 1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
                for at in range(0, len(data), size):
                    line.send(data[at : at + size])
                self.assertEqual((200, "1", b"ok"), (call.status, call.headers["x-own"], call.body), before)
                self.assertIsNone(call.headers["link"])
                self.assertEqual(1, call.received.count(b"HTTP/1.1"))

    def test_expectation(self) -> None:
        """`Expect: 100-continue` is answered by the proxy and not relayed."""
        call, line = self.ask("POST", "/x", b"{}", Expect="100-continue")
        self.assertNotIn(b"expect", line.received.lower())
        self.assertTrue(line.received.endswith(b"{}"))
        line.send(OK + b"Content-Length: 2\r\n\r\nok")
        self.assertTrue(call.received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"))


class Joining(ClientTest):
    """The chunks of one read are handed on as one piece."""

    def chunks(self, data: bytes) -> tuple[Call, Line]:
        """Have a request answered with a body in chunks, of which `data` comes in one read."""
        call, line = self.ask("POST", CHAT, b"{}")
        line.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        line.send(data)
        return call, line

    def test_one_read(self) -> None:
        """Chunks that come together leave together, at once, also if the last of them is not complete."""
        call, line = self.chunks(b"2\r\nab\r\n1\r\nc\r\n3\r\nde")
        self.assertTrue(call.received.endswith(b"\r\n\r\n5\r\nabcde\r\n"), call.received)
        line.send(b"f\r\n")
        self.assertTrue(call.received.endswith(b"abcde\r\n1\r\nf\r\n"), call.received)

    def test_each_read(self) -> None:
        """None waits for the next one, wherever the network has cut."""
        call, line = self.chunks(b"")
        body = b"".join(b"1\r\n%c\r\n" % letter for letter in b"abc")
        for number in range(1, len(body) + 1):
            line.send(body[number - 1 : number])
            relayed = sum(call.received.count(b"\r\n%c\r\n" % letter) for letter in b"abc")
            self.assertEqual((number + 2) // 6, relayed, number)

    def test_end(self) -> None:
        """The end may come with the chunks before it, and nothing is delivered for an end that comes alone."""
        for pieces in ((b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",), (b"2\r\nab\r\n1\r\nc\r\n", b"0\r\n\r\n")):
            call, line = self.chunks(pieces[0])
            for piece in pieces[1:]:
                line.send(piece)
            self.assertTrue(call.received.endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), call.received)
            self.assertTrue(call.between)

    def test_invalid(self) -> None:
        """What came in front of an invalid chunk is relayed, and then the answer breaks off uncleanly."""
        call, line = self.chunks(b"2\r\nab\r\n1\r\nc\r\nnonsense\r\n")
        line.lose(ConnectionAborted())
        self.assertTrue(call.received.endswith(b"\r\n\r\n3\r\nabc\r\n"), call.received)
        self.assertTrue(call.transport.disconnected)

    def test_hang_up(self) -> None:
        """If the client is gone, what is still read from llama-server is dropped."""
        call, line = self.chunks(b"2\r\nab\r\n1\r\nc\r\n")
        call.hang_up()
        self.assertTrue(line.transport.disconnected)
        line.send(b"1\r\nd\r\n")
        self.assertNotIn(b"d\r\n", call.received.partition(b"\r\n\r\n")[2])
