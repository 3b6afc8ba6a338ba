"""A request that arrives: Twisted's, which takes its body piece by piece, and may have been refused meanwhile.

Twisted makes one for each head that comes in on a connection (`bioproxy.edge`), gives it its body as that comes, and at
last has it processed.  The body goes to a file that is in memory while it is small.
"""

from __future__ import annotations

from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING

from twisted.web.server import Request

from bioproxy.errors import ProxyError
from bioproxy.request_body import SMALL

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
        self.content = SpooledTemporaryFile(SMALL)  # noqa: SIM115 - Twisted closes it at the end of the request

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body.  Called by Twisted."""
        if self.refusal is not None:
            return
        self.refusal = self.channel.site.crowd.take(self.size, len(data))
        if self.refusal is not None:
            return self.channel.cut_short()
        self.size += len(data)
        self.content.write(data)

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
