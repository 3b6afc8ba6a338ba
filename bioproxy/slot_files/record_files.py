"""The record of slot files on the disk: one small JSON file for each entry, in `shelf/` of the state folder.

An entry's file is named after its id and kind: ``code.prefix.json``, ``auto-0123456789ab.chat.json``.  A change writes
or removes exactly one of them, so it costs the same with ten entries and with ten thousand.  One file for all, as in
earlier versions, would have to be written whole for each change.

Writing replaces the file atomically, and both writing and removing are on the disk when the call returns
(`bioproxy.runtime.state_folder`).  So after a crash each entry is the old one, the new one, or gone.  An entry that
could not be removed is the one danger: after a restart it would be believed again.  It is remembered, and nothing else
is written before it is removed.

Each entry has its own format number.  An entry of a newer bioproxy is not read and stays where it is, so that going
back and forth between versions costs no warm-ups.  A broken entry is skipped: the others do not depend on it.

Plain synchronous code: each call blocks Twisted's one thread for some milliseconds, mostly in `fsync`.  In return a
call cannot be cancelled half way, as an ``await`` could.

Does not know which entries there are: that is in memory (`bioproxy.slot_files.record`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from twisted.logger import Logger

from bioproxy.llama.model_identity import Model
from bioproxy.runtime.state_folder import MALFORMED, StateFolder
from bioproxy.slot_files.snapshot import NAMES, PART, Id, Snapshot

FOLDER = "shelf"
"""The folder of the entries, in the state folder."""

USES = f"{FOLDER}/uses.json"
"""The file with the uses of all entries.  No entry's file can have this name: it has no kind before ``.json``."""

OLD_RECORD = "snapshots.json"
"""The one file that held all entries in formats 1 and 2, in the state folder.  It is taken over once."""

FORMAT = 3
"""The format of an entry: ``{"format": 3, "prompt": ID, "kind": KIND, ...}``, and the fields of a `Snapshot`.

Format 2 was one file for all: ``{"format": 2, "files": [{"prompt": ID, "kind": KIND, ...}, ...]}``.  Format 1 had no
number: ``{ID: {KIND: {...}}}``.  Add 1 when older versions of bioproxy would misread what is written.
"""


class RecordFiles:
    """The entries on the disk.

    Invariant: after `write` or `remove` returned, the disk has what was asked for.  After one of them raised, an entry
    to be removed may still be there; it is removed before anything else is written.
    """

    log = Logger()

    newer: dict[Id, str]
    """Entries of a newer bioproxy, with the names of their slot files."""

    def __init__(self, state: StateFolder) -> None:
        self._state = state
        self.newer = {}
        # Files of the state folder that must be gone before the next entry is written.
        self._to_remove: set[str] = set()
        # Equal models as one object: thousands of entries are of the same few models.
        self._models: dict[Model, Model] = {}

    def load(self) -> dict[Id, Snapshot]:
        """Read all entries.  Called once, when the services start.

        Entries of earlier formats are written in this one first.  What cannot be read is skipped, with one line in the
        log for all of them: it costs warm-ups, and nothing else.
        """
        # First what an earlier version left: after that there is only one format to read.
        self._take_over()
        found: dict[Id, Snapshot] = {}
        broken: list[str] = []
        # By what the folder has, in any order; code that needs an order sorts by the time of use.
        try:
            files = self._state.names(FOLDER)
        except OSError as error:
            self.log.warn("the record of slot files cannot be read, starting without it: {error}", error=error)
            return found
        for file in files:
            if file.endswith(".new"):
                # The draft of a write that a crash broke off.  The folder is locked, so nobody is writing it now.
                self._to_remove.add(file)
            elif file.endswith(".json") and file != USES:
                # Each entry by itself.  A disk that lost one file, or an operator's mistake in it, costs one warm-up.
                # The broken file stays for the operator to look at, until the entry is written anew.
                try:
                    entry = self._entry(file, self._state.read_strictly(file))
                except (OSError, *MALFORMED):
                    broken.append(file)
                else:
                    found.update(entry)
        if broken:
            self.log.warn(
                "{count} entries in the record of slot files cannot be read, starting without them: {file} and so on",
                count=len(broken),
                file=min(broken),
            )
        return found

    def _entry(self, file: str, content: Any) -> dict[Id, Snapshot]:
        """Return the entry in a file's content; none if it is of a newer bioproxy.  Raises one of `MALFORMED`."""
        # `content` may be any JSON.  Whatever is not an object fails in this line, with one of the errors named above.
        # Popped, not read: `Snapshot.from_json` refuses fields that it does not know, and these three are not its own.
        name, kind, number = content.pop("prompt"), content.pop("kind"), content.pop("format")
        # The file's name must be the one that bioproxy would choose.  A copy of an entry under another name would stay
        # when the entry is removed.
        if file_of(name, kind) != file:
            raise ValueError(file)
        if number > FORMAT or kind not in NAMES:
            # Its slot file must not be taken for a stray, so the name is kept; that field has been there always.
            self.newer[name, kind] = str(content.get("filename", ""))
            return {}
        # No version ever wrote such a file: before this format there was one file for all.
        if number < FORMAT:
            raise ValueError(number)
        return {(name, kind): Snapshot.from_json(name, kind, content, self._same_model)}

    def _same_model(self, fields: Any) -> Model:
        """Return the model in these fields, the same object for equal ones.  Raises one of `MALFORMED`."""
        # A model is some hundred bytes and ten numbers; ten thousand copies of it would be some megabytes.
        # Models are frozen values, so sharing one is safe.
        model = Model.from_json(fields)
        return self._models.setdefault(model, model)

    def write(self, name: str, kind: str, entry: Snapshot) -> None:
        """Write an entry, replacing the one before.  Raises `OSError`, and then that one is still there."""
        # In the other order a crash in between would leave both.
        # What must be gone goes first.  If that fails, this fails, although it might have succeeded: a disk that cannot
        # forget must not remember either, or a restart would find two truths.
        self._remove_pending()
        # Id and kind are in the content, too, and not only in the file's name, so that an entry can be checked against
        # its name when it is read.
        content = {"format": FORMAT, "prompt": name, "kind": kind, **entry.to_json()}
        # On one line: an entry is looked at by people now and then, and written with each save.
        self._state.write(file_of(name, kind), content, indent=None)
        self.newer.pop((name, kind), None)

    def remove(self, ids: Iterable[Id]) -> None:
        """Remove entries; missing ones are no error.  Raises `OSError`; then they are removed before the next write."""
        # Noted before it is tried, so an error in the middle leaves all of them noted.
        for name, kind in ids:
            self._to_remove.add(file_of(name, kind))
            self.newer.pop((name, kind), None)
        self._remove_pending()

    def _remove_pending(self) -> None:
        """Remove the files that must be gone.  Raises `OSError`; then they must be gone still."""
        # Files that are gone already are no error for `remove`, so after a failure half way all are simply tried again.
        if self._to_remove:
            # All at once, with one flush of the folder, however many there are.
            self._state.remove(*self._to_remove)
            self._to_remove.clear()

    def read_uses(self) -> Any:
        """Return what `write_uses` wrote last, or an empty `dict`."""
        # Nothing is checked here: `RecordUses.load` takes only what it understands.
        return self._state.read(USES)

    # The uses of all entries are one file, because they are written together, and seldom.

    def write_uses(self, uses: Any) -> None:
        """Write the uses of all entries, without waiting for the disk.  Raises `OSError`."""
        self._state.write(USES, uses, durable=False, indent=None)

    def _take_over(self) -> None:
        """Write the entries of an earlier format in this one, then remove the old file.

        A crash in between is harmless: the next start finds the old file again and writes the same entries once more.
        """
        # `read` returns an empty object for a missing file, which is the case at every start but one.
        content = self._state.read(OLD_RECORD)
        if content == {}:
            return
        try:
            # In format 1 "format" can only be a template's name, and then it is no number.
            number = content.get("format")
            if isinstance(number, int) and number >= FORMAT:
                self.log.warn(
                    "{file} is of a newer bioproxy (format {number}), ignored", file=OLD_RECORD, number=number
                )
                return
            entries = (in_format_2 if number == FORMAT - 1 else in_format_1)(content)
            # The beginning of a warm-up is found by its marks only, and those of these formats are of no use (below).
            old = {
                (name, kind): replace(Snapshot.from_json(name, kind, fields), marks=())
                for name, kind, fields in entries
                if kind in NAMES and kind != PART
            }
        except MALFORMED as error:
            # Half of a file is not used, because it is not known which half is right.
            self.log.warn("{file} cannot be read, starting without it: {error!r}", file=OLD_RECORD, error=error)
            old = {}
        # The marks are left out: earlier versions had a digest for each 256 tokens, which matches no digest of today
        # (`digests.TOKENS_PER_DIGEST`).  A prompt is still found by its key, and its next save has new marks.
        try:
            for (name, kind), entry in old.items():
                self.write(name, kind, entry)
        except OSError as error:
            self.log.warn("{file} cannot be taken over: {error}", file=OLD_RECORD, error=error)
            self._to_remove.add(OLD_RECORD)
            return
        # From here on the new entries count.  The old file must be gone before any of them changes, or a later start
        # would write the old entries over them.
        self._to_remove.add(OLD_RECORD)
        try:
            self._remove_pending()
        except OSError as error:
            self.log.warn("{file} cannot be removed: {error}", file=OLD_RECORD, error=error)


def file_of(name: str, kind: str) -> str:
    """Return the file of an entry, as the state folder calls it.

    Ids have no dot (`bioproxy.settings` checks names of templates), so no two entries share a file.
    """
    return f"{FOLDER}/{name}.{kind}.json"


def in_format_2(content: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield id, kind and fields of all entries in a record of format 2.  Raises one of `MALFORMED`."""
    # A generator, so a malformed entry raises where the others are collected, and one ``except`` is enough.
    for each in content["files"]:
        yield each["prompt"], each["kind"], {name: each[name] for name in each if name not in ("prompt", "kind")}


def in_format_1(content: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the same of a record of format 1.  Raises one of `MALFORMED`."""
    for name, kinds in content.items():
        for kind, fields in kinds.items():
            yield name, kind, fields
