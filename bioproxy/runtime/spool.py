"""Where a request's body is kept: in memory while it is small, in a temporary file from then on.

Python's `SpooledTemporaryFile` does that.  But the disk may be full, the folder gone, or all files open that a process
may have, and then writing raises.  Twisted calls us with each piece of a body from the middle of reading a connection:
an exception there ends the connection without a word.  So a failure becomes what a client can be told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from time import monotonic
from typing import Any

from twisted.logger import Logger

from bioproxy.runtime.errors import Unavailable

SMALL = 128 * 1024
"""Bytes of a request's body that are kept in memory and sent in one piece; a larger one is in a temporary file."""

RETRY_AFTER = 30
"""Seconds after which a client may try again.  What fills a disk is seldom gone sooner."""

SAY_AGAIN = 600.0
"""Seconds until the log says the same once more."""

log = Logger()

# There is one disk for all ports, as there is one `tempfile.tempdir`, so what was said of it is kept here.
_said: dict[int | None, float] = {}


class Spool(SpooledTemporaryFile[bytes]):
    """A body, empty at first.  It closes itself when nobody needs it any more."""

    def __init__(self) -> None:
        super().__init__(SMALL)

    def write(self, data: Any) -> int:
        """Add some bytes.  Raises `Unavailable` where they cannot be kept; the body is of no use then."""
        with kept_on_disk():
            size = super().write(data)
            # Python writes small pieces when it has some more of them, or when somebody reads: too late to refuse.
            self.flush()
        return size


@contextmanager
def kept_on_disk() -> Iterator[None]:
    """Turn a temporary file's `OSError` into an `Unavailable` that says why, and tell the log of it now and then."""
    try:
        yield
    except OSError as error:
        now, code = monotonic(), error.errno
        if code not in _said or now - _said[code] >= SAY_AGAIN:
            _said[code] = now
            log.error(
                "no temporary file can be written, so requests of more than {size} bytes are refused: {error}",
                size=SMALL,
                error=error,
            )
        # Not the error's own text: it names folders, which are none of a client's business.
        reason = os.strerror(code) if code is not None else "no reason given"
        raise Unavailable(f"a large request cannot be kept in a temporary file now: {reason}", RETRY_AFTER) from None
