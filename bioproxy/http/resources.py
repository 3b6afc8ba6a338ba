"""How a parsed request reaches a function: the resources that answer Twisted's HTTP server.

A *resource* is Twisted's word for the object that answers requests: its `render` gets the request and either returns
the body or returns `NOT_DONE_YET` and finishes the request later.  Twisted would look for a resource along the path,
one segment at a time; `isLeaf` says that this resource takes everything below it.

The operator's port has several paths.  There Klein maps paths to functions: a small library on top of resources, which
lets the functions be coroutines, and cancels a coroutine when its client hangs up.  The clients' port has one function
for all paths, because only llama-server decides which paths exist.  Nothing is left of Klein there but the coroutine
and its cancelling, which take a few lines (`CatchAllResource`).

A coroutine by itself does nothing.  `Deferred.fromCoroutine` runs it up to its first `await`, and returns a Deferred
that fires with its result.  `cancel` of that Deferred raises `CancelledError` at the `await` in progress.

The resources do not know what the paths mean or who answers them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.own_answers import send_error

Serve = Callable[[IncomingRequest], Coroutine[Deferred[Any], Any, None]]
"""Answers a request and finishes it.  A hang-up cancels it; then there is nobody to answer."""


class CatchAllResource(Resource):
    """Has one coroutine function answer every request, refused ones too.  For the clients' port.

    Invariant: while a coroutine answers a request, the loss of its connection cancels it.
    """

    isLeaf = True

    log = Logger()

    def __init__(self, serve: Serve) -> None:
        """Have `serve` answer each request."""
        super().__init__()
        self._serve = serve

    def render(self, request: IncomingRequest) -> int:
        """Begin to answer a request.  Called by Twisted for each request that is complete or refused."""
        answering = Deferred.fromCoroutine(self._serve(request))
        # `notifyFinish` gives a Deferred that fires when the request is finished, and fails when its connection is
        # lost.  Cancelling a coroutine that has ended already does nothing.
        request.notifyFinish().addErrback(lambda _: answering.cancel())

        def failed(failure: Failure) -> None:
            """Note a failure, and end the answer so that it does not look complete."""
            # After a hang-up there is nothing to note and nobody to tell.
            if failure.check(CancelledError) is None:
                self.log.failure("a request was not answered", failure)
                request.channel.transport.abortConnection()

        answering.addErrback(failed)
        return NOT_DONE_YET


class RoutedResource(Resource):
    """Sends the paths that Klein has routes for to these routes, and answers refused requests itself.

    For the operator's port, whose routes expect only requests that are in order.
    """

    isLeaf = True

    def __init__(self, klein: Any) -> None:
        """Send requests to `klein`, the resource of a Klein app."""
        super().__init__()
        self._klein = klein

    def render(self, request: IncomingRequest) -> Any:
        """Hand the request to Klein, or answer why it is refused.  Called by Twisted for each request."""
        if request.refusal is not None:
            # Without CORS headers: no web page but the proxy's own has any business on this port.
            send_error(request, "", request.refusal, cross_origin=False)
            return NOT_DONE_YET
        # Klein expects UTF-8 and shows its own error page for anything else.  With replacement characters the path is
        # only unknown, and gets the 404 of all unknown paths.
        request.postpath = [part.decode("utf-8", "replace").encode() for part in request.postpath or ()]
        return self._klein.render(request)
