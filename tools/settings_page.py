"""Writes the tables of settings: in README.md, and with more words in `docs/settings.md`.  ``make docs`` runs it.

The texts are in the code: each field of `Settings` has its help text, and most have a text in Markdown below them.  A
string that stands alone in a class has no effect in Python, so these are found by parsing the source.  What a setting
accepts is asked of its check, with a value that every check refuses: the error says it, in the words that a user sees.

The options of twistd are made from the same fields (`bioproxy.operator.options`): Twisted's parser finds options in
class attributes, so a loop over the fields is all that it takes.  What an option is called is therefore asked there.

Both documents have other text around what is made here, which stays.  A test (`tests/test_settings_page.py`) fails if
they are not up to date.

Does not know any setting by name.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from pathlib import Path
from textwrap import dedent
from unittest.mock import patch

from bioproxy.operator import options
from bioproxy.settings import configuration as config
from bioproxy.settings import kinds

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

README = ROOT / "README.md"
"""Has the short table, up to the next empty line."""

PAGE = ROOT / "docs" / "settings.md"
"""Has a section for each setting, from `MARK` to its end."""

HEAD = "| key | default | meaning |\n|---|---|---|\n"
"""How the table of README.md begins."""

MARK = "<!-- From here on, this page is made from the code by tools/settings_page.py. -->\n"
"""What stands before the sections of the page."""

REFUSED = -0.5
"""A value that no check accepts: neither a text nor a whole number, and no duration is below 0."""


WORDS = {kinds.path: "a path", kinds.url: "an address like `http://127.0.0.1:8080`"}
"""What these checks accept: to them `REFUSED` is no text at all, and they say no more."""


def explained() -> dict[str, str]:
    """Return the texts below the fields of `Settings`, by the fields' names."""
    # `inspect` returns the source as it stands in its file.  A class at the top of a module is not indented, but `ast`
    # would refuse one that is, hence `dedent`.
    body = ast.parse(dedent(inspect.getsource(config.Settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    # A text belongs to the field right above it.  Comments are no statements, so they are no neighbours either: between
    # a field and its text may be no comment, but one may follow the text.
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            # `cleandoc` removes the indentation, as it does for a docstring.
            found[field.target.id] = inspect.cleandoc(ast.literal_eval(after.value))
    return found


def rule(key: str) -> str:
    """Return what a setting must be, such as "a whole number from 0 to 65535".

    Limits are inside the check and nowhere else: it is a function that was made with them.  The text of its error has
    them, and is what a user sees after a mistake; so the page cannot promise something else.
    """
    check = config.FIELDS[key].metadata["check"]
    if check in WORDS:
        return WORDS[check]
    try:
        check(REFUSED, ROOT)
    except ValueError as error:
        # "must be TRUE OR FALSE, not -0.5": the middle is the rule.  The dot stands for line ends, too.
        return re.sub(r"(?s)^must (?:be|look like) (.*), not .*", r"\1", str(error))
    # A new kind of check that accepts even this: another value has to be found.
    raise AssertionError(f"{key} accepts {REFUSED}")


def default(key: str) -> str:
    """Return a setting's default as the configuration file would have it, for a user without XDG variables."""
    # `Settings` calls a function for a default that depends on the user.  With a home folder of this name, its paths
    # begin as users write them, and the result is the same on every machine.  In the end the environment is as before.
    with patch.dict(os.environ, {"HOME": "/~"}):
        os.environ.pop("XDG_STATE_HOME", None)
        value = getattr(config.Settings(), key)
    # A path is shown without the slash before the home folder's name.
    if value is None:
        return "none"
    if isinstance(value, Path):
        return f"`{str(value).removeprefix('/')}`"
    # Sizes are numbers of bytes by now, of which nobody can read the length.
    if isinstance(value, int) and "K, M or G" in rule(key):
        return f"`{value >> 30}G`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def option(key: str) -> str:
    """Return how a setting is written on the command line."""
    if key in options.FLAGS:
        return f"`{config.option(key)}`, `--no-{key.replace('_', '-')}`"
    return f"`{config.option(key)} {'@code=code.txt' if key == 'prefixes' else '...'}`"


def table() -> str:
    """Return the table of README.md."""
    # A help text is part of a row, so it must have no line end and no vertical bar; a test would show one.
    rows = []
    for key, entry in config.FIELDS.items():
        rows.append(f"| [`{key}`](docs/settings.md#{key}) | {default(key)} | {entry.metadata['help']} |\n")
    return HEAD + "".join(rows)


def sections() -> str:
    """Return the sections of the page."""
    more, parts = explained(), [MARK]
    for key, entry in config.FIELDS.items():
        # First what can be looked up at a glance, then what it is for.  The help text begins with a small letter, for
        # twistd's list of options; names keep it.
        brief = entry.metadata["help"]
        parts.append(f"\n## `{key}`\n\n{option(key)} · {rule(key)} · default: {default(key)}\n")
        parts.append(f"\n{brief if re.match(r'[a-z]+[-=]', brief) else brief[0].upper() + brief[1:]}.\n")
        if key in more:
            parts.append(f"\n{more[key]}\n")
    return "".join(parts)


def renewed(readme: str, page: str) -> tuple[str, str]:
    """Return both documents, up to date."""
    # An empty line ends a table in Markdown.  What follows it is kept, and so is what stands before the table.
    before, _, rest = readme.partition(HEAD)
    _, _, after = rest.partition("\n\n")
    return f"{before}{table()}\n{after}", page.partition(MARK)[0] + sections()


def main() -> None:
    """Write both."""
    for file, text in zip((README, PAGE), renewed(README.read_text(), PAGE.read_text()), strict=True):
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
