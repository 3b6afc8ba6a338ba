"""How a parsed request reaches a function: the resources between Twisted's HTTP server and Klein.

A *resource* is Twisted's word for the object that answers requests: its `render` gets the request and either returns
the body or returns `NOT_DONE_YET` and finishes the request later.  Twisted would look for a resource along the path,
one segment at a time; `isLeaf` says that this resource takes everything below it.

Klein is a small library on top of that.  It maps paths to functions, lets them be coroutines, and cancels a coroutine
when its client hangs up.  It has ideas about paths, though, which are not llama-server's, and it knows nothing of
requests that were refused while they arrived.  The resources here stand before Klein and settle both.

They do not know what the paths mean or who answers them.
"""

from __future__ import annotations

from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.own_answers import send_error


class CatchAllResource(Resource):
    """Sends every request to Klein's route for ``/``, refused ones too.  For the clients' port.

    Klein would look at the path itself: answer a path that is not UTF-8 with its own error page, and redirect some
    paths that have two slashes.  But only llama-server decides which paths exist.  The proxy's one route reads
    `request.uri`, which has the target as the client wrote it.
    """

    isLeaf = True

    def __init__(self, klein: Any) -> None:
        super().__init__()
        self._klein = klein

    def render(self, request: IncomingRequest) -> Any:
        """Hand the request to Klein.  Called by Twisted for each request that is complete or refused."""
        # What Klein looks at to find the route: the segments of the path that are left to look up.
        request.postpath = [b""]
        return self._klein.render(request)


class RoutedResource(Resource):
    """Sends the paths that Klein has routes for to these routes, and answers refused requests itself.

    For the operator's port, whose routes expect only requests that are in order.
    """

    isLeaf = True

    def __init__(self, klein: Any) -> None:
        super().__init__()
        self._klein = klein

    def render(self, request: IncomingRequest) -> Any:
        """Hand the request to Klein, or answer why it is refused.  Called by Twisted for each request."""
        if request.refusal is not None:
            # Without CORS headers: no web page but the proxy's own has any business on this port.
            send_error(request, "", request.refusal, cross_origin=False)
            return NOT_DONE_YET
        # Klein expects UTF-8 and shows its own error page for anything else.  With replacement characters the path is
        # merely unknown, and gets the 404 of all unknown paths.
        request.postpath = [part.decode("utf-8", "replace").encode() for part in request.postpath or ()]
        return self._klein.render(request)
