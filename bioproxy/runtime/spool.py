"""Keeps a request's body: in memory while it is small, in a temporary file once it is large.

Python's `SpooledTemporaryFile` does that.  But writing to it may fail: the disk is full, the folder was removed, or the
process has too many open files.  Twisted hands over a body piece by piece, from inside its code that reads a
connection, and an exception there closes the connection without an answer.  So a failure is turned into `Unavailable`,
an error that the client can be told.

Writing to a file blocks, and while it does, the reactor serves nobody else.  That is accepted here: what is written are
pieces of at most 64 KiB, which the operating system keeps in memory and writes later.

Does not know what the body is, nor when a request is complete; `bioproxy.http.request_body` does.
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
"""Bytes of a body up to which it is kept in memory; a larger one is in a temporary file.

With half of it more requests depend on the disk; with twice as much a thousand waiting requests may take 256 MB.
"""

RETRY_AFTER = 30
"""Seconds after which a client may try again when a temporary file cannot be written.

A full disk is seldom emptied sooner.  With half of it clients repeat large requests in vain more often; with twice as
much they stay away longer than needed.
"""

SAY_AGAIN = 600.0
"""Seconds after which the log repeats the same failure.

A full disk fails each large request.  Half of it repeats the line more often while the log may be on the same disk;
twice as much makes it harder to see that the trouble still lasts.
"""

log = Logger()

_said: dict[int | None, float] = {}
"""When each failure was logged last, by its `errno`, in seconds of the monotonic clock.

A variable of the module, because `tempfile` has one folder for the whole process, whatever port a request comes in by.
"""


class Spool(SpooledTemporaryFile[bytes]):
    """A body, empty at first, as a file.

    After a failed `write` the content is incomplete, and the body must not be used.  The temporary file has no name on
    the disk, so it is gone when the object is, also if the process is killed.
    """

    def __init__(self) -> None:
        """Make an empty body in memory."""
        super().__init__(SMALL)

    def write(self, data: Any) -> int:
        """Append some bytes; return how many.  Raises `Unavailable` if they cannot be kept."""
        with kept_on_disk():
            size = super().write(data)
            # Python collects small pieces and writes them together later, for example when somebody reads.  Then a full
            # disk would show up only after the request was accepted.
            self.flush()
        return size


@contextmanager
def kept_on_disk() -> Iterator[None]:
    """Turn a temporary file's `OSError` into `Unavailable` with the reason, and log each reason now and then."""
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
        # Not the error's own text: it has the names of folders, which a client must not learn.
        reason = os.strerror(code) if code is not None else "no reason given"
        raise Unavailable(f"a large request cannot be kept in a temporary file now: {reason}", RETRY_AFTER) from None
