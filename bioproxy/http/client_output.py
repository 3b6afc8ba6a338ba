"""The way out: an answer's body on its way to a client that may read slowly.

A fast sender and a slow reader let a proxy's memory grow by everything in between.  Twisted's solution is *producers
and consumers*.  A producer is whatever makes data, a consumer whatever takes it, here the client's connection.  The
producer registers with the consumer (`registerProducer`), and from then on the consumer calls it: `pauseProducing` when
its send buffer has more than 64 KiB, `resumeProducing` when the buffer is empty again, `stopProducing` when the
connection is lost.  Nothing forces a producer to obey: what is written to a full connection is kept in memory.

`ClientOutput` is the producer of the client's connection.  Its own data comes from a source, the connection from
llama-server, which is a producer, too, and stops reading its socket while it is paused.  In a picture, bytes go to the
right, and the calls that slow their sender down to the left::

    llama-server -> source -> write -> [kept bytes] -> request.write -> [send buffer of 64 KiB] -> client
                    source.pauseProducing <- ClientOutput.pauseProducing <- Twisted

This module knows neither llama-server nor the gate, only a source that can be paused.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.web.server import Request
from zope.interface import implementer

from bioproxy.http.buffer_budget import OTHER_BUFFER_BYTES, BufferBudget
from bioproxy.http.deadlines import CLIENT_STALL_SECONDS, Deadline
from bioproxy.http.send_now import send_now


@implementer(IPushProducer)
class ClientOutput:
    """The body of one answer, between its source and the client's connection.

    A proxy could simply pass each `pauseProducing` on to its source, and TCP would slow llama-server down to the
    client's speed.  Here that would be wrong: while llama-server waits for one slow client, its only slot is taken, and
    all other users wait, too.  Answers are small, so up to `buffer_limit` bytes are kept here, and the source is paused
    only beyond that.  Once llama-server has sent everything, the slot is free while the client reads the rest.  A
    client that reads too little for `CLIENT_STALL_SECONDS` is treated as gone.

    Invariant: bytes leave in the order in which they were written, and nothing is kept while the connection has room.
    From `begin` until `done` has fired this object is the registered producer of `request`.

    The code that relays an answer calls `write` and `end`, or `withdraw` or `fail` if there is an error.  Twisted calls
    the three methods of `IPushProducer`, whose names are in camelCase for that reason.  All of them run in the
    reactor's thread, one after another, so there are no locks.  But one may run *inside* another: a write may call
    `pauseProducing` before it returns.  Therefore each method first brings its own state in order, and only then calls
    others.
    """

    def __init__(self, request: Request, clock: IReactorTime, buffers: BufferBudget) -> None:
        self.request = request
        """The request that is answered.  It is also the consumer: what is written to it goes to its connection."""

        self.buffer_limit = OTHER_BUFFER_BYTES
        """Bytes to keep for this client before its source is paused.  May be changed at any time."""

        self.done: Deferred[None] = Deferred()
        """Fires when the answer has ended: the connection has taken all of it and had room, or it was broken off.

        Never fails.  It does not fire when the client has gone: then the request is cancelled as a whole.  Cancelling
        it only ends the waiting; the bytes that are kept are still sent.
        """

        self.begun = False
        """Whether `begin` was called: the connection belongs to this object."""

        self.ended = False
        """Whether `end` was called: nothing more is written."""

        self._buffers = buffers
        # `None` if there is nothing to pause: the answer has ended, or llama-server's had arrived as a whole with its
        # head, or the data is the proxy's own.
        self._source: IPushProducer | None = None
        # What was written while the connection was full, oldest piece first, and its size in bytes.
        self._kept: deque[bytes] = deque()
        self._kept_size = 0
        # Two facts, each set by one event: the connection is full; the connection is lost.
        self._paused = False
        self._client_gone = False
        # Whether the answer is one whose length is not known before its end.
        self._is_stream = False
        # Resets the connection of a client that reads nothing.  It runs exactly while the connection is full.
        self._stall_deadline = Deadline(clock.callLater)

    def begin(self) -> None:
        """Become the producer of the client's connection.  Further calls do nothing.  The first write sends the head.

        Twisted allows one producer at a time, so it is registered only when there is something to send: an error that
        is written before that needs none.  `True` means that this is a push producer, one that sends by itself until
        it is paused; a pull producer would be asked for each piece.
        """
        if not self.begun:
            self.begun = True
            self._is_stream = not self.request.responseHeaders.hasHeader(b"content-length")
            self.request.registerProducer(self, True)

    def connect(self, source: IPushProducer) -> None:
        """Name the producer of the data that `write` gets, so that it can be paused.

        A source is not registered as Twisted's consumers do it (`registerProducer`): llama-server's connection delivers
        to a protocol (`bioproxy.http.response_body`), which passes each piece to `write`.
        """
        self._source = source

    def write(self, data: bytes) -> None:
        """Send a piece of the body to the client, or keep it until the connection has room."""
        # llama-server's connection may still deliver what it had read before the client's was lost.  Keeping that would
        # use up the common budget, since nothing would ever write it or drop it again.
        if self._client_gone:
            return
        if not self._paused:
            # Nothing is kept at this point, otherwise these bytes would overtake older ones: only a full connection
            # makes us keep any, and `resumeProducing` writes them all, unless it is paused again.
            self.request.write(data)
            # The client waits for a token, and none will follow in this turn: what one read from llama-server's
            # connection has brought comes as one piece.  An answer that is no stream leaves with its end.
            if self._is_stream:
                send_now(self.request.channel.transport)
            return
        self._kept.append(data)
        self._count(len(data))
        # Calling this for each further piece does no harm: pausing a paused producer is allowed.
        if (self._kept_size > self.buffer_limit or self._buffers.is_exhausted) and self._source is not None:
            self._source.pauseProducing()

    def end(self) -> None:
        """Declare the body complete: nothing is written after this.

        The caller need not wait for the client: what is kept is written as the client reads, without the
        source, and `done` tells when that is over.
        """
        self._source = None
        self.ended = True
        # A full connection is waited for even if nothing is kept here.  Finishing would let Twisted parse the client's
        # next request, whose answer would be written into the same full buffer, and so on without a limit.
        if not self._kept and not self._paused:
            self._finish()

    def withdraw(self) -> None:
        """Release the connection before anything was written, so that another answer can be sent on it."""
        if self.begun:
            self._release()
            self.done.callback(None)

    def fail(self, event: bytes) -> None:
        """End an answer that has begun and cannot be completed, in a way that never looks complete.

        The status has gone out already.  In a stream of events, `event` is sent as the last one and says what happened.
        Any other body has no place for an error, so its connection is reset: the client then misses bytes of the
        announced length, or the last chunk.
        """
        headers = self.request.responseHeaders
        content_type = headers.getRawHeaders(b"content-type", [b""])[0]
        if content_type.startswith(b"text/event-stream") and not headers.hasHeader(b"content-length"):
            # An empty line ends an event.  The last event may have been cut in the middle, and without the empty line
            # this one would be read as a part of it.
            self.write(b"\n\n" + event)
            self.end()
        else:
            self._release()
            # Not finished: `finish` would write the last chunk, and the answer would look complete.  Abort before
            # firing `done`, which resumes the coroutine that waits for it: the answer has ended by then.  Not by
            # `forceAbortClient`, which would log that the client was too slow.
            connection: Any = self.request.channel.transport
            connection.abortConnection()
            self.done.callback(None)

    def pauseProducing(self) -> None:
        """Keep what is written from now on.  Called by Twisted when the client's send buffer is full.

        It may be called in the middle of `request.write`, for that write is what fills the buffer.  The time of a
        client that reads nothing starts here, anew for each full buffer.
        """
        self._paused = True
        # A polite close would wait for the client to read.
        self._stall_deadline.start(CLIENT_STALL_SECONDS, self.request.channel.forceAbortClient)

    def resumeProducing(self) -> None:
        """Write what was kept, as far as there is room.  Called by Twisted when the client's send buffer is empty."""
        self._paused = False
        self._stall_deadline.stop()
        # The send buffer is Twisted's, in this process.  The kernel has another one behind it, so the client need not
        # have read all of that yet.
        #
        # Each write may fill the buffer, and then Twisted calls `pauseProducing` before the write returns.  Without
        # looking at `_paused` each time, all that is kept would be poured into the connection at once.
        while self._kept and not self._paused:
            piece = self._kept.popleft()
            self._count(-len(piece))
            self.request.write(piece)
        if self.ended and not self._kept and not self._paused:
            self._finish()
        # The source may go on as soon as there is room for one more piece, not only when all is written: llama-server
        # then computes while the client reads.  Where nothing is kept for this client it may go on in any case, or one
        # exhausted budget, used by others, could stop it for ever.
        elif self._source is not None and (
            not self._kept or (self._kept_size <= self.buffer_limit and not self._buffers.is_exhausted)
        ):
            self._source.resumeProducing()

    def stopProducing(self) -> None:
        """Drop everything and stop the source.  Called by Twisted when the client's connection is lost.

        `done` does not fire.  The loss of the connection also cancels the coroutine that answers the request, wherever
        it is waiting (`bioproxy.http.resources`).
        """
        self._client_gone = True
        self._stall_deadline.stop()
        self._drop_kept()
        if self._source is not None:
            self._source.stopProducing()

    def _finish(self) -> None:
        """Complete the answer: Twisted writes the last chunk, and goes on with the client's next request."""
        self._release()
        # The request knows its connection only until it is finished.
        connection = self.request.channel.transport
        self.request.finish()
        # The client has waited long enough: what is noted and logged about its request comes after its last byte.
        send_now(connection)
        # Last, because it resumes the coroutine that waits for it.
        self.done.callback(None)

    def _release(self) -> None:
        """Stop being the producer of the client's connection, as before every end.

        Twisted logs an error if a request is finished that still has a producer, and the next request on the connection
        could not register its own.
        """
        self._stall_deadline.stop()
        self._source = None
        self._drop_kept()
        self.request.unregisterProducer()

    def _count(self, size: int) -> None:
        """Add so many bytes, or take them off, here and in the common budget."""
        self._kept_size += size
        self._buffers.used += size

    def _drop_kept(self) -> None:
        """Keep nothing any more, and give the budget back what that used."""
        self._kept.clear()
        self._count(-self._kept_size)
