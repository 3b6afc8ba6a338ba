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

from bioproxy.runtime.errors import UpstreamError

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

    def refuse(self, error: UpstreamError) -> None:
        """End the connection, and fail with `error`: the rest is not wanted."""
        done, self.done = self.done, None
        self._hang_up()
        if done is not None:
            done.errback(error)

    def _cancel(self, _done: Deferred[None]) -> None:
        # First forget the Deferred: closing the connection calls `connectionLost`, which would fire it, and
        # Twisted is about to fire it itself, with CancelledError.
        self.done = None
        self._hang_up()

    def _hang_up(self) -> None:
        # Twisted gives a body's protocol a stand-in for the connection, which knows only the polite end.  Over TLS that
        # waits for the other side to agree, who may go on sending for as long as it likes.
        transport: Any = self.transport
        connection = transport._producer
        if connection is not None:  # else all of the answer is here, and the connection is free for the next one
            connection.abortConnection()


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


def collect(response: IResponse, what: str, longest: int) -> Deferred[bytearray]:
    """Begin to receive a body that is wanted whole, in memory, if it has no more than `longest` bytes.

    Returns a Deferred that fires with it, and fails with `UpstreamError` if it breaks off or is longer (`what` is then
    too long, says the error).  Cancelling closes the connection, and too long an answer does so, too.
    """
    # Not a list of the pieces: a piece may be a single byte, and each would take a place of eight.
    taken = bytearray()

    def deliver(data: bytes) -> None:
        if len(taken) + len(data) > longest:
            body.refuse(too_long)
        else:
            taken.extend(data)

    too_long = UpstreamError(f"llama-server's answer to {what} is longer than {longest} bytes")
    # Not by `receive`: what has come with the head is delivered before that returns.
    body = Body(deliver)
    done = body.done
    assert done is not None
    response.deliverBody(body)
    if isinstance(response.length, int) and response.length > longest and body.done is not None:
        body.refuse(too_long)  # it says so itself: there is no need to wait for it
    return done.addCallback(lambda _: taken)
