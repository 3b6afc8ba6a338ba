"""A request while it arrives: its body is counted and kept piece by piece, and it may be refused at any moment.

Twisted makes one object of this class for each head that arrives on a connection (`bioproxy.http.channel`).  It calls
`gotLength` when the head is complete, `handleContentChunk` for each piece of the body, and `process` at the end, which
starts the code that answers the request.  So a body is complete before anybody looks at it.  For a proxy in front of a
queue that is right: the body has to be searched for templates, and may have to wait for minutes in any case.

The body goes to a `Spool`, a file that stays in memory while it is small, so a hundred waiting requests with long
conversations do not fill the memory.

Each of Twisted's calls comes from the middle of its parser, where an exception would end the connection without an
answer.  So nothing is raised here: an error becomes the request's `refusal`, and the request is answered early.  The
class does not know how an answer looks, nor what the limits are.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from typing import IO, Any, Protocol

from twisted.web.server import Request

from bioproxy.runtime.errors import ProxyError
from bioproxy.runtime.spool import Spool


class Connection(Protocol):
    """What a request needs of the connection that it came on (`bioproxy.http.channel.Channel`)."""

    site: Any
    """The port's `CheckedSite`, which has the `limits`."""

    transport: Any
    """The network connection below, which Twisted writes to."""

    def end_request_early(self) -> None:
        """Have the request answered before its body is complete."""


class IncomingRequest(Request):
    """A client's request.

    Invariant: from the moment in which `refusal` is set nothing more of the body is counted or kept.
    """

    channel: Connection  # type: ignore[assignment]  # no more of the channel is used than that
    """The connection.  Set by Twisted."""

    content: IO[bytes]
    """The body, or what has arrived of it.  Twisted closes it after the answer."""

    refusal: ProxyError | None = None
    """Why this request is refused, or `None`.  Code that answers requests must look at this first."""

    size = 0
    """Bytes of the body that have arrived and are counted in the port's limits."""

    def gotLength(self, length: int | None) -> None:
        """Prepare for a body of `length` bytes, `None` for chunks.  Called by Twisted when the head is complete.

        Twisted's method keeps bodies below 100 KB in memory and any other in a `TemporaryFile`, where a full disk
        raises.  Unlike a plain file, a `Spool` raises an error that a client can be told.
        """
        self.content = Spool()

    def handleContentChunk(self, data: bytes) -> None:
        """Count and keep a piece of the body.  Called by Twisted."""
        # The call that answers the request early waits for the reactor's next turn.  Until then Twisted continues to
        # parse, and what it still hands over must not be counted again.
        if self.refusal is not None:
            return
        # Count before writing, so that a body that is too large never reaches the disk.
        self.refusal = self.channel.site.limits.reserve_body_bytes(self.size, len(data))
        if self.refusal is None:
            # Add it before writing: the bytes are reserved now, and given back by `size` even if writing fails.
            self.size += len(data)
            try:
                self.content.write(data)
            except ProxyError as error:
                self.refusal = error
        if self.refusal is not None:
            self._drop_body()
            self.channel.end_request_early()

    def _drop_body(self) -> None:
        """Delete what has arrived of the body.  It may be what fills the disk, and the refusal may take seconds."""
        # Closing writes what is still in Python's buffer, which fails like any other write.  The file is closed, and
        # so deleted, nevertheless.
        with suppress(OSError):
            self.content.close()
        # Twisted rewinds the content before it calls `process`, so there has to be some.
        self.content = BytesIO()

    def process(self) -> None:
        """Have the request answered.  Called by Twisted when it is complete, or when it is refused."""
        # ``OPTIONS *`` asks about the server as a whole.  Twisted would answer it by itself and without llama-server;
        # with another `path` it does not.  `uri` still has the target as it was sent.
        if self.path == b"*":
            self.path = b"/"
        super().process()

    def getRequestHostname(self) -> bytes:
        """Return a host name that is always valid.

        Called by Klein on the operator's port, which needs the name to build links.  Nothing here builds links.  A
        request of HTTP/1.0 may have no `Host` header, and then Twisted's method returns the port's address, which a
        Unix socket has not.
        """
        return b"localhost"
