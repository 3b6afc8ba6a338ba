"""What is found in the record, and in which order."""

from __future__ import annotations

from dataclasses import replace

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.slot_files.record import CHAT, PART, PREFIX, Snapshot, SnapshotRecord
from bioproxy.slot_files.record_files import FORMAT, file_of
from bioproxy.slot_files.snapshot import CONVERSATION, PROMPT, TEMPLATE
from tests.slot_files.test_record import CODE, LEARNED, STORY, TALK, RecordTest


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
