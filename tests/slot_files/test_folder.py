"""llama-server's slot folder: what is done there touches nobody else's files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from bioproxy.runtime.errors import ConfigError
from bioproxy.slot_files.folder import MAGIC, RESERVE, SlotFolder
from bioproxy.slot_files.record import Snapshot
from tests.slot_files.test_record import CODE
from tests.support.folders import FolderTest

MIB = 1 << 20


class SlotFolderTest(FolderTest):
    """A folder that is seen, and one that is not."""

    def setUp(self) -> None:
        """Make both."""
        super().setUp()
        self.folder.chmod(0o700)
        self.seen, self.unseen = SlotFolder(self.folder), SlotFolder(None)

    def write(self, *names: str, content: bytes = MAGIC + b"...") -> None:
        """Write slot files."""
        for name in names:
            (self.folder / name).write_bytes(content)

    def names(self) -> list[str]:
        """Return what is in the folder."""
        return sorted(os.listdir(self.folder))


class Looking(SlotFolderTest):
    """`whole`, `written_at`, `has_room` and `warnings`."""

    def recorded(self) -> Snapshot:
        """Write a file and return a record of it."""
        self.write("code.bin", content=MAGIC + bytes(96))
        return replace(CODE, written_at=self.seen.written_at("code.bin"))

    def test_whole(self) -> None:
        """A file is whole while it has its size and nobody wrote it since, to the nanosecond."""
        entry = self.recorded()
        self.assertTrue(self.seen.is_intact(entry))
        assert entry.written_at is not None
        for later in (1, -1, 10**9):
            os.utime(self.folder / "code.bin", ns=(0, entry.written_at + later))
            self.assertFalse(self.seen.is_intact(entry), later)
        os.utime(self.folder / "code.bin", ns=(0, entry.written_at))
        self.assertTrue(self.seen.is_intact(entry))

    def test_size(self) -> None:
        """Another size is another file, and so is none, even where it is not known when it was written."""
        entry = replace(self.recorded(), written_at=None)
        self.assertTrue(self.seen.is_intact(entry))
        for size in (99, 101, 0):
            self.write("code.bin", content=bytes(size))
            self.assertFalse(self.seen.is_intact(entry), size)
        (self.folder / "code.bin").unlink()
        self.assertFalse(self.seen.is_intact(entry))
        self.assertIsNone(self.seen.written_at("code.bin"))

    def test_would_notice(self) -> None:
        """That a file is written shows if that is some time ago, as far as the coarsest clock of a file system goes."""
        entry = self.recorded()
        assert entry.written_at is not None
        changed = os.stat(self.folder / "code.bin").st_ctime_ns / 1e9
        for later, expected in ((0.0, False), (1.9, False), (2.1, True), (1000.0, True)):
            folder = SlotFolder(self.folder, now=lambda later=later: changed + later)  # type: ignore[misc]
            self.assertEqual(expected, folder.would_notice_write(entry), later)
            self.assertFalse(folder.would_notice_write(replace(entry, written_at=None)))
        self.assertFalse(SlotFolder(None, now=lambda: changed + 1000).would_notice_write(entry))

    def test_unseen(self) -> None:
        """A folder that cannot be seen is believed to be as it should be."""
        self.assertTrue(self.unseen.is_intact(CODE))
        self.assertIsNone(self.unseen.written_at("code.bin"))
        self.assertTrue(self.unseen.has_room(1 << 60))
        self.assertEqual([], list(self.unseen.warnings()))

    def test_room(self) -> None:
        """There is room if the disk is still usable afterwards; where nobody can tell, the save will."""
        asked: list[Path] = []

        def free(folder: Path) -> int:
            asked.append(folder)
            return RESERVE + 10 * MIB

        folder = SlotFolder(self.folder, free)
        self.assertEqual((True, False), (folder.has_room(10 * MIB), folder.has_room(10 * MIB + 1)))
        self.assertEqual([self.folder] * 2, asked)
        self.assertEqual((0, 1), (folder.missing_bytes(10 * MIB), folder.missing_bytes(10 * MIB + 1)))
        self.assertFalse(self.seen.has_room(1 << 62))  # the real disk
        self.assertTrue(SlotFolder(self.folder / "missing").has_room(1 << 62))

    def test_locked(self) -> None:
        """Only one may use a folder: two would write over each other's files.  One that is not seen is not locked."""
        self.seen.open()
        self.unseen.open()
        SlotFolder(None).open()
        other = SlotFolder(self.folder)
        self.assertIn(str(self.folder), str(self.assertRaises(ConfigError, other.open)))
        self.seen.close()
        self.seen.close()
        other.open()
        other.close()
        SlotFolder(self.folder / "missing").open()

    def test_complaints(self) -> None:
        """What is wrong with the folder is told with its path: it is missing, no folder, or open to others."""
        self.assertEqual([], list(self.seen.warnings()))
        self.write("file")
        for path, words in (
            (self.folder / "missing", "No such file or directory"),
            (self.folder / "file", "not a folder"),
        ):
            self.assertEqual([f"slot_save_path: {path}: {words}"], list(SlotFolder(path).warnings()))
        for mode in (0o701, 0o710, 0o704, 0o755):
            self.folder.chmod(mode)
            [text] = self.seen.warnings()
            self.assertIn(f"{self.folder}: others than its owner may look into it (mode {mode:o})", text)


class Changing(SlotFolderTest):
    """`rename`, `remove` and `remove_leftovers`."""

    def test_rename(self) -> None:
        """A file gets another name, in place of what had it before."""
        self.write("code.bin", content=b"old")
        self.write("code.new.bin", content=b"new")
        self.assertTrue(self.seen.rename("code.new.bin", "code.bin"))
        self.assertEqual((["code.bin"], b"new"), (self.names(), (self.folder / "code.bin").read_bytes()))

    def test_cannot_rename(self) -> None:
        """Where that is not possible the file keeps its name."""
        (self.folder / "code.bin").mkdir()
        self.write("code.new.bin")
        self.assertFalse(self.seen.rename("code.new.bin", "code.bin"))
        self.assertFalse(self.seen.rename("missing.bin", "story.bin"))
        self.assertFalse(self.unseen.rename("code.new.bin", "story.bin"))
        self.assertEqual(["code.bin", "code.new.bin"], self.names())

    def test_remove(self) -> None:
        """Slot files can be removed; what begins with anything else stays, and so does what is no file."""
        self.write("code.bin")
        self.write("bare.bin", content=MAGIC)
        self.assertTrue(self.seen.remove("code.bin"))
        self.assertTrue(self.seen.remove("bare.bin"))
        self.write("notes.bin", content=b"my notes")
        self.write("short.bin", content=MAGIC[:-1])
        self.write("late.bin", content=b"." + MAGIC)
        self.write("empty.bin", content=b"")
        (self.folder / "folder.bin").mkdir()
        before = self.names()
        for name in [*before, "missing.bin"]:
            self.assertFalse(self.seen.remove(name), name)
        self.assertEqual(before, self.names())

    def test_sweep(self) -> None:
        """Of each template, what is not in use is removed, under any of our names; nothing else is touched."""
        ours = [f"code{end}" for end in (".bin", ".new.bin", ".chat.bin", ".chat.new.bin", ".part.bin")]
        others = ["story.bin", "story.new.bin", "code2.bin", "code.old.bin", "code.part.new.bin", "code", "code.bin.gz"]
        self.write(*ours, *others)
        removed = self.seen.remove_leftovers(["code"], ["code.new.bin", "code.chat.bin", "story.bin"])
        self.assertEqual({"code.bin", "code.chat.new.bin", "code.part.bin"}, set(removed))
        self.assertEqual(sorted(["code.new.bin", "code.chat.bin", *others]), self.names())

    def test_sweep_learned(self) -> None:
        """Files with names of learned prompts and conversations are found without knowing which there were."""
        one, other = "auto-0123456789ab", "auto-ba9876543210"
        ours = [f"{one}{end}.bin" for end in ("", ".new", ".chat", ".chat.new", ".part", ".part.new")]
        others = [
            "auto-0123.bin",
            f"{one}.bin.gz",
            f"{one}.image.bin",
            f"x{one}.bin",
            "auto-0123456789AB.bin",
            "auto.bin",
        ]
        self.write(*ours, *others, f"{other}.chat.bin", f"{other}.bin")
        self.write(f"{other}.part.bin", content=b"a program")
        removed = self.seen.remove_leftovers([], [f"{one}.bin", f"{other}.chat.bin"])
        self.assertEqual({*ours[1:], f"{other}.bin"}, set(removed))
        self.assertEqual(sorted([ours[0], f"{other}.chat.bin", f"{other}.part.bin", *others]), self.names())
        self.assertEqual([], SlotFolder(self.folder / "missing").remove_leftovers([], []))

    def test_sweep_by_name_and_content(self) -> None:
        """A file with one of our names that is no slot file is somebody else's."""
        self.write("code.bin", "code.part.bin", content=b"a program")
        self.assertEqual([], self.seen.remove_leftovers(["code"], []))
        self.assertEqual(["code.bin", "code.part.bin"], self.names())

    def test_unseen(self) -> None:
        """In a folder that cannot be seen nothing is done."""
        self.write("code.bin")
        self.assertFalse(self.unseen.remove("code.bin"))
        self.assertEqual([], self.unseen.remove_leftovers(["code"], []))
        self.assertEqual(["code.bin"], self.names())
