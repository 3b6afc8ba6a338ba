"""The shared folder on a real disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bioproxy.shared.copying import link_or_copy
from bioproxy.shared.folder import ENTRIES, FILES, LEASES, SharedFolder
from bioproxy.slot.folder import RESERVE
from bioproxy.slot.snapshot import PREFIX
from tests.shared.support import CONTENT, entry, no_space, snapshot
from tests.support.folders import FolderTest


class SharedFolderTest(FolderTest):
    """A shared folder and a slot folder."""

    def setUp(self) -> None:
        """Make them."""
        super().setUp()
        self.path, self.slots = self.folder / "shelf", self.folder / "slots"
        self.slots.mkdir()
        self.shelf = SharedFolder(self.path)
        self.shelf.check()

    def slot_file(self, name: str = "code.bin", content: bytes = CONTENT) -> Path:
        """Write a slot file."""
        path = self.slots / name
        path.write_bytes(content)
        return path

    def publish(self, **more: Any) -> Any:
        """Publish a slot file."""
        return self.shelf.publish(self.slot_file(), "code", PREFIX, snapshot(**more))

    def files(self) -> list[str]:
        """Return all files on the shelf."""
        return sorted(each.name for each in self.path.rglob("*") if each.is_file())

    def without_links(self) -> None:
        """Stand for two disks."""

        def link(source: Any, target: Any) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        self.patch(os, "link", link)


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

        class Twice(SharedFolder):
            def create(self, file: str, content: bytes) -> bool:
                (self.path / file).write_bytes(content)
                return True

        self.assertIn("created twice", Twice(self.path).warnings()[0])
        listdir = os.listdir
        self.patch(os, "listdir", lambda path: [] if str(path).endswith(LEASES) else listdir(path))
        self.assertIn("cannot be read back", self.shelf.warnings()[0])


class Publishing(SharedFolderTest):
    """Slot files on their way to the shelf and back."""

    def test_link(self) -> None:
        """On one disk a file is the same file, with a second name."""
        found = self.publish()
        self.assertEqual({found.stem}, self.shelf.stems())
        self.assertEqual([found], self.shelf.read_all([found.stem, "gone"]))
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
        self.assertRaises(FileNotFoundError, self.shelf.leases)

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
        self.assertEqual(0, self.shelf.remove_strays(self.shelf.now() - 3600))
        self.assertEqual(5, self.shelf.remove_strays(self.shelf.now() + 3600))
        self.assertEqual([f"{found.stem}.bin", f"{found.stem}.json"], self.files())


class LeaseFiles(SharedFolderTest):
    """The files of leases."""

    def test_life(self) -> None:
        """Only one creates a file; only who has written it writes it again; removing twice is no error."""
        self.assertTrue(self.shelf.create(f"{LEASES}/key.1", b"me 0 and more"))
        self.assertFalse(self.shelf.create(f"{LEASES}/key.1", b"you 0"))
        self.assertFalse(self.shelf.renew_lease("key.1", b"you 1", b"you "))
        self.assertTrue(self.shelf.renew_lease("key.1", b"me 1", b"me "))
        self.assertEqual({"key.1": b"me 1"}, self.shelf.leases())
        self.shelf.remove_leases(["key.1", "key.1"])
        self.assertFalse(self.shelf.renew_lease("key.1", b"me 2", b"me "))
        self.assertEqual({}, self.shelf.leases())

    def test_given_up_meanwhile(self) -> None:
        """A lease that goes between listing and reading is none."""
        listdir = os.listdir
        self.patch(os, "listdir", lambda path: [*listdir(path), "gone.1"])
        self.assertEqual({}, self.shelf.leases())

    def test_full(self) -> None:
        """On a full disk no empty lease is left."""

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *args: object) -> None:
                raise no_space()

            def write(self, content: bytes) -> None:
                pass

        def fdopen(descriptor: int, mode: str) -> Full:
            os.close(descriptor)
            return Full()

        self.patch(os, "fdopen", fdopen)
        self.assertRaises(OSError, self.shelf.create, f"{LEASES}/key.1", b"me 0")
        self.assertEqual([], self.files())
