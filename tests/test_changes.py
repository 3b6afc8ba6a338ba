"""The fragments of the changelog, from which towncrier makes a section when there is a new version."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
FRAGMENT = r"\+[a-z0-9-]+\.({})\.md"
SECTION = r'\{ directory = "([a-z]+)", name = '


class Fragments(SynchronousTestCase):
    """The files in `changes/`."""

    def test_names(self) -> None:
        """Each has a name that towncrier understands: it would leave out any other without a word."""
        kinds = re.findall(SECTION, (ROOT / "pyproject.toml").read_text())
        self.assertIn("fixed", kinds)
        odd = [
            file.name
            for file in (ROOT / "changes").iterdir()
            if file.name != "README.md" and not re.fullmatch(FRAGMENT.format("|".join(kinds)), file.name)
        ]
        self.assertEqual([], odd)

    def test_words(self) -> None:
        """Each says something, and ends like a sentence."""
        for file in (ROOT / "changes").glob("+*"):
            self.assertRegex(file.read_text(), r"(?s)\A[A-Z`].*[.]\n\Z", file.name)
