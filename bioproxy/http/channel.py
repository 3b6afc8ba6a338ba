"""The edge: where bytes from the network become requests, and what they meet first.

Twisted's `HTTPChannel` reads HTTP from one connection: lines, headers, a body, and then a `Request` that somebody
answers.  It is careful, but made for servers in general, and leaves three things to whoever uses it:

* **What is odd** (`bioproxy.http.request_checks`).  A request that two programs may read in two ways is how attackers
  get one past a
  proxy ("request smuggling", RFC 9112, section 11.2).  What is not plainly right is refused: no host or two, a control
  character in a header, a header over several lines, a way of transfer other than chunks.
* **What is slow.**  A connection costs memory and an open file for as long as it lasts.  A head has `HEAD_SECONDS` to
  arrive, and a body must bring `BODY_BYTES` in each `BODY_SECONDS`; connections on which nothing happens Twisted ends.
* **What is too much** (`bioproxy.http.connection_limits`).  Bodies are counted while they arrive; nobody has to send 70
  MB to be told
  that 64 are allowed.

A request that is refused is answered all the same, by whoever answers requests here: it finds the reason in
`IncomingRequest.refusal`.  But its connection ends then, and what still comes in on it is thrown away for a moment,
because a connection that is closed with bytes unread takes the answer with it (RFC 9112, section 9.6).

`HTTPChannel` has a method for each thing that may happen on a connection.  A subclass that does something more in some
of them is the way to change what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.server import Request

from bioproxy.http.client_output import PATIENCE
from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.error_formats import error_body
from bioproxy.http.headers import named_in
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.request_checks import head_fault, header_is_odd, trailer_is_odd
from bioproxy.runtime.errors import BadRequest, ProxyError, TooSlow

HEAD_SECONDS = 10.0
"""Seconds for a request's head to arrive, from its first byte on."""

BODY_SECONDS = 10.0
BODY_BYTES = 10_000
"""Bytes of a body that must arrive in each so many seconds: one kilobyte a second."""

LINGER = 2.0
"""Seconds for a refused client to read the answer before its connection is closed."""


class Port(Protocol):
    """What a connection needs of the port that it came in by (`bioproxy.http.ports.QuietSite`)."""

    limits: ConnectionLimits
    judge: Callable[[bytes, bytes, Headers], ProxyError | None]


class Channel(HTTPChannel):
    """A client's connection.  Its methods are called by Twisted, but for `cut_short`."""

    site: Port
    transport: Any
    requests: list[IncomingRequest]
    _timer: IDelayedCall | None = None  # of the head or the body that arrives
    _lingering: IDelayedCall | None = None
    _closing: IDelayedCall | None = None
    _refused = False

    def connectionMade(self) -> None:
        """Begin."""
        super().connectionMade()
        self.site.limits.idle(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Let go of everything."""
        self._stop_timer()
        for call in (self._lingering, self._closing):
            if call is not None and call.active():
                call.cancel()
        self.site.limits.left(self, sum(request.size for request in self.requests))
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """Take what arrives, unless nobody cares any more."""
        if self._refused:
            return
        # Some clients send an empty line more behind a body (RFC 9112, section 2.2): no head begins with that.
        if self._timer is None and not self._handlingRequest and data.strip(b"\r\n"):
            self._timer = self.callLater(HEAD_SECONDS, self._head_is_slow)
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take a line of the head."""
        if self._refused:
            return
        if line[:1] in (b" ", b"\t"):
            # A header over several lines is obsolete, and read in as many ways as there are programs.
            return self._respondToBadRequestAndDisconnect()
        super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """Take a header, and tell whether it may be one."""
        if header_is_odd(line):
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        """Judge a request when its head is complete."""
        self._stop_timer()
        self.site.limits.busy(self)
        request = self.requests[-1]
        request.refusal = (
            head_fault(self._version, request.requestHeaders)
            or self.site.judge(self._command, self._path, request.requestHeaders)
            or self.site.limits.take(self.length or 0, 0)
        )
        if request.refusal is None:
            super().allHeadersReceived()
            if self.length != 0:
                self._watch_body(request)
        else:
            # As if it had no body: Twisted goes on to have it answered.
            request.gotLength(0)
            self.length = 0

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Tell whether the connection goes on after this request.  Twisted overlooks some ways to say no."""
        if b"close" in named_in(request.requestHeaders.getRawHeaders(b"connection", [])):
            request.responseHeaders.setRawHeaders(b"connection", [b"close"])
            return False
        return bool(super().checkPersistence(request, version))

    def allContentReceived(self) -> None:
        """Have a request answered that is complete, or refused."""
        self._stop_timer()
        if self.requests[-1].refusal is not None:
            self._end_after_this()
        super().allContentReceived()

    def _finishRequestBody(self, data: bytes) -> None:
        """Look at what follows the last chunk: headers, which nobody here needs, but others could misread."""
        trailers = getattr(self._transferDecoder, "_trailerHeaders", [])
        if any(trailer_is_odd(bytes(line)) for line in trailers):
            return self._respondToBadRequestAndDisconnect()
        super()._finishRequestBody(data)

    def requestDone(self, request: IncomingRequest) -> None:
        """Go on with the next request, when one is answered."""
        self.site.limits.idle(self, request.size)
        super().requestDone(request)

    def cut_short(self) -> None:
        """Have a request answered before its body is complete: it has a `refusal`.

        Not at once, because this is called in the middle of reading.
        """
        self._stop_timer()
        self._timer = self.callLater(0, self._cut)

    def loseConnection(self) -> Any:
        """Close the connection, but let a client that was refused read why.

        Twisted closes it when all that was written has been read, however long that takes.
        """
        if self._closing is None:
            self._closing = self.callLater(PATIENCE, self.forceAbortClient)
        if not self._refused or self._lingering is not None:
            return super().loseConnection()
        self._lingering = self.callLater(LINGER, super().loseConnection)
        return self._networkProducer.resumeProducing()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a line that is too long."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse what is no request.  Twisted would say 400 too, but with neither a reason nor a length."""
        self._turn_away(BadRequest("this is not HTTP as it should be"))

    def _turn_away(self, error: ProxyError) -> None:
        """Refuse what is no request, or not yet, and so cannot be answered like one."""
        if self._refused:
            return
        self._stop_timer()
        self._refused = True
        body = error_body("", error)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (error.status, RESPONSES[error.status], len(body), body)
        )
        self.loseConnection()

    def _end_after_this(self) -> None:
        """Answer this request, listen to nothing else, then close."""
        self._refused = True
        self.persistent = False
        self.requests[-1].responseHeaders.setRawHeaders(b"connection", [b"close"])

    def _cut(self) -> None:
        self._timer = None
        self.allContentReceived()

    def _head_is_slow(self) -> None:
        self._turn_away(TooSlow(f"the request's head took longer than {HEAD_SECONDS:g} s"))

    def _watch_body(self, request: IncomingRequest) -> None:
        """See to it that a body goes on arriving."""
        before = request.size

        def look() -> None:
            self._timer = None
            if request.size - before >= BODY_BYTES:
                return self._watch_body(request)
            request.refusal = TooSlow(f"less than {BODY_BYTES} bytes of the body came in {BODY_SECONDS:g} s")
            self._cut()

        self._timer = self.callLater(BODY_SECONDS, look)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
