"""The record of slot files: which one may be restored, and for what.

llama-server writes the files and reads them, in a folder of its own that bioproxy may not even see.  It trusts them
blindly: a file that was cut short ends its process, one of another model of the same shape gives wrong answers.
So bioproxy keeps a record of its own, and lets a file be restored only if

* llama-server said that it saved it whole,
* nothing was begun since then that could change it,
* it was saved from the very model that runs now, and for the very text that is asked for.

Each template has up to three files: `PREFIX` has its prefix tokens, `CHAT` its last conversation, `PART` the
beginning of a warm-up that was interrupted.  A good file is never overwritten: the new one gets a second name, and
once it is known whole, the record switches.  Whenever the process or the machine dies, the old record or the new one
is there, and neither claims too much.

Knows nothing of llama-server and of what is in a slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from twisted.logger import Logger

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.state_folder import StateFolder

PREFIX, CHAT, PART = "prefix", "chat", "part"

NAMES = {
    PREFIX: ("{}.bin", "{}.new.bin"),
    CHAT: ("{}.chat.bin", "{}.chat.new.bin"),
    PART: ("{}.part.bin",),
}
"""The file names of each kind: the usual one, and the one for writing while that is in use."""

RECORD = "snapshots.json"


@dataclass(frozen=True)
class Snapshot:
    """A file of which the record says that it may be restored.

    `key` is what it was made of, `tokens` and `size` how many tokens and bytes it has, `marks` the fingerprints of its
    tokens (`digests.prefix_digests`; none of a conversation's), `saved_at` when, in ISO 8601.  `written_at` is when the
    file was last written, in nanoseconds since 1970 by its file system, where that can be seen.
    """

    filename: str
    key: Key
    tokens: int
    size: int
    model: Model
    saved_at: str
    marks: tuple[str, ...] = ()
    conversation: Conversation | None = None
    written_at: int | None = None


class SnapshotRecord:
    """The snapshots that may be restored, by template name and kind.  What is noted here is on disk at once."""

    log = Logger()

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._known: dict[tuple[str, str], Snapshot] = {}

    def load(self) -> None:
        """Read the record."""
        content = self._state.read(RECORD)
        try:
            self._known = {
                (name, kind): snapshot(name, kind, entry)
                for name, kinds in content.items()
                for kind, entry in kinds.items()
                if kind in NAMES
            }
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # Nothing is lost but time: the templates are warmed up again.
            self.log.warn("{file} is not understood, starting without: {error!r}", file=RECORD, error=error)

    def get(self, name: str, kind: str = PREFIX) -> Snapshot | None:
        """Return a snapshot of a template, if there is one that may be restored at all."""
        return self._known.get((name, kind))

    def items(self) -> Iterator[tuple[str, str, Snapshot]]:
        """Yield all names and kinds with their snapshots."""
        for (name, kind), entry in list(self._known.items()):
            yield name, kind, entry

    def free_name(self, name: str, kind: str) -> str:
        """Return the file name to save to: one that is not in use, or, where a kind has only one, that."""
        entry = self.get(name, kind)
        names = names_of(name, kind)
        return next((each for each in names if entry is None or each != entry.filename), names[0])

    def put(self, name: str, kind: str, entry: Snapshot) -> None:
        """Note a file that was saved whole.  Raises `OSError` if that cannot be written down."""
        self._write({**self._known, (name, kind): entry})

    def drop(self, name: str, kind: str = PREFIX) -> None:
        """Forget a file, because it is gone, useless, or about to be written.

        Raises `OSError` if that cannot be written down; forgotten it is all the same, for as long as the process runs.
        """
        self._known.pop((name, kind), None)
        # Written even if nothing changed: what cannot be written now could not be recorded after a save either.
        self._write(self._known)

    def _write(self, known: dict[tuple[str, str], Snapshot]) -> None:
        content: dict[str, dict[str, Any]] = {}
        for (name, kind), entry in known.items():
            content.setdefault(name, {})[kind] = asdict(entry)
        self._state.write(RECORD, content)
        self._known = known


def names_of(name: str, kind: str) -> list[str]:
    """Return the file names that a template's files of this kind may have, the usual one first."""
    return [pattern.format(name) for pattern in NAMES[kind]]


def snapshot(name: str, kind: str, entry: Any) -> Snapshot:
    """Make a `Snapshot` of what JSON has of it.  Raises `TypeError`, `KeyError` and the like for anything else."""
    result = Snapshot(**entry)
    if result.filename not in names_of(name, kind):
        raise ValueError(result.filename)
    written_at, chat = entry["written_at"], entry["conversation"]
    return replace(
        result,
        key=Key(**entry["key"]),
        model=Model.from_json(entry["model"]),
        tokens=int(result.tokens),
        size=int(result.size),
        marks=tuple(map(str, entry["marks"])),
        conversation=None if chat is None else Conversation(int(chat["length"]), str(chat["digest"])),
        written_at=None if written_at is None else int(written_at),
    )
