"""The own slot folder, where a fetched file cannot be recorded to the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bioproxy.shared.local_files import LocalFiles
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.snapshot import PREFIX, Snapshot
from tests.shared.support import CONTENT, snapshot
from tests.support.folders import FolderTest


class Record:
    """Stands for the record, which fails after it was changed, and for the shelf."""

    def __init__(self) -> None:
        self.known: Snapshot | None = None

    def free_name(self, name: str, kind: str) -> str:
        """Return the usual name."""
        return f"{name}.bin"

    def will_write(self, name: str, kind: str, filename: str) -> None:
        """Do nothing."""

    def get(self, name: str, kind: str) -> Snapshot | None:
        """Return what is recorded."""
        return self.known

    def is_pinned(self, name: str, kind: str) -> bool:
        """Say no."""
        return False

    def put(self, name: str, kind: str, entry: Snapshot) -> None:
        """Record it and fail, as if what follows the change had failed."""
        self.known = entry
        raise OSError("broken")


class TakingOver(FolderTest):
    """A fetched file becomes a slot file."""

    def test_recorded_already(self) -> None:
        """If only the last step has failed, the record names the file: then it is good, and stays."""
        record: Any = Record()
        local = LocalFiles(record, SlotFolder(self.folder), record)
        fetched: Path = self.folder / "code.00000000.fetched.bin"
        fetched.write_bytes(CONTENT)
        self.assertRaises(OSError, local.take_over, "code", PREFIX, snapshot(), fetched)
        self.assertEqual(["code.bin"], [each.name for each in self.folder.iterdir()])
