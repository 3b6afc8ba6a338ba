"""What ``--check`` says about the files in the slot folder."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bioproxy.operator import check, disk_use
from bioproxy.settings.configuration import Settings
from tests.support.folders import FolderTest

LEARNED = "auto-0123456789ab"


class Lines(FolderTest):
    """`lines`, on a folder of files with names as llama-server and bioproxy give them."""

    def setUp(self) -> None:
        """Make an empty slot folder."""
        super().setUp()
        self.slots = self.folder / "slots"
        self.slots.mkdir(0o700)

    def lines(self, *names: str, **settings: Any) -> list[str]:
        """Return the lines for a configuration with templates of these names."""
        prefixes = {f"@{name}": Path("t.txt") for name in names}
        return disk_use.lines(Settings(prefixes=prefixes, slot_save_path=self.slots, **settings))

    def test_each_kind(self) -> None:
        """Each file is counted once, by its name; a conversation on a template counts within the limit, too."""
        sizes = {
            **{"code.bin": 1024, "code.new.bin": 1024, "code.part.bin": 1024},
            **{"code.chat.bin": 10240, "code.chat.new.bin": 10240},
            **{f"{LEARNED}.bin": 1 << 20, f"{LEARNED}.new.bin": 1 << 20, f"{LEARNED}.part.bin": 1 << 20},
            **{f"{LEARNED}.chat.bin": 102400, f"{LEARNED}.chat.new.bin": 102400},
            # Of a template that is gone, of names that are nearly right, and of other programs.
            **{"gone.bin": 1, "code.part.new.bin": 1, "code.bin.bak": 1, "code": 1, "x.code.bin": 1, ".bin": 1},
            **{"auto-0123456789a.bin": 1, "auto-0123456789AB.bin": 1, f"{LEARNED}0.bin": 1, f"{LEARNED}.txt": 1},
        }
        for name, size in sizes.items():
            # A hole: the file has this size, and the disk is not written.
            with open(self.slots / name, "wb") as file:
                file.truncate(size)
        self.assertEqual(
            [
                "slot files: 5 of templates (23.0 KB), 3 of learned prompts (3.0 MB), 2 of conversations (200.0 KB),"
                " 10 others (10 B)",
                "    limits: 3.0 MB of 2.0 GB for learned prompts; 220.0 KB of 1.0 MB for conversations,"
                " those on templates included",
            ],
            self.lines("code", "story", prompts_limit=2 << 30, conversations_limit=1 << 20),
        )

    def test_empty(self) -> None:
        """An empty folder has its two lines as well."""
        self.assertEqual(
            [
                "slot files: 0 of templates (0 B), 0 of learned prompts (0 B), 0 of conversations (0 B),"
                " 0 others (0 B)",
                "    limits: 0 B of 8.0 GB for learned prompts; 0 B of 16.0 GB for conversations,"
                " those on templates included",
            ],
            self.lines(),
        )

    def test_files_only(self) -> None:
        """Folders, links and pipes are not counted."""
        (self.slots / "code.bin").mkdir()
        (self.slots / "story.bin").symlink_to(self.template("large", "x" * 100))
        os.mkfifo(self.slots / f"{LEARNED}.bin")
        self.assertEqual(self.lines(), self.lines("code", "story"))

    def test_only_names_and_sizes(self) -> None:
        """No file is opened, and none is changed."""
        file = self.slots / "code.bin"
        file.write_bytes(b"qsgg")
        before = file.stat()
        for module in (builtins, os):
            self.patch(module, "open", None)
        self.assertIn("1 of templates (4 B)", self.lines("code")[0])
        self.assertEqual(before, file.stat())

    def test_file_that_disappears(self) -> None:
        """A file that is removed while the folder is listed is left out."""
        for name in ("code.bin", "story.bin"):
            (self.slots / name).write_bytes(b"1234")
        scandir = os.scandir

        class Removing:
            """`os.scandir`, in a folder whose first file is removed before it is looked at."""

            def __init__(self, folder: Path) -> None:
                self.real = scandir(folder)

            def __enter__(self) -> Iterator[os.DirEntry[str]]:
                entries = list(self.real)
                os.unlink(entries[0])
                return iter(entries)

            def __exit__(self, *error: object) -> None:
                self.real.close()

        self.patch(os, "scandir", Removing)
        self.assertIn("1 of templates (4 B)", self.lines("code", "story")[0])

    def test_unreadable(self) -> None:
        """A folder that may not be listed gives one warning, and no numbers."""

        def refuse(folder: Path) -> None:
            raise PermissionError(13, "Permission denied")

        self.patch(os, "scandir", refuse)
        self.assertEqual(
            [f"warning: slot_save_path: {self.slots}: its files cannot be listed: Permission denied"], self.lines()
        )

    def test_no_folder(self) -> None:
        """Without the setting, or without the folder, nothing is said: the latter is a problem of its own."""
        self.assertEqual([], disk_use.lines(Settings()))
        self.slots.rmdir()
        self.assertEqual([], self.lines())

    def test_in_the_report(self) -> None:
        """``--check`` prints the lines."""
        found = check.report(Settings(slot_save_path=self.slots))
        self.assertEqual(self.lines(), found.lines[-3:-1])
