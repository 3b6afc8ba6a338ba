"""``--check``: prints the settings, what is wrong with them, and advice on llama-server.

Mistakes on bioproxy's side (a setting, a template, a key file) end the check with exit code 1, so that a script can
rely on it.  Findings about llama-server are warnings and leave the exit code 0: llama-server may not be started yet,
and the configuration can be right nevertheless.

All mistakes are collected and printed together; a user who corrects one should not have to run the check again to see
the next.  Each finding begins with a word, ``ok``, ``note`` or ``warning``, which is coloured on a terminal.

`report` reads files and prints nothing; `run` prints.  Neither knows Twisted or the network: the function that asks
llama-server is passed in (`bioproxy.operator.survey_run.now`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TextIO

from bioproxy.child.program import check_child
from bioproxy.llama.connections import check_ca_file
from bioproxy.operator import disk_use
from bioproxy.operator.advice import Advice
from bioproxy.prompts import templates
from bioproxy.runtime.errors import ConfigError, TemplateError
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.settings import configuration as config
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from bioproxy.shared.folder import SharedFolder
from bioproxy.slot_files.folder import SlotFolder

COLOURS = {"ok": 32, "note": 36, "warning": 33}
"""The colours of the words, as numbers of terminals' escape sequences (ECMA-48): green, cyan, yellow."""

Survey = Callable[[Settings, Iterable[tuple[str, str]], Callable[[str | Advice], None]], None]
"""Asks llama-server about the templates' texts, and passes each finding to a function; `survey_run.now`."""


class Report(NamedTuple):
    """The result of reading the configuration and the templates.

    Invariant: what is in `problems` is not in `lines`, so nothing is printed twice.
    """

    lines: list[str]
    """What was found, in the order in which it is printed."""

    problems: list[str]
    """What has to be corrected; empty if all is well."""

    texts: list[tuple[str, str]]
    """Names of the templates that can be warmed up, with the text before the message of each."""


def report(settings: Settings) -> Report:
    """Check the files that the settings name, and read every template.  Never fails for reasons of the settings."""
    # All settings, also those with their defaults: a user sees at once whether the file that was read is the right one.
    # With a model, `llama_url` is not a setting: bioproxy chooses the address when it starts llama.cpp.
    left_out = ("prefixes",) if settings.model is None else ("prefixes", "llama_url")
    lines = [f"{key} = {shown(getattr(settings, key))}" for key in config.FIELDS if key not in left_out]
    # Key files and the CA file: the settings' own checks only see paths, because a file may be made after them.
    problems, texts = [], []
    keys = ApiKeys(settings.api_key_file, settings.llama_api_key_file)
    # Each is read in the way in which the proxy reads it at its start, and by the same code.
    for read in (keys.read, lambda: check_ca_file(settings.llama_ca_file), lambda: check_child(settings)):
        try:
            read()
        except ConfigError as error:
            problems.append(str(error))
    # Not opened, which would make it, and fail while a bioproxy runs with this very configuration.
    if (problem := StateFolder(settings.state_dir).problem()) is not None:
        problems.append(problem)
    folder = settings.slot_save_path
    # A folder that is there but open to others still works.  Without the folder bioproxy starts, too, but finds no
    # file there.
    for complaint in SlotFolder(folder).warnings():
        # Otherwise the setting names no folder.  `os.path.isdir` is false for a path that cannot be looked at, such as
        # one that is too long; `Path.is_dir` raises an error for some of these.
        if folder is not None and os.path.isdir(folder):
            lines.append(f"warning: {complaint}")
        else:
            problems.append(complaint)
    # How much is on disk, and how much may be.  Said even if the folder is open to others, and whether llama-server
    # runs or not: the files are there in any case.
    lines.extend(disk_use.lines(settings))
    # A warning only: bioproxy starts nevertheless, and shares nothing for as long as the folder is in trouble.
    if settings.shared_shelf is not None:
        complaints = SharedFolder(settings.shared_shelf).warnings()
        lines.extend(f"warning: shared_shelf: {complaint}" for complaint in complaints)
    if not settings.templates:
        lines.append("no templates: every request passes through unchanged")
    # Read by the code that serves requests, so the check cannot judge by other rules.
    # One broken template must not hide what is wrong with the others.
    for template in settings.templates:
        # Named before it is read, so that a problem can be found in the list.
        lines.append(f"{template.prefix} -> {template.path}")
        try:
            text = templates.read(template)
        except TemplateError as error:
            # There is nothing more to say about a template without a text.
            problems.append(str(error))
            continue
        lines.append(f"    {len(text.prefix):,} characters before the message")
        # The paths as they were resolved: a relative one that leads elsewhere than meant is seen here.
        lines.extend(f"    includes {include}" for include in text.includes)
        # An include that cannot be read is an error in the text for users, but a mistake that the operator can correct.
        problems.extend(f"template {template.name}: {error}" for error in text.errors)
        # Tokens of white space alone are not worth a warm-up.
        if text.prefix.strip():
            texts.append((template.name, text.prefix))
        else:
            # It works, but bioproxy can do nothing for it: what differs in each request cannot be computed before.  A
            # text behind the message does not help, since llama-server reuses beginnings only.
            lines.append("    warning: begins with <{message}>, so there is nothing to warm up")
    return Report(lines, problems, texts)


def run(settings: Settings, survey: Survey | None, out: TextIO, environ: Mapping[str, str] = os.environ) -> Any:
    """Check everything, print the findings to `out`, and return the value to raise `SystemExit` with.

    That value is 0, or the problems as a text, which Python prints to standard error with the exit code 1.  Without
    `survey`, llama-server is not asked.  `environ` may switch colours off.
    """
    # The usual conventions: https://no-color.org, and a terminal that has no escape sequences.
    colour = out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"

    def say(text: str) -> None:
        """Print a finding."""
        # A file name may have bytes that are no UTF-8, which `print` would fail on; they are shown as escapes.
        text = text.encode(errors="backslashreplace").decode()
        # Flushed at once, because the survey below may take a minute, and each line is news.
        print(coloured(text) if colour else text, file=out, flush=True)

    found = report(settings)
    for line in found.lines:
        say(line)
    # What concerns bioproxy alone is printed by now, so a llama-server that hangs delays only what is said about it.
    # llama-server is asked even if there are problems here: the user gets all findings at once.
    # One that bioproxy starts itself does not run yet.
    if settings.model is not None:
        say("llama.cpp is started by bioproxy, and was not asked: the log has the advice on it after the start")
    elif survey is not None:
        # All findings about it are indented below its address.
        say(f"llama-server at {settings.llama_url}")
        survey(settings, found.texts, lambda what: say(indented(in_words(what))))
    # Python prints the text that `SystemExit` is raised with, and nothing for 0.
    # Last, so that problems are at the end of a long output, where a user looks first.
    return "\n".join(f"bioproxy: {problem}" for problem in found.problems) or 0


def shown(value: Any) -> str:
    """Return a setting's value as the table of settings has it: ``none``, ``true``, ``[]``, numbers and texts."""
    if value is None:
        return "none"
    # As in the configuration file, where tuples are lists; a text stands there without its quotation marks.
    return json.dumps(value) if isinstance(value, (bool, int, float, tuple)) else str(value)


def in_words(finding: str | Advice) -> str:
    """Return an advice as two lines, what was found and what helps; any other finding as it is."""
    if isinstance(finding, str):
        return finding
    # `Advice` has no word for how serious it is: the log has levels instead, and needs none.
    return f"{'warning' if finding.serious else 'note'}: {finding.what}\n    what helps: {finding.fix}"


def indented(text: str) -> str:
    """Return text with four spaces in front of each line."""
    # An advice has two lines.  Without `MULTILINE`, ``^`` would be the beginning of the first one only.
    return re.sub("^", "    ", text, flags=re.MULTILINE)


def coloured(text: str) -> str:
    """Return text with its first word in colour, if that is one of `COLOURS` with a colon behind it.

    White space before it is allowed.  The sequence after the word restores the terminal's own colour.
    """
    # Only at the beginning: the same word further on, such as in a file's name, is no statement about the line.
    return re.sub(
        rf"^( *)({'|'.join(COLOURS)}):", lambda found: f"{found[1]}\x1b[{COLOURS[found[2]]}m{found[2]}:\x1b[0m", text
    )
