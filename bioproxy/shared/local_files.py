"""The own slot folder of a process, as the shared shelf uses it.

A file from the shared shelf becomes a file of this process in two steps.  A thread copies it into the slot folder,
under a name that nobody else uses.  Then, in Twisted's thread and without an ``await`` in between, it gets the name of
a slot file and is recorded.  So however the process ends, the record never names a file that is not whole; what was
copied and not recorded is removed at the next start (`SlotFolder.remove_leftovers` knows these names).

Why a new name first, and not the final one at once?  Because the thread takes seconds, during which llama-server may
save the same prompt to just that name, inside the gate, which no thread knows of.

On Twisted: the methods here look at the disk in the reactor's thread.  That takes microseconds, since it is a local
disk; nothing here copies.

Does not know the shared folder.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bioproxy.prompts.prompt_shape import Key
from bioproxy.shared.entry import same_content
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.record import SnapshotRecord
from bioproxy.slot_files.record_switch import switch_record
from bioproxy.slot_files.save_failures import SaveFailed
from bioproxy.slot_files.shelf import Shelf
from bioproxy.slot_files.snapshot import PREFIX, Snapshot


class LocalFiles:
    """The slot files of this process.

    Invariant: nothing is recorded here but files that are in the slot folder, with the size that they should have.
    """

    def __init__(self, snapshots: SnapshotRecord, folder: SlotFolder, shelf: Shelf) -> None:
        """Record files in `snapshots` that are in `folder`, within the limits of `shelf`."""
        self._snapshots = snapshots
        self._folder = folder
        self._shelf = shelf

    def has(self, name: str, kind: str, entry: Snapshot) -> bool:
        """Tell whether there is a file for the same prompt or conversation and model already.

        `entry` is what the shelf says of the other file.
        """
        # The record first, which is in memory; the disk is asked only if the record says yes.  A file that is recorded
        # and gone would be found out at the next restore, by a user.
        mine = self._snapshots.get(name, kind)
        return mine is not None and same_content(mine, entry) and self._folder.is_intact(mine)

    def place_for(self, name: str, kind: str, size: int) -> Path | None:
        """Return where a file of so many bytes may be put for now, `None` if there is no room for it.

        Raises `OSError` if files had to be removed and the record cannot be written.
        """
        # Without seeing the folder there is nowhere to put it.  A file that could never stay is not fetched at all.
        if self._folder.path is None or not self._shelf.accepts(name, kind, size):
            return None
        # Older files go for it, as they do for a file that llama-server saves.
        if not self._shelf.make_room(size, (name, kind)):
            return None
        # Not a name from the record: llama-server could be writing to that one at the same moment.
        return self._folder.path / f"{name}.{secrets.token_hex(4)}.fetched.bin"

    def discard(self, file: Path) -> None:
        """Remove a file that was fetched and is not wanted any more, if it is there.  No record has it."""
        self._folder.remove(file.name)

    def take_over(self, name: str, kind: str, entry: Snapshot, file: Path) -> None:
        """Record a file that is whole, under the name of a slot file.  Raises `OSError`; then the file is removed.

        `entry` is what the shelf says of it, and `file` is where it was put for now (`place_for`).
        """
        filename = self._snapshots.free_name(name, kind)
        try:
            # The same steps as after a save, and for the same reasons (`FileSaver.save`).
            self._snapshots.will_write(name, kind, filename)
            # If both are the same file already, by a hard link, renaming would leave both names.
            self._folder.remove(filename)
            if not self._folder.rename(file.name, filename):
                raise OSError(f"{file} cannot be renamed")
            # What an operator has pinned stays pinned, whichever bioproxy has computed the file.
            pinned = self._shelf.is_pinned(name, kind)
            switch_record(self._snapshots, self._folder, name, kind, replace(entry, filename=filename, pinned=pinned))
        except (OSError, SaveFailed) as error:
            # Whichever name it has by now, unless the record has that name already: then only the last step has failed,
            # and the file is good.
            self.discard(file)
            known = self._snapshots.get(name, kind)
            if known is None or known.filename != filename:
                self._folder.remove(filename)
            raise OSError(str(error)) from None
        # `place_for` has made room already; but meanwhile, during the copy, others may have been saved.
        # Last of all, so that an older file goes only for one that is recorded.
        self._shelf.within_limits((name, kind))

    def path_of(self, entry: Snapshot) -> Path | None:
        """Return where a recorded file is, `None` if this host does not see the slot folder.

        It may be gone, or be another one, by the time somebody opens it; code that copies it compares size and time.
        """
        return None if self._folder.path is None else self._folder.path / entry.filename

    def prompt_uses(self) -> Iterator[tuple[str, Key, str]]:
        """Yield the ids of prompts with a file, with what they are made of and when they were used last (ISO 8601)."""
        for name, kind, entry in self._snapshots.prompts():
            # Without an entry here, nobody has asked for the prompt yet, and its file is as old as it looks.
            uses = self._snapshots.uses(name, kind)
            if kind == PREFIX and uses is not None:
                yield name, entry.key, uses.last_used
