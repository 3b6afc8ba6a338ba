"""The record of slot files: what is in it is on disk, and never claims too much."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

from bioproxy.errors import ConfigError
from bioproxy.identity import Model
from bioproxy.snapshots import Snapshot, Snapshots
from tests.folders import FolderTest

CODE = Snapshot("code.bin", "key", 10, 100, Model("facts", ((7, -0.5), (8, -1.5))), "2026-01-01T00:00:00+00:00")
STORY = replace(CODE, filename="story.bin", key="other")

ENTRY = json.dumps(asdict(CODE))
GARBAGE = [
    *("", "null", "[1]", '"code"', '{"code": ', '{"code": null}', '{"code": {}}', '{"code": [1]}', "\0", "[" * 100),
    f'{{"code": {ENTRY}, "story": 1}}',
    f'{{"code": {ENTRY.replace("10,", "null,")}}}',
    f'{{"code": {ENTRY.replace("100,", chr(34) + "many" + chr(34) + ",")}}}',
    f'{{"code": {ENTRY.replace("odds", "odd")}}}',
    f'{{"code": {ENTRY.replace("key", "more")}}}',
    f'{{"code": {ENTRY.replace("-0.5", "{}")}}}',
]


class Record(FolderTest):
    """`Snapshots`, in a folder that does not exist yet."""

    def setUp(self) -> None:
        """Choose the folder."""
        super().setUp()
        self.state = self.folder / "deep" / "state"
        self.file = self.state / "snapshots.json"

    def open(self) -> Snapshots:
        """Open the record."""
        snapshots = Snapshots(self.state)
        snapshots.open()
        self.addCleanup(snapshots.close)
        return snapshots

    def reopened(self, snapshots: Snapshots) -> Snapshots:
        """Do what a restart does."""
        snapshots.close()
        return self.open()

    def test_empty(self) -> None:
        """At first there is nothing, and what is missing can be dropped."""
        snapshots = self.open()
        snapshots.drop("code")
        self.assertEqual((None, []), (snapshots.get("code"), snapshots.items()))
        self.assertEqual("{}", self.file.read_text())

    def test_persists(self) -> None:
        """What was noted or dropped is so after a restart."""
        snapshots = self.open()
        snapshots.put("code", STORY)
        snapshots.put("code", CODE)
        snapshots.put("story", STORY)
        self.assertEqual([("code", CODE), ("story", STORY)], snapshots.items())
        snapshots = self.reopened(snapshots)
        self.assertEqual([("code", CODE), ("story", STORY)], snapshots.items())
        self.assertEqual(CODE, snapshots.get("code"))
        snapshots.drop("code")
        self.assertEqual([("story", STORY)], snapshots.items())
        self.assertEqual([("story", STORY)], self.reopened(snapshots).items())

    def test_on_disk_at_once(self) -> None:
        """Each change is in the file before the call returns; beside it are no leftovers."""
        snapshots = self.open()
        snapshots.put("code", CODE)
        self.assertEqual(["code"], list(json.loads(self.file.read_text())))
        snapshots.drop("code")
        self.assertEqual({}, json.loads(self.file.read_text()))
        self.assertEqual({"lock", "snapshots.json"}, set(os.listdir(self.state)))

    def test_atomic(self) -> None:
        """The record is replaced, never written in place: whoever has the old one open sees the old one, whole."""
        snapshots = self.open()
        snapshots.put("code", CODE)
        with self.file.open() as old:
            snapshots.put("story", STORY)
            self.assertEqual(["code"], list(json.load(old)))

    def test_leftover_draft(self) -> None:
        """A draft that a killed process left behind does not count and does not disturb."""
        snapshots = self.open()
        snapshots.put("code", CODE)
        (self.state / "snapshots.new").write_text('{"story": ' + "x" * 1000)
        snapshots = self.reopened(snapshots)
        self.assertEqual([("code", CODE)], snapshots.items())
        snapshots.put("story", STORY)
        self.assertEqual(2, len(self.reopened(snapshots).items()))

    def test_garbage(self) -> None:
        """A record that cannot be read is no worse than none; the next note replaces it."""
        self.state.mkdir(parents=True)
        for content in GARBAGE:
            self.file.write_text(content)
            snapshots = self.open()
            self.assertEqual([], snapshots.items(), content)
            snapshots.put("code", CODE)
            snapshots = self.reopened(snapshots)
            self.assertEqual([("code", CODE)], snapshots.items(), content)
            snapshots.close()
        self.file.write_bytes(b"\xff")
        self.assertEqual([], self.open().items())

    def test_endless_number(self) -> None:
        """A record with a number beyond all bounds is garbage too."""
        self.state.mkdir(parents=True)
        self.file.write_text(f'{{"code": {ENTRY.replace("100,", "1e400,")}}}')
        self.assertEqual([], self.open().items())

    def test_deep_garbage(self) -> None:
        """A record that nests thousands deep is garbage too."""
        self.state.mkdir(parents=True)
        self.file.write_text("[" * 100_000)
        self.assertEqual([], self.open().items())

    def test_unreadable_record(self) -> None:
        """Something else in the record's place, here a folder, is no worse than none either."""
        self.file.mkdir(parents=True)
        self.assertEqual([], self.open().items())

    def test_drop_that_cannot_be_written(self) -> None:
        """It fails, so that nobody overwrites the file; in this process it is forgotten all the same."""
        snapshots = self.open()
        snapshots.put("code", CODE)
        (self.state / "snapshots.new").mkdir()
        with self.assertRaises(OSError):
            snapshots.drop("code")
        self.assertIsNone(snapshots.get("code"))
        self.assertEqual([("code", CODE)], self.reopened(snapshots).items())

    def test_put_that_cannot_be_written(self) -> None:
        """It fails, and what was known before stays known: what is here is on disk."""
        snapshots = self.open()
        snapshots.put("code", CODE)
        (self.state / "snapshots.new").mkdir()
        with self.assertRaises(OSError):
            snapshots.put("code", STORY)
        self.assertEqual([("code", CODE)], snapshots.items())

    def test_one_at_a_time(self) -> None:
        """A second bioproxy is refused for as long as the first one is there."""
        first = self.open()
        with self.assertRaises(ConfigError) as caught:
            self.open()
        self.assertEqual(f"state_dir: another bioproxy uses {self.state}", str(caught.exception))
        self.reopened(first)

    def test_refused_one_may_close(self) -> None:
        """Closing what never opened, or twice, does no harm, above all not to the one that holds the folder."""
        first, second = self.open(), Snapshots(self.state)
        second.close()
        with self.assertRaises(ConfigError):
            second.open()
        second.close()
        with self.assertRaises(ConfigError):
            self.open()
        first.close()
        first.close()

    def test_rights(self) -> None:
        """Folder and record are for their owner alone, whatever the process would give."""
        mask = os.umask(0)
        self.addCleanup(os.umask, mask)
        self.open().put("code", CODE)
        self.assertEqual((0o700, 0o600), (self.state.stat().st_mode & 0o777, self.file.stat().st_mode & 0o777))

    def test_useless_folder(self) -> None:
        """A folder that cannot be made or used is a mistake in the configuration, told with its path."""
        self.template("file", "in the folder's place")
        for folder in (self.folder / "file.txt", self.folder / "file.txt" / "deep"):
            with self.assertRaises(ConfigError) as caught:
                Snapshots(folder).open()
            self.assertTrue(str(caught.exception).startswith(f"state_dir: {folder}: "), str(caught.exception))
        (self.state / "lock").mkdir(parents=True)  # stands for a folder that one may not write to
        with self.assertRaises(ConfigError):
            self.open()
