"""A folder for each test that writes files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase


class FolderTest(SynchronousTestCase):
    """A test with a folder of its own, and template files in it."""

    def setUp(self) -> None:
        """Make the folder; it goes when the test is over."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def template(self, name: str, text: str) -> Path:
        """Write a template file."""
        path = self.folder / f"{name}.txt"
        path.write_text(text)
        return path
