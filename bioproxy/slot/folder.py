"""llama-server's slot folder as this host sees it, if it does.

llama-server never checks or removes a file there.  Where `slot_save_path` is set, the proxy does: it compares what is
on disk with what was recorded, gives files their usual names, removes what it left behind itself, and looks whether
there is room before it asks for another file.  Where it is not set, the folder may be on another machine, and all of
this is left undone.

Knows nothing of llama-server's calls and of the record.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bioproxy.prompts.templates import COARSEST_FILE_CLOCK
from bioproxy.runtime.errors import ConfigError
from bioproxy.slot.record import NAMES, Snapshot, names_of

MAGIC = b"qsgg"
"""What a slot file begins with (llama.cpp's LLAMA_STATE_SEQ_MAGIC)."""

RESERVE = 64 << 20
"""Bytes that a save must leave free."""


def free_bytes(folder: Path) -> int:
    """Return how much can be written to the folder's disk."""
    return shutil.disk_usage(folder).free


class SlotFolder:
    """The folder at `path`, or `None` for one that cannot be seen."""

    def __init__(
        self, path: Path | None, free: Callable[[Path], int] = free_bytes, now: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self._free = free
        self._now = now
        self._lock: int | None = None

    def open(self) -> None:
        """Lock the folder, if it is seen.  Raises `ConfigError` if another bioproxy writes there.

        Two would write over each other's files, warm up again, and so on for ever.
        """
        try:
            if self.path is not None:
                self._lock = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(f"slot_save_path: another bioproxy uses {self.path}") from None
        except OSError:
            pass  # not there, or on a disk without locks: `complaints` tells the first, and the second is no reason

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def whole(self, entry: Snapshot) -> bool:
        """Tell whether the file is as it was when it was recorded: of the same size, and not written since."""
        if self.path is None:
            return True
        try:
            found = os.stat(self.path / entry.filename)
        except OSError:
            return False
        return found.st_size == entry.size and entry.written_at in (None, found.st_mtime_ns)

    def would_notice(self, entry: Snapshot) -> bool:
        """Tell whether `whole` would see that the file is written from now on, whatever is written.

        It would not where it is not known when the file was written, and just after that: two writes within a tick of
        the file system's clock have the same time, and may well have the same size.
        """
        if self.path is None or entry.written_at is None:
            return False
        # By the wall clock, which dates files.  Where it was set, a file written from now on has another date anyhow.
        return abs(self._now() - entry.written_at / 1e9) > COARSEST_FILE_CLOCK

    def written_at(self, filename: str) -> int | None:
        """Return when a file was last written, in nanoseconds, or `None` where that cannot be seen."""
        if self.path is None:
            return None
        try:
            return os.stat(self.path / filename).st_mtime_ns
        except OSError:
            return None

    def rename(self, old: str, new: str) -> bool:
        """Give a file another name, replacing what had it; return whether that was possible."""
        if self.path is None:
            return False
        try:
            os.replace(self.path / old, self.path / new)
        except OSError:  # perhaps it may only be read here: then the file keeps its name
            return False
        return True

    def remove(self, filename: str) -> bool:
        """Remove a slot file; return whether it is gone.  Anything that is no slot file stays."""
        if self.path is None:
            return False
        try:
            with open(self.path / filename, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    return False
            os.unlink(self.path / filename)
        except OSError:
            return False
        return True

    def sweep(self, templates: Iterable[str], in_use: Iterable[str]) -> list[str]:
        """Remove slot files with the names of these templates that are not in use; return which."""
        keep = set(in_use)
        ours = (file for name in templates for kind in NAMES for file in names_of(name, kind))
        return [file for file in ours if file not in keep and self.remove(file)]

    def has_room(self, size: int) -> bool:
        """Tell whether a file of so many bytes can be written and leave the disk usable."""
        if self.path is None:
            return True
        try:
            return self._free(self.path) >= size + RESERVE
        except OSError:
            return True  # the save itself will tell what is wrong

    def complaints(self) -> Iterator[str]:
        """Yield what is wrong or unwise about the folder, for a person."""
        if self.path is None:
            return
        try:
            found = os.stat(self.path)
        except OSError as error:
            yield f"slot_save_path: {self.path}: {error.strerror}"
            return
        if not stat.S_ISDIR(found.st_mode):
            yield f"slot_save_path: {self.path}: not a folder"
        elif found.st_mode & 0o077:
            yield (
                f"slot_save_path: {self.path}: others than its owner may look into it (mode"
                f" {stat.S_IMODE(found.st_mode):o}), and slot files tell what was said; chmod 700 helps"
            )
