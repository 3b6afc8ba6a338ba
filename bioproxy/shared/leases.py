"""Leases: of several bioproxies with one shelf only one computes a prompt, and one that died blocks nobody.

A lease is a small file, ``KEY.GENERATION``, that says who holds it and a number that its holder increases every few
seconds, its *beats*.  Somebody who wants a lease that is held watches the beats.  If they have not changed for
`DEAD_AFTER` seconds, the holder is dead or cut off, and the lease may be taken over: by creating the file of the next
generation, which only one of several can do.

No time of day is written or compared.  The usual lease says "mine until 12:05", which holds only if all machines agree
what time it is, and one whose clock is five minutes late takes each lease for valid that has expired.  A number that
increases says one thing: its holder was alive when it was written.  Each process measures by its own monotonic clock
for how long *it* has seen the same number.  So clocks that differ by minutes, or are set while bioproxy runs, do no
harm; what counts is only that a second is a second everywhere.

A holder that was stopped for a while and comes back finds the next generation, and knows that it has lost the lease.
What it computes meanwhile is only computed twice: leases save work, and nothing relies on them to be correct.

On Twisted: the methods here only decide, in the reactor's thread, from what a thread has read.  So they need no lock,
although the reading is done elsewhere.

Does not know files; `bioproxy.shared.claims` reads and writes what is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

DEAD_AFTER = 20.0
"""Seconds without a beat after which a holder counts as dead.

Halved, a holder whose machine swaps for a while loses its lease, and the prompt is computed twice; doubled, a prompt
whose holder died stays cold for so much longer.
"""

BEAT = 4.0
"""Seconds between two beats of a holder.

Halved, twice as many small writes reach the shared folder; doubled, only two beats fit into `DEAD_AFTER`.
"""


@dataclass
class Seen:
    """What was seen of one lease's file."""

    content: bytes
    """Holder and beats, as they were last time.  Compared as bytes: any change is a sign of life."""
    since: float
    """Since when they are the same, by this process's clock."""


@dataclass
class Mine:
    """A lease that this process holds."""

    file: str
    """Its file."""
    beats: int
    """How often it was renewed."""
    renewed: float
    """When that was last, by this process's clock."""
    created: float
    """When it was created, by this process's clock."""


class Leases:
    """The leases that were seen, and those of this process.

    Invariant: what is in `mine` was created by this process, and has not been seen taken over.
    """

    def __init__(self, holder: str, clock: IReactorTime) -> None:
        """Hold leases under the name `holder`, which nobody else has; `clock` measures how old beats are."""
        self.holder = holder
        self.mine: dict[str, Mine] = {}
        self._clock = clock
        self._seen: dict[str, Seen] = {}

    def saw(self, files: Mapping[str, bytes], began: float = math.inf) -> None:
        """Note the content of all leases, which somebody began to read at `began`, by this process's clock.

        A lease that is not among `files` was given up or removed.
        """
        now = self._clock.seconds()
        before, self._seen = self._seen, {}
        for file, content in files.items():
            last = before.get(file)
            # The time begins anew with each change, whatever the change is.
            same = last is not None and last.content == content
            self._seen[file] = last if last is not None and same else Seen(content, now)
        for key, mine in list(self.mine.items()):
            if mine.created >= began:
                # Created while the others were read, so it may be missing there.
                self._seen[mine.file] = Seen(self.content(mine.beats), now)
            elif self._latest(key) != mine.file or not self._is_own(self._seen[mine.file]):
                # Somebody thought this process dead, and perhaps was right.  Generations begin anew when a lease was
                # given up, so the file of another holder may have the same name.
                del self.mine[key]

    def holder_of(self, key: str) -> str | None:
        """Return who else holds a lease and is alive, as far as is known; `None` if nobody does."""
        file = self._latest(key)
        if file is None or key in self.mine:
            return None
        seen = self._seen[file]
        # What this process has left, because it could not be removed, keeps nobody but others away.
        if self._is_own(seen):
            return None
        return None if self._clock.seconds() - seen.since >= DEAD_AFTER else seen.content.decode("utf-8", "replace")

    def file_to_create(self, key: str) -> str | None:
        """Return the file whose creation gives this process the lease, `None` if somebody alive holds it."""
        if self.holder_of(key) is not None:
            return None
        # The next number, also where the latest holder is dead.  To remove its file and create the same one again would
        # be two steps: two processes could both remove, both create, and the second would remove what the first has
        # created.  With numbers there is one step, and one winner.
        latest = self._latest(key)
        generation = 0 if latest is None else int(latest.rpartition(".")[2])
        return f"{key}.{generation + 1}"

    def got(self, key: str, file: str) -> None:
        """Note that this process has created a lease's file.  Called only after the disk has said so."""
        self.mine[key] = Mine(file, 0, self._clock.seconds(), self._clock.seconds())
        self._seen[file] = Seen(self.content(0), self._clock.seconds())

    def to_renew(self) -> list[tuple[str, bytes]]:
        """Return the files of this process's leases whose next beat is due, with their new content."""
        # Counted before it is written.  If the write fails, the others miss one beat of five, and the next one shows a
        # number that they have not seen.
        due: list[tuple[str, bytes]] = []
        now = self._clock.seconds()
        for mine in self.mine.values():
            if now - mine.renewed >= BEAT:
                mine.beats, mine.renewed = mine.beats + 1, now
                due.append((mine.file, self.content(mine.beats)))
        return due

    def lost(self, file: str) -> None:
        """Note that a lease's file is not this process's any more."""
        self.mine = {key: mine for key, mine in self.mine.items() if mine.file != file}

    def give_up(self, key: str) -> list[str]:
        """Forget a lease that this process holds; return the files to remove: its own, and those of dead holders.

        Returns nothing for a lease that this process does not hold (any more): its file is another one's.
        """
        if self.mine.pop(key, None) is None:
            return []
        files = [file for file in self._seen if file.rpartition(".")[0] == key]
        for file in files:
            del self._seen[file]
        return files

    def content(self, beats: int) -> bytes:
        """Return what this process writes into a lease after so many beats."""
        return f"{self.holder} {beats}\n".encode()

    def _is_own(self, seen: Seen) -> bool:
        """Tell whether a lease's file was written by this process."""
        return seen.content.startswith(self.holder.encode() + b" ")

    def _latest(self, key: str) -> str | None:
        """Return the file of the latest generation of a lease, `None` if there is none."""
        # `isdecimal` and not `isdigit`: the latter is true for characters that `int` does not know.
        files = [file for file in self._seen if file.rpartition(".")[0] == key and file.rpartition(".")[2].isdecimal()]
        return max(files, key=lambda file: int(file.rpartition(".")[2]), default=None)
