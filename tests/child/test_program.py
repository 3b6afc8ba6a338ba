"""Which llama.cpp is run, and what is seen to be missing before it is."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bioproxy.child.program import check_child, find_program, reader
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.configuration import Settings
from tests.support.folders import FolderTest


class Program(FolderTest):
    """With a path and a model file of the test's own."""

    def setUp(self) -> None:
        """Make a model and an empty folder of programs."""
        super().setUp()
        self.model = self.folder / "model.gguf"
        self.model.write_bytes(b"GGUF and more")
        self.programs = self.folder / "bin"
        self.programs.mkdir()
        self.patch(os, "environ", {**os.environ, "PATH": str(self.programs)})
        self.settings = Settings(model=self.model)

    def program(self, name: str) -> str:
        """Make a program; return its path."""
        file = self.programs / name
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
        return str(file)

    def without_wheel(self) -> None:
        """Hide the wheel."""
        find = importlib.util.find_spec
        self.patch(importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else find(name))

    def refused(self, settings: Settings, check: Any = check_child) -> str:
        """Return what is said of settings that cannot be used: one line."""
        text = str(self.assertRaises(ConfigError, check, settings))
        self.assertNotIn("\n", text)
        return text

    def test_order(self) -> None:
        """The program that is named, else the wheel, else a llama-server on the path, else one line."""
        usual, other = self.program("llama-server"), self.program("llama-cuda")
        self.assertIsNone(find_program(self.settings))
        self.assertEqual(other, find_program(replace(self.settings, llama_server="llama-cuda")))
        self.assertEqual(other, find_program(replace(self.settings, llama_server=other)))
        self.without_wheel()
        self.assertEqual(usual, find_program(self.settings))
        Path(usual).unlink()
        self.assertIn("pip install 'bioproxy[llama]'", self.refused(self.settings, find_program))

    def test_no_such_program(self) -> None:
        """A program that is named must be there, and must be one."""
        file = self.folder / "text"
        file.touch()
        for name in ("no-such", str(file)):
            text = self.refused(replace(self.settings, llama_server=name))
            self.assertEqual(f"llama_server: {name}: no such program", text)

    def test_model(self) -> None:
        """A model must be a file that begins as model files do."""
        check_child(self.settings)
        check_child(Settings())
        other = self.folder / "other"
        other.write_bytes(b"PK")
        for path, words in (
            (self.folder / "none", "No such file or directory"),
            (self.folder, "Is a directory"),
            (other, "not a GGUF file, which llama.cpp needs"),
        ):
            text = self.refused(replace(self.settings, model=path))
            self.assertTrue(text.startswith(f"model: {path}: {words}"), text)

    def test_flags(self) -> None:
        """The wheel's flags are known before it runs; those of a program are its own business."""
        settings = replace(self.settings, llama_args=("--new-flag",))
        self.assertEqual(
            "llama_args: the llama.cpp in the wheel xllamacpp does not know --new-flag here", self.refused(settings)
        )
        self.program("llama-server")
        check_child(replace(settings, llama_server="llama-server"))
        missing = replace(self.settings, llama_args=("--api-key-file", "/none"))
        self.assertIn("/none", self.refused(missing))

    def test_reload(self) -> None:
        """A reload gets settings with the same address, or fails as a start would."""
        now = self.settings
        again = reader(lambda: now, 7)
        self.assertEqual("http://127.0.0.1:7", again().llama_url)
        now = replace(self.settings, model=self.folder / "none")
        self.assertRaises(ConfigError, again)
        now = Settings()
        self.assertIn("only a restart can change whether", str(self.assertRaises(ConfigError, again)))
