"""Has a slot file in two folders: as a hard link where both are on one file system, or else as a copy.

A hard link is a second name of the same file.  It costs no time and no space, and the file stays until both names are
removed.  It also means that a program that writes into the file under one name changes it under the other.  That does
not happen here: bioproxy has llama-server write to new files only (`bioproxy.slot_files.saving`), and size and time of
a file are compared before it is used.

Slot files are large: tens of megabytes for a short conversation, gigabytes for a long one.  So the difference matters.
With the shelf and the slot folders on one disk a link takes microseconds, publishing costs nothing, and a user does not
wait for a fetch.  With a network disk a copy takes as long as the network does.

A copy is made under another name, written to the disk, and renamed at the end.  So a process that dies meanwhile leaves
a draft, which nobody takes for a slot file.  A link needs no draft: it is there or it is not.

All of this blocks, and on a network disk that hangs for ever.  It is called in threads only, so it touches nothing that
belongs to Twisted's thread, where a blocking call would stop all clients at once.

Does not know which files these are, nor the records of them.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from bioproxy.slot_files.folder import RESERVE, free_bytes


def is_as_recorded(file: Path, size: int, modified: int | None) -> bool:
    """Tell whether a file has this size in bytes and this time in nanoseconds.  Raises `OSError`.

    `modified` may be `None` for a file whose time was never seen.  The content is not read: that would take as long as
    computing a small prompt, and llama-server, which writes these files, changes the time with each write.
    """
    found = file.stat()
    return found.st_size == size and modified in (None, found.st_mtime_ns)


def link_or_copy(source: Path, target: Path) -> int:
    """Have a file under a second name, which must be free; return its modification time in nanoseconds.

    Raises `OSError`, also if too little would be free after copying; then there is no file at `target`.
    """
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        # Another file system, or one without hard links.  Which error that is depends on the file system, so any other
        # one is taken for it; a disk that is really in trouble fails at the copy, too.
        draft = target.with_suffix(".new")
        # Asked before, because a disk that becomes full in the middle takes space from everybody until the draft is
        # gone.
        if free_bytes(target.parent) < source.stat().st_size + RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from None
        try:
            shutil.copyfile(source, draft)
            # On the disk before the entry that names it is.
            with open(draft, "rb") as opened:
                os.fsync(opened.fileno())
            os.rename(draft, target)
        except OSError:
            with suppress(OSError):
                draft.unlink()
            raise
    return target.stat().st_mtime_ns
