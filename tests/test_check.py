"""What ``--check`` says."""

from __future__ import annotations

from bioproxy import check, config
from bioproxy.config import Settings
from tests.folders import FolderTest


class Report(FolderTest):
    """`report`, on settings made by hand."""

    def report(self, **texts: str) -> tuple[list[str], list[str]]:
        """Check templates with these texts."""
        return check.report(Settings(prefixes={f"@{name}": self.template(name, text) for name, text in texts.items()}))

    def test_every_setting(self) -> None:
        """Each setting is there with its value; without templates it says so."""
        lines, problems = check.report(Settings(port=8088))
        for key in config.FIELDS:
            if key != "prefixes":
                self.assertIn(f"{key} = {getattr(Settings(port=8088), key)}", lines)
        self.assertIn("port = 8088", lines)
        self.assertEqual("no templates: every request passes through as it is", lines[-1])
        self.assertEqual([], problems)

    def test_template(self) -> None:
        """A template is shown with its size and its includes."""
        notes = self.template("notes", "abc")
        lines, problems = self.report(code="Know <{notes.txt}>! <{message}>")
        self.assertEqual(
            [
                f"@code -> {self.folder / 'code.txt'}",
                "    10 characters before the message, 1 files included",
                f"    includes {notes}",
            ],
            lines[-3:],
        )
        self.assertEqual([], problems)

    def test_nothing_to_warm(self) -> None:
        """A template that begins with the message, or with white space before it, gets a warning and is no problem."""
        for text in ("<{message}> Be brief.", " \n<{message}>"):
            lines, problems = self.report(late=text)
            self.assertIn("warning: begins with <{message}>", lines[-1])
            self.assertEqual([], problems)

    def test_slot_folder(self) -> None:
        """A slot folder that is not there is a problem."""
        for folder, count in ((self.folder, 0), (self.folder / "nothing", 1)):
            self.assertEqual(count, len(check.report(Settings(slot_save_path=folder))[1]))

    def test_problems(self) -> None:
        """Every problem is found, not only the first; an include is named with its template."""
        lines, problems = self.report(gone="<{nothing.txt}> <{message}>", mute="nothing", fine="a <{message}>")
        self.assertEqual(
            [
                "template gone: nothing.txt: No such file or directory",
                f"template mute: {self.folder / 'mute.txt'}: no <{{message}}> in it",
            ],
            problems,
        )
        self.assertIn(f"@fine -> {self.folder / 'fine.txt'}", lines)
