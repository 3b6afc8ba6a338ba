"""The proxy's own folder, `state_dir`: small JSON files that survive a restart.

Each file is replaced as a whole, by writing a new one beside it and renaming that: whoever reads it, after whatever
happened, finds the old content or the new one and never half of both.

Only one bioproxy may use a folder: a lock, which the operating system drops when the process ends, sees to that.  What
is in there can tell much about its user's work, so it is for the owner's eyes only.

Knows nothing of what the files mean.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from twisted.application.service import Service
from twisted.logger import Logger

from bioproxy.runtime.errors import ConfigError


class StateFolder:
    """A folder with JSON files.  To be opened before it is used."""

    log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: TextIO | None = None

    def open(self) -> None:
        """Make the folder and lock it.  Raises `ConfigError` if it cannot be used."""
        try:
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Kept open, and with it the lock, until `close` or the end of the process.
            self._lock = open_private(self._path / "lock")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"state_dir: another bioproxy uses {self._path}") from None
        except OSError as error:
            raise ConfigError(f"state_dir: {self._path}: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read(self, name: str) -> Any:
        """Return a file's content, an empty `dict` if there is none that can be read."""
        file = self._path / name
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            # Nothing is lost but time: whatever was in there can be found out again.
            self.log.warn("{file} cannot be read, starting without: {error}", file=file, error=error)
            return {}

    def write(self, name: str, content: Any, durable: bool = True) -> None:
        """Replace a file.  Raises `OSError`.

        With `durable` it is on the disk when this returns, so that not even a power cut takes it back; without, the
        operating system may take its time.
        """
        file = self._path / name
        draft = file.with_suffix(".new")
        with open_private(draft) as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        draft.replace(file)
        if durable:
            # The name is in the folder, which is on the disk only after this.
            folder = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def open_private(path: Path) -> TextIO:
    """Open a new or existing file for writing that only its owner may read."""
    file = open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600), encoding="utf-8")  # noqa: SIM115
    os.fchmod(file.fileno(), 0o600)  # the caller closes it
    return file


class Folder(Protocol):
    """A folder that only one bioproxy may use."""

    def open(self) -> None:
        """Lock it.  Raises `ConfigError`."""

    def close(self) -> None:
        """Let go of it."""


class State(Service):
    """Reads what must be known before anybody is served, and holds folders for as long as the service runs.

    `first` are called while the process still has the rights that it was started with, before any port is open; then,
    as the service starts, `folders` are locked, and `readers` called, who keep something there.
    """

    def __init__(
        self,
        first: Sequence[Callable[[], None]],
        folders: Sequence[Folder],
        readers: Sequence[Callable[[], None]],
    ) -> None:
        self.setName("state")
        self._first = first
        self._folders = folders
        self._readers = readers

    def privilegedStartService(self) -> None:
        """Read what comes first.  Called by the parent service, before twistd gives up root's rights."""
        super().privilegedStartService()
        first, self._first = self._first, ()
        for read in first:
            read()

    def startService(self) -> None:
        """Lock the folders and read what is in them.  Called by the parent service."""
        self.privilegedStartService()  # twistd's sister `twist` calls only this
        super().startService()
        for folder in self._folders:
            folder.open()
        for read in self._readers:
            read()

    def stopService(self) -> None:
        """Close them."""
        super().stopService()
        for folder in self._folders:
            folder.close()
