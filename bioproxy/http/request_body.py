"""A request's body on its way through: read where it lies, and sent on without being copied.

A small body is in memory; a larger one lies in a temporary file, since it may wait for long, and many may.  A body
in which templates were filled is a list of *pieces*, parts of the body as it came and texts that are in memory anyhow,
so it takes no room of its own.

A body is sent by a *producer*, Twisted's word for something that gives data to a connection as fast as that takes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
"""Bytes of a body that is read at once.

Reading JSON takes up to 2 ms for each kilobyte (of nothing but tiny messages), and nobody else is served meanwhile.
"""

PORTION_SIZE = 64 * 1024
"""Bytes of a large body that are handed to the network at a time."""


class RequestBody:
    """A body of `size` bytes, in a file that is in memory if it is small.

    It is all of the file, or made of `pieces`.
    """

    def __init__(self, file: IO[bytes], pieces: Sequence[Piece] | None = None) -> None:
        self._file = file
        self._file_size = file.seek(0, SEEK_END)
        self._pieces = [slice(0, self._file_size)] if pieces is None else pieces
        self.size = sum(len(each) if isinstance(each, bytes) else each.stop - each.start for each in self._pieces)

    def filled(self, pieces: Sequence[Piece]) -> RequestBody:
        """Return the body that these pieces make of it."""
        return RequestBody(self._file, pieces)

    @property
    def is_short(self) -> bool:
        """Whether the body as it came may be read at once."""
        return self._file_size <= SHORT_BODY

    def arrived(self) -> bytes:
        """Return the body as it came.  For small ones."""
        self._file.seek(0)
        return self._file.read()

    def fileno(self) -> int:
        """Return the file descriptor of the body as it came; one that was in memory goes to a file for that.

        Raises `Unavailable` where there is no room for it.
        """
        with kept_on_disk():
            self._file.flush()
            return self._file.fileno()

    def producer(self, clock: IReactorTime) -> IBodyProducer:
        """Return what sends the body: at once if it is short, else portion by portion, as fast as it is taken.

        Raises `Unavailable` where no more files can be opened.
        """
        small = self._file_size <= SMALL
        if small and self.size <= SMALL:
            return BytesProducer(b"".join(portions(self.arrived(), self._pieces)))
        # A view of its own on the same bytes: an answer may come, and end the request, before all of it is sent; and
        # others may read the file meanwhile.
        with kept_on_disk():
            source = self.arrived() if small else mmap(self.fileno(), 0, access=ACCESS_READ)
        sending = FileBodyProducer(PortionFile(source, self._pieces), Cooperator(scheduler=partial(clock.callLater, 0)))
        sending.length = self.size
        return sending


def portions(source: bytes | mmap, pieces: Iterable[Piece]) -> Iterator[bytes]:
    """Yield what pieces of a source make, in portions of about `PORTION_SIZE` bytes."""
    portion = bytearray()
    for piece in pieces:
        part, begin, end = (source, piece.start, piece.stop) if isinstance(piece, slice) else (piece, 0, len(piece))
        for at in range(begin, end, PORTION_SIZE):
            portion += part[at : min(at + PORTION_SIZE, end)]
            if len(portion) >= PORTION_SIZE:
                yield bytes(portion)
                portion.clear()
    if portion:
        yield bytes(portion)


class PortionFile:
    """PortionFile of a body in the guise of a file, which is what Twisted's `FileBodyProducer` reads from."""

    def __init__(self, source: bytes | mmap, pieces: Iterable[Piece]) -> None:
        self._source = source
        self._portions = portions(source, pieces)

    def read(self, _size: int) -> bytes:
        """Return the next portion, or nothing at the end."""
        return next(self._portions, b"")

    def close(self) -> None:
        """Let go of the source.  Called by the producer when it ends or is stopped."""
        if isinstance(self._source, mmap):
            self._source.close()


@implementer(IBodyProducer)
class BytesProducer:
    """A request body that is in memory already.

    Twisted's `FileBodyProducer` would do, but it hands out a body in portions, one in each turn of the reactor:
    right for a large body, a detour for a few bytes.
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
