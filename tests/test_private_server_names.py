"""What bioproxy uses of Twisted's HTTP server that is not promised; see `tests.support.private_names`."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel, Request

from tests.support.private_names import PrivateNames


class Waiting(Request):
    """A request that is not answered by itself."""

    def process(self) -> None:
        """Do nothing yet.  Called by Twisted."""


class Watched(HTTPChannel):
    """A server's connection that notes what it is told by way of private names."""

    requestFactory = Waiting

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[tuple[Any, ...]] = []
        self.ends: list[tuple[bytes, bool, list[bytes]]] = []
        self.refused = 0
        self.makeConnection(StringTransport())

    def allHeadersReceived(self) -> None:
        """Note what is known of a request whose head is complete."""
        self.heads.append(tuple(getattr(self, name, "gone") for name in ("_command", "_path", "_version")))
        super().allHeadersReceived()

    def _finishRequestBody(self, data: bytes) -> None:
        decoder = getattr(self, "_transferDecoder", None)
        trailers = [bytes(line) for line in getattr(decoder, "_trailerHeaders", [])]
        self.ends.append((data, decoder is not None, trailers))
        super()._finishRequestBody(data)

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refused += 1
        super()._respondToBadRequestAndDisconnect()


HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

BAD = (
    b"nonsense\r\n",
    HEAD + b"no colon\r\n\r\n",
    HEAD + b"Content-Length: x\r\n\r\n",
    HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
    HEAD + b"Transfer-Encoding: odd\r\n\r\n",
    HEAD + b"X: y\r\n" * HTTPChannel.maxHeaders + b"\r\n",
    HEAD + (b"X: " + b"y" * 1000 + b"\r\n") * 17 + b"\r\n",
    CHUNKED + b"zz\r\n",
)


class ServerNames(PrivateNames):
    """Twisted's HTTP server."""

    def test_head(self) -> None:
        """When the head is complete, the channel has its three words, under these names."""
        channel = Watched()
        channel.dataReceived(HEAD)
        self.assertEqual([], channel.heads)
        channel.dataReceived(b"\r\n")
        for name, expected, found in zip(
            ("_command", "_path", "_version"), (b"POST", b"/x", b"HTTP/1.1"), channel.heads[0], strict=True
        ):
            self.check(name, expected, found)

    def test_handling(self) -> None:
        """It says whether a request is being answered: from its last byte to the end of its answer."""
        channel = Watched()
        for piece, expected in ((b"", False), (HEAD, False), (b"\r\n", True)):
            channel.dataReceived(piece)
            self.check("_handlingRequest", expected, getattr(channel, "_handlingRequest", "gone"))
        channel.requests[0].finish()
        self.check("_handlingRequest", False, channel._handlingRequest)

    def test_body(self) -> None:
        """A body's end is told once, with what stands behind it; the reader of chunks then has the trailers."""
        channel = Watched()
        channel.dataReceived(CHUNKED + b"2\r\n{}\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\nGET")
        self.check("_finishRequestBody", [b"GET"], [data for data, _, _ in channel.ends])
        self.check("_transferDecoder", [True], [reads for _, reads, _ in channel.ends])
        self.check("_trailerHeaders", [[b"X-A: 1", b"X-B: 2"]], [trailers for _, _, trailers in channel.ends])
        self.check("_transferDecoder", None, getattr(channel, "_transferDecoder", "gone"))
        other = Watched()
        other.dataReceived(HEAD + b"Content-Length: 2\r\n\r\n{}")
        self.check("_finishRequestBody", [(b"", True, [])], other.ends)

    def test_bad(self) -> None:
        """Whatever Twisted refuses by itself, it refuses with one method."""
        for data in BAD:
            channel = Watched()
            channel.dataReceived(data)
            self.check("_respondToBadRequestAndDisconnect", (True, data), (channel.refused > 0, data))

    def test_producer(self) -> None:
        """The connection itself is the one that can be made to read on."""
        channel = Watched()
        self.check("_networkProducer", channel.transport, getattr(channel, "_networkProducer", None))
