"""The record of slot files: what is in it is on disk, and never claims too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.slot_files.record import CHAT, PART, PREFIX, Snapshot, SnapshotRecord
from bioproxy.slot_files.record_files import FOLDER, FORMAT, file_of
from tests.support.folders import FolderTest
from tests.support.record_files import Crash, CrashingState, block, unblock

MODEL = Model("facts", ((7, -0.5), (8, -1.5)), "model.gguf", "b1")


CODE = Snapshot("code.bin", Key("text", "shape"), 10, 100, MODEL, "2026-01-01T00:00:00+00:00", ("ab", "cd"))


TALK = replace(
    CODE,
    filename="code.chat.bin",
    marks=(),
    conversation=Conversation(3, "digest"),
    written_at=1_700_000_000_123_456_789,
)


STORY = replace(CODE, filename="story.bin", key=Key("other", "shape"))


LEARNED = "auto-0123456789ab"


Entries = list[tuple[str, str, Snapshot]]


def entries(snapshots: SnapshotRecord) -> Entries:
    """Return all entries, in the order of their names."""
    return sorted(snapshots.items(), key=lambda each: each[:2])


def before(entry: Snapshot) -> dict[str, Any]:
    """Return the fields of an entry in the formats before."""
    return {name: value for name, value in asdict(entry).items() if name not in ("pinned", "earlier")}


class RecordTest(FolderTest):
    """A state folder."""

    def setUp(self) -> None:
        """Open the folder."""
        super().setUp()
        self.state = StateFolder(self.folder)
        self.state.open()
        self.addCleanup(self.state.close)
        self.time = 1_800_000_000.0

    def load(self, state: StateFolder | None = None) -> SnapshotRecord:
        """Read the record, as a new process does."""
        snapshots = SnapshotRecord(state or self.state, lambda: self.time)
        snapshots.load()
        return snapshots

    def files(self) -> set[str]:
        """Return the names of the files in the record's folder."""
        return {file.name for file in (self.folder / FOLDER).iterdir()}


class Record(RecordTest):
    """What is noted and dropped."""

    def test_empty(self) -> None:
        """At first there is nothing, and what is missing can be dropped."""
        snapshots = self.load()
        snapshots.drop("code")
        self.assertEqual((None, []), (snapshots.get("code"), entries(snapshots)))
        self.assertFalse((self.folder / FOLDER).exists())

    def test_persists(self) -> None:
        """What was noted or dropped is so after a restart, each kind for itself, with all that it has."""
        snapshots = self.load()
        expected = [("code", CHAT, TALK), ("code", PREFIX, CODE), ("story", PREFIX, replace(STORY, pinned=True))]
        snapshots.put("code", PREFIX, replace(CODE, tokens=5))
        for name, kind, entry in expected:
            snapshots.put(name, kind, entry)
        for each in (snapshots, self.load()):
            self.assertEqual(expected, entries(each))
            self.assertEqual(
                (CODE, CODE, TALK, None),
                (each.get("code"), each.get("code", PREFIX), each.get("code", CHAT), each.get("code", PART)),
            )
        snapshots.drop("code")
        for each in (snapshots, self.load()):
            self.assertEqual([expected[0], expected[2]], entries(each))
        snapshots.drop_all([("code", CHAT), ("story", PREFIX), ("missing", PREFIX)])
        self.assertEqual(([], set()), (entries(self.load()), self.files()))

    def test_one_file_for_each(self) -> None:
        """A change touches no file but the entry's own."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.put("code", CHAT, TALK)
        self.assertEqual({"code.prefix.json", "code.chat.json"}, self.files())
        other = self.folder / file_of("code", CHAT)
        noted = other.stat()
        snapshots.put("code", PREFIX, replace(CODE, tokens=11))
        snapshots.drop("code")
        self.assertEqual((noted.st_mtime_ns, noted.st_ino), (other.stat().st_mtime_ns, other.stat().st_ino))
        self.assertEqual({"code.chat.json"}, self.files())

    def test_dropped_while_looking(self) -> None:
        """Code that goes through all entries may drop some."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.put("story", PREFIX, STORY)
        for iterate in (snapshots.prompts, snapshots.items):
            for name, kind, _ in iterate():
                snapshots.drop(name, kind)
        self.assertEqual([], entries(snapshots))

    def test_free_name(self) -> None:
        """A save never goes to the file in use, but for a kind that has only one name."""
        snapshots = self.load()
        for kind, usual, other in (
            (PREFIX, "code.bin", "code.new.bin"),
            (CHAT, "code.chat.bin", "code.chat.new.bin"),
            (PART, "code.part.bin", "code.part.bin"),
        ):
            self.assertEqual(usual, snapshots.free_name("code", kind))
            snapshots.put("code", kind, replace(CODE, filename=usual))
            self.assertEqual(other, snapshots.free_name("code", kind))
            snapshots.put("code", kind, replace(CODE, filename=other))
            self.assertEqual(usual, snapshots.free_name("code", kind))
        self.assertEqual("story.bin", snapshots.free_name("story", PREFIX))

    def test_will_write(self) -> None:
        """An entry goes before its file is written over, and stays while another file is written."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.will_write("code", PREFIX, "code.new.bin")
        snapshots.will_write("story", PREFIX, "story.bin")
        self.assertEqual(CODE, self.load().get("code"))
        snapshots.will_write("code", PREFIX, "code.bin")
        self.assertEqual((None, None), (snapshots.get("code"), self.load().get("code")))

    def test_cannot_be_written(self) -> None:
        """A change that cannot be written fails; a drop holds in this process all the same, a put does not."""
        changes: list[tuple[Callable[[SnapshotRecord], None], Snapshot | None]] = [
            (lambda snapshots: snapshots.drop("code"), None),
            (lambda snapshots: snapshots.put("code", PREFIX, replace(CODE, tokens=5)), CODE),
        ]
        for change, known in changes:
            snapshots = self.load()
            snapshots.put("code", PREFIX, CODE)
            block(self.folder)
            with self.assertRaises(OSError):
                change(snapshots)
            self.assertEqual(known, snapshots.get("code"))
            unblock(self.folder)
            self.assertEqual(CODE, self.load().get("code"))

    def test_dropped_later(self) -> None:
        """What could not be dropped is dropped from the disk before anything else is noted there."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        block(self.folder)
        with self.assertRaises(OSError):
            snapshots.drop("code")
        for change in (lambda: snapshots.put("story", PREFIX, STORY), lambda: snapshots.drop("code")):
            with self.assertRaises(OSError):
                change()
        unblock(self.folder)
        snapshots.put("story", PREFIX, STORY)
        self.assertEqual([("story", PREFIX, STORY)], entries(self.load()))
        snapshots.put("code", PREFIX, CODE)
        self.assertEqual(CODE, self.load().get("code"))

    def test_crashes(self) -> None:
        """Wherever the process ends within some changes, the disk has what was changed before, or one change more."""
        changes: list[Callable[[SnapshotRecord], None]] = [
            lambda snapshots: snapshots.put("code", PREFIX, CODE),
            lambda snapshots: snapshots.put("code", PREFIX, replace(CODE, filename="code.new.bin")),
            lambda snapshots: snapshots.put("code", CHAT, TALK),
            lambda snapshots: snapshots.drop("code"),
            lambda snapshots: snapshots.put("code", PREFIX, CODE),
        ]
        for steps in range(len(changes) + 1):
            for file in self.folder.rglob("*.json"):
                file.unlink()
            snapshots = self.load(CrashingState(self.folder, steps))
            done: list[Entries] = [[]]
            try:
                for change in changes:
                    done.append(done[-1])
                    change(snapshots)
                    done[-1] = entries(snapshots)
            except Crash:
                pass
            # A drop takes effect in memory first, so memory may be one step ahead of the disk, never behind.
            self.assertIn(entries(self.load()), done[-2:], steps)

    def test_for_a_person(self) -> None:
        """Whoever looks into an entry sees which model and which text its file is of, by id and kind."""
        self.load().put("code", CHAT, TALK)
        entry = json.loads((self.folder / file_of("code", CHAT)).read_text())
        self.assertEqual((FORMAT, "code", CHAT), (entry["format"], entry["prompt"], entry["kind"]))
        self.assertEqual(
            ("code.chat.bin", "model.gguf", 10), (entry["filename"], entry["model"]["file"], entry["tokens"])
        )
