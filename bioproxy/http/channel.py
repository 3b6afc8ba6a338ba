"""A client's connection: bytes from the network become requests, or are refused.

Twisted's `HTTPChannel` parses HTTP/1.1 on one connection.  It is a *protocol*: an object whose methods the reactor
calls when something happens on a connection.  It calls further methods of itself for each step, and a subclass changes
a step by overriding its method.  For one request the order is:

1. `connectionMade`, once for the connection, then `dataReceived` for each piece of bytes, however TCP has cut it;
2. `lineReceived` for each line of the head, which calls `headerReceived` for each header;
3. `allHeadersReceived` at the empty line.  It calls `checkPersistence` and `IncomingRequest.gotLength`;
4. `IncomingRequest.handleContentChunk` for each piece of the body, then `_finishRequestBody`;
5. `allContentReceived`, which calls `IncomingRequest.process`: only now does bioproxy's own code see the request;
6. `requestDone` when the answer is complete.  Bytes of the next request, which were kept meanwhile, are read now;
7. `connectionLost`, once, whichever side has closed the connection and in whatever state it was.

This module adds three checks that Twisted does not make.  It refuses ambiguous requests
(`bioproxy.http.request_checks`), slow requests (`bioproxy.http.deadlines`), and requests that are too many or too large
(`bioproxy.http.connection_limits`).  The channel does not know paths, keys or llama-server.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.deadlines import CLIENT_STALL_SECONDS, REFUSAL_SECONDS, ArrivalDeadline, Deadline
from bioproxy.http.error_formats import error_body
from bioproxy.http.headers import connection_options
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.request_checks import head_error, is_ambiguous_header, is_ambiguous_trailer
from bioproxy.runtime.errors import BadRequest, ProxyError, TooSlow


class Site(Protocol):
    """What a channel needs of the HTTP server that it belongs to (`bioproxy.http.site.CheckedSite`)."""

    limits: ConnectionLimits
    """Counts the connections of this port and the bytes of their bodies."""

    check_head: Callable[[bytes, bytes, Headers], ProxyError | None]
    """Gets method, target and headers of a request; returns why it is refused, or `None`."""


class Channel(HTTPChannel):
    """A client's connection.  All public methods but `end_request_early` are called by Twisted.

    Invariant: after a refusal (`_refused`) nothing that arrives on the connection is read as a request any more.  The
    end of a refused request is uncertain: the bytes after it may be its body or the next request.  A server that reads
    a body as a request allows the attack "request smuggling".

    A request is refused in one of two ways.  A request whose head could be parsed is answered by the code that answers
    all requests, which finds the reason in `IncomingRequest.refusal`.  So the refusal is logged and counted, and its
    answer has the error format of the API.  Bytes that are not a request cannot be answered by that code, so
    `_send_refusal` writes the answer itself.
    """

    site: Site
    """The factory that made this channel, and with it all settings of the port.  Set by Twisted."""

    transport: Any
    """The connection, over TCP, TLS or a Unix socket.  Set by Twisted before `connectionMade`.

    It can be closed in two ways.  `loseConnection` first sends all that was written, which takes as long as the client
    needs to read it.  `abortConnection`, called by Twisted's `forceAbortClient`, discards it and resets the connection
    at once.
    """

    requests: list[IncomingRequest]
    """Twisted's list of the requests that are not answered yet.

    The last request in it is arriving, the first is being answered.  Mostly these are the same request: Twisted does
    not parse a second request while it answers a first one, but keeps up to 16 KiB of its bytes and then stops
    reading.  The methods below that take `requests[-1]` are called while it arrives.
    """

    _refused = False

    def connectionMade(self) -> None:
        """Create the deadlines of a new connection, and count the connection as idle."""
        super().connectionMade()
        # `callLater` belongs to Twisted's `TimeoutMixin`, which also gives `HTTPChannel` its idle timeout.  The
        # deadlines are not made in `__init__`, because the factory sets `callLater`, the clock to use, after it has
        # made the channel.
        self._arrival_deadline = ArrivalDeadline(self.callLater)
        self._refusal_deadline = Deadline(self.callLater)
        self._closing_deadline = Deadline(self.callLater)
        # Idle from the start: a connection on which nothing is sent may be closed to make room for others.
        self.site.limits.mark_idle(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Release everything that the connection holds.  Called by Twisted exactly once, however it ended."""
        for deadline in (self._arrival_deadline, self._refusal_deadline, self._closing_deadline):
            deadline.stop()
        # The bytes of all its requests, also of one that was still arriving: no `requestDone` is called for these.
        self.site.limits.remove(self, sum(request.size for request in self.requests))
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """Parse what has arrived, unless a refusal was sent already.

        A refused connection stays open for a moment (see `loseConnection`), and Twisted would parse what arrives on it.
        """
        if self._refused:
            return
        # The first byte of a head starts its deadline.  While a request is answered (`_handlingRequest`), Twisted only
        # keeps what arrives, so no head begins.  Some clients send an extra empty line after a body (RFC 9112, section
        # 2.2): no head begins with that either, and a deadline would end an idle connection for no reason.
        if not self._arrival_deadline.is_running and not self._handlingRequest and data.strip(b"\r\n"):
            self._arrival_deadline.expect_head(self._send_refusal)
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Parse one line of the head.  Called by Twisted without the line's end.

        The first line of a head makes Twisted create the `IncomingRequest`, so there is none before that.
        """
        # One piece of data may hold many lines, and one before this line may have been refused.  Twisted's parser stops
        # between two lines only if the connection is closing, and a refused connection is closed a moment later.
        if self._refused:
            return
        if line[:1] in (b" ", b"\t"):
            # A header continued on a second line ("obs-fold") is obsolete (RFC 9112, section 5.2).  Twisted joins the
            # lines, other servers refuse them or read two headers.
            return self._respondToBadRequestAndDisconnect()
        super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """Parse one header.  False means that it was refused, and Twisted then does not finish this head.

        Called by Twisted when the *next* line is there, since only that tells whether the header goes on.
        """
        # This comes before Twisted's own check, which accepts most control characters and the transfer encoding
        # "identity", and converts a length with any number of digits.
        if is_ambiguous_header(line):
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        """Accept or refuse the request.  Called by Twisted at the end of the head, before any of the body.

        This is the earliest moment at which a request can be refused for what its head says, and the cheapest: a client
        with a wrong key, or with a body of 70 MB where 64 MB are allowed, gets the error before it sends the body.
        """
        self._arrival_deadline.stop()
        # From now on the connection is not closed to make room for a new one: its client waits for an answer.
        self.site.limits.mark_active(self)
        request = self.requests[-1]
        # The order matters: the target and the key of an ambiguous head must not be used, and a client without a key
        # must not learn how much space is left.  `check_head` also replaces the client's key by llama-server's.
        request.refusal = (
            head_error(self._version, request.requestHeaders)
            or self.site.check_head(self._command, self._path, request.requestHeaders)
            # `length` is that of `Content-Length`, or `None` for chunks.  Nothing is reserved yet, only compared.
            or self.site.limits.reserve_body_bytes(self.length or 0, 0)
        )
        if request.refusal is None:
            # This also answers `Expect: 100-continue` with "100 Continue".  A refused request must not get that: it
            # invites the client to send the body.
            super().allHeadersReceived()
            if self.length != 0:
                expired = partial(self._body_is_slow, request)
                self._arrival_deadline.expect_body(lambda: request.size, expired)
        else:
            # Treat the request as one without a body: Twisted reads `length` next, and calls `allContentReceived` at
            # once.  `gotLength` is called here because Twisted's method, which was skipped, would call it; it creates
            # `content`, which is needed later.
            request.gotLength(0)
            self.length = 0

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Return whether the connection stays open after this request.  Called by Twisted's `allHeadersReceived`.

        Twisted looks only at the first `Connection` header and splits it at spaces, so it overlooks
        ``keep-alive,close`` and a second header.  The client would then wait for the end of a connection that stays
        open.
        """
        if b"close" in connection_options(request.requestHeaders.getRawHeaders(b"connection", [])):
            request.responseHeaders.setRawHeaders(b"connection", [b"close"])
            return False
        return bool(super().checkPersistence(request, version))

    def _finishRequestBody(self, data: bytes) -> None:
        """Check the trailers, which are headers after the last chunk.  Called by Twisted at the end of a body.

        Twisted reads trailers and discards them.  Ambiguous trailers are refused nevertheless, because a request could
        be hidden in them.  `data` is what follows the body: the beginning of the next request.
        """
        # Only the decoder of chunks has trailers; the decoder for `Content-Length` has not.
        trailers = getattr(self._transferDecoder, "_trailerHeaders", [])
        if any(is_ambiguous_trailer(bytes(line)) for line in trailers):
            return self._respondToBadRequestAndDisconnect()
        super()._finishRequestBody(data)

    def allContentReceived(self) -> None:
        """Have the request answered.  Called by Twisted when its body is complete, and here when it is refused."""
        # This also cancels a call that `end_request_early` has scheduled, if the request has been completed in the same
        # piece of data: a second `allContentReceived` would answer the request twice.
        self._arrival_deadline.stop()
        if self.requests[-1].refusal is not None:
            self._close_after_answer()
        super().allContentReceived()

    def requestDone(self, request: IncomingRequest) -> None:
        """Free what an answered request held and read the next one.  Called by Twisted when an answer is complete."""
        # This comes before Twisted's method: the bytes of the next request may have arrived already, and then Twisted
        # parses them inside that method and `allHeadersReceived` marks the connection active.  A later `mark_idle`
        # would undo that.
        self.site.limits.mark_idle(self, request.size)
        super().requestDone(request)

    def end_request_early(self) -> None:
        """Have a request answered before its body is complete.  Its `refusal` must be set.

        The request calls this from the middle of Twisted's parser.  Answering there would change the parser's state
        while it is in use, so the answer waits for the reactor's next turn, which is what a delay of 0 s means.
        """
        self._arrival_deadline.start(0, self.allContentReceived)

    def loseConnection(self) -> Any:
        """Close the connection.  Called by Twisted after the last answer, on an idle timeout, and here for a refusal.

        Twisted's `loseConnection` first sends what was written, and waits for the client to read it, without a limit.
        The closing deadline sets one.

        A refused client may still be sending.  If a socket is closed while it holds unread bytes, the kernel sends a
        reset, and a reset makes the client's kernel drop the answer that was on its way (RFC 9112, section 9.6).  So
        after a refusal, the bytes that still arrive are read for a moment, `dataReceived` discards them, and only then
        the connection is closed.  Twisted may have paused reading while the request was answered, hence
        `resumeProducing`.
        """
        # Each deadline is started once: Twisted may call this again, and that must not extend the time.
        if not self._closing_deadline.was_started:
            self._closing_deadline.start(CLIENT_STALL_SECONDS, self.forceAbortClient)
        if not self._refused or self._refusal_deadline.was_started:
            return super().loseConnection()
        self._refusal_deadline.start(REFUSAL_SECONDS, super().loseConnection)
        return self._networkProducer.resumeProducing()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line that is too long.  Called by Twisted, which would close the connection without an answer."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse bytes that are not a valid request.  Called by Twisted's parser, too.

        Twisted's own method sends a 400 with neither a reason nor a length and closes the connection at once, so that
        a client which is still sending often gets a reset instead of the answer.
        """
        self._send_refusal(BadRequest("the request is not valid HTTP/1.1"))

    def _send_refusal(self, error: ProxyError) -> None:
        """Write the answer to bytes that are not a request, or not yet a complete head, and close the connection."""
        # Twisted's parser may report several faults of one piece of data.  A second answer would be read as the answer
        # to a request that the client has not sent yet.
        if self._refused:
            return
        self._arrival_deadline.stop()
        self._refused = True
        # Written by hand, without a `Request`: there may be none, or one without method and path.  The path is unknown
        # for the same reason, so the error has OpenAI's format, which llama-server uses for its own endpoints as well.
        # These bytes cannot get into the middle of another answer: during an answer Twisted parses nothing, and the
        # deadline of a head is not started.
        body = error_body("", error)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (error.status, RESPONSES[error.status], len(body), body)
        )
        self.loseConnection()

    def _close_after_answer(self) -> None:
        """Let the last request be answered, read no further request, and close the connection after the answer."""
        self._refused = True
        # `persistent` makes Twisted call `loseConnection` after the answer.  The header tells the client, which would
        # otherwise send its next request on this connection, see it closed, and not know whether to send it again.
        self.persistent = False
        self.requests[-1].responseHeaders.setRawHeaders(b"connection", [b"close"])

    def _body_is_slow(self, request: IncomingRequest, error: TooSlow) -> None:
        """Have a request answered whose body does not arrive.  Called by the reactor, so no parser is active."""
        # Twisted's method also works with an incomplete body: it passes the request on, and the request's `refusal` is
        # read before its body.  Later bytes of the body are discarded, because the connection is refused from now on.
        request.refusal = error
        self.allContentReceived()
