"""`bioproxy.command.answers`: from what a user typed to a value."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from bioproxy.command import answers
from tests.support.folders import FolderTest


class Answers(FolderTest):
    """Files."""

    def test_suggestions(self) -> None:
        """A prefix is made of what a name has of letters and digits."""
        for name, expected in (
            ("notes.md", "@notes"),
            ("My Notes.tar.md", "@my-notes-tar"),
            ("_x_.md", "@x"),
            ("提示.md", "@document"),
            ("a" * 80, "@" + "a" * 64),
        ):
            self.assertEqual(expected, answers.suggestion(Path("/d") / name))

    def test_model(self) -> None:
        """A model file is known by its first bytes."""
        model = self.folder / "m.gguf"
        model.write_bytes(b"GGUF\3\0\0\0")
        self.assertEqual({"model": str(model)}, answers.model_at(str(model)))


class SlotFolder(FolderTest):
    """llama-server's slot folder, where its command line can be seen."""

    def found(self, *arguments: str, url: str = "http://127.0.0.1:8080") -> dict[str, object]:
        """Return the setting, for a llama-server with these arguments."""
        process = self.folder / "proc" / "7"
        process.mkdir(parents=True, exist_ok=True)
        process.joinpath("cmdline").write_bytes("\0".join(["/usr/bin/llama-server", *arguments, ""]).encode())
        with contextlib.redirect_stdout(io.StringIO()):
            return answers.slot_folder(url, self.folder / "proc")

    def test_seen(self) -> None:
        """A folder that is there is taken; a relative one, a missing one, and that of another machine are not."""
        folder = str(self.folder)
        self.assertEqual({"slot_save_path": folder}, self.found("--slot-save-path", folder))
        for arguments, url in (
            ((), "http://127.0.0.1:8080"),
            (("--slot-save-path", "."), "http://127.0.0.1:8080"),
            (("--slot-save-path", f"{folder}/none"), "http://localhost:8080"),
            (("--slot-save-path", folder), "http://127.0.0.1:8090"),
            (("--slot-save-path", folder), "http://elsewhere:8080"),
        ):
            self.assertEqual({}, self.found(*arguments, url=url))
