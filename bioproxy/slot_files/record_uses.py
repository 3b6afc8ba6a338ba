"""How often each slot file was restored, and when last: the order in which files are given up.

Uses are counted in memory with each restore, and written at most once a minute and at the stop
(`bioproxy.runtime.periodic`).  They are not flushed to the disk: losing the last minute costs nothing but the order of
a few files.  Writing them with each request would cost more than the rest of the record.

Times are ISO 8601 in UTC by the wall clock, because they must survive a restart, which no clock of Twisted's reactor
does.  Where the wall clock is set, the order of files is mixed up for a while, and nothing else.

Pure but for the dictionary of uses.  Does not know files, sizes or limits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bioproxy.slot_files.snapshot import Id, Snapshot, epoch

INTERVAL = 60.0
"""Seconds from one write of the uses to the next.

Halved, half as much is lost when bioproxy is killed, and with 10,000 entries twice as many writes of a megabyte;
doubled, twice as much is lost.
"""


@dataclass(frozen=True)
class Uses:
    """What is known about the use of one entry."""

    hits: int
    """How often its file was restored, replaced files under the same id included."""
    last_used: str
    """When it was restored last.  A file that was not restored yet counts as used when it was saved."""
    created: str
    """When the first file under this id was saved."""


class RecordUses:
    """The uses of all entries.

    Invariant: `changed` is true if something has changed since the uses were last written.
    """

    changed: bool
    """Whether there is something to write."""

    def __init__(self) -> None:
        self.changed = False
        self._uses: dict[Id, Uses] = {}

    def of(self, id: Id, entry: Snapshot) -> Uses:
        """Return the uses of an entry."""
        # Most entries are never used again.  They need no place in memory or on the disk.
        return self._uses.get(id) or Uses(0, entry.saved_at, entry.saved_at)

    def was_used(self, id: Id, entry: Snapshot) -> bool:
        """Tell whether a file was used since it was saved."""
        # A save sets the time of the last use to its own, so any other time is that of a later use.
        uses = self._uses.get(id)
        return uses is not None and uses.last_used != entry.saved_at

    def used(self, id: Id, entry: Snapshot, at: str) -> None:
        """Count a use, and when it was, in ISO 8601."""
        uses = self.of(id, entry)
        self.set(id, replace(uses, hits=uses.hits + 1, last_used=at))

    def saved(self, id: Id, before: Snapshot | None, entry: Snapshot) -> None:
        """Note that an entry has a new file, which replaces the one of `before`."""
        # Its hits go on: it is the same prompt for an operator, with newer content.
        if before is not None:
            self.set(id, replace(self.of(id, before), last_used=entry.saved_at))

    def set(self, id: Id, uses: Uses | None) -> None:
        """Replace what is known of an entry; `None` forgets it."""
        if uses is None:
            self.changed = self._uses.pop(id, None) is not None or self.changed
        else:
            self.changed, self._uses[id] = True, uses

    def to_json(self) -> Any:
        """Return what `load` reads."""
        # Id and kind as one text, because JSON has no other keys.  Neither has a dot.
        # `vars` and not `asdict`, which copies each value and takes ten times as long: nobody may wait for this.
        return {".".join(id): vars(uses) for id, uses in self._uses.items()}

    def load(self, content: Any, known: dict[Id, Snapshot]) -> None:
        """Take over what was written, for the entries that are known; anything else is ignored."""
        if not isinstance(content, dict):
            return
        for id in known:
            try:
                fields = content[".".join(id)]
                # Checked, because the order of files is computed from it.
                epoch(fields["last_used"])
                self._uses[id] = Uses(int(fields["hits"]), str(fields["last_used"]), str(fields["created"]))
            except (TypeError, LookupError, ValueError, ArithmeticError):
                # Never used, or written by something else.
                continue
