"""The ports: Twisted's HTTP server, set up for a proxy.

A `Site` is what Twisted calls an HTTP server: it makes a `Channel` of each connection (`bioproxy.http.channel`), which
makes a `Request` of what arrives there, and gives it to a *resource*, here those that Klein makes.  Some of its habits
suit web sites better than proxies; they are changed here.

Where a port is, an *endpoint* says: an object that knows how to listen, made from a text such as ``tcp:8081`` or
``unix:/run/bioproxy.sock``.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from OpenSSL import SSL
from twisted.application import strports
from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import IAddress, ILoggingContext, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.web import http
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from bioproxy.http.channel import Channel
from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.own_answers import refuse
from bioproxy.runtime.errors import CannotStart, ProxyError

BACKLOG = 511
"""Connections that the operating system keeps until they are accepted; more would wait a second and try again."""

Judge = Callable[[bytes, bytes, Headers], ProxyError | None]
"""Gets method, target and headers of a request, before its body comes; returns why it is refused, or `None`."""


class AnyPath(Resource):
    """Sends every path to Klein's route for ``/``, refused requests too.

    Klein would look at the path itself: answer one that is not UTF-8 with an error of its own, and redirect some with
    two slashes.  Which path llama-server has is none of its business; the route reads `request.uri`.
    """

    isLeaf = True

    def __init__(self, klein: Any) -> None:
        super().__init__()
        self._klein = klein

    def render(self, request: IncomingRequest) -> Any:
        """Called by Twisted for each request."""
        request.postpath = [b""]
        return self._klein.render(request)


class OwnPaths(Resource):
    """Sends the paths that Klein has routes for to these, and answers refused requests itself."""

    isLeaf = True

    def __init__(self, klein: Any) -> None:
        super().__init__()
        self._klein = klein

    def render(self, request: IncomingRequest) -> Any:
        """Called by Twisted for each request."""
        if request.refusal is not None:
            refuse(request, "", request.refusal, for_pages=False)
            return NOT_DONE_YET
        # Klein wants paths in UTF-8 and has an error page of its own for others; this way they are merely not found.
        request.postpath = [part.decode("utf-8", "replace").encode() for part in request.postpath or ()]
        return self._klein.render(request)


@implementer(ILoggingContext)
class QuietSite(Site):
    """Twisted's HTTP server without its access log: `bioproxy.proxy.request_log` writes a better one."""

    noisy = False
    protocol: Any = Channel
    requestFactory = IncomingRequest

    def __init__(self, name: str, resource: IResource, reactor: Any, judge: Judge, limits: ConnectionLimits) -> None:
        # Forms are llama-server's to parse: a body that Twisted cannot read as a form is not wrong for that.
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        # An error page with a traceback is for developers.
        self.displayTracebacks = False
        self.judge = judge
        self.limits = limits
        self._name = name

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make what reads from a new connection.  Called by Twisted."""
        return super().buildProtocol(addr) if self.limits.has_room() else OneTooMany()

    def acceptableProtocols(self) -> list[bytes]:
        """Speak HTTP/1.1, as llama-server does.  Called by Twisted for each TLS connection."""
        return [b"http/1.1"]

    def logPrefix(self) -> str:
        """Return what the log calls this port.  Called by Twisted when it starts and stops listening."""
        return self._name

    def log(self, request: http.Request) -> None:
        """Write nothing.  Called by Twisted after each request."""


class OneTooMany(Protocol):
    """A connection for which there is no room."""

    def connectionMade(self) -> None:
        """End it.  Called by Twisted."""
        transport: Any = self.transport
        transport.abortConnection()


@implementer(IStreamServerEndpoint)
class Noticed:
    """An endpoint that tells where it listens."""

    def __init__(self, endpoint: IStreamServerEndpoint, tell: Callable[[IAddress], None]) -> None:
        self._endpoint = endpoint
        self._tell = tell

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Listen.  Called by the service."""

        def listening(port: Any) -> Any:
            self._tell(port.getHost())
            return port

        listens: Deferred[Any] = self._endpoint.listen(factory)
        return listens.addCallback(listening)


class Exposure:
    """Warns where everybody may use a port who can reach it, and others can: when it listens, and when asked to look.

    `is_protected` tells whether something else, such as a key, keeps strangers out now.
    """

    log = Logger()

    def __init__(self, name: str, is_protected: Callable[[], bool]) -> None:
        self._name = name
        self._is_protected = is_protected
        self._address: IAddress | None = None

    def listening(self, address: IAddress) -> None:
        """Note where the port listens."""
        self._address = address
        self.look()

    def look(self) -> None:
        """Warn if there is reason to."""
        if self._address is not None and is_reachable(self._address) and not self._is_protected():
            self.log.warn(
                "{name} can be used by everybody who reaches {address}", name=self._name, address=self._address
            )


def port(where: str, site: QuietSite, reactor: Any, tell: Callable[[IAddress], None]) -> Service:
    """Return a service that listens at an endpoint, and tells its address once it does.

    `strports.service` raises where a port is taken; the endpoint service below it would only log that and go on deaf.
    Raises `CannotStart` if there is no such endpoint.
    """
    try:
        service = strports.service(where, site, reactor=reactor)
    except Exception as error:  # each kind of endpoint has its own
        if isinstance(error, LookupError):
            reason = "systemd has passed no such socket"
        elif isinstance(error, SSL.Error):
            reason = "its files have no key and certificate that can be used"
        else:
            reason = str(error) or type(error).__name__
        raise CannotStart(f"bioproxy: cannot listen on {where}: {reason}") from None
    service.endpoint = Noticed(service.endpoint, tell)
    service.setName(site.logPrefix())
    return service


def tcp(host: str, number: int) -> str:
    """Return the endpoint of a TCP port."""
    return f"tcp:{number}:interface={quoteStringArgument(host)}:backlog={BACKLOG}"


def is_reachable(address: IAddress) -> bool:
    """Tell whether others than this machine's own programs can reach an address."""
    if isinstance(address, IPv4Address | IPv6Address):
        return not ip_address(address.host.partition("%")[0]).is_loopback
    return False
