"""What the record says of one slot file: the value, its names, and its form in JSON.

A slot file is a binary file of llama-server's, in llama-server's folder.  It holds the tokens of slot 0 and their KV
cache.  A `Snapshot` is bioproxy's description of such a file: which prompt, which model, how many tokens and bytes.
Everything saved is described in the same way, by an id and a kind: a prompt (`PREFIX`), the beginning of a warm-up that
was interrupted (`PART`), and a conversation (`CHAT`).  An id is a template's name or an ``auto-...`` name
(`bioproxy.prompts.prompt_ids`).

Snapshots are frozen.  On Twisted's one thread that makes them safe to keep over an ``await``: other code may run
meanwhile and replace the snapshot in the record, but it cannot change the one that a coroutine holds.

Reading JSON is strict, because operators can edit the files: each value must have its type, and a file name must be one
that bioproxy would choose itself.  Otherwise a record could lead out of the slot folder.

Pure: does not know where snapshots are stored, or what they are used for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.prompt_ids import is_learned
from bioproxy.prompts.prompt_shape import Key

Id = tuple[str, str]
"""What names an entry of the record: the id of a prompt or a conversation, and the kind of the file."""

PREFIX, CHAT, PART = "prefix", "chat", "part"
"""The kinds of files, as the record on the disk spells them."""

NAMES = {
    PREFIX: ("{}.bin", "{}.new.bin"),
    CHAT: ("{}.chat.bin", "{}.chat.new.bin"),
    PART: ("{}.part.bin",),
}
"""The file names of each kind: the usual one, and the one for writing while the usual one is in use.

`PART` has only one.  Losing an interrupted warm-up costs little, and a second file would cost its size on the disk.
"""

TEMPLATE, PROMPT, CONVERSATION = "template", "prompt", "conversation"
"""The classes of files, by which they are limited and counted, as metrics and `/status` spell them."""

CLASSES = (TEMPLATE, PROMPT, CONVERSATION)
"""All classes."""


@dataclass(frozen=True)
class Snapshot:
    """A file of which the record says that it may be restored.

    Invariant: when the snapshot was recorded, the file was complete and had exactly this content.
    """

    filename: str
    """The file's name in llama-server's folder, one of `NAMES`."""
    key: Key
    """The prompt that the file was made of: digests of its text and its shape."""
    tokens: int
    """Number of tokens in the file."""
    size: int
    """Bytes."""
    model: Model
    """The model that the file was saved from."""
    saved_at: str
    """When it was saved, by the wall clock (ISO 8601, UTC)."""
    marks: tuple[str, ...] = ()
    """The digests of its tokens (`digests.prefix_digests`).  Empty for a conversation."""
    conversation: Conversation | None = None
    """Which conversation it is.  `None` for a kind other than `CHAT`."""
    written_at: int | None = None
    """The file's modification time (nanoseconds since 1970), `None` where the folder is not visible.

    A file with another time was written by somebody else since.
    """
    pinned: bool = False
    """Whether an operator wants the file to stay whatever the limits are."""
    earlier: tuple[Conversation, ...] = ()
    """Beginnings of its conversation, the longest first: where its last question was edited, one of these goes on."""

    def is_same_file(self, other: Snapshot) -> bool:
        """Tell whether both describe the same file, perhaps under another name or for another key."""
        # Name, key and pin can change while the file's content stays.  What is compared here changes with each save.
        mine, theirs = ((each.saved_at, each.tokens, each.size, each.written_at) for each in (self, other))
        return mine == theirs

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, name: str, kind: str, fields: Any, model: Callable[[Any], Model] = Model.from_json) -> Snapshot:
        """Return the snapshot that JSON has of this id and kind.

        `model` makes a `Model` of its JSON, as `Model.from_json` does.  Raises `TypeError`, `ValueError`,
        `LookupError`, `AttributeError` or `ArithmeticError` for anything that is no snapshot.
        """
        # Each field is taken out of the dictionary, so what is left at the end is what nobody knows.
        # These two are the only fields that may be missing: records of earlier versions do not have them.  Unknown
        # fields are refused, because they would be lost with the next change.
        fields = {"pinned": False, "earlier": [], **fields}
        # The name decides which file is read into the model's memory, and later removed.  It is never taken from the
        # record unchecked: it must be one of two that follow from id and kind.
        filename, pinned = fields.pop("filename"), fields.pop("pinned")
        if filename not in names_of(name, kind):
            raise ValueError(filename)
        if not isinstance(pinned, bool):
            raise TypeError("pinned")
        conversation, written_at = fields.pop("conversation"), fields.pop("written_at")
        earlier = tuple(map(_conversation, fields.pop("earlier")))
        result = cls(
            filename,
            Key(**fields.pop("key")),
            int(fields.pop("tokens")),
            int(fields.pop("size")),
            model(fields.pop("model")),
            _checked_time(fields.pop("saved_at")),
            tuple(map(str, fields.pop("marks"))),
            None if conversation is None else _conversation(conversation),
            None if written_at is None else int(written_at),
            pinned,
            earlier,
        )
        if fields:
            raise TypeError(next(iter(fields)))
        return result


def _conversation(fields: Any) -> Conversation:
    """Return the conversation that JSON has; raises as `Snapshot.from_json`."""
    return Conversation(int(fields["length"]), str(fields["digest"]))


def names_of(name: str, kind: str) -> list[str]:
    """Return the file names that the files of this id and kind may have, the usual one first."""
    # The usual name comes first, so code that wants just that takes the first one.
    # An id has only letters, digits, "_" and "-", so no two ids share a file name.
    return [pattern.format(name) for pattern in NAMES[kind]]


def class_of(name: str, kind: str) -> str:
    """Return the class of a file: `CONVERSATION` for every conversation, else `TEMPLATE` or `PROMPT` by its name."""
    if kind == CHAT:
        return CONVERSATION
    # By the name alone: no template may be called like a learned prompt (`bioproxy.settings`).
    return PROMPT if is_learned(name) else TEMPLATE


def iso(seconds: float) -> str:
    """Return a time of the wall clock, in seconds since 1970, as ISO 8601 in UTC with milliseconds."""
    # Always the same number of digits, so that sorting the texts sorts the times.
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def epoch(time: str) -> float:
    """Return the seconds since 1970 of a time in ISO 8601.  Raises `ValueError` or `OverflowError` for others."""
    return datetime.fromisoformat(time).timestamp()


def _checked_time(time: Any) -> str:
    """Return the text if it is a time in ISO 8601.  Raises `TypeError`, `ValueError` or `OverflowError` if not."""
    epoch(time)
    return str(time)
