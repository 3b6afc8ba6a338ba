"""The two files that ``bioproxy init`` writes: a configuration, and a template that includes the user's document.

Two promises are kept here.  *Nothing is overwritten*: a file is written under another name, and gets its own name by a
hard link, which fails if that name exists; renaming would replace the other file without a word.  *All or nothing*: the
link also means that a file is there as a whole or not at all, and after a failure, or Ctrl-C, what was made is removed.

Before the configuration is written, it is judged by the code of ``--check`` (`bioproxy.operator.check`), with the
template in place.

The files may be read by their owner only, because they tell about the user's work.

Plain, blocking Python, without Twisted.  Does not know where the answers come from (`bioproxy.command.init`).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bioproxy.operator import check
from bioproxy.prompts.templates import Template
from bioproxy.runtime.errors import ConfigError
from bioproxy.settings.configuration import Settings, load, refuse_loop

TEXT = """\
Here is a document. Answer the question below with what the document says.

<{{{document}}}>

<{{message}}>
"""
"""The first template, to be changed by its user; the document's path takes the place of `document`.

The message comes last, because only what stands before it can be processed in advance.
"""


@dataclass(frozen=True)
class First:
    """All answers.

    Invariant: each of them is valid by itself.  Whether they go together is found out by `write`.
    """

    file: Path
    """The configuration file, an absolute path.  Its folder need not exist."""
    source: Mapping[str, Any]
    """The settings that name the model or the llama-server, as the configuration file will have them."""
    prefix: str
    """The template's prefix."""
    document: Path
    """The file that the template includes, an absolute path."""

    @property
    def template(self) -> Path:
        """The template's file: beside the configuration, with the template's name."""
        return self.file.parent / f"{Template.of(self.prefix, self.file).name}.txt"

    @property
    def values(self) -> dict[str, Any]:
        """The content of the configuration file.  The template's path starts at that file's folder."""
        # No setting that has its default: the file stays short, and later defaults apply to it.
        return {**self.source, "prefixes": {self.prefix: self.template.name}}


def conflict(first: First) -> str | None:
    """Return the complaint if the template's file is there already, else `None`."""
    # Also a link that leads nowhere: writing "through" it would make a file somewhere else.
    # The last word has `create`, which fails if the file comes into being after this look.
    if os.path.lexists(first.template):
        return f"{first.template} exists already; choose another prefix"
    return None


def write(first: First) -> Settings:
    """Write both files, and return the settings that they give.

    Raises `ConfigError` with what is wrong, or `OSError`, such as `FileExistsError` if one of the names is taken.  Then
    nothing is left behind, and nothing of the user's was changed.
    """
    # What exists only because of this call, in the order in which it was made.
    made: list[Path] = []
    try:
        make_private(first.file.parent, made)
        # The template first: with it in place, the check below reads what bioproxy will read.
        create(first.template, TEXT.format(document=first.document))
        made.append(first.template)
        settings = checked(first)
        # The configuration last: as long as it is not there, bioproxy finds none of this.
        create(first.file, json.dumps(first.values, indent=2, ensure_ascii=False) + "\n")
    # Ctrl-C, too, which is no `Exception`.
    except BaseException:
        for path in reversed(made):
            # A folder into which somebody else has put something meanwhile stays.
            with suppress(OSError):
                # Removing a folder fails unless it is empty, so nothing of the user's can be lost.
                path.unlink() if path == first.template else path.rmdir()
        raise
    return settings


def checked(first: First) -> Settings:
    """Return the settings that the configuration will give, with the template in its place.

    Raises `ConfigError` with all that is wrong, in one line.
    """
    # The same three steps as in a start of bioproxy: load, refuse, report.
    # As if they came from the command line: there is no file yet.  Relative paths start at the same folder.
    settings = load(first.values, None, first.file.parent, use_file=False)
    # Is not part of `load`, because a demonstration may not have it; it is part of every other start.
    refuse_loop(settings)
    # The report's other lines are for ``--check``: a user who has answered three questions has seen them all.
    if problems := check.report(settings).problems:
        raise ConfigError("; ".join(problems))
    return settings


def make_private(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it that are missing, for their owner only, and add each to `made`.

    Raises `OSError`, perhaps half way.
    """
    # From the inside to the outside; the list ends with the first folder that the user does not have yet.
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    # From the outside to the inside, and noted one by one: the next one may fail, for example on a full disk.
    for path in reversed(missing):
        # `Path.mkdir` with `parents` would make those above with other rights.
        # Those for the owner only are also what the XDG specification asks for.
        path.mkdir(mode=0o700)
        made.append(path)


def create(path: Path, text: str) -> None:
    """Write a new file that only its owner may read.  Raises `FileExistsError` if there is one, and `OSError`."""
    # A temporary name in the same folder, because a hard link cannot lead to another file system.  `mkstemp` lets only
    # the owner read.
    descriptor, draft = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
    try:
        # Paths in the texts may have any character, so the encoding is not left to the environment.
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # Before the file has its name: a power cut must not leave the name with an empty file.
            os.fsync(descriptor)
        # The draft and the file are one file with two names from here on, until the draft's name is removed.
        os.link(draft, path)
    # Also after a success: the file keeps its own name.
    finally:
        os.unlink(draft)
