"""llama-server's slot folder, where it is visible to this host.

llama-server never checks or removes a file there.  If `slot_save_path` is set, bioproxy does.  It compares files on the
disk with the record, gives files their usual names, removes its own leftovers, and checks for free space before a save.
If `slot_save_path` is not set, the folder may be on another machine.  Then every question is answered as if all files
were in order, and nothing is changed.

The folder may hold files of other programs.  So a file is removed only if it has one of bioproxy's names and begins as
slot files do.

The calls are synchronous: a look at a few files takes microseconds, less than a thread would cost.  On a network disk
that hangs they would block Twisted's one thread; slot files belong on a local disk, for llama-server's sake as well.

Not known here: llama-server's calls, and the record.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from bioproxy.prompts.prompt_ids import LEARNED
from bioproxy.prompts.templates import COARSEST_FILE_CLOCK
from bioproxy.runtime.errors import ConfigError
from bioproxy.slot_files.snapshot import NAMES, Snapshot, names_of

MAGIC = b"qsgg"
"""What a slot file begins with (llama.cpp's LLAMA_STATE_SEQ_MAGIC, as it stands in the file)."""

LEARNED_FILE = re.compile(rf"{LEARNED.pattern}(\.chat|\.part)?(\.new)?\.bin", re.ASCII)
"""The names of slot files of learned prompts and of conversations."""

FETCHED_FILE = re.compile(r"[A-Za-z0-9_-]+\.[0-9a-f]{8}\.fetched\.(bin|new)", re.ASCII)
"""The names of files that were being fetched from a shared shelf (`bioproxy.shared.local_files`)."""

RESERVE = 64 << 20
"""Bytes that a save must leave free on the disk: 64 MiB.

A disk that is full to the last byte hurts other programs, and the record itself.  Half of it would
do on most machines; twice as much keeps small disks from being used."""


def free_bytes(folder: Path) -> int:
    """Return how many bytes can be written to the folder's disk.  Raises `OSError`."""
    # What is free for everybody, not for root only: the difference is for emergencies.
    return shutil.disk_usage(folder).free


class SlotFolder:
    """The folder at `path`, or `None` for one that cannot be seen.

    No method raises `OSError`: a folder that is in trouble is as good as one that is not seen, or a
    file in it as good as gone.  Invariant: between `open` and `close` no other bioproxy writes to
    it, where it can be locked.
    """

    path: Path | None
    """Where the folder is, `None` where this host does not see it."""

    def __init__(
        self,
        path: Path | None,
        free: Callable[[Path], int] = free_bytes,
        now: Callable[[], float] = time.time,
        makes: bool = False,
    ) -> None:
        # How much is free, and the wall clock, can be handed in: tests cannot fill a disk or wait.  With `makes`, a
        # missing folder is made: it is for a llama.cpp that bioproxy starts itself.
        self._makes = makes
        self.path = path
        self._free = free
        self._now = now
        self._lock: int | None = None

    def open(self) -> None:
        """Lock the folder, if it is seen.  Raises `ConfigError` if another bioproxy uses it, or it cannot be made."""
        # Its files tell what users have said, so only the owner may look into it.
        if self.path is not None and self._makes:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"slot_save_path: {self.path}: {error.strerror}") from None
        # Two bioproxies would overwrite each other's files and warm up again, without end.  The kernel holds the lock
        # for the open file, so the lock ends with the process, however that ends.
        try:
            if self.path is not None:
                self._lock = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The lock is not waited for: the other process may hold it for months.
            self.close()
            raise ConfigError(f"slot_save_path: another bioproxy uses {self.path}") from None
        except OSError:
            # Not there, or on a disk without locks.  `warnings` tells the first, and the second is
            # no reason not to start.
            pass

    def close(self) -> None:
        """Unlock the folder."""
        # Closing the locked file releases the lock.  That file is the folder itself, so no lock file is needed in it.
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def is_intact(self, entry: Snapshot) -> bool:
        """Tell whether the file is as it was when it was recorded: of the same size, and not written since."""
        # Asked often: for each state that is shown, and before each restore.  So it must be cheap.
        # Reading the file to be certain would take as long as restoring it.  Size and time are what
        # every program that saves a file changes.
        if self.path is None:
            return True
        # Gone, or in a folder that cannot be entered any more: of no use either way.
        try:
            found = os.stat(self.path / entry.filename)
        except OSError:
            return False
        return found.st_size == entry.size and entry.written_at in (None, found.st_mtime_ns)

    def would_notice_write(self, entry: Snapshot) -> bool:
        """Tell whether `is_intact` would see that the file is written from now on, whatever is written."""
        # It would not where it is not known when the file was written, nor just after that: two
        # writes within a tick of the file system's clock have the same time, and may well have the
        # same size.
        if self.path is None or entry.written_at is None:
            return False
        # By the wall clock, which dates files.  Where that was set, a file written from now on has
        # another date anyhow.
        return abs(self._now() - entry.written_at / 1e9) > COARSEST_FILE_CLOCK

    def written_at(self, filename: str) -> int | None:
        """Return when a file was last written, in nanoseconds, or `None` where that cannot be seen."""
        # Nanoseconds as a whole number, because a float could not hold them exactly, and this is
        # compared for being equal.  Read right after the file was saved, to be compared by
        # `is_intact` for as long as it is used.
        if self.path is None:
            return None
        try:
            return os.stat(self.path / filename).st_mtime_ns
        except OSError:
            # `is_intact`, which is asked next, finds that the file is gone.
            return None

    def rename(self, old: str, new: str) -> bool:
        """Give a file another name, replacing what had it; return whether that was possible."""
        # `os.replace` is atomic: at each moment the name leads to the old file or to the new one.
        # Without a folder the file keeps the name under which it was saved, and the record knows
        # that.
        if self.path is None:
            return False
        try:
            os.replace(self.path / old, self.path / new)
        except OSError:
            # The folder may be mounted for reading only here.  Then the file keeps its name.
            return False
        return True

    def remove(self, filename: str) -> bool:
        """Remove a slot file; return whether it was removed.  Anything that is no slot file stays."""
        # Called with names that may well not exist; that is an `OSError` like any other.
        if self.path is None:
            return False
        try:
            # Another program's file with one of bioproxy's names would not begin like this.
            with open(self.path / filename, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    return False
            # llama-server may still have the file open and read or write it to the end; that is
            # safe.
            os.unlink(self.path / filename)
        except OSError:
            return False
        return True

    def remove_leftovers(self, templates: Iterable[str], in_use: Iterable[str]) -> list[str]:
        """Remove slot files of these templates and of learned prompts that are not in use; return which."""
        # Templates' files are found by their names, because only those that are configured are known to be bioproxy's.
        # Both names of each kind are tried: which of the two is the leftover depends on where a save was broken off.
        keep = set(in_use)
        ours = [file for name in templates for kind in NAMES for file in names_of(name, kind)]
        # Learned prompts and conversations have names that nobody else would give a file, so they are found by what the
        # folder has.
        with suppress(OSError):  # `warnings` tells what is wrong with the folder
            there = os.listdir(self.path) if self.path else []
            ours += [file for file in there if LEARNED_FILE.fullmatch(file) or FETCHED_FILE.fullmatch(file)]
        # `remove` looks into each file before, and most of those by name are not there at all.
        return [file for file in ours if file not in keep and self.remove(file)]

    def has_room(self, size: int) -> bool:
        """Tell whether a file of so many bytes can be written and leave the disk usable."""
        return self.missing_bytes(size) == 0

    def missing_bytes(self, size: int) -> int:
        """Return how many bytes must become free before a file of `size` bytes can be written; 0 if none."""
        # Only roughly, because other programs write to the disk meanwhile.  The reserve covers that, too.
        if self.path is None:
            return 0
        try:
            return max(0, size + RESERVE - self._free(self.path))
        except OSError:
            # The save itself will fail then, with a better explanation than could be found here.
            return 0

    def warnings(self) -> Iterator[str]:
        """Yield what is wrong or unwise about the folder, in sentences for operators."""
        if self.path is None:
            return
        # The first is fatal for saving, so nothing else is worth saying then.
        try:
            found = os.stat(self.path)
        except OSError as error:
            yield f"slot_save_path: {self.path}: {error.strerror}"
            return
        # Both are mistakes of configuration that llama-server itself does not tell before a save
        # fails.
        if not stat.S_ISDIR(found.st_mode):
            yield f"slot_save_path: {self.path}: not a folder"
        # Everything that users have said on a template is in these files, as a KV cache from which
        # it can be read back.  A warning and no error: the operator may have reasons.
        elif found.st_mode & 0o077:
            yield (
                f"slot_save_path: {self.path}: others than its owner may look into it (mode"
                f" {stat.S_IMODE(found.st_mode):o}), and slot files tell what was said; chmod 700 helps"
            )
