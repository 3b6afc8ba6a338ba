"""The files of the slot: which of them stay in use, and which are forgotten."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from twisted.logger import capturedLogs

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.slot_files.folder import RESERVE
from bioproxy.slot_files.record import CHAT, PART, PREFIX, Snapshot, SnapshotRecord
from tests.support.fakes import MAGIC
from tests.support.record_files import block
from tests.support.slot_files import SlotFilesTest
from tests.support.world import PREFIX as TOKENS
from tests.support.world import logged

OTHER = USER_MESSAGE_ONLY.key(digest("something else "))
SAVE, RESTORE = "/slots/0?action=save", "/slots/0?action=restore"


class SeenFolder(SlotFilesTest):
    """Where the proxy sees the folder with the slot files."""

    def setUp(self) -> None:
        """Show it."""
        super().setUp()
        self.slots = self.slots_folder()
        self.use(self.warm_world(state_dir=self.folder / "other", slot_save_path=self.slots))

    def names(self) -> list[str]:
        """Return what is in the folder."""
        return sorted(os.listdir(self.slots))

    def restart(self) -> list[str]:
        """Do what a start of bioproxy does; return what was logged."""
        with capturedLogs() as events:
            self.files.tidy_folder(["code"])
        return logged(events)

    def test_renamed(self) -> None:
        """After a save the file has its usual name, in place of the old one, and is recorded as it is on disk."""
        for turn in range(3):
            self.evaluate([*TOKENS, turn])
            entry = self.save(tokens=len(TOKENS) + 1)
            self.assertEqual((["code.bin"], "code.bin"), (self.names(), self.recorded().filename))
            self.assertEqual((self.slots / "code.bin").stat().st_mtime_ns, entry.written_at)
            self.is_restored([*TOKENS, turn])
        self.evaluate(TOKENS)
        self.save(CHAT)
        self.save(CHAT)
        self.assertEqual(["code.bin", "code.chat.bin"], self.names())

    def test_cannot_rename(self) -> None:
        """Where a file cannot be renamed it is used under the name that it has."""
        (self.slots / "code.bin").unlink()
        (self.slots / "code.bin").mkdir()
        self.assertEqual("code.new.bin", self.save().filename)
        self.is_restored(TOKENS)

    def test_failed_save_leaves_nothing(self) -> None:
        """What a failed save has written is removed, and the old file is not."""
        before = self.recorded()
        self.server.pause_at = {SAVE}
        saving = self.saving()
        self.evaluate([1] * len(TOKENS))
        self.server.pause_at = {"/slots"}
        self.server.go_on()
        self.built.settle()
        self.assertEqual(["code.bin", "code.new.bin"], self.names())
        self.server.go_on()
        self.built.settle()
        self.fails(saving)
        self.assertEqual((["code.bin"], before), (self.names(), self.recorded()))
        self.is_restored(TOKENS)

    def test_failed_part(self) -> None:
        """A part that is recorded stays so, and on disk, where the next save did not even begin."""
        entry = self.save(PART)
        self.fails(self.saving(PART, tokens=5))
        self.assertEqual((entry, entry), (self.recorded(PART), self.files.usable("code", PART)))

    def test_killed_before_the_record(self) -> None:
        """A process that ends after llama-server wrote, and before it was noted, leaves the old file in use."""
        before = self.recorded()
        (self.slots / "code.new.bin").write_bytes(MAGIC + bytes(50))
        [line] = self.restart()
        self.assertEqual(f"removed from {self.slots}, not in use: code.new.bin", line)
        self.assertEqual((["code.bin"], before), (self.names(), self.files.usable("code", PREFIX)))

    def test_killed_before_the_rename(self) -> None:
        """One that ends after the record was switched uses the new file, and removes the old one."""
        (self.slots / "code.keep").mkdir()
        (self.slots / "code.bin").rename(self.slots / "code.keep" / "old")
        (self.slots / "code.bin").mkdir()  # so that the rename fails
        self.evaluate([*TOKENS, 5])
        entry = self.save(tokens=len(TOKENS) + 1)
        (self.slots / "code.bin").rmdir()
        (self.slots / "code.keep" / "old").rename(self.slots / "code.bin")
        (self.slots / "code.keep").rmdir()
        self.restart()
        self.assertEqual((["code.new.bin"], entry), (self.names(), self.files.usable("code", PREFIX)))
        self.is_restored([*TOKENS, 5])

    def test_killed_after_the_rename(self) -> None:
        """One that ends before the new name was noted has no file any more: it is not believed what it is."""
        self.built.snapshots.put("code", PREFIX, self.named("code.new.bin"))
        self.assertIsNone(self.files.usable("code", PREFIX))
        self.restart()
        self.assertEqual([], self.names())

    def named(self, filename: str) -> Snapshot:
        """Return the record under another file name."""
        entry = self.recorded()
        return Snapshot(**{**vars(entry), "filename": filename})

    def test_stray_files(self) -> None:
        """At the start our own leftovers go; what is in use, of other templates, or no slot file at all, stays."""
        for name in ("code.part.bin", "code.chat.bin", "story.bin", "mine.bin", "code.txt"):
            (self.slots / name).write_bytes(MAGIC + b"...")
        (self.slots / "code.chat.new.bin").write_bytes(b"my own")
        [line] = self.restart()
        self.assertIn("code.part.bin", line)
        expected = ["code.bin", "code.chat.new.bin", "code.txt", "mine.bin", "story.bin"]
        self.assertEqual(expected, self.names())
        self.assertEqual([], self.restart())

    def test_rights(self) -> None:
        """A folder into which others may look is told at the start, for each start once."""
        self.slots.chmod(0o755)
        [line] = self.restart()
        self.assertIn("others than its owner may look into it", line)

    def test_room(self) -> None:
        """Without enough room nothing is written, and the old file stays; the text says how much is needed."""
        before = self.recorded()
        self.built.speed.saved(1, 1 << 20, 0)
        self.built.free = RESERVE + (len(TOKENS) << 20) - 1
        text = self.fails(self.saving())
        self.assertIn(f"about {len(TOKENS)} MiB are needed, and too little is free in {self.slots}", text)
        self.assertEqual((1, before), (self.server.paths().count(SAVE), self.files.usable("code", PREFIX)))
        self.built.free += 1
        self.save()

    def test_size_and_time(self) -> None:
        """A file is usable only as it was written: with that size, and never written again since."""
        file, entry = self.slots / "code.bin", self.recorded()
        content, assured = file.read_bytes(), entry.written_at
        assert assured is not None
        for changed in (content[:-1], content + b".", b""):
            file.write_bytes(changed)
            os.utime(file, ns=(0, assured))
            self.assertIsNone(self.files.usable("code", PREFIX), len(changed))
        file.write_bytes(content)
        os.utime(file, ns=(0, assured))
        self.assertEqual(entry, self.files.usable("code", PREFIX))
        os.utime(file, ns=(0, assured + 1))
        self.assertIsNone(self.files.usable("code", PREFIX))

    def test_not_even_tried(self) -> None:
        """A file that is not whole is not given to llama-server, which might die of it; it is forgotten."""
        (self.slots / "code.bin").write_bytes(MAGIC)
        entry = self.recorded()
        self.assertFalse(self.run_now(lambda: self.files.load("code", PREFIX, entry)))
        self.assertNotIn(RESTORE, self.server.paths()[self.server.paths().index(SAVE) :])
        self.assertEqual((1, None), (self.count("restores", "missing"), self.built.snapshots.get("code")))

    def later(self, seconds: float) -> None:
        """Let time pass for the folder."""
        self.patch(self.files.folder, "_now", lambda: time.time() + seconds)

    def test_any_file_written(self) -> None:
        """A file that was perhaps written stays recorded, and is used if it is as it was, else not."""
        self.later(10)
        entry = self.recorded()
        self.files.written_by_client(None)
        self.assertEqual(entry, self.recorded())
        self.is_restored(TOKENS)
        self.files.written_by_client(None)
        file = self.slots / "code.bin"
        file.write_bytes(file.read_bytes()[::-1])
        self.assertIsNone(self.files.usable("code", PREFIX))
        before = len(self.server.requests)
        self.assertFalse(self.run_now(lambda: self.files.load("code", PREFIX, entry)))
        self.assertEqual([], self.asked_since(before))

    def test_any_file_written_at_once(self) -> None:
        """Just after a file was recorded, another one of its size could look the same: it is forgotten."""
        entry = self.save(CHAT)
        assert entry.written_at is not None
        # A moment after it was written, however long this test has taken to come here.
        just_after = entry.written_at / 1e9 + 0.1
        self.patch(self.files.folder, "_now", lambda: just_after)
        self.files.written_by_client(None)
        self.assertIsNone(self.built.snapshots.get("code", CHAT))

    def test_any_file_written_at_an_unknown_time(self) -> None:
        """So is one of which nobody noted when it was written: it was recorded without a look at the folder."""
        self.later(10)
        self.built.snapshots.put("code", PREFIX, replace(self.recorded(), written_at=None))
        self.files.written_by_client(None)
        self.assertIsNone(self.built.snapshots.get("code"))

    def test_another_folder(self) -> None:
        """A folder that is not llama-server's is told, and what it does not show is not recorded."""
        self.server.folder = None
        before = self.recorded()
        text = self.fails(self.saving())
        self.assertIn(f"there is no such file of {10 * len(TOKENS)} bytes in {self.slots}", text)
        self.assertIn("--slot-save-path", text)
        self.assertEqual(before, self.recorded())

    def test_discarded(self) -> None:
        """A file that is of no more use is forgotten and removed."""
        self.save(PART)
        self.files.discard(("code", PART))
        self.files.discard(("code", CHAT))  # there is none
        self.assertEqual((["code.bin"], None), (self.names(), self.built.snapshots.get("code", PART)))

    def test_discard_cannot_be_written(self) -> None:
        """A file stays as long as the record on disk may still point to it."""
        self.save(PART)
        block(self.built.settings.state_dir)
        with self.assertRaises(OSError):
            self.files.discard(("code", PART))
        self.assertEqual(["code.bin", "code.part.bin"], self.names())


class Judging(SlotFilesTest):
    """What may be used, and what is known of it."""

    def test_usable(self) -> None:
        """A file is usable for the model that it was saved from, while that runs; the record has it in any case."""
        entry = self.recorded()
        self.assertEqual(entry, self.files.usable("code", PREFIX))
        self.assertEqual((None, None), (self.files.usable("code", CHAT), self.files.usable("story", PREFIX)))
        for model in (None, Model("other", entry.model.odds)):
            self.built.identity.current = model
            self.assertIsNone(self.files.usable("code", PREFIX))
            self.assertEqual(entry, self.files.recorded("code", PREFIX))

    def test_of_use(self) -> None:
        """Files are of use where llama-server keeps them, which must be known, and as long as restoring helps."""
        for enabled, expected in ((True, True), (False, False), (None, False)):
            self.files.enabled = enabled
            self.assertEqual(expected, self.files.of_use, enabled)
        self.files.enabled = True
        for expected in (True, False):
            self.built.reuse_check.did_not_help(1000, 0)
            self.assertEqual(expected, self.files.of_use)

    def test_written_by_a_client(self) -> None:
        """A file of ours that somebody else had written is forgotten, also on a disk that knows no capital letters."""
        self.save(CHAT)
        self.files.written_by_client("other.bin")
        self.assertEqual(2, len(list(self.built.snapshots.items())))
        self.files.written_by_client("CODE.Chat.bin")
        self.assertIsNone(self.built.snapshots.get("code", CHAT))
        self.files.written_by_client("code.bin")
        self.assertIsNone(self.built.snapshots.get("code"))

    def test_any_file_written_by_a_client(self) -> None:
        """Where nobody can tell which file was written, nor look at any, all are forgotten, each with a word."""
        self.save(CHAT)
        with capturedLogs() as events:
            self.files.written_by_client(None)
            self.files.written_by_client(None)
        self.assertEqual([], list(self.built.snapshots.items()))
        self.assertEqual([], list(self.reread().items()))
        self.assertEqual({"code.bin", "code.chat.bin"}, {text.split(" ")[0] for text in logged(events)})
        self.assertEqual(2, len(events))

    def reread(self) -> SnapshotRecord:
        """Return the record as another process would read it."""
        again = SnapshotRecord(self.built.state)
        again.load()
        return again

    def test_forgotten_without_a_disk(self) -> None:
        """It is forgotten also if that cannot be written down, which is logged."""
        block(self.built.settings.state_dir)
        with capturedLogs() as events:
            self.files.written_by_client("code.bin")
        self.assertIsNone(self.built.snapshots.get("code"))
        self.assertIn("the record of slot files cannot be written", logged(events)[0])

    def test_renamed_key(self) -> None:
        """A file can turn out to be right for another key; it is the same file."""
        before = self.recorded()
        self.files.rename_key("code", OTHER)
        self.assertEqual(Snapshot(**{**vars(before), "key": OTHER}), self.recorded())
        self.files.rename_key("story", OTHER)
        self.assertEqual(1, len(list(self.built.snapshots.items())))

    def test_unseen_folder(self) -> None:
        """Nothing is tidied up, and nothing told, where the folder cannot be seen."""
        with capturedLogs() as events:
            self.files.tidy_folder(["code"])
        self.assertEqual([], logged(events))
