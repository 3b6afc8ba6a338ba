"""``bioproxy init``: three questions, and then a configuration with a first template.

The questions are which model or llama-server, which document, and which prefix.  Each has an option that answers it;
what is not given is asked, if standard input is a terminal.  If it is not, as in a script, a missing answer is an
error: waiting for an answer that cannot come would look as if the command hung.

A wrong answer at the terminal is asked again, with the reason.  A wrong option ends the command, because a script does
not answer twice.  Both go through the same check for each answer (`bioproxy.command.answers`).

All questions come before the first file is written, so Ctrl-C, or the end of the input, leaves nothing behind.
Everything is plain, blocking Python.  Twisted's event loop is for programs in which many things may happen next; here
it is only ever the user's answer, and waiting for that is a call of `input`.

Does not know what the files look like nor how they are written (`bioproxy.command.first_files`).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from twisted.python import usage

from bioproxy.command.answers import document_at, model_at, server_at, source_at, suggestion
from bioproxy.command.first_files import First, conflict, write
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import kinds
from bioproxy.settings.configuration import Settings, default_file

T = TypeVar("T")

Ask = Callable[[str], str]
"""Prints a question and returns the answer, as `input` does.  Raises `EOFError` at the end of the input."""


@dataclass(frozen=True)
class Given:
    """What the command line says.  `None` is for what it does not say.

    All values are texts as they were typed: nothing is checked yet.
    """

    model: str | None = None
    """A model file; excludes `llama_url`."""
    llama_url: str | None = None
    """The address of a llama-server."""
    document: str | None = None
    """The file that the template is to include."""
    prefix: str | None = None
    """What a message is to begin with."""
    config: str | None = None
    """The configuration file to write; never asked for, because the default one is found without being named."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """A question, in both of its forms: for a user at a terminal, and for a script.

    `T` is the type of the value that its answer becomes, so that a type checker knows what `answer` returns.
    """

    option: str
    """The option that answers it, without the hyphens in front."""
    text: str
    """What is printed on a terminal."""
    check: Callable[[str], T]
    """Turns the answer into a value.  Raises `ValueError` with the reason if it is wrong."""
    default: str | None = None
    """What an empty answer means, and what is taken where nobody can be asked; `None` if there has to be an answer."""


def run(given: Given) -> None:
    """Ask for what is not given, write the files, and print what comes next.

    Raises `UsageError` if an answer is missing and there is no terminal, and `SystemExit` with one line for every other
    mistake; nothing was written then.  `KeyboardInterrupt`, by Ctrl-C, goes through, also in the middle of writing:
    what was made until then is removed (`bioproxy.command.first_files.write`).
    """
    # In this order: only when all answers are there is the first file touched.
    try:
        first = begin(terminal(), given)
        settings = write(first)
    except EOFError:
        # Ctrl-D leaves the cursor behind the question.
        print()
        raise SystemExit("bioproxy init: the input ended, and nothing was written") from None
    # `ValueError` is a wrong answer or a file in the way; `ConfigError` is what ``--check`` would find wrong.
    except (ConfigError, ValueError) as error:
        raise SystemExit(f"bioproxy init: {error}") from None
    except OSError as error:
        # A full disk, or a folder that nobody may write to.  The text of an `OSError` begins with a number that says
        # nothing to a user.
        raise SystemExit(f"bioproxy init: {error.filename}: {error.strerror}") from None
    print_next(settings, first.file, named=given.config is not None)


def terminal() -> Ask | None:
    """Return the function that asks the user, or `None` if standard input is no terminal."""
    # Standard output may be a file: then the user sees no questions, but that was the user's choice.
    if not sys.stdin.isatty():
        return None
    # Importing this module is what gives `input` a line that can be edited.  Tab then completes names of files, which
    # is what most answers are.
    # Twisted is not concerned: nothing else runs in this process.
    try:
        import readline
    except ImportError:  # Python can be built without it, and a line can be typed without it
        return input
    readline.parse_and_bind("tab: complete")
    return input


def begin(ask: Ask | None, given: Given) -> First:
    """Get all answers, and return what is to be written.

    Nothing is written here, so whatever ends it leaves nothing behind.  Without `ask`, nobody is asked.

    Raises `EOFError` at the end of the input, `UsageError` for a missing answer, and `ValueError` for a wrong one.
    """
    # One of them would have to be ignored, and nobody could know which.
    if given.model is not None and given.llama_url is not None:
        raise usage.UsageError(
            "--model and --llama-url exclude each other: bioproxy starts llama.cpp, or it runs already"
        )
    # Before the questions: nobody should answer them for nothing.  A link that leads nowhere counts as a file, because
    # writing "through" it would make a file somewhere else.
    file = (default_file() if given.config is None else kinds.path(given.config, Path.cwd())).absolute()
    if os.path.lexists(file):
        raise ValueError(f"{file} exists already; nothing was changed")
    # Three answers.  The prefix comes last, because the document's name suggests one.
    source = answer(ask, given.model or given.llama_url, source_question(given))
    document = answer(ask, given.document, Question("document", "Text file that you will ask about", document_at))

    def with_prefix(text: str) -> First:
        """Return what is to be written if this is the prefix.  Raises `ValueError` if it cannot be."""
        # Called for each answer to the last question, so it has all the others.  The check of the setting judges the
        # prefix; a file's name does not matter to it.
        kinds.prefixes({text: "unused"}, file.parent)
        first = First(file, source, text, document)
        # Looked at now and not when the file is written, so that the user can choose again: the template's file has the
        # prefix's name.
        if complaint := conflict(first):
            raise ValueError(complaint)
        return first

    # Whatever the name of the document is, its suggestion is a valid prefix.
    asked = Question("prefix", "Messages about it begin with", with_prefix, suggestion(document))
    return answer(ask, given.prefix, asked)


def source_question(given: Given) -> Question[dict[str, Any]]:
    """Return the first question, which two options can answer: in a script, they say which of the two is meant."""
    # With an option there is only one thing that the answer can be, and errors name that option.
    if given.model is not None:
        return Question("model", "", model_at)
    if given.llama_url is not None:
        return Question("llama-url", "", server_at)
    # Otherwise the answer shows which of the two it is.  In a script's error both options are named.
    text = "Model file (GGUF), or address of a llama-server such as http://127.0.0.1:8080"
    return Question("model FILE or --llama-url URL", text, source_at)


def answer(ask: Ask | None, given: str | None, question: Question[T]) -> T:
    """Return the answer to a question, after its check.

    `given` is what the option said; then nothing is asked.  Raises `ValueError` if that is wrong, `UsageError` if there
    is neither an option nor somebody to ask nor a default, and `EOFError` at the end of the input.
    """
    if given is None and ask is not None:
        shown = f"{question.text} [{question.default}]: " if question.default else f"{question.text}: "
        # No limit of tries: until the answer is right, or the user gives up with Ctrl-C or Ctrl-D.
        while True:
            # Completing a name with Tab leaves a space behind it.
            text = ask(shown).strip() or question.default or ""
            try:
                return question.check(text)
            except ValueError as error:
                print(f"  {error}")
    # From here on there is only one try.  Where nobody can be asked, a default is as good as an answer: a script can do
    # without ``--prefix``.
    told = given if given is not None else question.default
    if told is None:
        raise usage.UsageError(f"there is no terminal to ask on, so --{question.option} is needed")
    # The same check, but with nobody to ask again.  The error names the option: a script's line has several.
    try:
        return question.check(told)
    except ValueError as error:
        raise ValueError(f"--{question.option}: {error}") from None


def print_next(settings: Settings, file: Path, named: bool) -> None:
    """Print the two commands that come next, ready to be typed: one starts bioproxy, the other one asks a question.

    The third one that a user needs, ``bioproxy status``, is in the help: two are enough to remember.
    `named`: the configuration file is not the default one, so the command has to name it.
    """
    # What was written is shown with its whole paths: a user wants to change both files some day.
    # There is one template, the one that was just written.
    template = settings.templates[0]
    # The command as the user has typed it: it may be in a virtual environment that is not activated.
    typed = sys.argv[0]
    if Path(typed).name != "bioproxy":
        program = [sys.executable, "-m", "bioproxy"]
    else:
        # Anything else is a path, which works from this folder at least.
        # For a command that the shell found on its path, `argv` has the whole path.
        program = ["bioproxy" if shutil.which("bioproxy") == typed else typed]
    # A list of words first, because each of them is quoted by itself.
    start = shlex.join([*program, "run", *(["--config", str(file)] if named else [])])
    # The same request as any client would send.  ``curl`` is there on most systems, and shows the answer as it is.
    # Its length is limited: a small model may not find an end, and ``curl`` shows nothing before that.
    question = {"messages": [{"role": "user", "content": f"{template.prefix} What is this about?"}], "max_tokens": 200}
    url = f"http://{settings.host}:{settings.port}/v1/chat/completions"
    # The question is quoted for the shell: a prefix may have a quotation mark in it.
    print(f"wrote {file} and {template.path}; next, in two terminals:\n")
    print(f"    {start}")
    print(f"    curl -s {url} -d {shlex.quote(json.dumps(question, ensure_ascii=False))}")
