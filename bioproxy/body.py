"""Bodies: that of an answer, received piece by piece, and that of a request.

Twisted delivers a body by calling a *protocol*, an object with methods for what may happen on a connection:
`dataReceived` for each piece, `connectionLost` at the end, with a reason that tells a whole body from a broken one.  A
coroutine would rather wait for one thing.  `receive` turns these calls into a `Deferred`, a value that will come later
and that a coroutine can `await`.

Twisted and treq have functions for this too (`readBody`, `treq.collect`).  But when they are cancelled, they leave the
connection open, and llama-server would go on generating for nobody.  Here cancelling closes it.
"""

from __future__ import annotations

from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from os import SEEK_END
from tempfile import SpooledTemporaryFile
from typing import IO, Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Cooperator
from twisted.python.failure import Failure
from twisted.web.client import FileBodyProducer, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IBodyProducer, IResponse
from zope.interface import implementer

from bioproxy.errors import UpstreamError

SMALL = 128 * 1024
"""Bytes of a request's body that are kept in memory and sent in one piece; a larger one is in a temporary file."""

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


T = TypeVar("T")


def is_large(body: IO[bytes]) -> bool:
    """Tell whether a request's body is so large that it is in a file."""
    return body.seek(0, SEEK_END) > SMALL


def kept(body: bytes) -> IO[bytes]:
    """Return a body as a file: in memory, or on disk if it is large."""
    file = SpooledTemporaryFile(SMALL)  # noqa: SIM115 - it closes itself when nobody needs it any more
    file.write(body)
    return file


def mapped(body: IO[bytes], look: Callable[[bytes | mmap], T]) -> T:
    """Let `look` look at a body, without reading it into memory if it is large."""
    if not is_large(body):
        return look(whole(body))
    body.flush()
    with mmap(body.fileno(), 0, access=ACCESS_READ) as view:
        return look(view)


def whole(body: IO[bytes]) -> bytes:
    """Return all of a request's body."""
    body.seek(0)
    return body.read()


def producer(body: IO[bytes], size: int, clock: IReactorTime) -> IBodyProducer:
    """Return what sends a request's body of so many bytes: a large one piece by piece, as fast as it is taken."""
    if size <= SMALL:
        return Bytes(whole(body))
    # A view of its own on the same bytes: an answer may come, and end the request, before all of it is sent; and others
    # may read the file meanwhile.
    body.flush()
    view: Any = mmap(body.fileno(), 0, access=ACCESS_READ)
    return FileBodyProducer(view, Cooperator(scheduler=lambda work: clock.callLater(0, work)))


@implementer(IBodyProducer)
class Bytes:
    """A request body that is in memory already.

    Twisted's `FileBodyProducer` would do, but it hands out a body in portions, one in each turn of the reactor:
    right for a large file, a detour for a few bytes.
    """

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write all of it.  Called by the Agent, which buffers what the network does not take yet."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing is left to pause.  Called by the Agent, as the other two."""

    def resumeProducing(self) -> None:
        """Nothing is left to resume."""

    def stopProducing(self) -> None:
        """Nothing is left to stop."""
