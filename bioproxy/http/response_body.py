"""The body of llama-server's answer, received piece by piece.

Twisted's HTTP client fires its Deferred when the *head* of an answer is there.  The body follows through a *protocol*,
an object whose methods Twisted calls: `dataReceived` for each piece, and `connectionLost` once at the end, whose reason
tells a complete body from one that broke off.  A coroutine would rather wait for a single thing.  `receive` turns these
calls into a Deferred, a value that comes later and that a coroutine can `await`.

A Deferred may be *cancelled* when its result is no longer needed.  What that does is decided by the function
that is given to its constructor, the *canceller*.  Twisted and treq have functions for bodies, too (`readBody`,
`treq.collect`), but theirs leave the connection open, and llama-server would continue to generate an answer that nobody
reads, on its only slot.  Here cancelling closes the connection, which is how llama-server is told to stop.

This module does not know what is in a body, and has no timeout: `bioproxy.llama.upstream` watches over the time.
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
"""Gets each piece of a body, in order.  TCP decides where one piece ends."""


class BodyReceiver(Protocol):
    """Hands each piece of a body to `deliver`.

    Invariant: `done` is set while the body is expected, and `None` from the moment in which it is complete, broken off,
    aborted or cancelled.  Whatever arrives after that is dropped.
    """

    def __init__(self, deliver: OnData) -> None:
        self.done: Deferred[None] | None = Deferred(self._cancel)
        """Fires when the body is complete; fails with `UpstreamError` if not.  Cancelling closes the connection."""

        self._deliver = deliver

    def dataReceived(self, data: bytes) -> None:
        """Pass a piece on.  Called by Twisted, which delivers what it has read already even after cancelling."""
        if self.done is not None:
            self._deliver(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fire `done`.  Called by Twisted at the end of the body, and because of a close that we have asked for."""
        # Forget the Deferred first: firing it runs whatever awaits it, before `callback` returns.
        done, self.done = self.done, None
        if done is None:
            return
        # `ResponseDone`: the body had its announced length, or its last chunk.  `PotentialDataLoss`: it had neither,
        # and ended with its connection, as in HTTP/1.0.  Whether something is missing then, nobody can tell.
        if reason.check(ResponseDone, PotentialDataLoss):
            done.callback(None)
        else:
            done.errback(UpstreamError("llama-server broke off in the middle of its answer"))

    def abort(self, error: UpstreamError) -> None:
        """Close the connection and fail with `error`, because the rest of the body is not wanted."""
        done, self.done = self.done, None
        self._close()
        if done is not None:
            done.errback(error)

    def _cancel(self, _done: Deferred[None]) -> None:
        """Close the connection.  Called by Twisted when somebody cancels the Deferred."""
        # Forget the Deferred first: closing calls `connectionLost`, which would fire it, and Twisted will fire it with
        # `CancelledError` when this returns.
        self.done = None
        self._close()

    def _close(self) -> None:
        """Reset the connection, if the body has not all arrived."""
        # A body's `transport` is a stand-in for the connection and has only `loseConnection`, the polite way.  Over TLS
        # that waits until the other side agrees to close, and llama-server may first send all of its answer.
        transport: Any = self.transport
        connection = transport._producer
        # `None`: all of the answer is here, and the connection is back in the pool.  It may serve the next request.
        if connection is not None:
            connection.abortConnection()


def receive(response: IResponse, deliver: OnData) -> tuple[Deferred[None], BodyReceiver]:
    """Begin to receive a body that is passed on as it arrives, whatever its size.

    Returns a Deferred and the protocol behind it.  The Deferred fires when `deliver` has got the whole body, and fails
    with `UpstreamError` if it breaks off; cancelling closes the connection.  While the protocol's `done` is set, its
    `transport` is a producer that can be paused.
    """
    body = BodyReceiver(deliver)
    # `deliverBody` hands over what has arrived with the head, before it returns.  That may be all of the body, and
    # `body.done` is `None` then, so it is read before.
    done = body.done
    assert done is not None
    response.deliverBody(body)
    return done, body


def collect(response: IResponse, what: str, longest: int) -> Deferred[bytearray]:
    """Begin to receive a body of at most `longest` bytes, into memory.

    Returns a Deferred that fires with the body, and fails with `UpstreamError` if it breaks off or is longer; `what` is
    the question in that error's text.  Cancelling closes the connection, and so does a body that is too long.
    """
    # One growing buffer, not a list of pieces: each piece may be a single byte, and costs some 40 bytes as a Python
    # object, so that `longest` would be no limit for the memory.
    collected = bytearray()

    def deliver(data: bytes) -> None:
        if len(collected) + len(data) > longest:
            body.abort(too_long)
        else:
            collected.extend(data)

    too_long = UpstreamError(f"llama-server's answer to {what} is longer than {longest} bytes")
    # Not with `receive`: `deliver` needs the protocol, and is called before `receive` could return it.
    body = BodyReceiver(deliver)
    done = body.done
    assert done is not None
    response.deliverBody(body)
    # An answer that announces a length beyond the limit need not be waited for.  `length` is a special object of
    # Twisted's where none was announced; then `deliver` counts.
    if isinstance(response.length, int) and response.length > longest and body.done is not None:
        body.abort(too_long)
    return done.addCallback(lambda _: collected)
