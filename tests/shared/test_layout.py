"""Whether a folder is good enough to be shared, on a real disk."""

from __future__ import annotations

import os

from bioproxy.shared.folder import SharedFolder
from bioproxy.shared.layout import ENTRIES, FILES, LEASES
from tests.shared.support import SharedFolderTest


class Checks(SharedFolderTest):
    """Whether the folder is good enough."""

    def test_good(self) -> None:
        """A good folder is made, with nothing left in it; only its owner may look into it."""
        self.assertEqual([], self.files())
        self.assertEqual(0o700, self.path.stat().st_mode & 0o777)
        self.assertEqual([], self.shelf.warnings())
        self.path.chmod(0o755)
        self.assertIn("others than its owner may look into it", self.shelf.warnings()[0])

    def test_bad(self) -> None:
        """A file in its place, or a missing folder above it, is said in one line."""
        (self.folder / "file").write_text("")
        for name, text in (("file", "Not a directory"), ("gone/shelf", "No such file or directory")):
            [told] = SharedFolder(self.folder / name).warnings()
            self.assertTrue(told.startswith(str(self.folder / name)) and text in told, told)
        self.assertFalse((self.folder / "gone").exists())

    def test_away(self) -> None:
        """A folder that is renamed away is not made again; cleared, it is."""
        self.path.rename(self.folder / "away")
        self.assertRaises(OSError, self.shelf.check)
        self.assertFalse(self.path.exists())
        (self.folder / "away").rename(self.path)
        self.shelf.check()
        for name in (ENTRIES, FILES, LEASES):
            (self.path / name).rmdir()
        self.shelf.check()
        self.assertEqual(set(), self.shelf.stems())

    def test_not_mounted(self) -> None:
        """An empty folder on another disk than before is what a disk leaves that is not mounted."""
        self.shelf._device = 0
        self.shelf.check()
        self.shelf._device = 0
        (self.path / ENTRIES).rmdir()
        self.assertIn("is it mounted?", str(self.assertRaises(OSError, self.shelf.check)))

    def test_file_systems(self) -> None:
        """What is missing of the promises of a file system is noticed."""
        real = os.open
        self.patch(os, "open", lambda path, flags, *more: real(path, flags & ~os.O_EXCL, *more))
        self.assertIn("created twice", self.shelf.warnings()[0])
        self.patch(os, "open", real)
        listdir = os.listdir
        self.patch(os, "listdir", lambda path: [] if str(path).endswith(LEASES) else listdir(path))
        self.assertIn("cannot be read back", self.shelf.warnings()[0])
