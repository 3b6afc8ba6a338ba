"""Twisted's HTTP client with six things changed that matter to a proxy.

An `Agent` opens a connection with a *factory*.  The factory makes a *protocol* for it: the object whose methods Twisted
calls when something happens on that connection (`dataReceived`, `connectionLost`).  Twisted has no public way to choose
either, so these are subclasses of Twisted's own, and the private names they use are listed and tested in one place
(`tests.support.private_names`).

* The head of an answer gets a limit.  Twisted limits the length of a line, but not how many lines there are.
* A status must have three digits (RFC 9110, section 15).  Twisted accepts any number, and the proxy would send it on.
* A server may name headers in `Connection` that are meant for the next hop only (RFC 9110, section 7.6.1).  Twisted
  keeps that header to itself, so the code that gets the answer could not remove them.
* "304 Not Modified" may tell the length of the body that it leaves out.  Twisted keeps that to itself, too.
* A connection is used again only after an answer with a length, and after a success if the request had a body.
  llama-server closes it right after a streamed one, although the answer's head does not say so, and the next request
  would be lost.  A body that it has not read, because it refused the request, it would take for the next request.
* What one read from the network has brought is handed on as one piece of the body, however many chunks that are.

This module knows HTTP, and nothing about llama-server: a broken or malicious program at its address is expected here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.web._newclient import HEADER, STATUS, HTTP11ClientProtocol, Request
from twisted.web.client import _HTTP11ClientFactory
from twisted.web.http import BAD_REQUEST, NOT_MODIFIED, _ChunkedTransferDecoder
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from bioproxy.http.headers import connection_options
from bioproxy.http.send_now import send_now
from bioproxy.runtime.errors import UpstreamError

LONGEST_HEAD = 256 * 1024
"""Bytes of an answer's head, at most.

llama-server's heads have a few hundred bytes; those of a proxy in between may have many cookies.  Halved, nothing known
would be rejected; doubled, a broken server may take twice the memory for each connection.
"""


class JoiningDecoder(_ChunkedTransferDecoder):
    """Decodes a body in chunks, and hands on what one read has brought as one piece.

    llama-server sends each token of a stream as a chunk.  While tokens are slow, each comes with a read of its own, and
    is handed on at once.  When many have arrived together, because this process or the network was busy, one piece
    instead of a hundred is searched, counted and written to the client.  Where chunks end means nothing in HTTP.

    Invariant: no byte of the body is kept here after `dataReceived` has returned, so none waits for the next read.
    """

    def __init__(self, deliver: Callable[[bytes], None], finished: Callable[[bytes], None]) -> None:
        """Call `deliver` with each piece, and `finished` after the last chunk, with the bytes behind the body."""
        self._pieces: list[bytes] = []
        self._deliver = deliver
        self._finished = finished
        super().__init__(self._pieces.append, self._end)

    def dataReceived(self, data: bytes) -> None:
        """Decode what one read has brought.  Called by the parser; raises what Twisted raises for invalid chunks."""
        # What came in front of an invalid chunk is handed on, too, as Twisted does it: a client with a slow stream sees
        # the tokens that there were before the error.
        try:
            super().dataReceived(data)
        finally:
            self._hand_on()

    def _end(self, rest: bytes) -> None:
        """Hand on the last piece before the end.  Called by Twisted's method after the last chunk."""
        self._hand_on()
        self._finished(rest)

    def _hand_on(self) -> None:
        """Deliver what was decoded since the last time, if there is anything."""
        if self._pieces:
            piece = b"".join(self._pieces)
            # Emptied before: what gets the piece may end the connection, and with it this body.
            self._pieces.clear()
            self._deliver(piece)


class Client(HTTP11ClientProtocol):
    """The protocol of one connection to llama-server.

    Invariant: the response that a request fires with has a status of three digits, and no header that was meant for
    this connection only.  One request is in progress at a time; the pool ensures that.
    """

    # Bytes of the present answer's head that have come so far, and whether its request had a body.
    _head = 0
    _has_body = False

    def __init__(self, keep: Callable[[Client], None]) -> None:
        """Call `keep` after each answer that another request may follow; it gets this protocol."""
        super().__init__(self._answered)
        self._keep = keep

    def request(self, request: Request) -> Deferred[IResponse]:
        """Send a request.  Called by the Agent, as soon as there is a connection.

        Returns a `Deferred` that fires with the response when its head is here.  It fails with Twisted's exceptions
        (`bioproxy.llama.failures`), and with `UpstreamError` for an impossible status.  Cancelling closes the
        connection.
        """
        self._head, self._has_body = 0, request.bodyProducer is not None
        answer: Deferred[IResponse] = super().request(request)
        # The head is written by now, and a small body as well: nothing follows before the answer.
        send_now(self.transport)
        # The parser is replaced with each request, and gone when the answer is whole, so it is remembered here.
        parser = self._parser
        assert parser is not None  # `super().request` has made it
        # The parser looks here for the class that decodes a body, when the answer's head has come.
        parser._transferDecoders = DECODERS

        def put_right(response: IResponse) -> IResponse:
            # `abortConnection` closes at once; `loseConnection` would first wait until all is written.
            if not 100 <= response.code <= 999:
                transport: Any = self.transport
                transport.abortConnection()
                raise UpstreamError(f"llama-server answered with {response.code}, which is not an HTTP status")
            # `connHeaders` are the headers that Twisted regards as the connection's own, and does not show.
            for name in connection_options(parser.connHeaders.getRawHeaders(b"connection", [])):
                response.headers.removeHeader(name)
            length = parser.connHeaders.getRawHeaders(b"content-length")
            if response.code == NOT_MODIFIED and length:
                response.headers.setRawHeaders(b"content-length", length)
            return response

        # A callback runs before the code that awaits the Deferred sees the result; what it raises becomes the failure.
        return answer.addCallback(put_right)

    def _answered(self, _: HTTP11ClientProtocol) -> None:
        """Keep the connection, or close it.  Called by Twisted when an answer is whole and would let it be kept."""
        # The parser is removed after this.  Twisted has looked for ``close`` by itself, but not for ``Close``, and not
        # for one in a list; and a server that speaks HTTP/1.0 closes without a word.
        parser = self._parser
        assert parser is not None
        response, options = parser.response, connection_options(parser.connHeaders.getRawHeaders(b"connection", []))
        closes = response.length is UNKNOWN_LENGTH or response.version < HTTP_1_1 or b"close" in options
        if closes or (self._has_body and response.code >= BAD_REQUEST):
            transport: Any = self.transport
            transport.loseConnection()
        else:
            self._keep(self)

    def dataReceived(self, data: bytes) -> None:
        """Count the bytes of the head, and pass everything on to the parser.  Called by Twisted for what arrives."""
        # The beginning of the body may be in the same piece as the end of the head, so this may count a little too
        # much.
        if self._parser is not None and self._parser.state in (STATUS, HEADER):
            self._head += len(data)
            # Closing makes the request fail as one whose answer broke off.
            if self._head > LONGEST_HEAD:
                transport: Any = self.transport
                transport.abortConnection()
                return
        super().dataReceived(data)


DECODERS: dict[bytes, type[_ChunkedTransferDecoder]] = {b"chunked": JoiningDecoder}
"""The encodings of a body that are understood, with the class for each: the one that HTTP/1.1 demands."""


HTTP_1_1 = (b"HTTP", 1, 1)
"""The version in an answer, as Twisted has it, from which on a connection stays open unless its head says otherwise."""


class Factory(_HTTP11ClientFactory):
    """Makes a `Client` for each new connection."""

    noisy = False
    """Twisted logs the start and stop of each factory, unless this is false: two lines for each connection."""

    def buildProtocol(self, addr: IAddress | None) -> Client:
        """Return the protocol for a new connection.  Called by Twisted."""
        # The callback returns the connection to its pool.
        return Client(self._quiescentCallback)
