"""``bioproxy init``: three questions, and then a configuration with a first template.

The questions are which model or llama-server, which document, and which prefix.  Each has an option that answers it;
what is not given is asked, if standard input is a terminal.  If it is not, as in a script, a missing answer is an
error: waiting for one that cannot come would look as if the command hung.

A wrong answer at the terminal is asked again, with the reason.  A wrong option ends the command, because a script does
not answer twice.  Both go through the same function for each answer, which returns the value or raises `ValueError`.

All questions come before the first file is written, so Ctrl-C, or the end of the input, leaves nothing behind.
Everything is plain, blocking Python: without Twisted's event loop, waiting for a user is just a call of `input`.

Does not know what the files look like nor how they are written (`bioproxy.command.first_files`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from twisted.python import usage

from bioproxy.command.first_files import First, conflict, write
from bioproxy.command.http_get import NoAnswer, get
from bioproxy.operator.llama_flags import command_line, value
from bioproxy.prompts.templates import read_file
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import kinds
from bioproxy.settings.configuration import Settings, default_file

T = TypeVar("T")

Ask = Callable[[str], str]
"""Prints a question and returns the answer, as `input` does.  Raises `EOFError` at the end of the input."""

MAGIC = b"GGUF"
"""What a model file begins with."""

LOADING = 503
"""The status of llama-server's `/health` while it loads its model."""


def run(model: str | None, llama_url: str | None, document: str | None, prefix: str | None, config: str | None) -> None:
    """Ask for what is not given, write the files, and say what comes next.

    Raises `UsageError` if an answer is missing and there is no terminal, and `SystemExit` with one line for every other
    mistake; nothing was written then.
    """
    try:
        settings, file = begin(terminal(), model, llama_url, document, prefix, config)
    except EOFError:
        raise SystemExit(
            "\nbioproxy init: the input ended before all questions were answered; nothing was written"
        ) from None
    except (ConfigError, ValueError) as error:
        raise SystemExit(f"bioproxy init: {error}") from None
    except OSError as error:
        # The text of an `OSError` begins with a number that says nothing to a user.
        raise SystemExit(f"bioproxy init: {error.filename}: {error.strerror}") from None
    print_next(settings, file, named=config is not None)


def terminal() -> Ask | None:
    """Return the function that asks the user, or `None` if standard input is no terminal."""
    if not sys.stdin.isatty():
        return None
    # Importing this module is what gives `input` a line that can be edited; Tab completes names of files.
    try:
        import readline
    except ImportError:  # Python can be built without it, and then the line cannot be edited
        return input
    readline.parse_and_bind("tab: complete")
    return input


def begin(
    ask: Ask | None,
    model: str | None,
    llama_url: str | None,
    document: str | None,
    prefix: str | None,
    config: str | None,
) -> tuple[Settings, Path]:
    """Get all answers and write the files; return the settings and the path of their file.

    Raises `EOFError`, `UsageError`, and for a mistake `ConfigError`, `OSError` or `ValueError`.
    """
    if model is not None and llama_url is not None:
        raise usage.UsageError(
            "--model and --llama-url exclude each other: bioproxy starts llama.cpp, or finds it running"
        )
    file = (default_file() if config is None else Path(config).expanduser()).absolute()
    # Before the questions: nobody should answer them in vain.
    if os.path.lexists(file):
        raise ValueError(f"{file} exists already; nothing was changed")
    source = answer(ask, *which_source(model, llama_url))
    told = answer(ask, "document", document, "Text file that you will ask about", document_at)
    suggested = suggestion(told)

    def free_prefix(text: str) -> First:
        """Return what is to be written if this is the prefix.  Raises `ValueError` if it cannot be."""
        kinds.prefixes({text: "unused"}, file.parent)
        first = First(file, source, text, told)
        if complaint := conflict(first):
            raise ValueError(complaint)
        return first

    first = answer(ask, "prefix", prefix, "Messages about it begin with", free_prefix, suggested)
    return write(first), file


def which_source(
    model: str | None, llama_url: str | None
) -> tuple[str, str | None, str, Callable[[str], dict[str, Any]]]:
    """Return what `answer` needs to know about the first question, which two options can answer."""
    if model is not None:
        return "model", model, "", model_at
    if llama_url is not None:
        return "llama-url", llama_url, "", server_at
    # An answer with a scheme is an address; no usual name of a file looks like that.
    return (
        "model FILE or --llama-url URL",
        None,
        "Model file (GGUF), or address of a llama-server such as http://127.0.0.1:8080",
        lambda text: (server_at if re.match(r"https?://", text) else model_at)(text),
    )


def answer(
    ask: Ask | None,
    option: str,
    given: str | None,
    question: str,
    check: Callable[[str], T],
    default: str | None = None,
) -> T:
    """Return the answer to a question, after its check.

    `given` is what `option` said, `default` what an empty answer means.  Without `ask`, and without either of them,
    raises `UsageError`.
    """
    if given is None and ask is not None:
        while True:
            text = ask(f"{question}{f' [{default}]' if default else ''}: ").strip() or default or ""
            try:
                return check(text)
            except ValueError as error:
                print(f"  {error}")
    if given is None and default is None:
        raise usage.UsageError(f"there is no terminal to ask on, so --{option} is needed")
    try:
        return check(given if given is not None else str(default))
    except ValueError as error:
        raise ValueError(f"--{option}: {error}") from None


# The checks: from the text of an answer to a value.  Each raises `ValueError` with the reason.


def model_at(text: str) -> dict[str, Any]:
    """Return the settings for a model file."""
    path = kinds.path(text, Path.cwd())
    try:
        with open(path, "rb") as file:
            begins = file.read(len(MAGIC))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if begins != MAGIC:
        raise ValueError(f"{path}: not a model in the GGUF format")
    return {"model": str(path)}


def server_at(text: str) -> dict[str, Any]:
    """Return the settings for a llama-server that runs already.  Says what it answers now; it may also start later."""
    url = kinds.url(text, Path.cwd())
    try:
        status = get(url, "/health").status
    except NoAnswer as error:
        print(f"  {url} does not answer yet ({error}); start llama-server before bioproxy")
        return {"llama_url": url}
    if status == 200:
        print(f"  llama-server at {url} is up")
    elif status == LOADING:
        print(f"  llama-server at {url} is loading its model")
    else:
        print(f"  {url} answers, but /health with status {status}: is that a llama-server?")
    return {"llama_url": url, **slot_folder(url)}


def slot_folder(url: str, proc: Path = Path("/proc")) -> dict[str, Any]:
    """Return the setting `slot_save_path` if the llama-server's own option can be seen; nothing otherwise."""
    parts = urlsplit(url)
    # The port is compared with the command lines of this machine, so it must be a port of this machine.
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    flags = command_line(parts.port or 80, None, proc) if local else None
    folder = value(flags or (), "--slot-save-path")
    # A relative path starts at llama-server's working folder, which is not known.
    if folder is not None and Path(folder).is_absolute() and Path(folder).is_dir():
        print(f"  it keeps slot files in {folder}")
        return {"slot_save_path": folder}
    print("  its slot folder is not visible here; where it has one, set slot_save_path, and more is kept warm")
    return {}


def document_at(text: str) -> Path:
    """Return the path of a text file that a template can include."""
    path = kinds.path(text, Path.cwd())
    # Read by the code that fills templates, so that the same files are refused for the same reasons.
    try:
        content = read_file(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not content.strip():
        raise ValueError(f"{path}: is empty")
    if not str(path).isprintable() or "}>" in str(path):
        raise ValueError(f"{str(path)!r}: a template cannot include a file of this name")
    return path


def suggestion(document: Path) -> str:
    """Return a prefix made of a document's name."""
    # What a template's name may consist of.  Accents and other scripts become hyphens.
    name = re.sub(r"[^a-z0-9_-]+", "-", document.stem.lower()).strip("-_")[:64]
    return f"@{name or 'document'}"


def print_next(settings: Settings, file: Path, named: bool) -> None:
    """Print the two commands that come next.  `named`: the file is not the default one, so it has to be named."""
    template = settings.templates[0]
    # The command as the user has typed it: it may be in a virtual environment that is not activated.
    typed = sys.argv[0]
    if Path(typed).name != "bioproxy":
        program = [sys.executable, "-m", "bioproxy"]
    else:
        # For a command that the shell found on its path, `argv` has the whole path.
        program = ["bioproxy" if shutil.which("bioproxy") == typed else typed]
    start = shlex.join([*program, "run", *(["--config", str(file)] if named else [])])
    question = {"messages": [{"role": "user", "content": f"{template.prefix} What is this about?"}]}
    url = f"http://{settings.host}:{settings.port}/v1/chat/completions"
    print(f"wrote {file} and {template.path}; next, in two terminals:\n")
    print(f"    {start}")
    print(f"    curl -s {url} -d {shlex.quote(json.dumps(question, ensure_ascii=False))}")
