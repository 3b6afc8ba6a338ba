"""`bioproxy.command.first_files`: two files, or nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bioproxy.command import first_files
from bioproxy.command.first_files import First, conflict, create, write
from bioproxy.prompts import templates
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.configuration import load
from tests.support.folders import FolderTest


class Files(FolderTest):
    """Writing."""

    def first(self, **more: object) -> First:
        """Return answers, for a configuration in a folder that does not exist yet."""
        document = self.folder / "with {braces}.md"
        document.write_text("The document.")
        file = self.folder / "config" / "bioproxy" / "conf.json"
        values = {"file": file, "source": {"llama_url": "http://h:1"}, "prefix": "@notes", "document": document}
        return First(**{**values, **more})  # type: ignore[arg-type]

    def names(self) -> list[str]:
        """Return all that is in the test's folder."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))

    def test_written(self) -> None:
        """The settings are those that the file gives, the template includes the document, and both are private."""
        # A generous umask must not open them.
        self.addCleanup(os.umask, os.umask(0))
        first = self.first()
        settings = write(first)
        self.assertEqual(load({}, first.file, Path("/")), settings)
        self.assertEqual(
            {"llama_url": "http://h:1", "prefixes": {"@notes": "notes.txt"}}, json.loads(first.file.read_text())
        )
        text = templates.read(settings.templates[0])
        self.assertEqual(((first.document,), ()), (text.includes, text.errors))
        self.assertIn("The document.", text.prefix)
        for path, mode in ((first.file, 0o600), (first.template, 0o600), (first.file.parent, 0o700)):
            self.assertEqual(mode, path.stat().st_mode & 0o777)
        self.assertEqual(0o700, first.file.parent.parent.stat().st_mode & 0o777)

    def test_all_or_nothing(self) -> None:
        """If `--check` finds a problem, nothing is left, neither files nor folders."""
        first = self.first(source={"llama_url": "http://h:1", "slot_save_path": str(self.folder / "missing")})
        before = self.names()
        self.assertRaises(ConfigError, write, first)
        self.assertEqual(before, self.names())

    def test_own_port(self) -> None:
        """A llama-server at bioproxy's own address is refused, and nothing is left."""
        first = self.first(source={"llama_url": "http://127.0.0.1:8081"})
        before = self.names()
        self.assertRaises(ConfigError, write, first)
        self.assertEqual(before, self.names())

    def test_nothing_is_overwritten(self) -> None:
        """Files of the same names stay as they are, and so do links that lead nowhere; what was made is removed."""
        first = self.first()
        self.assertIsNone(conflict(first))
        first.file.parent.mkdir(parents=True)
        first.file.write_text("mine")
        before = self.names()
        self.assertRaises(FileExistsError, write, first)
        self.assertEqual(before, self.names())
        self.assertEqual("mine", first.file.read_text())
        first.template.symlink_to("nowhere")
        self.assertIn("exists already; choose another prefix", str(conflict(first)))
        self.assertRaises(FileExistsError, write, first)
        self.assertEqual(before, [name for name in self.names() if not name.endswith("notes.txt")])

    def test_another_template_stays(self) -> None:
        """A template that somebody wrote in the last moment is not removed with what was made."""
        first = self.first()
        first.file.parent.mkdir(parents=True)
        first.template.write_text("mine")
        self.assertRaises(FileExistsError, write, first)
        self.assertEqual("mine", first.template.read_text())

    def test_no_draft_is_left(self) -> None:
        """A text that cannot be written leaves no draft."""
        self.assertRaises(UnicodeEncodeError, create, self.folder / "x", "\udcff")
        self.assertEqual([], self.names())

    def test_the_template_is_good(self) -> None:
        """The message comes last, so that everything before it can be processed in advance."""
        self.assertTrue(first_files.TEXT.rstrip().endswith("<{{message}}>"))
