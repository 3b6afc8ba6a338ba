"""The record of slot files: what is in it is on disk, and never claims too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.slot_files.record import CHAT, PART, PREFIX, Snapshot, SnapshotRecord, Uses
from bioproxy.slot_files.record_files import FOLDER, FORMAT, OLD_RECORD, USES, file_of
from bioproxy.slot_files.snapshot import CONVERSATION, PROMPT, TEMPLATE
from tests.support.folders import FolderTest
from tests.support.record_files import Crash, CrashingState, block, unblock
from tests.support.world import logged

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
FORMAT_CODE = replace(CODE, filename="format.bin")
LEARNED = "auto-0123456789ab"

Entries = list[tuple[str, str, Snapshot]]


def entries(snapshots: SnapshotRecord) -> Entries:
    """Return all entries, in the order of their names."""
    return sorted(snapshots.items(), key=lambda each: each[:2])


def before(entry: Snapshot) -> dict[str, Any]:
    """Return the fields of an entry in the formats before."""
    return {name: value for name, value in asdict(entry).items() if name not in ("pinned", "earlier")}


def format_2(entry: Any, **other: Any) -> dict[str, Any]:
    """Return a record of format 2 with one file of ``@code``."""
    return {"format": 2, "files": [{"prompt": "code", "kind": PREFIX, **entry, **other}]}


def format_1(entry: Any) -> dict[str, Any]:
    """Return the same in format 1."""
    return {"code": {PREFIX: entry}}


def garbage() -> list[Any]:
    """Return what is no entry's fields."""
    whole = asdict(CODE)
    found: list[Any] = [None, 1, "x", [1], {}]
    found += [{name: value for name, value in before(CODE).items() if name != gone} for gone in before(CODE)]
    for name, value in (
        ("key", "text"),
        ("key", {"text": "a"}),
        ("tokens", None),
        ("tokens", float("inf")),
        ("size", "many"),
        ("saved_at", "then"),
        ("saved_at", None),
        ("model", {"facts": "a", "odds": [[7, {}]]}),
        ("marks", None),
        ("conversation", {"length": 1}),
        ("conversation", 1),
        ("written_at", "then"),
        ("pinned", 1),
        ("more", 1),
    ):
        found.append({**whole, name: value})
    return found


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


class Finding(RecordTest):
    """Conversations, prompts, and what all files amount to."""

    def chain(self, *messages: str) -> ConversationChain:
        """Return a conversation with these digests of messages, of which each includes those before."""
        return ConversationChain(tuple("/".join(messages[: n + 1]) for n in range(len(messages))), ((0, "template"),))

    def talk(self, name: str, *messages: str) -> tuple[str, str, Snapshot]:
        """Return an entry of a conversation."""
        turns = self.chain(*messages)
        filename, beginnings = f"{name}.chat.bin", turns.beginnings(2)
        return name, CHAT, replace(TALK, filename=filename, conversation=turns.all_messages, earlier=beginnings)

    def test_continued_conversations(self) -> None:
        """The longest conversation that goes on is found, also after one was dropped, replaced, or is of no use."""
        snapshots = self.load()
        for entry in (self.talk("code", "a"), self.talk(LEARNED, "a", "b", "c"), self.talk("story", "a", "x", "c")):
            snapshots.put(*entry)

        def found(record: SnapshotRecord, *messages: str, unusable: str = "") -> str | None:
            names = [name for name, _ in record.continued_conversations(self.chain(*messages))]
            return next((name for name in names if name != unusable), None)

        for each in (snapshots, self.load()):
            self.assertEqual(LEARNED, found(each, "a", "b", "c", "d"))
            self.assertEqual(LEARNED, found(each, "a", "b", "c"))
            self.assertEqual("story", found(each, "a", "x", "c", "d"))
            self.assertEqual("code", found(each, "a", "b"))
            self.assertEqual("code", found(each, "a", "b", "c", "d", unusable=LEARNED))
            self.assertEqual(None, found(each, "b", "a"))
            self.assertEqual([], list(each.continued_conversations(ConversationChain())))
        snapshots.put(*self.talk(LEARNED, "a", "b"))
        self.assertEqual(LEARNED, found(snapshots, "a", "b", "c"))
        snapshots.put(*self.talk("code", "a", "b"))  # the same under two names: the latest
        self.assertEqual("code", found(snapshots, "a", "b", "c"))
        snapshots.drop("code", CHAT)
        self.assertEqual(LEARNED, found(snapshots, "a", "b", "c"))
        snapshots.drop(LEARNED, CHAT)
        self.assertEqual(None, found(snapshots, "a", "b", "c"))
        snapshots.drop("story", CHAT)
        index = snapshots._index
        for names in (index._whole, index._beginnings):
            self.assertEqual(({}, {}), (names._names, names._lengths))
        self.assertEqual({}, index.entries)

    def test_parting_conversations(self) -> None:
        """Conversations that begin in the same way and then part are found by the last of their beginnings."""
        snapshots = self.load()
        for entry in (self.talk(LEARNED, "a", "b", "c", "d"), self.talk("story", "a", "x", "c")):
            snapshots.put(*entry)
        for each in (snapshots, self.load()):
            for messages, expected in (
                (("a", "b", "c", "other"), [(3, LEARNED), (2, LEARNED), (1, "story")]),
                (("a", "b", "other"), [(2, LEARNED), (1, "story")]),
                (("a", "other"), [(1, "story")]),
                (("other",), []),
            ):
                turns = self.chain(*messages)
                self.assertEqual(expected, [found[:2] for found in each.parting_conversations(turns)], messages)

    def test_prompts(self) -> None:
        """Prompts and parts of them are found without the conversations."""
        snapshots = self.load()
        expected = [("code", PART, replace(CODE, filename="code.part.bin")), ("story", PREFIX, STORY)]
        for entry in (*expected, ("code", CHAT, TALK)):
            snapshots.put(*entry)
        self.assertEqual(expected, list(snapshots.prompts()))

    def test_totals(self) -> None:
        """Files and bytes are counted by class, pinned ones also apart, after each change and after a restart."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.put("code", CHAT, replace(TALK, size=7))
        snapshots.put(LEARNED, PREFIX, replace(CODE, filename=f"{LEARNED}.bin", size=5))
        snapshots.put(LEARNED, PREFIX, replace(CODE, filename=f"{LEARNED}.bin", size=6, pinned=True))
        snapshots.put("story", PREFIX, STORY)
        snapshots.drop("story")
        for each in (snapshots, self.load()):
            totals = [each.totals(kind) for kind in (TEMPLATE, PROMPT, CONVERSATION)]
            self.assertEqual([(1, 100, 0), (1, 6, 6), (1, 7, 0)], [(t.files, t.bytes, t.pinned) for t in totals])

    def test_filenames(self) -> None:
        """All files that must stay are known, those of a newer version's entries too."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        newer = {"format": FORMAT + 1, "prompt": LEARNED, "kind": PREFIX, "filename": f"{LEARNED}.bin"}
        self.state.write(file_of(LEARNED, PREFIX), newer)
        self.assertEqual({"code.bin", f"{LEARNED}.bin"}, set(self.load().filenames()))


class Using(RecordTest):
    """Which files were used, and when."""

    def order(self, snapshots: SnapshotRecord) -> list[str]:
        """Return the names of the templates' files, least recently used first."""
        return [name for (name, _), _ in snapshots.least_recently_used(TEMPLATE)]

    def test_used(self) -> None:
        """Uses are counted with their time; saving is the first one, and does not count as a hit."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.put("story", PREFIX, STORY)
        self.assertEqual(Uses(0, CODE.saved_at, CODE.saved_at), snapshots.uses("code", PREFIX))
        self.assertEqual(["code", "story"], self.order(snapshots))
        snapshots.used("code", PREFIX)
        self.time += 1.5
        snapshots.used("code", PREFIX)
        snapshots.used("missing", PREFIX)
        self.assertIsNone(snapshots.uses("missing", PREFIX))
        expected = Uses(2, "2027-01-15T08:00:01.500+00:00", CODE.saved_at)
        for _ in range(2):
            self.assertEqual((expected, ["story", "code"]), (snapshots.uses("code", PREFIX), self.order(snapshots)))
            snapshots.flush_uses()
            snapshots = self.load()

    def test_replaced(self) -> None:
        """A new file counts as used when it was saved, and keeps the hits of the one before; a renamed one does not."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.used("code", PREFIX)
        snapshots.put("story", PREFIX, STORY)
        snapshots.put("code", PREFIX, replace(CODE, filename="code.new.bin", pinned=True))
        self.assertEqual(["code", "story"], self.order(snapshots))
        later = "2028-01-01T00:00:00+00:00"
        snapshots.put("code", PREFIX, replace(CODE, saved_at=later))
        self.assertEqual(["story", "code"], self.order(snapshots))
        self.assertEqual(Uses(1, later, CODE.saved_at), snapshots.uses("code", PREFIX))
        snapshots.drop("code")
        snapshots.put("code", PREFIX, CODE)
        self.assertEqual(Uses(0, CODE.saved_at, CODE.saved_at), snapshots.uses("code", PREFIX))

    def test_written_only_if_needed(self) -> None:
        """Nothing is written with a use, and nothing by a flush if nothing was used since the last one."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.flush_uses()
        snapshots.used("code", PREFIX)
        self.assertFalse((self.folder / USES).exists())
        snapshots.flush_uses()
        (self.folder / USES).unlink()
        snapshots.flush_uses()
        self.assertFalse((self.folder / USES).exists())

    def test_cannot_be_written(self) -> None:
        """Uses that cannot be written cost a line in the log, and nothing else."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.used("code", PREFIX)
        block(self.folder)
        with capturedLogs() as events:
            snapshots.flush_uses()
            snapshots.flush_uses()
        self.assertEqual(1, len(events))
        self.assertIn("cannot be written", logged(events)[0])

    def test_garbage(self) -> None:
        """Uses that are not understood are no worse than none."""
        self.load().put("code", PREFIX, CODE)
        uses = {"hits": 1, "last_used": CODE.saved_at, "created": CODE.saved_at}
        contents: list[Any] = [
            *(None, 1, [1], {"code.prefix": None}, {"code.prefix": [1]}, {"code.prefix": {}}),
            *({"code.prefix": {**uses, name: wrong}} for name, wrong in (("hits", "x"), ("last_used", "then"))),
            {"code.prefix": {**uses, "last_used": 5}},
        ]
        for content in contents:
            self.state.write(USES, content)
            snapshots = self.load()
            self.assertEqual(
                (CODE, Uses(0, CODE.saved_at, CODE.saved_at)), (snapshots.get("code"), snapshots.uses("code", PREFIX))
            )


class Reading(RecordTest):
    """What is found on the disk at the start."""

    def test_broken_entries(self) -> None:
        """A broken entry is as good as none, and the others are used; the log has one line for all."""
        self.load().put("story", PREFIX, STORY)
        named = {"format": FORMAT, "prompt": "code", "kind": PREFIX}
        contents = [*(each for each in garbage() if not isinstance(each, dict)), asdict(CODE)]
        contents += [{**each, **named} for each in garbage() if isinstance(each, dict)]
        contents += [
            {**asdict(CODE), **named, **wrong}
            for wrong in (
                *({"prompt": None}, {"kind": [1]}, {"prompt": "story"}, {"kind": CHAT}, {"kind": "image"}),
                *({"format": "x"}, {"format": None}, {"format": FORMAT - 1}),
            )
        ]
        for content in contents:
            self.state.write(file_of("code", PREFIX), content)
            with capturedLogs() as events:
                snapshots = self.load()
            self.assertEqual([("story", PREFIX, STORY)], entries(snapshots), content)
            self.assertEqual(1, len(events), content)
            snapshots.put("code", PREFIX, CODE)
            self.assertEqual(CODE, self.load().get("code"))

    def test_one_line(self) -> None:
        """However many are broken, one line says how many and names one of them."""
        self.load().put("story", PREFIX, STORY)
        for number in range(5):
            (self.folder / file_of(f"code{number}", PREFIX)).write_text('{"half')
        with capturedLogs() as events:
            self.assertEqual([("story", PREFIX, STORY)], entries(self.load()))
        [line] = logged(events)
        self.assertIn("5 entries", line)
        self.assertIn("code0", line)

    def test_strange_file_name(self) -> None:
        """A file name that cannot be the entry's is garbage too: whatever it is, it is not ours."""
        for filename in (None, 5, ["code.bin"], "", "../code.bin", "story.bin", "code.chat.bin"):
            content = {"format": FORMAT, "prompt": "code", "kind": PREFIX, **asdict(CODE), "filename": filename}
            self.state.write(file_of("code", PREFIX), content)
            self.assertEqual([], entries(self.load()), filename)

    def test_unknown_kind(self) -> None:
        """An entry of a kind that a later version may have does not disturb, and stays."""
        self.state.write(file_of("code", "image"), {"format": FORMAT, "prompt": "code", "kind": "image", "new": 1})
        with capturedLogs() as events:
            snapshots = self.load()
        self.assertEqual(([], []), (entries(snapshots), events))
        snapshots.put("code", PREFIX, CODE)
        self.assertIn("code.image.json", self.files())

    def test_newer(self) -> None:
        """An entry of a newer version is not used; it stays until its file is written, or another one noted."""
        file = file_of("code", PREFIX)
        content: dict[str, Any] = {"format": FORMAT + 1, "prompt": "code", "kind": PREFIX, "anything": [1]}
        changes: list[Callable[[SnapshotRecord], None]] = [
            lambda snapshots: snapshots.will_write("code", PREFIX, "code.bin"),
            lambda snapshots: snapshots.put("code", PREFIX, CODE),
        ]
        for replaces in changes:
            self.state.write(file, content)
            with capturedLogs() as events:
                snapshots = self.load()
            self.assertEqual(([], []), (entries(snapshots), events))
            snapshots.drop("code")
            self.assertEqual(content, self.state.read(file))
            replaces(snapshots)
            self.assertNotEqual(content, self.state.read(file))
            self.assertEqual(entries(snapshots), entries(self.load()))
            self.assertEqual([], [name for name in snapshots.filenames() if name != "code.bin"])

    def test_drafts(self) -> None:
        """What a write that was broken off has left goes with the next change."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        draft = self.folder / FOLDER / f"{LEARNED}.chat.new"
        draft.write_text("{")
        self.load().put("story", PREFIX, STORY)
        self.assertFalse(draft.exists())

    def test_unreadable_folder(self) -> None:
        """Where the folder cannot be read, bioproxy starts without a record, and says so."""
        block(self.folder)
        with capturedLogs() as events:
            self.assertEqual([], entries(self.load()))
        self.assertIn("cannot be read", logged(events)[0])


class TakingOver(RecordTest):
    """The one file for all entries that earlier versions wrote."""

    CODE = replace(CODE, marks=())
    """What becomes of `CODE`: the digests of its tokens are of another kind."""

    def test_before(self) -> None:
        """The formats before are read once and written in the present one; the old file goes."""
        part = replace(CODE, filename="code.part.bin")
        format_code = replace(FORMAT_CODE, marks=())
        files = [("code", CHAT, TALK), ("code", PREFIX, CODE), ("code", PART, part), ("format", PREFIX, FORMAT_CODE)]
        expected = [("code", CHAT, TALK), ("code", PREFIX, self.CODE), ("format", PREFIX, format_code)]
        in_format_1: dict[str, Any] = {}
        for name, kind, entry in files:
            in_format_1.setdefault(name, {})[kind] = before(entry)
        in_format_2 = {"format": 2, "files": [{"prompt": name, "kind": kind, **before(e)} for name, kind, e in files]}
        for content in (in_format_1, in_format_2):
            self.state.write(OLD_RECORD, content)
            with capturedLogs() as events:
                self.assertEqual(expected, entries(self.load()))
            self.assertEqual([], events)
            self.assertFalse((self.folder / OLD_RECORD).exists())
            snapshots = self.load()
            self.assertEqual(expected, entries(snapshots))
            for name, kind, _ in expected:
                snapshots.drop(name, kind)

    def test_crashes(self) -> None:
        """Wherever the process ends meanwhile, the next start has all entries."""
        files = {PREFIX: before(CODE), CHAT: before(TALK)}
        for steps in count():
            self.state.write(OLD_RECORD, {"code": files})
            finished = True
            try:
                self.load(CrashingState(self.folder, steps))
            except Crash:
                finished = False
            self.assertEqual([("code", CHAT, TALK), ("code", PREFIX, self.CODE)], entries(self.load()), steps)
            self.assertFalse((self.folder / OLD_RECORD).exists())
            if finished:
                self.assertEqual(3, steps)
                return

    def test_cannot_be_taken_over(self) -> None:
        """Where nothing can be written, nothing is claimed, and the old entries never replace later ones."""
        self.state.write(OLD_RECORD, format_1(before(CODE)))
        block(self.folder)
        with capturedLogs() as events:
            snapshots = self.load()
        self.assertEqual([], entries(snapshots))
        self.assertIn("cannot be taken over", logged(events)[0])
        self.assertTrue((self.folder / OLD_RECORD).exists())
        unblock(self.folder)
        snapshots.put("story", PREFIX, STORY)
        self.assertEqual([("story", PREFIX, STORY)], entries(self.load()))

    def test_garbage(self) -> None:
        """An old record that is not understood is no worse than none, and goes."""
        found = garbage()
        contents: list[Any] = [
            None,
            [1],
            "code",
            {"code": None},
            {"code": [1]},
            *(format_1(entry) for entry in found),
        ]
        contents += [{"format": number, "files": []} for number in (1, 0, -1)]
        odds: list[Any] = [None, 1, [1], [{}], [before(CODE)], {"code": before(CODE)}]
        contents += [{"format": 2, "files": odd} for odd in odds]
        contents += [format_2(entry) for entry in found if isinstance(entry, dict)]
        contents += [
            format_2(before(CODE), **wrong) for wrong in ({"prompt": None}, {"kind": [1]}, {"prompt": ["code"]})
        ]
        for content in contents:
            self.state.write(OLD_RECORD, content)
            with capturedLogs() as events:
                snapshots = self.load()
            self.assertEqual([], entries(snapshots), content)
            self.assertIn("cannot be read", "".join(logged(events)), content)
            self.assertFalse((self.folder / OLD_RECORD).exists())

    def test_half_garbage(self) -> None:
        """One entry that is not understood spoils an old record: what wrote it may have spoilt the others too."""
        for content in (
            {"code": {PREFIX: before(CODE)}, "story": {PREFIX: 1}},
            {"format": 2, "files": [*format_2(before(CODE))["files"], 1]},
        ):
            self.state.write(OLD_RECORD, content)
            self.assertEqual([], entries(self.load()))

    def test_old_unknown_kind(self) -> None:
        """Kinds of files that nobody knows do not disturb."""
        self.state.write(OLD_RECORD, {"code": {"image": {"new": 1}, PREFIX: before(CODE)}})
        self.assertEqual([("code", PREFIX, self.CODE)], entries(self.load()))

    def test_newer_old_record(self) -> None:
        """One of a version in between that nobody knows is left alone, which is logged."""
        content = {"format": FORMAT, "anything": [1]}
        self.state.write(OLD_RECORD, content)
        with capturedLogs() as events:
            self.assertEqual([], entries(self.load()))
        self.assertIn(f"of a newer bioproxy (format {FORMAT})", "".join(logged(events)))
        self.assertEqual(content, self.state.read(OLD_RECORD))
