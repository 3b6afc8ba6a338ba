"""What the slot folder holds, by kind of file, for ``--check``: how many files, and how many bytes.

The files belong to llama-server, and another bioproxy may be serving with them while the check runs.  So this module
goes by names and by what `stat` says.  It opens no file and changes nothing, and a file that disappears meanwhile is
not counted.

A name tells the kind of a file: it begins with the id of a prompt or a conversation, which has no dot, and what follows
says which of its files it is (`bioproxy.slot_files.record.NAMES`)::

    code.bin                        a template        its prefix
    code.part.bin                   a template        a warm-up that was interrupted
    code.chat.bin                   a template        the last conversation on it
    auto-0123456789ab.bin           a learned prompt
    auto-0123456789ab.part.bin      a learned prompt  a warm-up that was interrupted
    auto-0123456789ab.chat.bin      a conversation

All other files are counted together: those of other programs, and those of templates that are not configured any more.

Plain, blocking code without Twisted: ``--check`` runs before the reactor does.  Not known here: the record, that is,
which of these files bioproxy would restore.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from bioproxy.prompts.prompt_ids import is_learned
from bioproxy.runtime.sizes import shown_size
from bioproxy.settings.configuration import Settings
from bioproxy.slot_files.record import CHAT, NAMES

ENDINGS = {name.removeprefix("{}"): kind for kind, names in NAMES.items() for name in names}
"""The kind of a slot file by what follows the id in its name, such as ``.chat.bin``.

Made from the names that the record uses, so a new name there is known here at once.
"""


@dataclass
class Pile:
    """Files of one sort, counted.  Invariant: both numbers are of the same files."""

    # Changed by `add`, so this is no frozen value like most dataclasses here.  Nobody keeps one but `DiskUse`.
    count: int = 0
    """How many files."""

    size: int = 0
    """Their length in bytes, all together.  A file with holes takes less room on the disk."""

    def add(self, size: int) -> None:
        """Count a file of `size` bytes."""
        self.count += 1
        self.size += size


class DiskUse:
    """The files in a slot folder, counted by kind.

    Invariant: each file is in exactly one of `templates`, `learned`, `conversations` and `others`.  The conversations
    on templates are among `templates`, and once more in `chats`.
    """

    templates: Pile
    """Files of the configured templates, of all kinds.  Of these only conversations have a limit."""

    learned: Pile
    """Files of learned prompts, and of interrupted warm-ups of these: what `prompts_limit` limits."""

    conversations: Pile
    """Files of conversations that are not the last one on a template."""

    others: Pile
    """All other files."""

    chats: Pile
    """Files of all conversations: what `conversations_limit` limits."""

    def __init__(self, templates: Collection[str]) -> None:
        """Count nothing yet.  `templates` are the names of the configured templates."""
        self._names = templates
        self.templates, self.learned, self.conversations, self.others, self.chats = (Pile() for _ in range(5))

    def add(self, filename: str, size: int) -> None:
        """Count a file of `size` bytes, by its name."""
        # Matched as it is spelled: on a file system that ignores case, llama-server still makes the names as asked for.
        # Ids have no dot, so the first dot is where the ending begins.
        id, dot, rest = filename.partition(".")
        kind = ENDINGS.get(dot + rest)
        # Such as ``code.bin.bak``, or ``gone.bin`` of a template that was removed from the configuration: bioproxy does
        # not touch either, so an operator who needs room has to.
        if kind is None or not (id in self._names or is_learned(id)):
            self.others.add(size)
            return
        # One limit for all conversations, with and without a template.
        if kind == CHAT:
            self.chats.add(size)
        # No template has the name of a learned prompt; the settings refuse it.
        if id in self._names:
            self.templates.add(size)
        elif kind == CHAT:
            self.conversations.add(size)
        # Prefixes and parts share a limit, because a part becomes the prefix when its warm-up has ended.
        else:
            self.learned.add(size)


def files_in(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield name and size, in bytes, of each plain file in a folder.  Raises `OSError` if it cannot be listed."""
    # `scandir` holds the folder open until its `with` ends, also if the caller stops in the middle.
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                # A link is not followed: llama-server makes none, and what it leads to takes no room here.
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                # A bioproxy that serves renames and removes files at any time.
                continue
            # A folder's own size says nothing of what is in it, and a pipe or a socket has none.
            if stat.S_ISREG(found.st_mode):
                yield entry.name, found.st_size


def lines(settings: Settings) -> list[str]:
    """Return what ``--check`` prints about the slot folder: two lines, or none where bioproxy does not see the folder.

    If the folder cannot be listed, the only line is a warning.
    """
    folder = settings.slot_save_path
    # A folder that is not there is a problem of its own, which the check reports (`SlotFolder.warnings`).
    # `os.path.isdir` is false for a path that cannot be looked at; `Path.is_dir` raises an error for some.
    if folder is None or not os.path.isdir(folder):
        return []
    # Counted in one pass, so the sums are of one moment, as far as other programs leave the folder alone.  A folder
    # with 10,000 files took 60 ms where this was measured.
    use = DiskUse({template.name for template in settings.templates})
    try:
        for name, size in files_in(folder):
            use.add(name, size)
    # Also raised in the middle, by a network disk that went away.  Half of a count would be taken for all of it.
    except OSError as error:
        return [f"warning: slot_save_path: {folder}: its files cannot be listed: {error.strerror}"]
    # The first line counts what an operator finds in the folder.  Zeros are printed as well: a missing word would leave
    # open whether there are no such files or the check does not look for them.
    counted = [
        f"{pile.count} {of} ({shown_size(pile.size)})"
        for pile, of in (
            (use.templates, "of templates"),
            (use.learned, "of learned prompts"),
            (use.conversations, "of conversations"),
            (use.others, "others"),
        )
    ]
    # The second compares with the limits, also where they are exceeded: a smaller limit applies to the files that are
    # there only when bioproxy runs.  Conversations on templates are within the limit of conversations, too.
    limits = (
        f"{shown_size(use.learned.size)} of {shown_size(settings.prompts_limit)} for learned prompts",
        f"{shown_size(use.chats.size)} of {shown_size(settings.conversations_limit)} for conversations, those on"
        " templates included",
    )
    return [f"slot files: {', '.join(counted)}", f"    limits: {'; '.join(limits)}"]
