"""Where an answer leaves for its client, who may read slowly.

A fast sender and a slow reader make a proxy's memory grow with everything in between.  Twisted's answer is called
*producers and consumers*: who produces data registers with the connection that consumes it, and is told to pause when
that connection's buffer is full (64 KiB), and to resume when it is empty again.

Simply passing that on to llama-server, all the way, would be wrong here: while llama-server waits for a slow client,
its slot is taken, and everybody else waits too.  Answers are small, so an `ClientOutput` stands in between.  It holds
up to `HELD` bytes of an answer that uses the slot, and only then lets llama-server wait; and once llama-server is
through, the slot is free, while the client reads what is left.  A client that does not even take a buffer's worth in
`PATIENCE` seconds, about a kilobyte a second, is not coming back: its connection is ended.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.web.server import Request
from zope.interface import implementer

HELD = 4 * 1024 * 1024
"""Bytes held at most, and a piece more, for one client who uses the slot."""

HELD_OTHERWISE = 64 * 1024
"""Bytes held at most, and a piece more, for a client who keeps nobody waiting."""

HELD_IN_ALL = 64 * 1024 * 1024
"""Bytes held at most for all clients together, and a piece more for each."""

PATIENCE = 60.0
"""Seconds in which a client must take what is in its connection's buffer, 64 KiB and a piece more."""


class Store:
    """How much is held for all clients together."""

    size = 0

    @property
    def full(self) -> bool:
        """Whether no more should be taken in."""
        return self.size > HELD_IN_ALL


@implementer(IPushProducer)
class ClientOutput:
    """The end of an answer's way.

    From `begin` to the end it is the producer of `request`; `over` fires at the end: everything was given to the
    connection, which had room for it, or the answer was broken off.  At most `limit` bytes are held for this client, in
    a common `store`.
    """

    def __init__(self, request: Request, clock: IReactorTime, store: Store) -> None:
        self.limit = HELD_OTHERWISE
        self.over: Deferred[None] = Deferred()
        self.begun = False
        self.request = request
        self._clock = clock
        self._store = store
        self._source: IPushProducer | None = None
        self._held: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._ended = False
        self._gone = False
        self._timer: IDelayedCall | None = None

    def begin(self) -> None:
        """Take over the client's connection, if that was not done before.  The first write sends the head."""
        if not self.begun:
            self.begun = True
            self.request.registerProducer(self, True)

    def connect(self, source: IPushProducer) -> None:
        """Say where the data comes from, so that it can be made to wait."""
        self._source = source

    def write(self, data: bytes) -> None:
        """Give the client a piece of the body, now or when it has room for it."""
        if self._gone:
            return
        if not self._paused:
            self.request.write(data)
            return
        self._held.append(data)
        self._count(len(data))
        if (self._size > self.limit or self._store.full) and self._source is not None:
            self._source.pauseProducing()

    def end(self) -> None:
        """Say that the body is complete: nothing comes from the source any more."""
        self._source = None
        self._ended = True
        # Not while the client's buffer is full: the next answer on this connection would only make it fuller.
        if not self._held and not self._paused:
            self._finish()

    def withdraw(self) -> None:
        """Let go of the connection before anything was written: there will be another answer."""
        if self.begun:
            self._let_go()
            self.over.callback(None)

    def fail(self, event: bytes) -> None:
        """End an answer that has begun and cannot be completed, so that it does not look complete.

        `event` tells what happened, where the answer is a stream of events.
        """
        headers = self.request.responseHeaders
        content_type = headers.getRawHeaders(b"content-type", [b""])[0]
        if content_type.startswith(b"text/event-stream") and not headers.hasHeader(b"content-length"):
            # The empty line first: the last event may have been cut in the middle.
            self.write(b"\n\n" + event)
            self.end()
        else:
            self._let_go()
            # Whatever is still written, by Klein's `finish` for example, goes nowhere: the mark of a whole answer too.
            self.request.channel.forceAbortClient()
            self.over.callback(None)

    def pauseProducing(self) -> None:
        """Hold what comes.  Called by Twisted when the client's buffer is full."""
        self._paused = True
        self._stop_timer()
        self._timer = self._clock.callLater(PATIENCE, self._give_up)

    def resumeProducing(self) -> None:
        """Write what was held, as far as there is room.  Called by Twisted when the client's buffer is empty."""
        self._paused = False
        self._stop_timer()
        while self._held and not self._paused:  # writing may fill the buffer, and pause us, in the middle
            piece = self._held.popleft()
            self._count(-len(piece))
            self.request.write(piece)
        if self._ended and not self._held and not self._paused:
            self._finish()
        elif self._source is not None and (not self._held or (self._size <= self.limit and not self._store.full)):
            self._source.resumeProducing()

    def stopProducing(self) -> None:
        """Drop everything.  Called by Twisted when the client is gone; Klein then cancels what waits for `over`."""
        self._gone = True
        self._stop_timer()
        self._drop()
        if self._source is not None:
            self._source.stopProducing()

    def _finish(self) -> None:
        self._let_go()
        self.request.finish()
        self.over.callback(None)  # last: it sets off Klein, which finishes what is not finished

    def _let_go(self) -> None:
        self._stop_timer()
        self._source = None
        self._drop()
        self.request.unregisterProducer()

    def _count(self, size: int) -> None:
        self._size += size
        self._store.size += size

    def _drop(self) -> None:
        """Hold nothing any more."""
        self._held.clear()
        self._count(-self._size)

    def _give_up(self) -> None:
        """End the connection of a client that takes nothing."""
        self._timer = None
        self.request.channel.forceAbortClient()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
