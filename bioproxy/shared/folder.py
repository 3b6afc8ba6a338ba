"""The folder that several bioproxies share, as calls of the operating system.

Each slot file on the shared shelf is a pair: ``files/STEM.bin``, the slot file itself, and ``entries/STEM.json``, which
says what it is (`bioproxy.slot_files.snapshot`).  A stem has a random part and is used once, so neither file is ever
changed after it was written.  That is what makes the folder safe without a lock server: a reader finds an entry whole
or not at all, and two writers of the same prompt write two pairs, of which the older one is removed later.

The file is written before its entry, and removed after it.  What a process leaves that dies in the middle:

* publishing, while the file is copied: a draft, ``files/STEM.new``;
* publishing, before the entry is written: a file without an entry, which nobody restores;
* removing, after the entry is gone: the same;
* at any moment else: complete pairs.

All of these leftovers are removed after an hour, by any bioproxy that is running (`bioproxy.shared.removal`).

Where slot folder and shelf are on one file system, the file on the shelf is a *hard link* of the one in the slot
folder: two names of one file, which takes no time and no space however large it is (`bioproxy.shared.copying`).  That
is safe only because slot files are never changed either: llama-server writes to a new name each time.

All of this blocks, for seconds with large files, for ever on a network disk that hangs.  So nothing here is called in
Twisted's thread: `bioproxy.shared.disk` calls these methods in threads and waits no longer than it can afford.  That
is also why no method touches anything that the reactor's thread uses.

Does not know which files are worth sharing.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bioproxy.runtime.state_folder import MALFORMED, StateFolder
from bioproxy.shared.copying import is_as_recorded, link_or_copy
from bioproxy.shared.entry import SharedEntry, entry_from_json, stem_for
from bioproxy.shared.layout import ENTRIES, FILES, LEASES, prepare
from bioproxy.shared.lease_files import LeaseFiles
from bioproxy.slot_files.folder import free_bytes
from bioproxy.slot_files.snapshot import Snapshot, names_of


class SharedFolder:
    """A folder that others change at the same time.

    Invariant: an entry that can be read is whole, and was written after its file.  Methods raise `OSError`, unless they
    say something else.
    """

    def __init__(self, path: Path) -> None:
        """Name the folder.  Nothing is touched before `check`."""
        self.path = path
        self.leases = LeaseFiles(path)
        """Who is computing what."""
        # Its way of writing small files whole and of removing them durably is just what is needed.  Its lock is not:
        # this folder is for many.
        self._json = StateFolder(path)
        # Found by `check`, and compared by the next one: after trouble there may be another disk at the same place.
        # The file system on which the folders were made or found, as `os.stat` numbers it.
        self._device: int | None = None

    def check(self) -> None:
        """Make the folders, and find out whether the file system does what is relied on (`bioproxy.shared.layout`).

        Called before the first look, and once more after each trouble.

        Raises `OSError` without a number if not: then the cause does not matter, and the folder is of no use.
        """
        # The number is left out.  With its number a full disk would count as one that can still be read
        # (`bioproxy.shared.disk`), but what was not checked must not be read.
        try:
            self._device = prepare(self.path, self._json, self._device)
        except OSError as error:
            raise OSError(error.strerror or str(error)) from None

    def warnings(self) -> list[str]:
        """Return what is wrong or unwise about the folder, in sentences for operators.  Makes it if it is missing.

        Called by ``--check``, before anything is shared.
        """
        try:
            self.check()
        except OSError as error:
            return [f"{self.path}: {error}"]
        # The files tell what users have said, and a user who can write here decides what is restored.
        if self.path.stat().st_mode & 0o077:
            return [f"{self.path}: others than its owner may look into it, and slot files tell what was said"]
        return []

    # What there is.

    def stems(self) -> set[str]:
        """Return the stems of all entries.

        This is the call that a look makes every two seconds, so it reads no file.
        """
        # Without `suppress`: a folder that has vanished is not an empty one.
        names = os.listdir(self.path / ENTRIES)
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}

    def read_all(self, stems: Iterable[str]) -> dict[str, SharedEntry | None]:
        """Return these entries by their stems, `None` for one that is malformed or of a newer bioproxy.  Never raises.

        One process that writes nonsense must not keep the others from what is good.
        """
        found: dict[str, SharedEntry | None] = {}
        for stem in stems:
            # Left out, and so asked for again: an entry that was removed a moment ago, or a disk that is in trouble.
            with suppress(OSError):
                try:
                    found[stem] = entry_from_json(stem, self._json.read_strictly(f"{ENTRIES}/{stem}.json"))
                except MALFORMED:
                    found[stem] = None
        return found

    # Slot files.

    def publish(self, source: Path, name: str, kind: str, snapshot: Snapshot) -> SharedEntry | None:
        """Put a slot file on the shelf; return its entry, or `None` if the file is not as `snapshot` says any more.

        `source` is the file in the slot folder, and `name` and `kind` are the id under which others shall find it.  May
        take minutes, where the file must be copied.
        """
        # A stem that nobody else has, so there is no agreement with other writers.
        stem = stem_for(name, kind, snapshot.model)
        target = self.path / FILES / f"{stem}.bin"
        # Compared before and after: the file may be replaced by a newer one while it is copied.
        try:
            if not is_as_recorded(source, snapshot.size, snapshot.written_at):
                return None
            modified = link_or_copy(source, target)
            whole = is_as_recorded(source, snapshot.size, snapshot.written_at)
        except FileNotFoundError:
            # Removed from the slot folder since, unless it is this folder that is gone.  The one is everyday, the other
            # must be told as trouble.
            if source.exists():
                raise
            whole = False
        # Nobody has seen it yet, so it can simply go.
        if not whole or target.stat().st_size != snapshot.size:
            target.unlink(missing_ok=True)
            return None
        # For others: under the usual name, with no time, as that belongs to the file in the slot folder here, and not
        # pinned, which is this operator's wish.
        usual = replace(snapshot, filename=names_of(name, kind)[0], written_at=None, pinned=False)
        entry = SharedEntry(stem, name, kind, usual, modified)
        # From this moment on others see it.  Written to the disk for good, as the record of a local file is.
        try:
            self._json.write(f"{ENTRIES}/{stem}.json", entry.to_json(), indent=None)
        except OSError:
            # On a disk that is full the file would only take space from others.
            with suppress(OSError):
                target.unlink()
            raise
        return entry

    def fetch(self, entry: SharedEntry, target: Path) -> bool:
        """Have the slot file of an entry at `target` too; return whether it was there, and is whole.

        `target` must not exist.  Its content is not looked at: size and time tell whether it is the file that was
        published.  May take minutes, where the file must be copied.
        """
        source = self.path / FILES / f"{entry.stem}.bin"
        try:
            if not is_as_recorded(source, entry.snapshot.size, entry.modified):
                return False
            link_or_copy(source, target)
        except OSError as error:
            # Removed to make room, a moment ago.  A network disk says "stale" if that was while it was read.
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        # Once more, for a file that was changed while it was copied.  Nobody of us does that; a person, or a program
        # that restores a backup, may.
        whole = is_as_recorded(source, entry.snapshot.size, entry.modified)
        if not whole or target.stat().st_size != entry.snapshot.size:
            target.unlink()
            return False
        # A use, for the order of removal, which the next minute of upkeep would tell late.
        # A disk that is read-only cannot note this, and is good enough nevertheless.
        with suppress(OSError):
            self.touch(entry.stem)
        return True

    def touch(self, *stems: str) -> None:
        """Note that entries were used, by the file system's own clock.  A missing entry is no error.

        The time of use is the file's own time of change, so that noting it changes no content, which readers rely on.
        """
        # `utime` without a time means "now" to the file system, so on a network disk it is the server's clock that
        # counts, and the clocks of the machines may differ.
        for stem in stems:
            with suppress(FileNotFoundError):
                os.utime(self.path / ENTRIES / f"{stem}.json")

    def remove(self, stems: Collection[str]) -> None:
        """Remove slot files with their entries; missing ones are no error.

        A reader that has just begun to copy one keeps its file open, or its link: it gets all of it.
        """
        # The entries of all files first, and durably: from then on nobody begins to fetch one of these files.
        self._json.remove(*(f"{ENTRIES}/{stem}.json" for stem in stems))
        for stem in stems:
            with suppress(FileNotFoundError):
                os.unlink(self.path / FILES / f"{stem}.bin")

    # Times, for removal.

    def used_at(self) -> dict[str, float]:
        """Return when each entry was used last, in seconds since 1970 by the file system's clock, by stem."""
        # `scandir` and not `listdir`, because it brings the times along on some file systems.
        times: dict[str, float] = {}
        with os.scandir(self.path / ENTRIES) as found:
            for each in found:
                # Another process may remove it between the two calls.
                with suppress(FileNotFoundError):
                    if each.name.endswith(".json"):
                        times[each.name.removesuffix(".json")] = each.stat().st_mtime
        return times

    def now(self) -> float:
        """Return the time by the file system's clock, in seconds since 1970."""
        # The clock of this machine may be another one.  There is no call that asks a file server for its time, but each
        # file that is made there gets it.
        probe = self.path / LEASES / f"clock-{secrets.token_hex(8)}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def free(self) -> int:
        """Return how many bytes can be written to the disk, by everybody and not by root alone."""
        return free_bytes(self.path)

    def remove_strays(self, older_than: float) -> int:
        """Remove what processes have left that died: files without an entry, drafts, leases; return how many.

        Only one process at a time should do so, but nothing breaks if two do.

        `older_than` is a time by the file system's clock.  Younger ones may be of a process at work.
        """
        stems, removed = self.stems(), 0
        for folder in (ENTRIES, FILES, LEASES):
            for each in list(os.scandir(self.path / folder)):
                # A lease is written every few seconds for as long as its holder lives.
                stray = folder == LEASES or not each.name.endswith(".json")
                if folder == FILES:
                    stray = each.name.removesuffix(".bin") not in stems
                # One that is gone, or cannot be removed, such as a folder, does no harm.
                with suppress(OSError):
                    # An hour by the file system's clock, compared with times of the same clock.
                    # The time of the last change of the name, not of the content: a hard link of an old file is new.
                    if stray and each.stat().st_ctime < older_than:
                        os.unlink(each.path)
                        removed += 1
        return removed
