"""`bioproxy.command.init`: questions, options, and what is made of the answers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from unittest import mock

from twisted.python import usage

from bioproxy.command import init
from tests.support.command import command
from tests.support.folders import FolderTest

NOWHERE = "http://127.0.0.1:1"
"""An address where nobody answers."""


class Script(FolderTest):
    """Without a terminal, all answers are options."""

    def setUp(self) -> None:
        """Have a document, and an empty home."""
        super().setUp()
        self.patch(os, "environ", {**os.environ, "XDG_CONFIG_HOME": str(self.folder / "config")})
        self.document = self.folder / "My Notes.md"
        self.document.write_text("The notes.")
        self.words = ("init", "--llama-url", NOWHERE, "--document", str(self.document))
        self.home = self.folder / "config" / "bioproxy"

    def test_missing_answers(self) -> None:
        """A missing answer is one line with the exit code 2, and nothing is written."""
        for words, expected in (
            ((), "there is no terminal to ask on, so --model FILE or --llama-url URL is needed"),
            (self.words[1:3], "there is no terminal to ask on, so --document is needed"),
            ((*self.words[1:], "--model", "m"), "--model and --llama-url exclude each other: "),
        ):
            done = command("init", *words)
            self.assertEqual((2, 1), (done.code, done.err.count("\n")))
            self.assertTrue(done.err.startswith(f"bioproxy init: {expected}"), done.err)
        self.assertFalse(self.home.exists())

    def test_wrong_answers(self) -> None:
        """A wrong answer is one line that names the option, with the exit code 1, and nothing is written."""
        for words, expected in (
            (("init", "--llama-url", "h"), "--llama-url: must be an address like http://127.0.0.1:8080"),
            (("init", "--model", "/none.gguf"), "--model: /none.gguf: No such file or directory"),
            (("init", "--model", str(self.document)), "My Notes.md: not a GGUF file"),
            ((*self.words, "--document", "/none.md"), "--document: /none.md: No such file or directory"),
            ((*self.words, "--document", "/"), "--document: /: Is a directory"),
            ((*self.words, "--prefix", "@"), "--prefix: '@' gives no name"),
            ((*self.words, "--prefix", "@auto-0123456789ab"), "looks like that of a learned prompt"),
            ((*self.words, "--llama-url", "http://127.0.0.1:8081"), "is bioproxy's own port"),
            ((*self.words, "--config", f"{self.document}/conf.json"), "Not a directory"),
        ):
            done = command(*words)
            self.assertEqual((1, 1), (done.code, done.err.count("\n")), done)
            self.assertTrue(done.err.startswith("bioproxy init: "), done.err)
            self.assertIn(expected, done.err)
            self.assertFalse(self.home.exists())

    def test_files_that_no_template_can_include(self) -> None:
        """A document is refused that is empty, or whose name would end the include."""
        for name, text in (("empty.md", " \n"), ("a}>b.md", "x"), ("a\nb.md", "x")):
            (self.folder / name).write_text(text)
            done = command(*self.words, "--document", str(self.folder / name))
            self.assertEqual(1, done.code)
            self.assertTrue("is empty" in done.err or "cannot include a file of this name" in done.err, done.err)

    def test_twice(self) -> None:
        """The first time files are written, the second time nothing is changed, not even with another prefix."""
        done = command(*self.words)
        self.assertEqual((0, ""), (done.code, done.err))
        self.assertIn(f"{NOWHERE} does not answer yet (Connection refused)", done.out)
        written = {path.name: path.read_text() for path in self.home.iterdir()}
        self.assertEqual({"conf.json", "my-notes.txt"}, written.keys())
        for more in ((), ("--prefix", "@other")):
            expected = f"bioproxy init: {self.home / 'conf.json'} exists already; nothing was changed\n"
            self.assertEqual((1, "", expected), command(*self.words, *more))
        self.assertEqual(written, {path.name: path.read_text() for path in self.home.iterdir()})

    def test_template_is_there(self) -> None:
        """A template of that name is not overwritten either."""
        self.home.mkdir(parents=True)
        (self.home / "my-notes.txt").write_text("mine")
        done = command(*self.words)
        self.assertEqual(1, done.code)
        self.assertIn("my-notes.txt exists already; choose another prefix\n", done.err)
        self.assertEqual(["my-notes.txt"], os.listdir(self.home))

    def test_next_commands(self) -> None:
        """The two commands that come next can be typed as they are printed."""
        self.patch(sys, "argv", ["/venv/bin/bioproxy"])
        lines = command(*self.words, "--prefix", "@it's", "--prefix", "@notes").out.splitlines()
        self.assertEqual("    /venv/bin/bioproxy run", lines[-2])
        messages = [{"role": "user", "content": "@notes What is this about?"}]
        question = json.dumps({"messages": messages, "max_tokens": 200})
        self.assertEqual(f"    curl -s http://127.0.0.1:8081/v1/chat/completions -d '{question}'", lines[-1])
        # Found on the path: its name is enough.  And a file that is not the default one has to be named.
        script = self.folder / "bioproxy"
        script.touch(mode=0o700)
        os.environ["PATH"] = str(self.folder)
        self.patch(sys, "argv", [str(script)])
        file = self.folder / "my conf.json"
        self.assertIn(f"    bioproxy run --config '{file}'", command(*self.words, "--config", str(file)).out)
        self.patch(sys, "argv", ["/x/__main__.py"])
        shown = command(*self.words, "--config", str(self.folder / "third" / "conf.json")).out
        self.assertIn(f"    {sys.executable} -m bioproxy run --config ", shown)


class Questions(FolderTest):
    """With a terminal, what is missing is asked."""

    def ask(self, *answers: str) -> Iterator[str]:
        """Give these answers, one for each question, and note the questions."""
        self.asked: list[str] = []
        given = iter(answers)

        def ask(question: str) -> str:
            """Take the next answer."""
            self.asked.append(question)
            for answer in given:
                return answer
            raise EOFError

        self.said = io.StringIO()
        with contextlib.redirect_stdout(self.said):
            self.first = init.begin(ask, init.Given(config=str(self.folder / "new" / "conf.json")))
        return given

    def test_asked_again(self) -> None:
        """A wrong answer is asked again with the reason; an empty one takes what is suggested."""
        document = self.folder / "Übersicht (2).txt"
        document.write_text("x")
        self.assertEqual([], list(self.ask("", "h.gguf", NOWHERE, "", str(document), "@a b", " ")))
        self.assertEqual(7, len(self.asked))
        self.assertEqual("Messages about it begin with [@bersicht-2]: ", self.asked[-1])
        for reason in ('must be a text, not ""', "h.gguf: No such file", "does not answer yet", "gives no name"):
            self.assertIn(reason, self.said.getvalue())
        self.assertEqual(("@bersicht-2", document), (self.first.prefix, self.first.document))
        self.assertEqual([document.name], os.listdir(self.folder), "nothing is written before all is answered")

    def test_end_of_input(self) -> None:
        """The end of the input writes nothing."""
        self.assertRaises(EOFError, self.ask, NOWHERE)
        self.assertEqual([], os.listdir(self.folder))

    def test_without_readline(self) -> None:
        """A Python without `readline` can ask all the same."""
        terminal = io.StringIO()
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        self.patch(sys, "stdin", terminal)
        with mock.patch.dict(sys.modules, {"readline": None}):
            self.assertIs(input, init.terminal())

    def test_both_sources(self) -> None:
        """A model and a llama-server exclude each other, whether there is a terminal or not."""
        self.assertRaises(usage.UsageError, init.begin, input, init.Given(model="m", llama_url=NOWHERE))
