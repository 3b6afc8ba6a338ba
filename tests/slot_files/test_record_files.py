"""What is read from the disk, from older versions, and from files that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.slot_files.record import CHAT, PART, PREFIX, SnapshotRecord
from bioproxy.slot_files.record_files import FOLDER, FORMAT, OLD_RECORD, file_of
from tests.slot_files.test_record import CODE, LEARNED, STORY, TALK, RecordTest, before, entries
from tests.support.record_files import Crash, CrashingState, block, unblock
from tests.support.world import logged

FORMAT_CODE = replace(CODE, filename="format.bin")


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
