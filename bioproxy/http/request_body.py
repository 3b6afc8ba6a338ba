"""A request's body on its way through: kept in memory or in a file, and sent on without a copy of the whole.

A small body is in memory.  A large one is in a temporary file, since it may have to wait for minutes and many may wait.
A body in which templates were filled consists of *pieces*: ranges of the body as it was received, and texts that are in
memory in any case.  So filling takes no room of its own, however large the body is.

In Twisted nothing sends a file by itself.  Twisted's HTTP client asks for a *body producer*, an object that tells its
`length` and has a method `startProducing`.  That gets the connection (the *consumer*), writes to it, and returns a
Deferred which fires when all is written.  If the connection's send buffer is full, the client calls `pauseProducing`;
the producer must then stop writing until `resumeProducing`, or the buffer grows to the size of the whole body and the
temporary file has saved nothing.

A body of 64 MiB cannot be written in one go either: the reactor has one thread, and while that reads a file, no other
client is served.  A *cooperator* calls an iterator for about 10 ms in each turn of the reactor, so other work gets its
turn in between.

This module does not know what is in a body or where it is sent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from mmap import ACCESS_READ, mmap
from os import SEEK_END
from typing import IO

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.task import Cooperator
from twisted.web.client import FileBodyProducer
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from bioproxy.prompts.filling import Piece
from bioproxy.runtime.spool import SMALL, kept_on_disk

SHORT_BODY = 16 * 1024
"""Bytes of a body that may be parsed in the reactor's thread; a longer one is parsed by the worker process.

Parsing and searching JSON takes up to 2 ms for each kilobyte (of nothing but tiny messages), and no other client is
served meanwhile.  Halved, more requests take the detour through the worker; doubled, a body made for that stops
everything for 64 ms instead of 32.
"""

PORTION_SIZE = 64 * 1024
"""Bytes of a large body that are written to the connection at a time, about.

It is the size of Twisted's send buffer.  Halved, a large body takes twice as many writes, pauses and resumptions;
doubled, each portion overfills the buffer and is copied more often.
"""


class RequestBody:
    """A body, in a file that is in memory if it is small.

    Invariant: the bytes of the file never change, and each function that reads them first seeks or has its own view.
    So one file can serve several bodies at once: the one that was received, and the one that filling makes of it.
    """

    def __init__(self, file: IO[bytes], pieces: Sequence[Piece] | None = None) -> None:
        """`pieces` make the body; a `slice` is a range of the file, `bytes` are a text.  `None` is the whole file."""
        self._file = file
        self._file_size = file.seek(0, SEEK_END)
        self._pieces = [slice(0, self._file_size)] if pieces is None else pieces

        self.size = sum(len(each) if isinstance(each, bytes) else each.stop - each.start for each in self._pieces)
        """Bytes of the body that is sent."""

    def filled(self, pieces: Sequence[Piece]) -> RequestBody:
        """Return the body that these pieces make.  Their ranges are those of the body as it was received.

        Nothing is copied, and nothing of the new body exists as a whole until it is sent.  This body stays valid: the
        templates are filled again, with their text of that moment, when the request's turn has come.
        """
        return RequestBody(self._file, pieces)

    @property
    def is_short(self) -> bool:
        """Whether the body as it was received may be parsed in the reactor's thread."""
        return self._file_size <= SHORT_BODY

    def as_received(self) -> bytes:
        """Return the whole body as it was received.  For small bodies, which are in memory anyway."""
        self._file.seek(0)
        return self._file.read()

    def to_bytes(self) -> bytes:
        """Return a copy of the whole body as it is sent.  Only for bodies that may be kept in memory."""
        return b"".join(portions(self.as_received(), self._pieces))

    def fileno(self) -> int:
        """Return the file descriptor of the body as it was received, for `mmap`.

        A body that was in memory is written to a temporary file for that.  Raises `Unavailable` if there is no room.
        The descriptor stays the property of the file: the caller must not close it.
        """
        # `kept_on_disk` turns a full disk or too many open files, `OSError` in Python, into an error that a client can
        # be told: 503 and when to try again.
        with kept_on_disk():
            # Python keeps the last bytes in a buffer of its own, which another process would not see.
            self._file.flush()
            return self._file.fileno()

    @contextmanager
    def open_elsewhere(self) -> Iterator[int]:
        """Provide a file descriptor of the body as it was received, for the worker process, until the block is left.

        Raises `Unavailable` if there is no room for a file.  The body can still be sent then.
        """
        if self._file_size > SMALL:
            yield self.fileno()
            return
        # A body in memory is copied to a file of its own.  `fileno` would move the body there instead, and if the disk
        # turns out to be full half-way, nothing whole would be left of it in either place.
        with kept_on_disk():
            copy = tempfile.TemporaryFile()  # noqa: SIM115  (closed below, in both cases)
            try:
                copy.write(self.as_received())
                # Python keeps the last bytes in a buffer of its own, which another process would not see.
                copy.flush()
            except OSError:
                # Closing tries to write the rest once more.
                with suppress(OSError):
                    copy.close()
                raise
        with copy:
            yield copy.fileno()

    def producer(self, clock: IReactorTime) -> IBodyProducer:
        """Return the object that sends the body: a small one at once, a large one portion by portion.

        `clock` schedules the portions.  Raises `Unavailable` if no more files can be opened.
        """
        small = self._file_size <= SMALL
        if small and self.size <= SMALL:
            return BytesProducer(b"".join(portions(self.as_received(), self._pieces)))
        # A small request may become large by filling: its ranges and the texts are in memory and need no file.  But it
        # is sent in portions, or everything would be copied into one large buffer.
        #
        # A large one is mapped into memory, which reads from the disk only what is touched.  The map is a view of its
        # own: llama-server may answer before it has read all, Twisted then closes the request's file, and the map stays
        # valid.  Nor does it share a position with `as_received` or with the worker process, which reads the same file.
        with kept_on_disk():
            source = self.as_received() if small else mmap(self.fileno(), 0, access=ACCESS_READ)
        # A delay of 0 s is the reactor's next turn.  The cooperator's default would use the global reactor, which tests
        # do not run.
        sending = FileBodyProducer(PortionFile(source, self._pieces), Cooperator(scheduler=partial(clock.callLater, 0)))
        # Twisted finds the length of a file by seeking, which ours cannot.  Without a length the body would go out in
        # chunks, and llama-server would get another request than the one that the client has sent.
        sending.length = self.size
        return sending


def portions(source: bytes | mmap, pieces: Iterable[Piece]) -> Iterator[bytes]:
    """Yield the bytes that pieces of a source make, in portions of about `PORTION_SIZE` bytes.

    A filled body has many tiny pieces and some huge ones.  Tiny ones are put together, because each portion is a write
    to the connection, and huge ones are cut, because each portion is copied.
    """
    portion = bytearray()
    for piece in pieces:
        part, begin, end = (source, piece.start, piece.stop) if isinstance(piece, slice) else (piece, 0, len(piece))
        for at in range(begin, end, PORTION_SIZE):
            portion += part[at : min(at + PORTION_SIZE, end)]
            if len(portion) >= PORTION_SIZE:
                # A copy: what was handed out must not change when the next portion is collected.
                yield bytes(portion)
                portion.clear()
    # The last portion may be short.  An empty one is never handed out: Twisted takes an empty read for the end.
    if portion:
        yield bytes(portion)


class PortionFile:
    """The portions of a body, with the two methods of a file that Twisted's `FileBodyProducer` calls."""

    def __init__(self, source: bytes | mmap, pieces: Iterable[Piece]) -> None:
        self._source = source
        self._portions = portions(source, pieces)

    def read(self, _size: int) -> bytes:
        """Return the next portion, or nothing at the end.  Called by Twisted until it is paused.

        Twisted asks for 64 KiB; a file may return fewer bytes than asked for, and this one may return a few more.
        """
        return next(self._portions, b"")

    def close(self) -> None:
        """Release the source.  Called by Twisted when all is sent, and when sending was stopped.

        Left to Python's garbage collector, the map would keep the deleted file's room on the disk for a while.
        """
        if isinstance(self._source, mmap):
            self._source.close()


@implementer(IBodyProducer)
class BytesProducer:
    """The producer of a body that is in memory as a whole.

    `FileBodyProducer` would do, but it writes in a later turn of the reactor, and begins one more turn after that to
    find the end: a detour for the few kilobytes of most requests.
    """

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        """Bytes of the body.  Twisted announces it in `Content-Length`."""

        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write the body to the connection.  Called by Twisted's HTTP client, after it has written the head.

        Returns a Deferred that has fired already, so cancelling it does nothing.  The connection keeps what the network
        does not take yet; a small body may be there as well as here.
        """
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Do nothing: all is written before the client can call this.  The interface demands this and the next two."""

    def resumeProducing(self) -> None:
        """Do nothing: nothing was paused."""

    def stopProducing(self) -> None:
        """Do nothing: nothing is going on that could be stopped."""
