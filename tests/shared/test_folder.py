"""The shared folder on a real disk."""

from __future__ import annotations

import errno
import os
import shutil
from types import SimpleNamespace
from typing import Any

from bioproxy.shared.copying import link_or_copy
from bioproxy.shared.layout import ENTRIES, FILES, LEASES
from bioproxy.slot_files.folder import RESERVE
from bioproxy.slot_files.snapshot import PREFIX
from tests.shared.support import CONTENT, SharedFolderTest, entry, no_space, snapshot


class Publishing(SharedFolderTest):
    """Slot files on their way to the shelf and back."""

    def test_link(self) -> None:
        """On one disk a file is the same file, with a second name."""
        found = self.publish()
        self.assertEqual({found.stem}, self.shelf.stems())
        (self.path / ENTRIES / "broken.json").write_text("[]")
        self.assertEqual({found.stem: found, "broken": None}, self.shelf.read_all([found.stem, "gone", "broken"]))
        self.assertTrue(self.shelf.fetch(found, self.slots / "fetched.bin"))
        self.assertEqual(3, (self.slots / "fetched.bin").stat().st_nlink)

    def test_copy(self) -> None:
        """Between two disks it is copied, as a whole or not at all."""
        self.without_links()
        found = self.publish()
        self.assertTrue(self.shelf.fetch(found, self.slots / "fetched.bin"))
        self.assertEqual(CONTENT, (self.slots / "fetched.bin").read_bytes())
        self.assertEqual(1, (self.slots / "fetched.bin").stat().st_nlink)

        def fsync(descriptor: int) -> None:
            raise no_space()

        self.patch(os, "fsync", fsync)
        self.assertRaises(OSError, self.shelf.fetch, found, self.slots / "second.bin")
        self.assertEqual({"code.bin", "fetched.bin"}, {each.name for each in self.slots.iterdir()})

    def test_no_room(self) -> None:
        """What would fill the disk is not copied."""
        self.without_links()
        source = self.slot_file()
        self.patch(shutil, "disk_usage", lambda path: SimpleNamespace(free=RESERVE))
        error = self.assertRaises(OSError, link_or_copy, source, self.path / FILES / "x.bin")
        self.assertEqual(errno.ENOSPC, error.errno)
        self.assertEqual([], self.files())

    def test_taken(self) -> None:
        """A name that is taken is not replaced."""
        self.assertRaises(FileExistsError, link_or_copy, self.slot_file(), self.slot_file("other.bin"))

    def test_changed(self) -> None:
        """A file that is not as recorded any more, before or meanwhile, is not published."""
        self.assertIsNone(self.publish(size=5))
        self.assertIsNone(self.shelf.publish(self.slots / "gone.bin", "code", PREFIX, snapshot()))
        self.assertEqual([], self.files())
        source, link = self.slot_file(), os.link

        def replaced(old: Any, new: Any) -> None:
            link(old, new)
            source.unlink()
            self.slot_file(content=b"another length")

        self.patch(os, "link", replaced)
        self.assertIsNone(self.shelf.publish(source, "code", PREFIX, snapshot()))
        self.assertEqual([], self.files())

    def test_folder_gone(self) -> None:
        """A folder that is gone is told from a slot file that is gone."""
        source = self.slot_file()
        self.path.rename(self.folder / "away")
        self.assertRaises(FileNotFoundError, self.shelf.publish, source, "code", PREFIX, snapshot())
        self.assertRaises(FileNotFoundError, self.shelf.stems)
        self.assertRaises(FileNotFoundError, self.shelf.leases.read)

    def test_no_entry(self) -> None:
        """If the entry cannot be written, the file goes as well."""

        def fsync(descriptor: int) -> None:
            raise no_space()

        self.patch(os, "fsync", fsync)
        self.assertRaises(OSError, self.publish)
        self.assertEqual([], [name for name in self.files() if name.endswith(".bin")])

    def test_missing(self) -> None:
        """What was removed or changed meanwhile is not fetched, and leaves nothing behind."""
        found, target = self.publish(), self.slots / "fetched.bin"
        file = self.path / FILES / f"{found.stem}.bin"
        self.assertFalse(self.shelf.fetch(entry(), target))
        os.utime(file, ns=(0, 0))
        self.assertFalse(self.shelf.fetch(found, target))
        os.utime(file, ns=(0, found.modified))
        link = os.link

        def changed(old: Any, new: Any) -> None:
            link(old, new)
            os.utime(old, ns=(0, 0))

        self.patch(os, "link", changed)
        self.assertFalse(self.shelf.fetch(found, target))
        self.assertFalse(target.exists())

    def test_stale(self) -> None:
        """A network disk says "stale" for a file that was removed while it was read; other errors are errors."""
        found = self.publish()
        for number, expected in ((errno.ESTALE, False), (errno.EIO, None)):

            def read(source: Any, target: Any, number: int = number) -> None:
                raise OSError(number, "")

            self.without_links()
            self.patch(shutil, "copyfile", read)
            if expected is None:
                self.assertRaises(OSError, self.shelf.fetch, found, self.slots / "fetched.bin")
            else:
                self.assertFalse(self.shelf.fetch(found, self.slots / "fetched.bin"))

    def test_use_not_noted(self) -> None:
        """A disk that is read-only cannot note a use; the file is fetched all the same."""
        found = self.publish()

        def utime(*args: Any, **more: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        self.patch(os, "utime", utime)
        self.assertTrue(self.shelf.fetch(found, self.slots / "fetched.bin"))


class Upkeep(SharedFolderTest):
    """Times and removal."""

    def test_times(self) -> None:
        """A use is noted by the disk's clock; a missing entry is no error."""
        found = self.publish()
        os.utime(self.path / ENTRIES / f"{found.stem}.json", (0, 0))
        self.assertEqual({found.stem: 0}, self.shelf.used_at())
        self.shelf.touch(found.stem, "gone")
        self.assertLess(abs(self.shelf.now() - self.shelf.used_at()[found.stem]), 60)
        self.assertGreater(self.shelf.free(), 0)

    def test_times_of_what_goes(self) -> None:
        """An entry that another process removes between listing and looking has no time, and is no trouble."""
        found = self.publish()
        (self.path / ENTRIES / "gone.json").symlink_to("nowhere")
        self.assertEqual({found.stem}, set(self.shelf.used_at()))

    def test_remove(self) -> None:
        """An entry goes with its file; a missing one is no error."""
        found = self.publish()
        self.shelf.remove([found.stem, "gone"])
        self.assertEqual([], self.files())

    def test_strays(self) -> None:
        """What nobody needs goes when it is old, however old the content of a file is."""
        found = self.publish()
        for name in (f"{FILES}/x.bin", f"{FILES}/y.new", f"{ENTRIES}/z.json.new", f"{LEASES}/probe-1", f"{LEASES}/k.1"):
            (self.path / name).write_bytes(b"")
            os.utime(self.path / name, (0, 0))
        # Whoever makes a folder there keeps it.
        (self.path / FILES / "folder").mkdir()
        self.assertEqual(0, self.shelf.remove_strays(self.shelf.now() - 3600))
        self.assertEqual(5, self.shelf.remove_strays(self.shelf.now() + 3600))
        self.assertEqual([f"{found.stem}.bin", f"{found.stem}.json"], self.files())
