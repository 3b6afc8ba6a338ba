"""``--check``: says what the configuration amounts to, what is wrong with it, and what to advise on llama-server.

What is wrong here (a setting, a template) ends the check with exit code 1.  What is missing or unwise over there is a
warning and no more: llama-server may not be started yet, and the configuration can be right all the same.

Each finding begins with a word, ``ok``, ``note`` or ``warning``, which is coloured on a terminal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TextIO

from bioproxy.llama.connections import trusted
from bioproxy.operator.advice import Advice
from bioproxy.prompts import templates
from bioproxy.runtime.errors import ConfigError, TemplateError
from bioproxy.settings import configuration as config
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from bioproxy.slot.folder import SlotFolder

COLOURS = {"ok": 32, "note": 36, "warning": 33}
"""What the words look like: green, cyan, yellow, by their numbers in a terminal's language (ECMA-48)."""

Survey = Callable[[Settings, Iterable[tuple[str, str]], Callable[[str | Advice], None]], None]
"""Asks llama-server; `bioproxy.operator.inspection.now`."""


class Report(NamedTuple):
    """What was found, line by line; the problems, one a line; names and prefix texts of templates that can be warm."""

    lines: list[str]
    problems: list[str]
    texts: list[tuple[str, str]]


def report(settings: Settings) -> Report:
    """Read every template.  No problems means that all is well."""
    lines = [f"{key} = {getattr(settings, key)}" for key in config.FIELDS if key != "prefixes"]
    problems, texts = [], []
    keys = ApiKeys(settings.api_key_file, settings.llama_api_key_file)
    for read in (keys.read, lambda: trusted(settings.llama_ca_file)):
        try:
            read()
        except ConfigError as error:
            problems.append(str(error))
    folder = settings.slot_save_path
    for complaint in SlotFolder(folder).warnings():
        if folder is not None and folder.is_dir():
            lines.append(f"warning: {complaint}")
        else:
            problems.append(complaint)
    if not settings.templates:
        lines.append("no templates: every request passes through as it is")
    for template in settings.templates:
        lines.append(f"{template.prefix} -> {template.path}")
        try:
            text = templates.read(template)
        except TemplateError as error:
            problems.append(str(error))
            continue
        lines.append(f"    {len(text.prefix)} characters before the message, {len(text.includes)} files included")
        lines.extend(f"    includes {include}" for include in text.includes)
        problems.extend(f"template {template.name}: {error}" for error in text.errors)
        if text.prefix.strip():
            texts.append((template.name, text.prefix))
        else:
            lines.append("    warning: begins with <{message}>, so there is nothing to warm")
    return Report(lines, problems, texts)


def run(settings: Settings, survey: Survey | None, out: TextIO, environ: Mapping[str, str] = os.environ) -> Any:
    """Check everything, print it to `out`, and return what `SystemExit` is to be raised with.

    Without `survey` llama-server is not asked.
    """
    colour = out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"

    def say(what: str | Advice) -> None:
        text = what if isinstance(what, str) else in_words(what)
        # A file name may have bytes that are no UTF-8; they are shown as escapes.
        text = text.encode(errors="backslashreplace").decode()
        print(coloured(text) if colour else text, file=out, flush=True)

    found = report(settings)
    for line in found.lines:
        say(line)
    if survey is not None:
        say(f"llama-server at {settings.llama_url}")
        survey(settings, found.texts, lambda what: say(indented(what if isinstance(what, str) else in_words(what))))
    return "\n".join(f"bioproxy: {problem}" for problem in found.problems) or 0


def in_words(advice: Advice) -> str:
    """Return an advice as two lines."""
    return f"{'warning' if advice.serious else 'note'}: {advice.what}\n    what helps: {advice.fix}"


def indented(text: str) -> str:
    """Return text a little to the right."""
    return re.sub("^", "    ", text, flags=re.MULTILINE)


def coloured(text: str) -> str:
    """Return text with its first word in colour, if it is one of those."""
    return re.sub(
        rf"^( *)({'|'.join(COLOURS)}):", lambda found: f"{found[1]}\x1b[{COLOURS[found[2]]}m{found[2]}:\x1b[0m", text
    )
