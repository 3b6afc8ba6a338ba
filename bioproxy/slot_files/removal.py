"""Which slot files are removed when there are too many of a class.

Learned prompts and conversations have a limit in bytes each, and what was not used for the longest time goes first.
The rules (`to_remove`):

* Pinned files stay, whatever the limit is.
* A new file is *protected*: for an hour, or until it was used.  Otherwise a burst of new conversations would push out
  each other's files before anybody could come back.  Protected files go after all others.
* The limit holds even so.  If only protected files are left, they go, too; the file that was just saved goes last.

The rules of files that several bioproxies share are others: `bioproxy.shared.removal`.

Here is no Twisted and no waiting: what is there goes in, what is to be removed comes out.  A user may be waiting
meanwhile, so no more entries are read than necessary.  The record keeps them in the order of use.

Does not know limits, folders or disks.  `bioproxy.slot_files.shelf` removes what is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bioproxy.slot_files.record import Id, SnapshotRecord
from bioproxy.slot_files.snapshot import epoch

SECOND_CHANCE = 3600.0
"""Seconds for which a new file is protected, unless it is used before.

Halved, a user who comes back after 45 minutes may find the conversation gone although older ones are still there;
doubled, a burst of conversations that nobody continues displaces useful files for two hours.
"""


class Held(NamedTuple):
    """A file, as far as it matters for what is to be removed.

    A named tuple, because ten thousand of them may be made during one save, and frozen dataclasses take longer.
    """

    id: Id
    """Id and kind."""
    size: int
    """Bytes."""
    pinned: bool
    """Whether it must stay."""
    saved_at: float
    """When it was saved, in seconds since 1970."""
    used: bool
    """Whether it was used since."""

    def rank(self, keep: Id | None, now: float) -> int:
        """Return 0 for a file that goes first, 1 for a protected one, and 2 for the file `keep`."""
        return 2 if self.id == keep else int(self.protected(now))

    def protected(self, now: float) -> bool:
        """Whether its first hour is not over yet and nobody has used it.  `now` is in seconds since 1970."""
        # Either side of now: a file "of the future" was saved before the wall clock was set back.
        return not self.used and abs(now - self.saved_at) < SECOND_CHANCE


def to_remove(entries: Iterable[Held], excess: int, keep: Id | None, now: float) -> list[Id]:
    """Return which files are to be removed, in order, for `excess` bytes to become free, or as many as possible.

    `entries` are all files of a class, least recently used first.  No more of them are read than necessary, but they
    may be read up to three times.  `keep` is the file that goes last, `now` the wall clock in seconds since 1970.
    """
    removed: list[Id] = []
    # One round for each rank: unprotected files, protected ones, and the one that goes last.  The files that go first
    # are mostly at the front, so a round ends after few steps.  Only where all files are protected a whole round is in
    # vain; nothing is collected in it, as thousands of new objects would have Python collect garbage meanwhile.
    for rank in range(3):
        for each in entries:
            if excess <= 0:
                return removed
            if not each.pinned and each.rank(keep, now) == rank:
                removed.append(each.id)
                excess -= each.size
    return removed


class HeldFiles:
    """All files of a class, least recently used first, to be read any number of times while the record stays."""

    def __init__(self, snapshots: SnapshotRecord, of_class: str, without: Id | None = None) -> None:
        self._snapshots, self._class, self._without = snapshots, of_class, without

    def __iter__(self) -> Iterator[Held]:
        was_used = self._snapshots.was_used
        for id, entry in self._snapshots.least_recently_used(self._class):
            if id != self._without:
                yield Held(id, entry.size, entry.pinned, epoch(entry.saved_at), was_used(id, entry))
