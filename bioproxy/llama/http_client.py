"""Twisted's HTTP client, with four things put right that matter to a proxy.

An `Agent` opens a connection with a *factory*, which makes a *protocol* for it: the object that gets what arrives
there.  Twisted lets neither be chosen in a public way, so these are subclasses of what it has.

* The head of an answer has a limit.  Twisted limits a line, but not how many there are.
* A status is a number of three digits (RFC 9110, section 15).  Twisted takes any number, and would send it on.
* A server may name headers in `Connection` as meant for the next one only (RFC 9110, section 7.6.1).  Twisted keeps
  that header to itself, so whoever gets the answer could not leave them out.
* "Not modified" may say how long the body would be that it does not have.  Twisted keeps that to itself, too.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.web._newclient import HEADER, STATUS, HTTP11ClientProtocol, Request
from twisted.web.client import _HTTP11ClientFactory
from twisted.web.http import NOT_MODIFIED
from twisted.web.iweb import IResponse

from bioproxy.http.headers import connection_options
from bioproxy.runtime.errors import UpstreamError

LONGEST_HEAD = 256 * 1024
"""Bytes of an answer's head, at most."""


class Client(HTTP11ClientProtocol):
    """A connection to llama-server."""

    _head = 0

    def request(self, request: Request) -> Deferred[IResponse]:
        """Send a request.  Called by the Agent."""
        self._head = 0
        answer: Deferred[IResponse] = super().request(request)
        parser = self._parser
        assert parser is not None  # it was made just now

        def put_right(response: IResponse) -> IResponse:
            if not 100 <= response.code <= 999:
                transport: Any = self.transport
                transport.abortConnection()
                raise UpstreamError(f"llama-server answered with {response.code}, which is no status")
            for name in connection_options(parser.connHeaders.getRawHeaders(b"connection", [])):
                response.headers.removeHeader(name)
            length = parser.connHeaders.getRawHeaders(b"content-length")
            if response.code == NOT_MODIFIED and length:
                response.headers.setRawHeaders(b"content-length", length)
            return response

        return answer.addCallback(put_right)

    def dataReceived(self, data: bytes) -> None:
        """Take what arrives.  Called by Twisted."""
        if self._parser is not None and self._parser.state in (STATUS, HEADER):
            self._head += len(data)
            if self._head > LONGEST_HEAD:
                transport: Any = self.transport
                transport.abortConnection()
                return
        super().dataReceived(data)


class Factory(_HTTP11ClientFactory):
    """Makes them, without two log lines for each connection."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Client:
        """Make one.  Called by Twisted for a new connection."""
        return Client(self._quiescentCallback)
