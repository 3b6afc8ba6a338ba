"""What ``--check`` says."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

from bioproxy.operator import check
from bioproxy.operator.advice import Advice
from bioproxy.operator.check import Report
from bioproxy.settings import configuration as config
from bioproxy.settings.configuration import Settings
from tests.support.folders import FolderTest


class Reporting(FolderTest):
    """`report`, on settings made by hand."""

    def report(self, **texts: str) -> Report:
        """Check templates with these texts."""
        return check.report(Settings(prefixes={f"@{name}": self.template(name, text) for name, text in texts.items()}))

    def test_every_setting(self) -> None:
        """Each setting is there with its value; without templates it says so."""
        lines, problems, _ = check.report(Settings(port=8088))
        for key in config.FIELDS:
            if key != "prefixes":
                self.assertIn(f"{key} = {check.shown(getattr(Settings(port=8088), key))}", lines)
        for line in ("port = 8088", "listen = none", "warmup = true", "admin_hosts = []", "host = 127.0.0.1"):
            self.assertIn(line, lines)
        self.assertEqual("no templates: every request passes through unchanged", lines[-1])
        self.assertEqual([], problems)

    def test_own_llama(self) -> None:
        """With a model no address of a llama-server is shown, none is asked, and the output says so."""
        output = io.StringIO()
        problem = check.run(Settings(model=self.folder / "m.gguf"), lambda *_: self.fail("asked"), output, {})
        self.assertIn("m.gguf", problem)
        self.assertNotIn("llama_url", output.getvalue())
        self.assertIn("llama.cpp is started by bioproxy, and was not asked", output.getvalue())

    def test_template(self) -> None:
        """A template is shown with its size and its includes."""
        notes = self.template("notes", "abc")
        lines, problems, _ = self.report(code="Know <{notes.txt}>! <{message}>")
        self.assertEqual(
            [
                f"@code -> {self.folder / 'code.txt'}",
                "    10 characters before the message",
                f"    includes {notes}",
            ],
            lines[-3:],
        )
        self.assertEqual([], problems)

    def test_nothing_to_warm(self) -> None:
        """A template that begins with the message, or with white space before it, gets a warning and is no problem."""
        for text in ("<{message}> Be brief.", " \n<{message}>"):
            lines, problems, _ = self.report(late=text)
            self.assertIn("warning: begins with <{message}>", lines[-1])
            self.assertEqual([], problems)

    def test_slot_folder(self) -> None:
        """A slot folder that is not there is a problem."""
        # The last one stands for a folder that may not even be looked at.
        for folder, count in ((self.folder, 0), (self.folder / "nothing", 1), (self.folder / ("x" * 300), 1)):
            self.assertEqual(count, len(check.report(Settings(slot_save_path=folder))[1]))

    def test_state_dir(self) -> None:
        """A folder for records that cannot be made is a problem; one that is missing is not, and is not made."""
        file = self.template("file", "in the folder's place")
        for folder in (self.folder, self.folder / "new" / "deep"):
            self.assertEqual([], check.report(Settings(state_dir=folder))[1])
        self.assertFalse((self.folder / "new").exists())
        for folder in (file, file / "deep"):
            self.assertEqual([f"state_dir: {file}: Not a directory"], check.report(Settings(state_dir=folder))[1])

    def test_problems(self) -> None:
        """Every problem is found, not only the first; an include is named with its template."""
        lines, problems, _ = self.report(gone="<{nothing.txt}> <{message}>", mute="nothing", fine="a <{message}>")
        self.assertEqual(
            [
                "template gone: nothing.txt: No such file or directory",
                f"template mute: {self.folder / 'mute.txt'}: no <{{message}}> in it",
            ],
            problems,
        )
        self.assertIn(f"@fine -> {self.folder / 'fine.txt'}", lines)

    def test_open_slot_folder(self) -> None:
        """A slot folder that others may look into is a warning."""
        self.folder.chmod(0o755)
        lines, problems, _ = check.report(Settings(slot_save_path=self.folder))
        self.assertEqual([], problems)
        self.assertEqual(1, len([line for line in lines if line.startswith("warning: slot_save_path")]))

    def test_texts(self) -> None:
        """What can be warmed up is given on, to be counted."""
        found = self.report(late="<{message}>", mute="nothing", fine="a <{message}>")
        self.assertEqual([("fine", "a ")], found.texts)


class Output(io.StringIO):
    """A text that is a terminal, or is not."""

    terminal = True

    def isatty(self) -> bool:
        """Tell which."""
        return self.terminal


class Running(FolderTest):
    """`run`."""

    def test_shared_shelf(self) -> None:
        """A shared shelf that cannot be used is a warning: bioproxy starts without it."""
        lines, problems, _ = check.report(Settings(shared_shelf=self.folder / "shelf"))
        self.assertEqual(([], []), ([line for line in lines if "warning: shared" in line], problems))
        lines, problems, _ = check.report(Settings(shared_shelf=self.folder / "gone" / "shelf"))
        [line] = [line for line in lines if "warning: shared_shelf: " in line]
        self.assertIn("No such file or directory", line)
        self.assertEqual([], problems)

    def run_check(self, terminal: bool = True, **environ: str) -> str:
        """Check where llama-server is fine in one respect and unwise in another."""
        output = Output()
        output.terminal = terminal

        def survey(settings: Settings, texts: object, say: Callable[[str | Advice], None]) -> None:
            say("ok: it is up")
            say(Advice("it has warning: 2 slots", "start it with -np 1"))
            say(Advice("this build", "a newer one", serious=False))

        self.assertEqual(0, check.run(Settings(), survey, output, environ))
        return output.getvalue()

    def test_plain(self) -> None:
        """Each finding begins with a word that says how serious it is, and is followed by what helps."""
        expected = """llama-server at http://127.0.0.1:8080
    ok: it is up
    warning: it has warning: 2 slots
        what helps: start it with -np 1
    note: this build
        what helps: a newer one
"""
        self.assertTrue(self.run_check(terminal=False).endswith(expected))

    def test_colour(self) -> None:
        """On a terminal that word is coloured, unless nobody wants that."""
        output = self.run_check()
        for word, colour in (("ok:", 32), ("warning:", 33), ("note:", 36)):
            self.assertIn(f"\n    \x1b[{colour}m{word}\x1b[0m ", output)
        self.assertEqual(6, output.count("\x1b"))
        self.assertEqual(self.run_check(terminal=False), re.sub("\x1b.*?m", "", output))
        for plain in (self.run_check(NO_COLOR="1"), self.run_check(TERM="dumb")):
            self.assertEqual(self.run_check(terminal=False), plain)
        self.assertIn("\x1b", self.run_check(NO_COLOR="", TERM="xterm"))

    def test_problems(self) -> None:
        """What is wrong here is what the process ends with, whatever is said of llama-server."""
        settings = Settings(prefixes={"@gone": self.folder / "gone.txt"})
        self.assertIn("bioproxy: template gone: ", check.run(settings, None, Output(), {}))
