"""When the last bytes of an answer leave, and those of a request."""

from __future__ import annotations

from twisted.internet.interfaces import IWriteDescriptor
from zope.interface import directlyProvides

from tests.support.network import Call, Wire
from tests.support.world import WorldTest

CHAT = "/v1/chat/completions"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class SentNow(WorldTest):
    """An answer is sent as soon as it is complete."""

    def test_each_token(self) -> None:
        """Each piece of a stream leaves at once, the first one with the head; its end leaves with the last chunk."""
        wire = Wire()
        call = self.world(agents=wire.agents()).send("POST", CHAT, b"{}")
        sent: list[bytes] = []
        directlyProvides(call.transport, IWriteDescriptor)
        call.transport.doWrite = lambda: sent.append(call.received)  # type: ignore[attr-defined]
        line = wire.accept()
        line.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assertEqual([], sent)
        for number, piece in enumerate((b"one", b"two"), 1):
            line.send(b"3\r\n%b\r\n" % piece)
            self.assertEqual((number, True), (len(sent), sent[-1].endswith(b"3\r\n%b\r\n" % piece)))
        line.send(b"0\r\n\r\n")
        self.assertTrue(sent[-1].endswith(b"0\r\n\r\n"))

    def answered(self, **headers: str) -> tuple[Call, list[tuple[bytes, int]]]:
        """Send a chat over a connection with `doWrite`, as a socket has it, and have it answered.

        Returns the call, and for each time that `doWrite` was called, the last bytes that were written by then and how
        many requests were closed.
        """
        wire = Wire()
        built = self.world(agents=wire.agents())
        call = built.send("POST", CHAT, b"{}", **headers)
        sent: list[tuple[bytes, int]] = []
        directlyProvides(call.transport, IWriteDescriptor)
        call.transport.doWrite = lambda: sent.append((call.received[-2:], built.request_log.kept))  # type: ignore[attr-defined]
        wire.accept().send(ANSWER)
        self.assertEqual((200, b"ok", 1), (call.status, call.body, built.request_log.kept))
        return call, sent

    def test_before_the_rest(self) -> None:
        """The last byte leaves before the request is counted and logged."""
        call, sent = self.answered()
        self.assertEqual([(b"ok", 0)], sent)
        self.assertFalse(call.transport.disconnecting)

    def test_closing(self) -> None:
        """A connection that ends with the answer is left to the reactor, which closes it when all is sent."""
        call, sent = self.answered(Connection="close")
        self.assertEqual([], sent)
        self.assertTrue(call.transport.disconnecting)


class Requests(WorldTest):
    """A request is sent to llama-server at once, too."""

    def test_kept_connection(self) -> None:
        """All of its head leaves together."""
        wire = Wire()
        built = self.world(agents=wire.agents())
        built.send("GET", "/x")
        line = wire.accept()
        line.send(ANSWER)
        sent: list[bytes] = []
        directlyProvides(line.transport, IWriteDescriptor)
        line.transport.doWrite = lambda: sent.append(line.received)  # type: ignore[attr-defined]
        built.send("GET", "/y")
        self.assertEqual([line.received], sent)
        self.assertTrue(sent[0].endswith(b"\r\n\r\n") and sent[0].count(b"GET /y") == 1, sent)
