"""What the shared folder looks like, and what its file system must be able to do.

The folder has three folders in it, and nothing else.  No process owns it: each makes what is missing, and none may
assume that it is alone.  So everything that several processes must not do at the same time rests on a few operations
that a file system carries out as a whole:

* *creating* a file that must not exist.  The kernel, or the server of a network disk, lets exactly one of several
  callers succeed.  Who computes a prompt is decided by that (`bioproxy.shared.leases`).
* *renaming* a file over another one.  A reader finds the old content or the new one, never half of one.  Entries are
  written that way.
* *listing* a folder, which must show at once what somebody else has created there.

Local file systems do all three.  Network file systems mostly do, but some cache listings for seconds, and some layers
for cloud storage let two callers create the same file.  On those the shelf would fail in rare moments that nobody could
explain.  So each process tries all three out before it uses the folder, and once more after each trouble.

All of this blocks, so it is called in threads only (`bioproxy.shared.disk`).  Nothing of Twisted is known here.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from bioproxy.runtime.state_folder import StateFolder

ENTRIES, FILES, LEASES = "entries", "files", "leases"
"""The folders in the shared folder: what there is, the slot files, and who is computing what."""


def create_once(file: Path, content: bytes) -> bool:
    """Create a file that must not be there yet; return whether this call has created it.  Raises `OSError`."""
    # `O_EXCL` is what makes this one operation.  To ask first and create then would be two, with room for another
    # process between them.
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    # The content is a second step.  Somebody who reads between the two finds an empty file, which for a lease means a
    # holder without a name: it is held.
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
    except OSError:
        # On a full disk a file can be created and not written.
        with suppress(OSError):
            os.unlink(file)
        raise
    return True


def prepare(path: Path, small_files: StateFolder, known_device: int | None) -> int:
    """Make the folders in `path`, and try out what is relied on; return the number of the file system.

    `small_files` writes and removes files in `path`.  `known_device` is what an earlier call has returned, `None`
    before the first one.  Raises `OSError` if the folder is of no use.
    """
    # Made once, and without the folders above.  A disk that is not mounted must not be replaced by a folder on the
    # disk below it, where this process would be alone and nobody would notice.
    if known_device is None and not path.exists():
        path.mkdir(exist_ok=True, mode=0o700)
    device = path.stat().st_dev
    # The same at a later time: the disk was unmounted while bioproxy ran, and what is seen now is the empty folder on
    # which it was mounted.
    if not (path / ENTRIES).is_dir() and known_device not in (None, device):
        raise OSError("another disk than before, and an empty one: is it mounted?")
    # Only the owner may look in: slot files tell what users have said.
    for name in (ENTRIES, FILES, LEASES):
        (path / name).mkdir(exist_ok=True, mode=0o700)
    # A name of its own: another process may be checking at the same moment.
    probe = f"{LEASES}/probe-{secrets.token_hex(8)}"
    try:
        # Leases rely on this: if two processes create the same file, only one succeeds.
        if not create_once(path / probe, b"1") or create_once(path / probe, b"2"):
            raise OSError("a file can be created twice")
        # Entries need that a rename replaces a file as a whole, and that everybody sees the names at once.
        content = {"whole": True}
        small_files.write(f"{probe}.json", content)
        listed = f"{probe}.json" in small_files.names(LEASES)
        if not listed or small_files.read_strictly(f"{probe}.json") != content:
            raise OSError("a file that was written cannot be read back")
        # The order of removal needs times that can be set to the file system's own clock.
        os.utime(path / probe)
    finally:
        # What a process leaves that dies here is removed with other leftovers (`bioproxy.shared.removal`).
        with suppress(OSError):
            small_files.remove(probe, f"{probe}.json")
    return device
