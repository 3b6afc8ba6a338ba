"""The answers that ``bioproxy init`` needs: one small function for each, from a text to what is made of it.

Such a function is a *check*.  It gets what a user typed, or what an option said, and returns the value to use, or
raises `ValueError` with the reason.  The checks of the settings work in the same way (`bioproxy.settings.kinds`), and
are used here where they fit.

Two checks look further than the text.  A document is read by the code that fills templates, so that nobody is told
later that it cannot be included.  A llama-server is asked whether it is there; but it may also be started later, so
what it answers is said and not judged.

Everything here is plain, blocking Python, without Twisted: there is one user, and that user waits for the answer.

Does not know how a question is asked, nor what happens after a wrong answer (`bioproxy.command.init`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bioproxy.child.program import check_model
from bioproxy.command.http_get import NoAnswer, get
from bioproxy.operator.llama_flags import command_line, leads_here, value
from bioproxy.prompts.templates import END, read_file
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings import kinds

LOADING = 503
"""The status of llama-server's `/health` while it loads its model."""


def source_at(text: str) -> dict[str, Any]:
    """Return the settings for a model file or for the address of a llama-server, whichever the text is."""
    # One question for both, because a user has one of the two and knows which.
    # No usual name of a file begins like that, and a user need not say which of the two is meant.
    return server_at(text) if re.match(r"https?://", text) else model_at(text)


def model_at(text: str) -> dict[str, Any]:
    """Return the settings for a model file that bioproxy is to run llama.cpp with."""
    # Relative to the working folder, as on any command line; "~" works.  The result is an absolute path, because the
    # configuration file will be in another folder.
    path = kinds.path(text, Path.cwd())
    # The same look as in a start of bioproxy: a file of another kind, such as a web page that was saved instead of a
    # download, is seen at once.  Whether llama.cpp can run the model is found out when it is started.
    try:
        check_model(path)
    except ConfigError as error:
        # Its text begins with the name of the setting, which the user has not typed.
        raise ValueError(str(error).removeprefix("model: ")) from None
    return {"model": str(path)}


def server_at(text: str) -> dict[str, Any]:
    """Return the settings for a llama-server that runs already, or will.  Prints what it answers now."""
    # The check of the setting `llama_url`, which also removes a slash at the end.
    url = kinds.url(text, Path.cwd())
    # The one path that needs no key, whatever llama-server was started with.
    try:
        status = get(url, "/health").status
    except NoAnswer as error:
        # Two programs are started by hand, and there is no right order.
        print(f"  {url} does not answer yet ({error}); start llama-server before bioproxy")
        return {"llama_url": url}
    # Three cases that a user has to tell apart.  None is an error: all of them may be right a minute later.
    if status == 200:
        print(f"  llama-server at {url} is up")
    elif status == LOADING:
        print(f"  llama-server at {url} is loading its model")
    else:
        # Often the address of something else, such as of bioproxy itself or of a web page in front of llama-server.
        print(f"  {url} answers, but /health with status {status}: is that a llama-server?")
    return {"llama_url": url, **slot_folder(url)}


def slot_folder(url: str, proc: Path = Path("/proc")) -> dict[str, Any]:
    """Return the setting `slot_save_path`, if llama-server's own option can be seen; nothing otherwise.

    Prints which of the two it is.  `proc` is where Linux shows the processes of this machine.
    """
    # llama-server does not tell over HTTP where its slot files are, but Linux shows how a process was started.
    # The port is looked for in the command lines of this machine, so it must be a port of this machine.
    # A llama-server in a container has another port inside than outside; then nothing is found, and nothing wrong.
    flags = command_line(kinds.port_of(url), None, proc) if leads_here(url) else None
    folder = value(flags or (), "--slot-save-path")
    # A relative path starts at llama-server's working folder, which is not known.  A folder that is not here belongs to
    # a container, whose files bioproxy cannot see either.
    if folder is not None and Path(folder).is_absolute() and Path(folder).is_dir():
        print(f"  it keeps slot files in {folder}")
        return {"slot_save_path": folder}
    # Templates are kept without this setting, too, because llama-server writes the files.  Only what bioproxy learns
    # needs it: those files are also removed.
    print("  its slot folder is not visible here; if it has one, set slot_save_path, and prompts are learned as well")
    return {}


def document_at(text: str) -> Path:
    """Return the path of a text file that a template can include."""
    path = kinds.path(text, Path.cwd())
    # It is read now although only its name is written down: the file is there, or the user has mistyped its name.
    # The same files are refused as in a template, for the same reasons: too large, not UTF-8, not a regular file.
    try:
        content = read_file(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    # Nothing could be warmed up, and nothing asked.  Most likely it is another file that is meant.
    if not content.strip():
        raise ValueError(f"{path}: is empty")
    # Its content is inserted as it is, so that may have any characters; its name may not.
    # A template names the file between two marks on one line.  A name with the second mark in it would end there.
    if not str(path).isprintable() or END in str(path):
        raise ValueError(f"{str(path)!r}: a template cannot include a file of this name")
    return path


def suggestion(document: Path) -> str:
    """Return a prefix made of a document's name, for users who do not care."""
    # A template's name consists of ASCII letters, digits, "_" and "-".  Everything else becomes a hyphen.
    # What is left may be nothing, for example of a name in Chinese.
    name = re.sub(r"[^a-z0-9_-]+", "-", document.stem.lower()).strip("-_")[:64]
    return f"@{name or 'document'}"
