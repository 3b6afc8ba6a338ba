"""The record of slot files: what is in it is on disk, and never claims too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.slot.record import CHAT, FORMAT, PART, PREFIX, RECORD, Snapshot, SnapshotRecord
from tests.support.folders import FolderTest
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


def written(entry: Any, **other: Any) -> dict[str, Any]:
    """Return a record of the present format with one file of ``@code``."""
    return {"format": FORMAT, "files": [{"prompt": "code", "kind": PREFIX, **entry, **other}]}


def written_before(entry: Any) -> dict[str, Any]:
    """Return the same in the format before."""
    return {"code": {PREFIX: entry}}


class Record(FolderTest):
    """`SnapshotRecord`."""

    def setUp(self) -> None:
        """Open the folder."""
        super().setUp()
        self.state = StateFolder(self.folder)
        self.state.open()
        self.addCleanup(self.state.close)

    def load(self) -> SnapshotRecord:
        """Read the record, as a new process does."""
        snapshots = SnapshotRecord(self.state)
        snapshots.load()
        return snapshots

    def block(self) -> None:
        """See to it that nothing can be written any more."""
        (self.folder / "snapshots.new").mkdir()

    def test_empty(self) -> None:
        """At first there is nothing, and what is missing can be dropped."""
        snapshots = self.load()
        snapshots.drop("code")
        self.assertEqual((None, []), (snapshots.get("code"), list(snapshots.items())))
        self.assertEqual({"format": FORMAT, "files": []}, self.state.read(RECORD))

    def test_persists(self) -> None:
        """What was noted or dropped is so after a restart, each kind for itself, with all that it has."""
        snapshots = self.load()
        entries = [("code", PREFIX, CODE), ("code", CHAT, TALK), ("story", PREFIX, STORY)]
        snapshots.put("code", PREFIX, replace(CODE, tokens=5))
        for name, kind, entry in entries:
            snapshots.put(name, kind, entry)
        for each in (snapshots, self.load()):
            self.assertEqual(entries, list(each.items()))
            self.assertEqual(
                (CODE, CODE, TALK, None),
                (each.get("code"), each.get("code", PREFIX), each.get("code", CHAT), each.get("code", PART)),
            )
        snapshots.drop("code")
        for each in (snapshots, self.load()):
            self.assertEqual(entries[1:], list(each.items()))
        snapshots.drop("code", CHAT)
        self.assertEqual(entries[2:], list(self.load().items()))

    def test_dropped_while_looking(self) -> None:
        """Who goes through all of them may drop some."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.put("story", PREFIX, STORY)
        for name, kind, _ in snapshots.items():
            snapshots.drop(name, kind)
        self.assertEqual([], list(snapshots.items()))

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

    def test_garbage(self) -> None:
        """A record that is not understood is no worse than none; the next note replaces it."""
        whole = asdict(CODE)
        entries: list[Any] = [None, 1, "x", [1], {}]
        entries += [{name: value for name, value in whole.items() if name != gone} for gone in whole]
        for name, value in (
            ("key", "text"),
            ("key", {"text": "a"}),
            ("tokens", None),
            ("tokens", float("inf")),
            ("size", "many"),
            ("model", {"facts": "a", "odds": [[7, {}]]}),
            ("marks", None),
            ("conversation", {"length": 1}),
            ("conversation", 1),
            ("written_at", "then"),
            ("more", 1),
        ):
            entries.append({**whole, name: value})
        contents: list[Any] = [
            None,
            [1],
            "code",
            {"code": None},
            {"code": [1]},
            *({"code": {PREFIX: entry}} for entry in entries),
        ]
        contents += [{"format": number, "files": []} for number in (1, 0, -1)]
        odds: list[Any] = [None, 1, [1], [{}], [whole], {"code": whole}]
        contents += [{"format": FORMAT, "files": odd} for odd in odds]
        contents += [written(entry) for entry in entries if isinstance(entry, dict)]
        contents += [written(whole, **wrong) for wrong in ({"prompt": None}, {"kind": [1]}, {"prompt": ["code"]})]
        for content in contents:
            self.state.write(RECORD, content)
            snapshots = self.load()
            self.assertEqual([], list(snapshots.items()), content)
            snapshots.put("code", PREFIX, CODE)
            self.assertEqual([("code", PREFIX, CODE)], list(self.load().items()), content)

    def test_strange_file_name(self) -> None:
        """A file name that cannot be the template's is garbage too: whatever it is, it is not ours."""
        for filename in (None, 5, ["code.bin"], "", "../code.bin", "story.bin", "code.chat.bin"):
            for form in (written, written_before):
                self.state.write(RECORD, form({**asdict(CODE), "filename": filename}))
                self.assertEqual([], list(self.load().items()), filename)

    def test_half_garbage(self) -> None:
        """One entry that is not understood spoils the record: what wrote it may have spoilt the others too."""
        for content in (
            {"code": {PREFIX: asdict(CODE)}, "story": {PREFIX: 1}},
            {"format": FORMAT, "files": [*written(asdict(CODE))["files"], 1]},
        ):
            self.state.write(RECORD, content)
            self.assertEqual([], list(self.load().items()))

    def test_unknown_kind(self) -> None:
        """Kinds of files that a later version may have do not disturb."""
        image = {"prompt": "code", "kind": "image", "new": 1}
        for content in (
            {"code": {"image": {"new": 1}, PREFIX: asdict(CODE)}},
            {"format": FORMAT, "files": [image, *written(asdict(CODE))["files"]]},
        ):
            self.state.write(RECORD, content)
            self.assertEqual([("code", PREFIX, CODE)], list(self.load().items()))

    def test_before(self) -> None:
        """A record without a format, as earlier versions wrote it, is read, and written anew with the next change."""
        content = {"code": {PREFIX: asdict(CODE), CHAT: asdict(TALK)}, "format": {PREFIX: asdict(FORMAT_CODE)}}
        entries = [("code", PREFIX, CODE), ("code", CHAT, TALK), ("format", PREFIX, FORMAT_CODE)]
        self.state.write(RECORD, content)
        snapshots = self.load()
        self.assertEqual(entries, list(snapshots.items()))
        self.assertNotIn("files", self.state.read(RECORD))
        snapshots.put("story", PREFIX, STORY)
        written = self.state.read(RECORD)
        self.assertEqual((FORMAT, 4), (written["format"], len(written["files"])))
        self.assertEqual([*entries, ("story", PREFIX, STORY)], list(self.load().items()))

    def test_newer(self) -> None:
        """The record of a newer version is not used, which is logged; it stays until a file is saved."""
        content = {"format": FORMAT + 1, "anything": [1]}
        self.state.write(RECORD, content)
        with capturedLogs() as events:
            snapshots = self.load()
        self.assertIn(f"of a newer bioproxy (format {FORMAT + 1})", "".join(logged(events)))
        self.assertEqual([], list(snapshots.items()))
        snapshots.drop("code")
        self.assertEqual(content, self.state.read(RECORD))
        snapshots.put("code", PREFIX, CODE)
        self.assertEqual([("code", PREFIX, CODE)], list(self.load().items()))
        snapshots.drop("code")
        self.assertEqual([], list(self.load().items()))

    def test_cannot_be_written(self) -> None:
        """A change that cannot be written fails; a drop holds in this process all the same, a put does not."""
        changes: list[tuple[Callable[[SnapshotRecord], None], Snapshot | None]] = [
            (lambda snapshots: snapshots.drop("code"), None),
            (lambda snapshots: snapshots.put("code", PREFIX, STORY), CODE),
        ]
        for change, known in changes:
            snapshots = self.load()
            snapshots.put("code", PREFIX, CODE)
            self.block()
            with self.assertRaises(OSError):
                change(snapshots)
            self.assertEqual(known, snapshots.get("code"))
            self.assertEqual(CODE, self.load().get("code"))
            (self.folder / "snapshots.new").rmdir()

    def test_drop_of_nothing_is_written(self) -> None:
        """Dropping what is not there fails too where nothing can be written: a save would be of no use."""
        snapshots = self.load()
        self.block()
        with self.assertRaises(OSError):
            snapshots.drop("code")

    def test_for_a_person(self) -> None:
        """Whoever looks into the record sees which model and which text each file is of, by template and kind."""
        self.load().put("code", CHAT, TALK)
        entry = json.loads((self.folder / RECORD).read_text())["files"][0]
        self.assertEqual(("code", CHAT), (entry["prompt"], entry["kind"]))
        self.assertEqual(
            ("code.chat.bin", "model.gguf", 10), (entry["filename"], entry["model"]["file"], entry["tokens"])
        )
