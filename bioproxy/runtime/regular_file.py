"""Reads files whose names users give: keys, the configuration, templates, models.

Such a name may be that of a named pipe, and opening a named pipe waits until another program opens it for writing,
perhaps forever.  In Twisted's one thread that would stop everything; in a thread of the pool it would occupy the
thread.  A device may never end, as ``/dev/zero`` does.  So all that is no regular file is refused, with the same words
everywhere.  That includes a pipe with a writer, such as the shell's ``<(command)``: most of these files are read again
at a reload, and a pipe gives its content only once.

Blocking, without Twisted.  Does not know what the files are for.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_regular(path: Path | str, most: int = -1) -> bytes:
    """Return the first `most` bytes of a file, or with -1 all of them.

    Raises `OSError`, whose `strerror` is fit for users, if the file cannot be read or is not a regular file.
    """
    # With O_NONBLOCK a named pipe is opened at once.  For a regular file it changes nothing.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read(most)
