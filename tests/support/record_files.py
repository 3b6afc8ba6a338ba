"""Ways to damage or block the record of slot files on the disk, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bioproxy.runtime.state_folder import StateFolder
from bioproxy.slot_files.record_files import FOLDER


def block(state_dir: Path) -> None:
    """See to it that no entry can be written or removed any more, and what is there stays."""
    folder = state_dir / FOLDER
    if folder.is_dir():
        folder.rename(state_dir / "away")
    # Where a folder should be, there is a file.
    folder.write_text("")


def unblock(state_dir: Path) -> None:
    """Undo that."""
    folder = state_dir / FOLDER
    folder.unlink()
    if (state_dir / "away").exists():
        (state_dir / "away").rename(folder)


class Crash(BaseException):
    """Stands for the end of the process."""


class CrashingState(StateFolder):
    """A folder whose process ends before its n-th change."""

    def __init__(self, path: Path, steps: int) -> None:
        super().__init__(path)
        self.steps = steps

    def step(self) -> None:
        """Count a change that is about to be made."""
        if self.steps == 0:
            raise Crash
        self.steps -= 1

    def write(self, name: str, content: Any, durable: bool = True, indent: int | None = 1) -> None:
        self.step()
        super().write(name, content, durable, indent)

    def remove(self, *names: str) -> None:
        # Several files are removed one after the other.
        for name in names:
            self.step()
            super().remove(name)
