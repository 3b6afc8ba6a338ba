"""The proxy's own folder: small files, whole or not at all, for one process and its owner only."""

from __future__ import annotations

import json
import os
from functools import partial

from bioproxy.runtime.errors import ConfigError
from bioproxy.runtime.state_folder import State, StateFolder
from tests.support.folders import FolderTest


class Folder(FolderTest):
    """`StateFolder`, in a folder that does not exist yet."""

    def setUp(self) -> None:
        """Choose the folder."""
        super().setUp()
        self.path = self.folder / "deep" / "state"
        self.file = self.path / "notes.json"

    def open(self) -> StateFolder:
        """Open it."""
        state = StateFolder(self.path)
        state.open()
        self.addCleanup(state.close)
        return state

    def test_empty(self) -> None:
        """A file that was never written is an empty object, and reading it makes none."""
        self.assertEqual({}, self.open().read("notes.json"))
        self.assertEqual(["lock"], os.listdir(self.path))

    def test_persists(self) -> None:
        """What was written is read again, also by the next process; half a character does no harm."""
        state = self.open()
        for durable in (True, False):
            for content in ({"a": [1, None, "ä\ud800"]}, {}, [durable]):
                state.write("notes.json", content, durable)
                self.assertEqual(content, state.read("notes.json"))
        state.close()
        self.assertEqual([False], self.open().read("notes.json"))

    def test_files_apart(self) -> None:
        """Each name is a file of its own, with no leftovers beside it."""
        state = self.open()
        state.write("notes.json", 1)
        state.write("other.json", 2)
        self.assertEqual((1, 2), (state.read("notes.json"), state.read("other.json")))
        self.assertEqual({"lock", "notes.json", "other.json"}, set(os.listdir(self.path)))

    def test_subfolder(self) -> None:
        """Files can be in a subfolder, which is made when it is needed, for its owner only; they can be removed."""
        state = self.open()
        self.assertEqual([], state.names("shelf"))
        state.remove("shelf/a.json")
        for name in ("shelf/a.json", "shelf/b.json"):
            state.write(name, [name], indent=None)
        self.assertEqual({"shelf/a.json", "shelf/b.json"}, set(state.names("shelf")))
        self.assertEqual(["shelf/a.json"], state.read_strictly("shelf/a.json"))
        self.assertEqual(0o700, (self.path / "shelf").stat().st_mode & 0o777)
        state.remove("shelf/a.json", "shelf/missing.json")
        self.assertEqual(["shelf/b.json"], state.names("shelf"))
        self.assertRaises(FileNotFoundError, state.read_strictly, "shelf/a.json")
        (self.path / "shelf" / "c.json").mkdir()
        self.assertRaises(OSError, state.remove, "shelf/c.json")

    def test_atomic(self) -> None:
        """A file is replaced, never written in place: whoever has the old one open sees the old one, whole."""
        state = self.open()
        state.write("notes.json", "old")
        with self.file.open() as old:
            state.write("notes.json", "new")
            self.assertEqual("old", json.load(old))

    def test_leftover_draft(self) -> None:
        """A draft that a killed process left behind does not count and does not disturb."""
        state = self.open()
        state.write("notes.json", "old")
        (self.path / "notes.new").write_text("x" * 1000)
        self.assertEqual("old", state.read("notes.json"))
        state.write("notes.json", "new")
        self.assertEqual("new", state.read("notes.json"))
        self.assertEqual({"lock", "notes.json"}, set(os.listdir(self.path)))

    def test_garbage(self) -> None:
        """A file that cannot be read is no worse than none; the next write replaces it."""
        state = self.open()
        for content in (b"", b"{", b"\xff", b"\0", b"[" * 100_000, b"{'a': 1}"):
            self.file.write_bytes(content)
            self.assertEqual({}, state.read("notes.json"), content[:10])
        state.write("notes.json", 1)
        self.assertEqual(1, state.read("notes.json"))

    def test_something_else_in_its_place(self) -> None:
        """Something else under the name, here a folder, is no worse than none either."""
        self.file.mkdir(parents=True)
        self.assertEqual({}, self.open().read("notes.json"))

    def test_cannot_be_written(self) -> None:
        """A write that is not possible fails, and the old content stays."""
        state = self.open()
        state.write("notes.json", "old")
        (self.path / "notes.new").mkdir()
        with self.assertRaises(OSError):
            state.write("notes.json", "new")
        self.assertEqual("old", state.read("notes.json"))

    def test_one_at_a_time(self) -> None:
        """A second bioproxy is refused for as long as the first one is there."""
        first = self.open()
        with self.assertRaises(ConfigError) as caught:
            self.open()
        self.assertEqual(f"state_dir: another bioproxy uses {self.path}", str(caught.exception))
        first.close()
        self.open()

    def test_refused_one_may_close(self) -> None:
        """Closing what never opened, or twice, does no harm, above all not to the one that holds the folder."""
        first, second = self.open(), StateFolder(self.path)
        second.close()
        with self.assertRaises(ConfigError):
            second.open()
        second.close()
        with self.assertRaises(ConfigError):
            self.open()
        first.close()
        first.close()

    def test_rights(self) -> None:
        """Folder and files are for their owner alone, whatever the process would give and whatever was there."""
        mask = os.umask(0)
        self.addCleanup(os.umask, mask)
        state = self.open()
        (self.path / "notes.new").touch(0o666)
        state.write("notes.json", 1)
        rights = [path.stat().st_mode & 0o777 for path in (self.path, self.file, self.path / "lock")]
        self.assertEqual([0o700, 0o600, 0o600], rights)

    def test_useless_folder(self) -> None:
        """A folder that cannot be made or used is a mistake in the configuration, told with its path."""
        self.template("file", "in the folder's place")
        for path in (self.folder / "file.txt", self.folder / "file.txt" / "deep"):
            with self.assertRaises(ConfigError) as caught:
                StateFolder(path).open()
            self.assertTrue(str(caught.exception).startswith(f"state_dir: {path}: "), str(caught.exception))
        (self.path / "lock").mkdir(parents=True)  # stands for a folder that one may not write to
        with self.assertRaises(ConfigError):
            self.open()


class Running(FolderTest):
    """`State`, the service."""

    def test_life(self) -> None:
        """It holds the folder from its start to its end, and lets others read once it is open, in order."""
        folder, read = StateFolder(self.folder), []

        def first() -> None:
            with self.assertRaises(ConfigError):
                StateFolder(self.folder).open()
            read.append("first")

        service = State([], [folder], [first, lambda: read.append("second")])
        service.startService()
        self.assertEqual(["first", "second"], read)
        service.stopService()
        again = StateFolder(self.folder)
        again.open()
        again.close()

    def test_writers(self) -> None:
        """At the stop what is only in memory is written, while the folders still belong to this process."""
        folder = StateFolder(self.folder / "state")
        state = State((), (folder,), (), (partial(folder.write, "notes.json", 1),))
        state.startService()
        self.assertEqual({}, folder.read("notes.json"))
        state.stopService()
        self.assertEqual(1, folder.read("notes.json"))

    def test_first(self) -> None:
        """What comes first is read before the folder is held, once, in the half of the start that has the rights."""
        for begin in ("privilegedStartService", "startService"):
            read: list[str] = []
            first, then = partial(read.append, "first"), partial(read.append, "then")
            service = State([first], [StateFolder(self.folder)], [then])
            getattr(service, begin)()
            self.assertEqual("first", read[0])
            service.startService()
            service.stopService()
            self.assertEqual((1, "then"), (read.count("first"), read[1]))

    def test_refused(self) -> None:
        """Where the folder cannot be had nobody reads, and the start fails."""
        holder = StateFolder(self.folder)
        holder.open()
        self.addCleanup(holder.close)
        read: list[str] = []
        with self.assertRaises(ConfigError):
            State([], [StateFolder(self.folder)], [lambda: read.append("read")]).startService()
        self.assertEqual([], read)
