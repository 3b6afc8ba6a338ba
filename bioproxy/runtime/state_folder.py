"""bioproxy's own folder, `state_dir`: small JSON files that survive a restart.

Each file is replaced as a whole: a new file is written beside it and renamed over it.  Renaming is atomic, so after a
crash or a power cut a reader finds the old content or the new one, never a mixture and never half of a file.

Only one bioproxy may use a folder at a time, since two would overwrite each other's records.  A lock ensures that.  The
operating system releases it when the process ends, however it ends, so a lock is never left behind.

The files tell much about a user's work (system messages, tools), so only their owner can read them.

Files are written and read in the reactor's thread, which blocks everything else meanwhile.  They are small, and written
after a warm-up or a save, so that takes a few milliseconds now and then.

Does not know what the files mean.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from twisted.application.service import Service
from twisted.logger import Logger

from bioproxy.runtime.errors import ConfigError

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What code raises that takes values out of JSON which is not of the form that it expects."""


class StateFolder:
    """A folder with JSON files.  Between `open` and `close` no other process uses it."""

    log = Logger()

    def __init__(self, path: Path) -> None:
        """Name the folder.  Nothing is touched before `open`."""
        self._path = path
        # The open file that holds the lock; `None` while the folder is not locked.
        self._lock: TextIO | None = None

    def open(self) -> None:
        """Create the folder if it is missing, and lock it.

        Raises `ConfigError` if the folder cannot be used, or another bioproxy uses it.
        """
        try:
            # The mode applies to a new folder only: one that is there may be shared on purpose.
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The lock belongs to the open file, so the file stays open until `close` or the end of the process.
            # `LOCK_NB`: fail at once instead of waiting for the other process to end.
            self._lock = open_private(self._path / "lock")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What `LOCK_NB` raises; it is an `OSError`, too, so it has to come first.
        except BlockingIOError:
            raise ConfigError(f"state_dir: another bioproxy uses {self._path}") from None
        except OSError as error:
            raise ConfigError(f"state_dir: {self._path}: {error.strerror}") from None

    def problem(self) -> str | None:
        """Return why `open` would fail, as far as that can be told without making anything; `None` without a reason.

        Whether another bioproxy uses the folder is not looked at.  It may be the one whose configuration is checked.
        """
        # The folder itself, or the nearest one above it that is there: `open` makes all that are missing in between.
        place = next((each for each in (self._path, *self._path.parents) if os.path.lexists(each)), self._path)
        if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return None
        reason = errno.EACCES if os.path.isdir(place) else errno.ENOTDIR
        return f"state_dir: {place}: {os.strerror(reason)}"

    def close(self) -> None:
        """Release the lock.  The file stays: removing it would let a second process lock a new file of that name."""
        if self._lock is not None:
            # Closing the file releases the lock.
            self._lock.close()
            self._lock = None

    def read(self, name: str) -> Any:
        """Return a file's content, decoded; an empty `dict` if the file is missing or cannot be read."""
        try:
            return self.read_strictly(name)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            # Not an error that ends the start: what the records say can be found out again, it only takes time.
            file = self._path / name
            self.log.warn("{file} cannot be read, bioproxy starts without it: {error}", file=file, error=error)
            return {}

    def read_strictly(self, name: str) -> Any:
        """Return a file's content, decoded.  Raises `OSError`, `ValueError`, or `RecursionError` for deep nesting."""
        # Without `Path`, whose objects take as long as reading a small file; there may be ten thousand of them.
        with open(f"{self._path}/{name}", "rb") as stream:
            return json.loads(stream.read())

    def names(self, folder: str) -> list[str]:
        """Return the names of all files in a subfolder; none if it is missing.  Raises `OSError` if it is unreadable.

        Each result can be handed to `read` and `remove`: it begins with the subfolder's name.
        """
        try:
            return [f"{folder}/{name}" for name in os.listdir(self._path / folder)]
        except FileNotFoundError:
            return []

    def write(self, name: str, content: Any, durable: bool = True, indent: int | None = 1) -> None:
        """Replace a file by `content`, encoded as JSON.  Raises `OSError`, and then the old file is still there.

        With `durable` the new content is on the disk when this returns, so that it survives a power cut; without, the
        operating system writes it within some seconds.  The rename makes sure of the rest in either case.  `name` may
        be in a subfolder, which is created if it is missing.  `indent` is that of `json.dump`.
        """
        # In the same folder, because a rename is atomic only within one file system.
        file = self._path / name
        if "/" in name:
            file.parent.mkdir(exist_ok=True, mode=0o700)
        draft = file.with_suffix(".new")
        # A draft that an earlier process left behind is simply overwritten.
        with open_private(draft) as stream:
            # Indented, so that an operator can read the file.  Without, Python's faster encoder (in C) does the work;
            # and `dumps` instead of `dump`, because only that one uses it.
            stream.write(json.dumps(content, indent=indent))
            stream.flush()
            # Before the rename: otherwise the new name could reach the disk before the content does.
            if durable:
                os.fsync(stream.fileno())
        draft.replace(file)
        if durable:
            self._sync(file.parent)

    def remove(self, *names: str) -> None:
        """Remove files of one folder, durably; a missing file is no error.  Raises `OSError`, perhaps half way."""
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(self._path / name)
        # Once for all of them: this is what takes time.  Also if all were missing, because an earlier removal may have
        # failed at this very step.
        for folder in {(self._path / name).parent for name in names}:
            with suppress(FileNotFoundError):
                self._sync(folder)

    def _sync(self, folder: Path) -> None:
        """Have the names in a folder written to the disk.  Raises `OSError`."""
        # The name of a file is stored in its folder, which `fsync` of the file does not write.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_private(path: Path) -> TextIO:
    """Open a new or existing file for writing that only its owner may read.  The caller closes it.

    Raises `OSError`.
    """
    # The mode of `os.open` applies only to a file that it creates.  An old file with a wider mode is corrected below.
    file = open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600), encoding="utf-8")  # noqa: SIM115
    os.fchmod(file.fileno(), 0o600)
    return file


# A `Protocol` of `typing` describes what an object must have, without a base class.  (Twisted's protocols are something
# else.)


class Folder(Protocol):
    """A folder that only one bioproxy may use: `StateFolder`, and llama-server's slot folder."""

    def open(self) -> None:
        """Lock the folder.  Raises `ConfigError`."""

    def close(self) -> None:
        """Release the lock."""


class State(Service):
    """Reads what must be known before anybody is served, and keeps folders locked for as long as the service runs.

    To be the first service that starts: the others need the records, and a second bioproxy must fail here, before it
    changes anything.
    """

    def __init__(
        self,
        first: Sequence[Callable[[], None]],
        folders: Sequence[Folder],
        readers: Sequence[Callable[[], None]],
        writers: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Make the service.

        `first` are called before any port is open, while the process still has the rights that it was started with;
        `readers` are called, in order, after all `folders` are locked; `writers` are called at the stop, before the
        folders are released, and must not raise.
        """
        self.setName("state")
        self._first = first
        self._folders = folders
        self._readers = readers
        self._writers = writers

    def privilegedStartService(self) -> None:
        """Read what comes first.  Called by the parent service, before twistd gives up root's rights."""
        super().privilegedStartService()
        first, self._first = self._first, ()
        for read in first:
            read()

    def startService(self) -> None:
        """Lock the folders and call the readers.  Called by the parent service.  Raises `ConfigError`."""
        self.privilegedStartService()  # `twist`, unlike twistd, calls only this
        super().startService()
        # Reading comes after locking: before it, another process might still be writing.
        for folder in self._folders:
            folder.open()
        for read in self._readers:
            read()

    def stopService(self) -> None:
        """Release the folders.  Called by the parent service, after the services that started later have stopped."""
        super().stopService()
        for write in self._writers:
            write()
        for folder in self._folders:
            folder.close()
