"""The record of slot files: which file may be restored, and for what.

llama-server writes the files and reads them, in a folder of its own that bioproxy may not even see.
It believes them blindly: a file that was cut short ends its process, and a file of another model of
the same shape gives wrong answers.  So bioproxy keeps a record of its own, and lets a file be
restored only if

* llama-server said that it saved the whole file,
* nothing was begun since then that could change it,
* it was saved from the very model that runs now, and for the very text that is asked for.

Each template has up to three files: `PREFIX` has its prefix tokens, `CHAT` its last conversation,
`PART` the beginning of a warm-up that was interrupted.  A good file is never overwritten: the new
file gets a second name, and once it is known to be whole, the record switches.  Whenever the
process or the machine dies, the old record or the new one is on the disk, and neither claims too
much.

Plain synchronous code: each change is written and flushed before the call returns, a few
milliseconds in which Twisted serves nobody, and in which nothing can be cancelled.

Not known here: llama-server, and what is in a slot.
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
"""The kinds of files, as the record on the disk spells them."""

NAMES = {
    PREFIX: ("{}.bin", "{}.new.bin"),
    CHAT: ("{}.chat.bin", "{}.chat.new.bin"),
    PART: ("{}.part.bin",),
}
"""The file names of each kind: the usual one, and the one for writing while that is in use.

`PART` has only one.  Losing an interrupted warm-up costs little, and disks are not endless.
"""

RECORD = "snapshots.json"
"""The name of the record in the state folder."""

FORMAT = 2
"""The form in which the record is written: ``{"format": 2, "files": [{"prompt": ID, "kind": KIND, ...}, ...]}``.

Format 1 had no number: ``{ID: {KIND: {...}}}``.  Add 1 when older versions of bioproxy would misread what is written.
"""


@dataclass(frozen=True)
class Snapshot:
    """A file of which the record says that it may be restored.

    `key` is what it was made of, `tokens` and `size` how many tokens and bytes it has, `model` from
    which model it was saved.  `marks` are the fingerprints of its tokens (`digests.prefix_digests`; none of a
    conversation's), `saved_at` is when, in ISO 8601.  `conversation` says which one, for `CHAT`.
    `written_at` is when the file was last written, in nanoseconds since 1970 by its file system,
    where that can be seen: a file that is newer was written by somebody else.
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
    """The snapshots that may be restored, by template name and kind.

    Snapshots are values that never change: whoever got one from here may keep it over an ``await``,
    and will find it gone or replaced in the record, but never altered.  Invariant: what is in
    memory was written to the disk before, but for what was dropped while the disk could not be
    written.  So after a crash the record has at most too little.
    """

    log = Logger()

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self._known: dict[tuple[str, str], Snapshot] = {}
        self._newer = False

    def load(self) -> None:
        """Read the record, in this format or in the one before.  Called once, when the services start.

        The record of a newer bioproxy is left alone, so that going back and forth between versions costs no warm-ups.
        """
        content = self._state.read(RECORD)
        try:
            # In format 1 "format" can only be a template's name, and then it is no number.
            number = content.get("format")
            if isinstance(number, int) and number > FORMAT:
                self._newer = True
                self.log.warn(
                    "{file} is of a newer bioproxy (format {number}), starting without", file=RECORD, number=number
                )
                return
            self._known = {
                (name, kind): snapshot(name, kind, entry)
                for name, kind, entry in (entries if number == FORMAT else entries_before)(content)
                if kind in NAMES
            }
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # Nothing is lost but time: the templates are warmed up again.  Half a record is not
            # used, because nobody could say which half is right.
            self.log.warn("{file} cannot be read, starting without it: {error!r}", file=RECORD, error=error)

    def get(self, name: str, kind: str = PREFIX) -> Snapshot | None:
        """Return a snapshot of a template, if there is one that may be restored at all."""
        # For which text and model is written in it; whoever restores it has to compare.
        return self._known.get((name, kind))

    def items(self) -> Iterator[tuple[str, str, Snapshot]]:
        """Yield all names and kinds with their snapshots."""
        # Of a copy: whoever goes through them may drop some on the way.
        for (name, kind), entry in list(self._known.items()):
            yield name, kind, entry

    def free_name(self, name: str, kind: str) -> str:
        """Return the file name to save to: one that is not in use, or, where a kind has only one, that."""
        # A file in use is never written over.  Two names are enough: the record points to one of
        # them, and the other is free.
        entry = self.get(name, kind)
        names = names_of(name, kind)
        return next((each for each in names if entry is None or each != entry.filename), names[0])

    def put(self, name: str, kind: str, entry: Snapshot) -> None:
        """Record a file that was saved whole.  Raises `OSError` if that cannot be written down."""
        # First to the disk, then into memory: what cannot be recorded must not be believed.
        self._write({**self._known, (name, kind): entry})

    def drop(self, name: str, kind: str = PREFIX) -> None:
        """Forget a file, because it is gone, useless, or about to be written.

        Raises `OSError` if that cannot be written down; forgotten it is all the same, for as long
        as the process runs.
        """
        self._known.pop((name, kind), None)
        # First out of memory, then from the disk: the other order could go on using the file.
        # Written even if nothing changed: this is called before a save, and what cannot be written
        # now could not be recorded after it either.
        self._write(self._known)

    def _write(self, known: dict[tuple[str, str], Snapshot]) -> None:
        # The whole record each time, to a new file that then replaces the old one: a few kilobytes, a few times an
        # hour, and no half of it can ever be read.  A newer bioproxy's record stays until there is something to put in
        # its place.
        if known or not self._newer:
            files = [{"prompt": name, "kind": kind, **asdict(entry)} for (name, kind), entry in known.items()]
            self._state.write(RECORD, {"format": FORMAT, "files": files})
            self._newer = False
        self._known = known


def entries(content: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield id, kind and fields of all files in a record of the present format; raises as `snapshot` does."""
    for each in content["files"]:
        yield each["prompt"], each["kind"], {name: each[name] for name in each if name not in ("prompt", "kind")}


def entries_before(content: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the same from a record in format 1; raises likewise."""
    for name, kinds in content.items():
        for kind, entry in kinds.items():
            yield name, kind, entry


def names_of(name: str, kind: str) -> list[str]:
    """Return the file names that a template's files of this kind may have, the usual one first."""
    # A template's name has only letters, digits, "_" and "-", so no two templates share a file
    # name.
    return [pattern.format(name) for pattern in NAMES[kind]]


def snapshot(name: str, kind: str, entry: Any) -> Snapshot:
    """Make a `Snapshot` of what JSON has of it.  Raises `TypeError`, `KeyError` and the like for anything else."""
    # The record is a file that people can edit.  Each value is made to be of its type here, so that
    # a wrong one is found at the start, and a file name can never lead out of the slot folder.
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
