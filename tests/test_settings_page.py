"""The tables of settings in the documents agree with the code."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.settings.configuration import FIELDS
from tools import settings_page


class SettingsPage(SynchronousTestCase):
    """`tools/settings_page.py`."""

    maxDiff = None

    def test_up_to_date(self) -> None:
        """README.md and `docs/settings.md` are what the tool makes of the code: `make docs` brings them up to date."""
        readme, page = (file.read_text(encoding="utf-8") for file in (settings_page.README, settings_page.PAGE))
        self.assertEqual((readme, page), settings_page.renewed(readme, page))

    def test_all(self) -> None:
        """Each setting has its row, its section and its rule; what is around them stays."""
        table = f"{settings_page.HEAD}| `gone` | 1 | old |\n\nafter\n\nthat\n"
        readme, page = settings_page.renewed(f"before\n\n{table}", f"top\n{settings_page.MARK}old")
        self.assertEqual(("before\n\n", "after\n\nthat\n"), (readme[:8], readme[-12:]))
        self.assertEqual(f"top\n{settings_page.MARK}\n## `host`\n", page[: page.index("\n\n`--host")] + "\n")
        for key in FIELDS:
            self.assertEqual(1, readme.count(f"| [`{key}`](docs/settings.md#{key}) | "), key)
            self.assertEqual(1, page.count(f"## `{key}`\n"), key)
            # The rule is a part of what a wrong value is told, without its beginning and its end.
            self.assertNotRegex(settings_page.rule(key), r"\bmust\b|, not\b")
        self.assertNotIn("gone", readme)

    def test_words(self) -> None:
        """A text below a field belongs to that field, and is a setting's."""
        more = settings_page.explained()
        self.assertEqual([], sorted(more.keys() - FIELDS.keys()))
        self.assertIn("`--prefix @code=code.txt`", more["prefixes"])
