"""A file that was just written becomes the file of its prompt, and a crash in between never makes a wrong file good."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from bioproxy.runtime.state_folder import StateFolder
from bioproxy.slot_files.folder import MAGIC, SlotFolder
from bioproxy.slot_files.record import PREFIX, Snapshot, SnapshotRecord
from bioproxy.slot_files.record_switch import switch_record
from bioproxy.slot_files.save_failures import SaveFailed
from tests.shared.support import snapshot
from tests.support.folders import FolderTest
from tests.support.record_files import Crash, CrashingState

OLD, NEW = MAGIC + b"old", MAGIC + b"newer"
"""The content of two files, of different sizes."""


class Switching(FolderTest):
    """`switch_record`, with a file that is recorded and a newer one of the same prompt."""

    def setUp(self) -> None:
        """Write both files, and record the older one."""
        super().setUp()
        self.slots = self.folder / "slots"
        self.slots.mkdir(mode=0o700)
        self.disk = SlotFolder(self.slots)
        (self.slots / "code.bin").write_bytes(OLD)
        (self.slots / "code.new.bin").write_bytes(NEW)
        self.new = replace(snapshot(size=len(NEW)), filename="code.new.bin")
        state = StateFolder(self.folder / "state")
        state.open()
        self.addCleanup(state.close)
        self.record = SnapshotRecord(state)
        old = snapshot(size=len(OLD))
        self.record.put("code", PREFIX, replace(old, written_at=self.disk.written_at("code.bin")))

    def read_again(self) -> Snapshot | None:
        """Return what another process would read in the record."""
        again = SnapshotRecord(StateFolder(self.folder / "state"))
        again.load()
        return again.get("code")

    def test_seen_folder(self) -> None:
        """The record has the new file under the usual name, with its time, and the old one is gone."""
        entry = switch_record(self.record, self.disk, "code", PREFIX, self.new)
        self.assertEqual(("code.bin", self.disk.written_at("code.bin")), (entry.filename, entry.written_at))
        self.assertEqual((entry, entry), (self.record.get("code"), self.read_again()))
        self.assertEqual((["code.bin"], NEW), (os.listdir(self.slots), (self.slots / "code.bin").read_bytes()))

    def test_unseen_folder(self) -> None:
        """Where the folder cannot be seen, the file keeps its second name, and the record has that."""
        entry = switch_record(self.record, SlotFolder(None), "code", PREFIX, self.new)
        self.assertEqual(("code.new.bin", None), (entry.filename, entry.written_at))
        self.assertEqual(entry, self.read_again())

    def test_usual_name(self) -> None:
        """A file that has the usual name already is recorded as it is."""
        os.replace(self.slots / "code.new.bin", self.slots / "code.bin")
        entry = switch_record(self.record, self.disk, "code", PREFIX, replace(self.new, filename="code.bin"))
        self.assertEqual("code.bin", entry.filename)
        self.assertTrue(self.disk.is_intact(entry))

    def test_missing(self) -> None:
        """A file that is not there, or has another size, changes nothing, and the text names both settings."""
        before = self.record.get("code")
        (self.slots / "code.new.bin").write_bytes(NEW[:-1])
        with self.assertRaisesRegex(SaveFailed, "slot_save_path .* --slot-save-path"):
            switch_record(self.record, self.disk, "code", PREFIX, self.new)
        self.assertEqual((before, before), (self.record.get("code"), self.read_again()))

    def test_crash(self) -> None:
        """Wherever the process ends, the record names a file that is good, or one that is seen to be missing."""
        named = []
        for steps in range(3):
            (self.slots / "code.bin").write_bytes(OLD)
            (self.slots / "code.new.bin").write_bytes(NEW)
            old = replace(snapshot(size=len(OLD)), written_at=self.disk.written_at("code.bin"))
            self.record.put("code", PREFIX, old)
            crashing = SnapshotRecord(CrashingState(self.folder / "state", steps))
            crashing.load()
            with contextlib.suppress(Crash):
                switch_record(crashing, self.disk, "code", PREFIX, self.new)
            entry = self.read_again()
            assert entry is not None
            good = entry.size == (self.slots / entry.filename).stat().st_size if self.disk.is_intact(entry) else None
            named.append((entry.filename, good))
        # Before the first change, between the two, and afterwards.
        self.assertEqual([("code.bin", True), ("code.new.bin", None), ("code.bin", True)], named)
