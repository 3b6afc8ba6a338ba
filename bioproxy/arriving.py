"""A request that arrives: Twisted's, which takes its body piece by piece, and may have been refused meanwhile.

Twisted makes one for each head that comes in on a connection (`bioproxy.edge`), gives it its body as that comes, and at
last has it processed.  The body goes to a `Spool`, a file that is in memory while it is small.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from typing import IO, TYPE_CHECKING

from twisted.web.server import Request

from bioproxy.errors import ProxyError
from bioproxy.spool import Spool

if TYPE_CHECKING:
    from bioproxy.edge import Channel


class Arriving(Request):
    """A request, and why it is refused, if it is."""

    channel: Channel
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
        self.refusal = self.channel.site.crowd.take(self.size, len(data))
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
