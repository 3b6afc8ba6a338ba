"""An entry of the shared shelf: what one slot file there is, as a value and as JSON.

The JSON is that of the local record (`bioproxy.slot_files.snapshot`), with a format number of its own and the file's
time by the clock of the shared file system.  The folder is written by other processes, perhaps of other versions, so
nothing of it is believed unchecked: above all no name, because names become paths.

Values only; `bioproxy.shared.folder` reads and writes them.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_ids import LEARNED
from bioproxy.slot_files.snapshot import CHAT, PREFIX, Snapshot

FORMAT = 1
"""The form of an entry.  To be raised when older versions would misread it; they leave such entries alone."""

NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
"""What the id of a prompt consists of."""


@dataclass(frozen=True)
class SharedEntry:
    """A slot file on the shared shelf.

    Invariant: it never changes.  The same prompt that is published once more is another entry.
    """

    stem: str
    """The name of its two files, without their endings: ``ID.KIND.MODEL.RANDOM``."""

    name: str
    """The id of the prompt or of the conversation."""

    kind: str
    """`PREFIX` or `CHAT`."""

    snapshot: Snapshot
    """What the file holds.  Its file name is the usual one in a slot folder, not that on the shared shelf."""

    modified: int
    """The file's modification time in nanoseconds since 1970, by the clock of the file system."""

    def replaced_by(self, other: SharedEntry) -> bool:
        """Tell whether `other` is a newer file of the same prompt or conversation and model."""
        # The random part of the stem decides between two files of the same moment.
        same = (self.name, self.kind) == (other.name, other.kind)
        newer = (self.modified, self.stem) < (other.modified, other.stem)
        return same and newer and self.snapshot.model.matches(other.snapshot.model)

    def to_json(self) -> dict[str, Any]:
        """Return what `entry_from_json` reads."""
        own = {"format": FORMAT, "prompt": self.name, "kind": self.kind, "modified": self.modified}
        return {**own, **self.snapshot.to_json()}


def same_content(mine: Snapshot, other: Snapshot) -> bool:
    """Tell whether two files hold the same tokens of the same prompt or conversation, for the same model."""
    # The marks as well, because the same text may become other tokens: after midnight, where a date is in it.
    mine_, others = ((each.key, each.tokens, each.marks, each.conversation) for each in (mine, other))
    return mine_ == others and mine.model.matches(other.model)


def entry_from_json(stem: str, content: Any) -> SharedEntry:
    """Return the entry that JSON has, in a file with this stem.  Raises one of `MALFORMED` for anything else."""
    if content.pop("format") != FORMAT:
        raise ValueError("another format")
    name, kind = str(content.pop("prompt")), str(content.pop("kind"))
    modified = int(content.pop("modified"))
    # Stem and name become paths.  They must be such as bioproxy would choose, and a conversation has no name of a
    # template: its file would take the place of that template's own.
    allowed = LEARNED if kind == CHAT else NAME
    if kind not in (PREFIX, CHAT) or not allowed.fullmatch(name) or not stem.startswith(f"{name}.{kind}."):
        raise ValueError(stem)
    return SharedEntry(stem, name, kind, Snapshot.from_json(name, kind, content), modified)


def stem_for(name: str, kind: str, model: Model) -> str:
    """Return a stem that no other entry has."""
    # Ids have no dot, so the parts can be told apart.  Random and not counted: a counter would need an agreement
    # between processes.
    return f"{name}.{kind}.{model_name(model)}.{secrets.token_hex(4)}"


def model_name(model: Model) -> str:
    """Return a short name for a model.  Different models may share it: what decides is `Model.matches`.

    It is in file names for people who look into the folder, and in leases, where a name that two models share costs
    some waiting.
    """
    return digest(model.facts)[:12]
