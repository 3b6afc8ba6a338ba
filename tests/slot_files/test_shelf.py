"""The shelf: files stay within their limits."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

from twisted.logger import capturedLogs

from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_ids import learned_id
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.slot_files.folder import MAGIC, RESERVE, SlotFolder
from bioproxy.slot_files.record import CHAT, PART, PREFIX, Id, Snapshot
from bioproxy.slot_files.shelf import Shelf
from bioproxy.slot_files.snapshot import iso, names_of
from tests.slot_files.test_record import CODE, RecordTest
from tests.support.record_files import Crash, CrashingState, block, unblock
from tests.support.world import logged

NOW = 1_800_000_000.0


def conversation(number: int) -> str:
    """Return the id of a conversation."""
    return learned_id(digest(str(number)))


class ShelfTest(RecordTest):
    """A shelf over real folders."""

    def setUp(self) -> None:
        """Make the folder with slot files."""
        super().setUp()
        self.slots = self.folder / "slots"
        self.slots.mkdir(0o700)
        self.free = 1 << 40
        self.time = NOW
        self.use(self.state, self.slots)

    def use(self, state: StateFolder, slots: Path | None) -> None:
        """Make the parts."""
        self.snapshots = self.load(state)
        self.slot_folder = SlotFolder(slots, lambda _: self.free)
        self.metrics = Metrics()
        self.shelf = Shelf(self.snapshots, self.slot_folder, self.metrics, 100, 200)

    def save(self, name: str, kind: str = PREFIX, size: int = 10, age: float = 0.0, pinned: bool = False) -> Snapshot:
        """Write a file and record it."""
        filename = names_of(name, kind)[0]
        (self.slots / filename).write_bytes(MAGIC + bytes(size - len(MAGIC)))
        talk = Conversation(1, name) if kind == CHAT else None
        entry = replace(
            CODE,
            filename=filename,
            size=size,
            conversation=talk,
            saved_at=iso(self.time - age),
            written_at=self.slot_folder.written_at(filename),
            pinned=pinned,
        )
        self.snapshots.put(name, kind, entry)
        return entry

    def files(self) -> set[str]:
        """Return the files in the slot folder."""
        return set(os.listdir(self.slots))

    def agree(self) -> None:
        """Check that record and folder name the same files, and that a restart finds the same."""
        recorded = {entry.filename: (name, kind) for name, kind, entry in self.snapshots.items()}
        self.assertEqual(self.files(), set(recorded))
        again = {entry.filename: (name, kind) for name, kind, entry in self.load().items()}
        self.assertEqual(recorded, again)

    def sample(self, name: str, kind: str) -> float | None:
        """Return a metric."""
        return self.metrics.registry.get_sample_value(f"bioproxy_shelf_{name}", {"kind": kind})


class Limits(ShelfTest):
    """`within_limits` and `accepts`."""

    def test_limits(self) -> None:
        """Prompts and conversations have limits of their own; a template's prompt has none."""
        self.save("code", PREFIX, 1000)
        self.save("code", PART, 1000)
        for number in range(30):
            self.save(conversation(number), PREFIX, 10, age=9999)
            self.save(conversation(number), CHAT, 10, age=9999)
        self.shelf.within_limits()
        tell = self.shelf.tell()
        self.assertEqual(
            {
                "template": {"files": 2, "bytes": 2000, "limit": None},
                "prompt": {"files": 10, "bytes": 100, "limit": 100},
                "conversation": {"files": 20, "bytes": 200, "limit": 200},
            },
            tell,
        )
        for kind in tell:
            self.assertEqual(
                (tell[kind]["files"], tell[kind]["bytes"]), (self.sample("files", kind), self.sample("bytes", kind))
            )
        self.assertEqual(
            [20, 10, 0], [self.sample("removed_total", kind) for kind in ("prompt", "conversation", "template")]
        )
        self.assertIsNotNone(self.snapshots.get(conversation(29), CHAT))
        self.assertIsNone(self.snapshots.get(conversation(9), CHAT))
        self.agree()

    def test_changed(self) -> None:
        """A limit can be lowered at any time, to nothing as well; a template's conversation counts."""
        self.save("code", CHAT, 10)
        self.save(conversation(1), PREFIX, 10)
        self.shelf.conversations_limit = self.shelf.prompts_limit = 9
        self.shelf.within_limits()
        self.assertEqual(set(), self.files())
        self.agree()

    def test_used(self) -> None:
        """A file that was used stays longer than one that was not, whichever is older."""
        for number in range(3):
            self.save(conversation(number), CHAT, 100, age=9999 - number)
        self.snapshots.used(conversation(0), CHAT)
        self.shelf.within_limits()
        self.assertEqual({f"{conversation(number)}.chat.bin" for number in (0, 2)}, self.files())

    def test_protected(self) -> None:
        """New files stay before older ones; if there are only new ones, the limit holds all the same."""
        self.save(conversation(0), CHAT, 100)
        self.save(conversation(1), CHAT, 100, age=9999)
        self.save(conversation(2), CHAT, 100)
        self.shelf.within_limits((conversation(2), CHAT))
        self.assertEqual({f"{conversation(number)}.chat.bin" for number in (0, 2)}, self.files())
        self.save(conversation(3), CHAT, 150)
        self.shelf.within_limits((conversation(3), CHAT))
        self.assertEqual({f"{conversation(3)}.chat.bin"}, self.files())

    def test_pinned(self) -> None:
        """A pinned file stays, and takes its part of the limit; what is too large beside it is not accepted."""
        name = conversation(0)
        self.save(name, CHAT, 150, age=9999)
        self.assertEqual((True, False), (self.shelf.pin(name, True), self.shelf.pin("missing", True)))
        self.save(conversation(1), CHAT, 100)
        self.shelf.within_limits()
        self.assertEqual({f"{name}.chat.bin"}, self.files())
        accepts = self.shelf.accepts
        self.assertEqual((True, False), (accepts(conversation(1), CHAT, 50), accepts(conversation(1), CHAT, 51)))
        self.assertEqual((True, False), (accepts(name, CHAT, 200), accepts(name, CHAT, 201)))
        self.assertEqual((True, False), (self.shelf.is_pinned(name, CHAT), self.shelf.is_pinned(name, PREFIX)))
        self.shelf.pin(name, False)
        self.assertTrue(accepts(conversation(1), CHAT, 200))
        self.assertFalse(accepts(conversation(1), PREFIX, 101))
        self.assertTrue(accepts("code", PREFIX, 1 << 50))

    def test_pinned_part(self) -> None:
        """A prompt whose beginning is pinned is pinned, too."""
        self.save(conversation(0), PART, 10, pinned=True)
        self.assertTrue(self.shelf.is_pinned(conversation(0), PREFIX))

    def test_unseen_folder(self) -> None:
        """Where the folder is not visible nothing is limited, since nothing could be removed."""
        self.use(self.state, None)
        for number in range(3):
            self.save(conversation(number), CHAT, 1000)
        self.shelf.within_limits()
        self.assertEqual(3, len(self.files()))
        self.assertTrue(self.shelf.accepts("code", CHAT, 1 << 50))
        self.assertTrue(self.shelf.make_room(1 << 50, ("code", CHAT)))
        self.assertIsNone(self.shelf.tell()["conversation"]["limit"])

    def test_not_our_file(self) -> None:
        """A file that somebody else has put under that name is forgotten and stays."""
        self.save(conversation(0), CHAT, 300)
        file = self.slots / f"{conversation(0)}.chat.bin"
        file.write_bytes(b"my notes")
        self.shelf.within_limits()
        self.assertEqual((b"my notes", []), (file.read_bytes(), list(self.snapshots.items())))

    def test_record_cannot_be_written(self) -> None:
        """As long as the record on the disk may name a file, the file stays; that is logged."""
        self.save(conversation(0), CHAT, 300)
        block(self.folder)
        with capturedLogs() as events:
            self.shelf.within_limits()
        self.assertEqual({f"{conversation(0)}.chat.bin"}, self.files())
        self.assertIn("cannot be written", logged(events)[0])
        unblock(self.folder)


class Room(ShelfTest):
    """`make_room`."""

    def test_room(self) -> None:
        """Conversations go before learned prompts, templates' never, until the disk has room."""
        shelf, keep = self.shelf, ("code", PREFIX)
        self.save("code", PREFIX, 10, age=9999)
        self.save(conversation(0), PREFIX, 10, age=9999)
        for number in (1, 2):
            self.save(conversation(number), CHAT, 10, age=9999)
        removed: list[int] = []

        def free(_: Path) -> int:
            return RESERVE + 10 * (4 - len(self.files()))

        self.slot_folder._free = free
        for size in (0, 10, 11, 30):
            self.assertTrue(shelf.make_room(size, keep), size)
            removed.append(4 - len(self.files()))
        self.assertEqual([0, 1, 2, 3], removed)
        self.assertEqual({"code.bin"}, self.files())
        self.assertFalse(shelf.make_room(40, keep))
        self.agree()

    def test_not_in_vain(self) -> None:
        """Where even all files would not be enough, all stay; so does the one that is to be replaced."""
        self.save(conversation(0), CHAT, 100, age=9999)
        self.save(conversation(1), CHAT, 100, age=9999, pinned=True)
        self.free = RESERVE
        self.assertFalse(self.shelf.make_room(101, ("code", PREFIX)))
        self.assertFalse(self.shelf.make_room(100, (conversation(0), CHAT)))
        self.assertEqual(2, len(self.files()))


class Renaming(ShelfTest):
    """`rename_entry`, `forget_and_remove`."""

    def test_renamed(self) -> None:
        """File and entry get another id, with all that is known of the use."""
        name = conversation(0)
        entry = self.save("code", CHAT, 10)
        self.snapshots.used("code", CHAT)
        uses = self.snapshots.uses("code", CHAT)
        self.assertTrue(self.shelf.rename_entry("code", CHAT, name))
        expected = replace(entry, filename=f"{name}.chat.bin")
        self.assertEqual((None, expected), (self.snapshots.get("code", CHAT), self.snapshots.get(name, CHAT)))
        self.assertTrue(self.slot_folder.is_intact(expected))
        self.assertEqual(uses, self.snapshots.uses(name, CHAT))
        self.agree()

    def test_replaces(self) -> None:
        """What had the new id goes."""
        name = conversation(0)
        self.save(name, CHAT, 20)
        self.save("code", CHAT, 10)
        self.assertTrue(self.shelf.rename_entry("code", CHAT, name))
        self.assertEqual(10, self.shelf.tell()["conversation"]["bytes"])
        self.agree()

    def test_impossible(self) -> None:
        """What is missing, or cannot be seen, is not renamed; a file that could not be renamed stays in use."""
        name = conversation(0)
        self.assertFalse(self.shelf.rename_entry("code", CHAT, name))
        self.save("code", CHAT, 10)
        self.assertFalse(self.shelf.rename_entry("code", CHAT, "code"))
        (self.slots / f"{name}.chat.bin").mkdir()
        self.assertFalse(self.shelf.rename_entry("code", CHAT, name))
        (self.slots / f"{name}.chat.bin").rmdir()
        self.agree()
        (self.slots / "code.chat.bin").unlink()
        self.assertFalse(self.shelf.rename_entry("code", CHAT, name))
        self.agree()
        self.use(self.state, None)
        self.save("code", CHAT, 10)
        self.assertFalse(self.shelf.rename_entry("code", CHAT, name))

    def test_forgotten(self) -> None:
        """Everything saved under an id goes, records first."""
        for kind in (PREFIX, CHAT, PART):
            self.save(conversation(0), kind)
            self.save("code", kind)
        self.assertTrue(self.shelf.forget_and_remove(conversation(0)))
        self.assertFalse(self.shelf.forget_and_remove(conversation(0)))
        self.assertEqual({"code.bin", "code.chat.bin", "code.part.bin"}, self.files())
        self.agree()
        block(self.folder)
        with self.assertRaises(OSError):
            self.shelf.forget_and_remove("code")
        self.assertEqual(3, len(self.files()))


class Crashing(ShelfTest):
    """Wherever the process ends, the next start finds a record and a folder that agree."""

    def test_crashes(self) -> None:
        """No entry names a file that is not there; files without an entry are removed."""
        name = conversation(0)
        actions: dict[str, Callable[[], object]] = {
            "rename": lambda: self.shelf.rename_entry("code", CHAT, name),
            "limits": self.shelf_to_nothing,
            "forget": lambda: self.shelf.forget_and_remove("code"),
        }
        for what, action in actions.items():
            for steps in count():
                for file in [*self.slots.iterdir(), *self.folder.rglob("*.json")]:
                    file.unlink()
                self.use(self.state, self.slots)
                self.save("code", CHAT, 10)
                self.save("code", PREFIX, 10)
                self.save(name, CHAT, 10)
                self.use(CrashingState(self.folder, steps), self.slots)
                finished = True
                try:
                    action()
                except Crash:
                    finished = False
                self.use(self.state, self.slots)
                self.slot_folder.remove_leftovers(["code"], self.snapshots.filenames())
                self.agree()
                for _, _, entry in self.snapshots.items():
                    self.assertTrue(self.slot_folder.is_intact(entry), (what, steps))
                if finished:
                    self.assertGreater(steps, 0)
                    break

    def shelf_to_nothing(self) -> None:
        """Leave no place."""
        self.shelf.conversations_limit = 0
        self.shelf.within_limits()


class Many(ShelfTest):
    """Many conversations through a small limit."""

    def test_never_over_the_limit(self) -> None:
        """The limit is never exceeded by more than the file just saved, and what is used all the time is not lost."""
        shared = "auto-" + 12 * "0"
        self.save(shared, PREFIX, 50)
        ids: list[Id] = []
        for number in range(300):
            self.save(id := conversation(number), CHAT, 10 + number % 7)
            ids.append((id, CHAT))
            self.shelf.within_limits(ids[-1])
            self.assertLessEqual(self.shelf.tell()["conversation"]["bytes"], 200)
            self.assertIsNotNone(self.snapshots.get(*ids[-1]))
        self.assertIsNotNone(self.snapshots.get(shared))
        self.agree()
