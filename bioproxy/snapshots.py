"""The record of slot files: which one may be restored, and for what.

llama-server writes the files and reads them, in a folder of its own that bioproxy may not even see.  It trusts them
blindly: a file that was cut short ends its process, one of another model of the same shape gives wrong answers.
So bioproxy keeps a record of its own and lets a file be restored only if

* llama-server said that it saved it whole,
* nothing was begun since then that could change it: *before* a file is written again its entry goes,
* it was saved from the very model that runs now, and for the very text that is asked for.

The record is one small JSON file in `state_dir`.  It is replaced as a whole, by writing a new one beside it and
renaming that, and it is on the disk before the proxy goes on: whenever the process or the machine dies, the old
record or the new one is there, and neither claims too much.

Only one bioproxy may use a folder: a lock, which the operating system drops when the process ends, sees to that.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from twisted.logger import Logger

from bioproxy.errors import ConfigError
from bioproxy.identity import Model


@dataclass(frozen=True)
class Snapshot:
    """A file of which the record says that it may be restored.

    `key` is what it was made of (`rewrite.prefix_key`), `tokens` and `size` how many tokens and bytes it has,
    `saved_at` when, in ISO 8601.
    """

    filename: str
    key: str
    tokens: int
    size: int
    model: Model
    saved_at: str


class Snapshots:
    """The snapshots that may be restored, by template name.  What is here is on disk, and the other way round.

    `folder` is for the record, `slot_folder` the one with the files, if this host sees it.
    """

    log = Logger()

    def __init__(self, folder: Path, slot_folder: Path | None = None) -> None:
        self.slot_folder = slot_folder
        self._folder = folder
        self._file = folder / "snapshots.json"
        self._known: dict[str, Snapshot] = {}
        self._lock: Any = None

    def open(self) -> None:
        """Read the record.  Raises `ConfigError` if the folder cannot be used."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Kept open, and with it the lock, until `close` or the end of the process.
            self._lock = open_private(self._folder / "lock")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"state_dir: another bioproxy uses {self._folder}") from None
        except OSError as error:
            raise ConfigError(f"state_dir: {self._folder}: {error.strerror}") from None
        try:
            content = json.loads(self._file.read_text())
            self._known = {name: snapshot(entry) for name, entry in content.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            # Nothing is lost but time: the templates are warmed up again.
            self.log.warn("{file} cannot be read, starting without: {error}", file=self._file, error=error)

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def get(self, name: str) -> Snapshot | None:
        """Return the snapshot of a template, if there is one that may be restored at all."""
        return self._known.get(name)

    def whole_on_disk(self, entry: Snapshot) -> bool:
        """Compare the file's size with the recorded one, where llama-server's folder can be seen."""
        if self.slot_folder is None:
            return True
        try:
            return os.stat(self.slot_folder / entry.filename).st_size == entry.size
        except OSError:
            return False

    def items(self) -> list[tuple[str, Snapshot]]:
        """Return all names with their snapshots."""
        return list(self._known.items())

    def put(self, name: str, entry: Snapshot) -> None:
        """Note a file that was saved whole.  Raises `OSError` if that cannot be written down."""
        self._write({**self._known, name: entry})

    def drop(self, name: str) -> None:
        """Forget a file, because it is gone, useless, or about to be written.

        Raises `OSError` if that cannot be written down; forgotten it is all the same, for as long as the process runs.
        """
        self._known.pop(name, None)
        # Written even if nothing changed: what cannot be written now could not be recorded after a save either.
        self._write(self._known)

    def _write(self, known: dict[str, Snapshot]) -> None:
        draft = self._file.with_suffix(".new")
        with open_private(draft) as file:
            json.dump({name: asdict(entry) for name, entry in known.items()}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._file)
        # The name is in the folder, which is on the disk only after this.
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._known = known


def open_private(path: Path) -> TextIO:
    """Open a new or existing file for writing that only its owner may read."""
    file = open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115  # the caller closes
    os.fchmod(file.fileno(), 0o600)
    return file


def snapshot(entry: Any) -> Snapshot:
    """Make a `Snapshot` of what JSON has of it.  Raises `TypeError`, `KeyError` and the like for anything else."""
    result = Snapshot(**entry)
    return replace(result, model=Model.from_json(entry["model"]), tokens=int(result.tokens), size=int(result.size))
