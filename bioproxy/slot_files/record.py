"""The record of slot files: which file may be restored, and for what.

llama-server writes the files and reads them, in a folder of its own that may not even be visible to bioproxy.  It does
not check them: a truncated file ends its process, and a file of another model of the same shape gives wrong answers.
So bioproxy keeps a record of its own, and restores a file only if

* llama-server said that it saved the whole file,
* nothing was begun since then that could change the file,
* the file was saved from the very model that runs now, and for the very text that is asked for.

There is one record for everything that is saved (`bioproxy.slot_files.snapshot`).  A good file is never overwritten:
the new file gets a second name, and once it is known to be whole, the record switches.  Whenever the process or the
machine dies, the disk has the old entry or the new one, and neither claims too much.

Plain synchronous code: each change is written and flushed before the call returns.  That takes some milliseconds in
which Twisted serves nobody, and in which nothing can be cancelled.  Uses are the exception: they are kept in memory and
written now and then, because losing them costs nothing but the order of files.

The record has a part on the disk (`record_files`), one in memory (`record_index`), and the uses (`record_uses`); the
order in which they change is decided here.  It knows neither llama-server nor what is in a slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from twisted.logger import Logger

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.slot_files.record_files import RecordFiles
from bioproxy.slot_files.record_index import RecordIndex, Totals
from bioproxy.slot_files.record_uses import RecordUses, Uses
from bioproxy.slot_files.snapshot import CHAT, NAMES, PART, PREFIX, Id, Snapshot, epoch, iso, names_of

__all__ = ["CHAT", "NAMES", "PART", "PREFIX", "Id", "Snapshot", "SnapshotRecord", "Totals", "Uses", "names_of"]
"""The record's own class, and the values that it is asked with and answers with, from one place."""


class SnapshotRecord:
    """The snapshots that may be restored, by id and kind.

    Snapshots are values that never change: code that got one from here may keep it over an ``await``, and will find it
    gone or replaced in the record, but never altered.  Invariant: what is in memory was written to the disk before, but
    for what was dropped while the disk could not be written.  So after a crash the record has at most too little.
    """

    log = Logger()

    now: Callable[[], float]
    """The wall clock, in seconds since 1970.  Times in the record must mean something after a restart."""

    def __init__(self, state: StateFolder, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self._files = RecordFiles(state)
        self._index = RecordIndex()
        self._uses = RecordUses()

    def load(self) -> None:
        """Read the record, of this format or of one before.  Called once, when the services start.

        What cannot be read costs warm-ups, and nothing else.  Entries of a newer bioproxy are left alone.
        """
        known = self._files.load()
        self._uses.load(self._files.read_uses(), known)
        # Sorted by use once, here.  The index keeps that order, as each use moves one entry to the end.
        for id in sorted(known, key=lambda id: (epoch(self._uses.of(id, known[id]).last_used), id)):
            self._index.put(id, known[id])

    # Questions.  All are answered from memory.

    def get(self, name: str, kind: str = PREFIX) -> Snapshot | None:
        """Return the snapshot of this id and kind, if there is one that may be restored at all."""
        # For which text and which model is a part of the snapshot; code that restores the file has to compare them.
        return self._index.entries.get((name, kind))

    def items(self) -> Iterator[tuple[str, str, Snapshot]]:
        """Yield all ids and kinds with their snapshots.  Entries may be dropped meanwhile."""
        for (name, kind), entry in list(self._index.entries.items()):
            yield name, kind, entry

    def prompts(self) -> Iterator[tuple[str, str, Snapshot]]:
        """Yield ids and kinds with their snapshots of everything but conversations.  Entries may be dropped."""
        # Apart from conversations, because there may be thousands of those, and prompts are looked through as a whole.
        for (name, kind), entry in list(self._index.prompts.items()):
            yield name, kind, entry

    def parting_conversations(self, turns: ConversationChain) -> Iterator[tuple[int, str, Snapshot]]:
        """Yield those that begin as `turns` do and then part, as number of shared messages, id and snapshot.

        The most shared messages come first.  The record must not change meanwhile.
        """
        return self._index.parting_conversations(turns)

    def filenames(self) -> Iterator[str]:
        """Yield the names of all slot files that must stay, those of a newer bioproxy included."""
        yield from (entry.filename for entry in self._index.entries.values())
        yield from self._files.newer.values()

    def totals(self, of_class: str) -> Totals:
        """Return number and bytes of the files of a class (`snapshot.CLASSES`), as counted at this moment."""
        return self._index.totals[of_class]

    def least_recently_used(self, of_class: str) -> Iterator[tuple[Id, Snapshot]]:
        """Yield the entries of a class, least recently used first.  The record must not change meanwhile."""
        return self._index.least_recently_used(of_class)

    def most_recently_used(self, of_class: str) -> Iterator[tuple[Id, Snapshot]]:
        """Yield the entries of a class, most recently used first.  The record must not change meanwhile."""
        return self._index.most_recently_used(of_class)

    def continued_conversations(self, turns: ConversationChain) -> Iterator[tuple[str, Snapshot]]:
        """Yield ids and entries of the conversations that `turns` continues, the longest first.

        The record must not change meanwhile.
        """
        return self._index.continued_conversations(turns)

    def uses(self, name: str, kind: str) -> Uses | None:
        """Return how often and when a file was used, `None` if there is none.  Saving counts as the first use."""
        entry = self.get(name, kind)
        return None if entry is None else self._uses.of((name, kind), entry)

    def was_used(self, id: Id, entry: Snapshot) -> bool:
        """Tell whether a file was used since it was saved.  Quicker than `uses`, for those who look through many."""
        return self._uses.was_used(id, entry)

    # Changes.  Each is done, in memory and on the disk, when the call returns.

    def free_name(self, name: str, kind: str) -> str:
        """Return the file name to save to: one that is not in use, or, where a kind has only one, that."""
        # A file in use is never overwritten.  Two names are enough: the record points to one of them, and the other is
        # free.
        entry = self.get(name, kind)
        names = names_of(name, kind)
        return next((each for each in names if entry is None or each != entry.filename), names[0])

    def will_write(self, name: str, kind: str, filename: str) -> None:
        """Forget what the record says of a file that is about to be written.  Raises `OSError`; then do not write."""
        entry = self.get(name, kind)
        if entry is not None and entry.filename == filename:
            self.drop(name, kind)
        elif (name, kind) in self._files.newer:
            # The entry of a newer bioproxy may name this file.  It stays only as long as nothing takes its place.
            self._files.remove([(name, kind)])

    def put(self, name: str, kind: str, entry: Snapshot, uses: Uses | None = None) -> None:
        """Record a file that was saved whole.  Raises `OSError` if that cannot be written; then nothing has changed.

        An entry of another file than before counts as used.  `uses` replaces what is known of its use.
        """
        # First to the disk, then into memory: what cannot be recorded must not be believed.
        id, before = (name, kind), self.get(name, kind)
        self._files.write(name, kind, entry)
        self._index.put(id, entry)
        if before is None or not entry.is_same_file(before):
            self._uses.saved(id, before, entry)
            self._index.used(id)
        if uses is not None:
            self._uses.set(id, uses)

    def drop(self, name: str, kind: str = PREFIX) -> None:
        """Forget a file, because it is gone, useless, or about to be written.

        Raises `OSError` if the disk cannot be written.  The file is forgotten anyway, for as long as the process
        runs, and nothing is recorded any more before the disk has forgotten it, too.
        """
        self.drop_all([(name, kind)])

    def drop_all(self, ids: Iterable[Id]) -> None:
        """Forget several files.  Raises as `drop`; costs hardly more than one `drop`."""
        # First out of memory, then from the disk: the other order could go on using a file.
        recorded = [id for id in ids if id in self._index.entries]
        for id in recorded:
            self._index.drop(id)
            self._uses.set(id, None)
        # Also if nothing is left to drop: an earlier call may have failed here.  Entries of a newer bioproxy are not in
        # memory and stay.
        self._files.remove(recorded)

    # Uses.

    def used(self, name: str, kind: str, at: float | None = None) -> None:
        """Count a use of a file, and make it the last one to be given up.  Written by `flush_uses`.

        `at` is when that was, in seconds since 1970, if it was not now.
        """
        entry = self.get(name, kind)
        # It may have been dropped while llama-server read the file.
        if entry is not None:
            self._uses.used((name, kind), entry, iso(self.now() if at is None else at))
            self._index.used((name, kind))

    def flush_uses(self) -> None:
        """Write the uses, if there were any since the last call.  Never raises.

        Called once a minute and at the stop.
        """
        if not self._uses.changed:
            return
        # Not tried again before something else was used: if it cannot be written, that is said once a minute at most.
        self._uses.changed = False
        try:
            self._files.write_uses(self._uses.to_json())
        except OSError as error:
            self.log.warn("the uses of slot files cannot be written: {error}", error=error)
