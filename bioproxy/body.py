"""An answer's body, received piece by piece.

Twisted delivers a body by calling a *protocol*, an object with methods for what may happen on a connection:
`dataReceived` for each piece, `connectionLost` at the end, with a reason that tells a whole body from a broken one.  A
coroutine would rather wait for one thing.  `receive` turns these calls into a `Deferred`, a value that will come later
and that a coroutine can `await`.

Twisted and treq have functions for this too (`readBody`, `treq.collect`).  But when they are cancelled, they leave the
connection open, and llama-server would go on generating for nobody.  Here cancelling closes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from bioproxy.errors import UpstreamError

OnData = Callable[[bytes], None]
"""Gets each piece of a body."""


class Body(Protocol):
    """Hands each piece to `deliver`.  `done` fires at the end, and is `None` from then on."""

    def __init__(self, deliver: OnData) -> None:
        self.done: Deferred[None] | None = Deferred(self._cancel)
        self._deliver = deliver

    def dataReceived(self, data: bytes) -> None:
        """Pass a piece on.  Called by Twisted."""
        # Pieces that were read already still arrive after cancelling: nobody wants them.
        if self.done is not None:
            self._deliver(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell how it ended.  Called by Twisted, after cancelling too."""
        done, self.done = self.done, None
        if done is None:
            return
        # PotentialDataLoss: the body had neither a length nor chunks, its end is the connection's end.  HTTP/1.0
        # is like that; nobody can know more.
        if reason.check(ResponseDone, PotentialDataLoss):
            done.callback(None)
        else:
            done.errback(UpstreamError("llama-server broke off in the middle of its answer"))

    def _cancel(self, _done: Deferred[None]) -> None:
        # First forget the Deferred: closing the connection calls `connectionLost`, which would fire it, and
        # Twisted is about to fire it itself, with CancelledError.
        self.done = None
        transport: Any = self.transport
        transport.loseConnection()


def receive(response: IResponse, deliver: OnData) -> tuple[Deferred[None], Body]:
    """Begin to receive a body.

    Returns a Deferred that fires when `deliver` has got all of it and fails with `UpstreamError` if it breaks off;
    cancelling closes the connection.  The `Body` beside it has the connection as its `transport`, while `done` is set.
    """
    body = Body(deliver)
    done = body.done
    assert done is not None
    response.deliverBody(body)
    return done, body
