"""A request that arrives: Twisted's, which takes its body piece by piece, and may have been refused meanwhile.

Twisted makes one for each head that comes in on a connection (`bioproxy.http.channel`), gives it its body as that
comes, and at last has it processed.  The body goes to a `Spool`, a file that is in memory while it is small.
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

    def cut_short(self) -> None:
        """Have the request answered before its body is complete."""

    def forceAbortClient(self) -> None:
        """End the connection at once."""


class IncomingRequest(Request):
    """A request, and why it is refused, if it is."""

    channel: Connection  # type: ignore[assignment]  # of the channel no more is used than that
    content: IO[bytes]
    refusal: ProxyError | None = None
    size = 0

    def gotLength(self, length: int | None) -> None:
        """Prepare for the body.  Called by Twisted when the head is complete."""
        self.content = Spool()  # Twisted closes it at the end of the request

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body.  Called by Twisted."""
        if self.refusal is not None:
            return
        self.refusal = self.channel.site.limits.take(self.size, len(data))
        if self.refusal is None:
            self.size += len(data)
            try:
                self.content.write(data)
            except ProxyError as error:
                self.refusal = error
        if self.refusal is not None:
            self._let_go()
            self.channel.cut_short()

    def _let_go(self) -> None:
        """Drop what came of the body: it may well be what fills the disk."""
        with suppress(OSError):  # closing writes what is left, and fails like writing; closed it is all the same
            self.content.close()
        self.content = BytesIO()  # Twisted looks at it once more before the request is answered

    def process(self) -> None:
        """Have the request answered.  Called by Twisted when it is complete."""
        if self.path == b"*":
            self.path = b"/"  # Twisted would answer this by itself; `uri` still says what was asked for
        super().process()

    def getRequestHostname(self) -> bytes:
        """Return a name that will do.

        Called by Klein, which needs it to build addresses.  Nothing here does, and a request may be without a host.
        """
        return b"localhost"
