"""`bioproxy.command.main` and `foreground`: subcommands, errors, exit codes."""

from __future__ import annotations

import os

from bioproxy import __version__
from tests.support.command import command
from tests.support.folders import FolderTest


class Main(FolderTest):
    """The command line."""

    def setUp(self) -> None:
        """Be a user without settings."""
        super().setUp()
        self.patch(os, "environ", {**os.environ, "XDG_CONFIG_HOME": str(self.folder)})

    def test_mistakes(self) -> None:
        """A command line that is not understood is one line on standard error, with the exit code 2."""
        for words, expected in (
            ((), "bioproxy: say what to do: init, run or status; --help explains them\n"),
            (("walk",), "bioproxy: Unknown command: walk\n"),
            (("--wrong",), "bioproxy: option --wrong not recognized\n"),
            (("status", "--wrong"), "bioproxy status: option --wrong not recognized\n"),
            (("status", "word"), "bioproxy status: Wrong number of arguments.\n"),
            (("run", "--wrong"), "bioproxy run: option --wrong not recognized\n"),
            (("run", "word"), "bioproxy run: word: not understood; options begin with --\n"),
        ):
            self.assertEqual((2, "", expected), command(*words))

    def test_run_passes_options_on(self) -> None:
        """`run` has the options of ``twistd bioproxy``, and their errors."""
        expected = 'bioproxy: --port: must be a whole number from 0 to 65535, not "x"\n'
        self.assertEqual((1, "", expected), command("run", "--port", "x"))
        self.assertEqual((0, f"bioproxy {__version__}\n", ""), command("run", "--version"))
        self.assertIn("--llama-url=", command("run", "--help").out)

    def test_version(self) -> None:
        """The version is bioproxy's everywhere, and not Twisted's."""
        for words in (("--version",), ("init", "--version"), ("status", "--version")):
            self.assertEqual((0, f"bioproxy {__version__}\n", ""), command(*words))

    def test_help(self) -> None:
        """The help names the subcommands, and that of each its options."""
        self.assertTrue({"init", "run", "status"} <= set(command("--help").out.split()))
        self.assertIn("Usage: bioproxy init [options]", command("init", "--help").out)
        self.assertIn("--document=", command("init", "--help").out)
        self.assertIn("--json", command("status", "--help").out)
