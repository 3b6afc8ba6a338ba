"""The HTTP server of a port: Twisted's `Site`, set up for a proxy.

A *factory* in Twisted makes one protocol object for each connection that a port accepts.  `Site` is the factory of
Twisted's HTTP server: it makes a channel (`bioproxy.http.channel`), the channel makes requests
(`bioproxy.http.incoming_request`), and the site knows the *resource* that answers them (`bioproxy.http.resources`).
So for a connection the order is site, channel, request, resource, and then a function of bioproxy.

`Site` is made for web sites, and some of its habits harm a proxy: an access log, pages with tracebacks, reading HTML
forms, HTTP/2 if its library happens to be installed.  They are switched off here.  The number of connections is limited
here too, because a factory is asked before anything is known of a connection but that it exists.

The site knows neither where its port listens (`bioproxy.http.ports`) nor what the requests mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IAddress, ILoggingContext
from twisted.internet.protocol import Protocol
from twisted.web import http
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Site
from zope.interface import implementer

from bioproxy.http.channel import Channel
from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.runtime.errors import ProxyError

HeadCheck = Callable[[bytes, bytes, Headers], ProxyError | None]
"""Gets method, target and headers of a request before its body arrives; returns why it is refused, or `None`."""


@implementer(ILoggingContext)
class CheckedSite(Site):
    """An HTTP server that checks heads and limits connections, and writes no access log.

    `name` is what the log calls the port, `check_head` judges each request's head, `limits` counts the connections and
    bodies of this port.  The log of requests is written by `bioproxy.proxy.request_log`, which knows more about them.
    """

    # Read by Twisted: no log line for each start and stop, and which classes to use for connections and requests.
    noisy = False
    protocol: Any = Channel
    requestFactory = IncomingRequest

    def __init__(
        self, name: str, resource: IResource, reactor: Any, check_head: HeadCheck, limits: ConnectionLimits
    ) -> None:
        # Twisted would parse the body of a form before anybody sees the request, and answer 400 where it cannot.  Forms
        # belong to llama-server, which may accept what Twisted does not.
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        # Error pages with a traceback help developers and attackers.
        self.displayTracebacks = False
        self.check_head = check_head
        self.limits = limits
        self._name = name

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return the protocol for a new connection.  Called by Twisted for each one that the port has accepted.

        Twisted also takes `None` for an answer, which closes the connection.  But over TLS another factory wraps what
        this method returns, and expects a protocol.
        """
        return super().buildProtocol(addr) if self.limits.make_room() else RefusedConnection()

    def acceptableProtocols(self) -> list[bytes]:
        """Return HTTP/1.1 as the only protocol.  Called by Twisted for each TLS connection (ALPN).

        Twisted would offer HTTP/2 where the package h2 is installed.  `Channel` is HTTP/1.1 only, so an HTTP/2
        connection would pass by all of its checks.
        """
        return [b"http/1.1"]

    def logPrefix(self) -> str:
        """Return what the log calls this port.  Called by Twisted when the port starts and stops listening."""
        return self._name

    def log(self, request: http.Request) -> None:
        """Write nothing.  Called by Twisted after each request, to write its access log."""


class RefusedConnection(Protocol):
    """A connection for which there is no room.

    It is closed without an answer: an answer would have to wait until the client reads it, and a connection that waits
    is what there is no room for.
    """

    def connectionMade(self) -> None:
        """Reset the connection.  Called by Twisted, and the first moment at which there is something to close."""
        transport: Any = self.transport
        transport.abortConnection()
