"""The ports: Twisted's HTTP server, set up for a proxy.

A `Site` is what Twisted calls an HTTP server: it makes a `Request` of what arrives on a connection and gives it to a
*resource*, here those that Klein makes.  Some of its habits suit web sites better than proxies; they are changed here.
"""

from __future__ import annotations

from typing import Any

from twisted.application import strports
from twisted.application.service import Service
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import ILoggingContext
from twisted.web import http
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site
from zope.interface import implementer


class AnyHost(Request):
    """A request that has no opinion on its `Host`.

    Klein asks for the host's name, and fails for one that could not be one.  It needs it to build addresses, which
    nothing here does; and judging the header is llama-server's business, which gets it as it was sent.
    """

    def getRequestHostname(self) -> bytes:
        """Return a name that will do.  Called by Klein."""
        return b"localhost"


class AnyPath(Resource):
    """Sends every path to Klein's route for ``/``.

    Klein would look at the path itself: answer one that is not UTF-8 with an error of its own, and redirect some with
    two slashes.  Which path llama-server has is none of its business; the route reads `request.uri`.
    """

    isLeaf = True

    def __init__(self, klein: Any) -> None:
        super().__init__()
        self._klein = klein

    def render(self, request: Request) -> Any:
        """Called by Twisted for each request."""
        request.postpath = [b""]
        return self._klein.render(request)


@implementer(ILoggingContext)
class QuietSite(Site):
    """Twisted's HTTP server without its access log: `bioproxy.journal` writes one line a request, with more in it."""

    noisy = False
    requestFactory = AnyHost

    def __init__(self, name: str, resource: IResource, reactor: Any) -> None:
        # Forms are llama-server's to parse: a body that Twisted cannot read as a form is not wrong for that.
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        # An error page with a traceback is for developers.
        self.displayTracebacks = False
        self._name = name

    def logPrefix(self) -> str:
        """Return what the log calls this port.  Called by Twisted when it starts and stops listening."""
        return self._name

    def getResourceFor(self, request: Request) -> IResource:
        """Find who answers a request.  Called by Twisted."""
        # Klein wants paths in UTF-8 and has an error page of its own for others; this way they are merely not found.
        request.postpath = [part.decode("utf-8", "replace").encode() for part in request.postpath or ()]
        resource: IResource = super().getResourceFor(request)
        return resource

    def log(self, request: http.Request) -> None:
        """Write nothing.  Called by Twisted after each request."""


def port(name: str, host: str, number: int, resource: IResource, reactor: Any) -> Service:
    """Return a service that listens on a TCP port.

    `strports.service` raises where a port is taken; the endpoint service below it would only log that and go on deaf.
    """
    where = f"tcp:{number}:interface={quoteStringArgument(host)}"
    service: Service = strports.service(where, QuietSite(name, resource, reactor), reactor=reactor)
    service.setName(name)
    return service
