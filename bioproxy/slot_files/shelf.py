"""The shelf: keeps slot files within their limits.

Learned prompts and conversations are saved as they come, and each file has some megabytes to gigabytes.  So both have a
limit in bytes, and what was not used for the longest time goes first.  Templates are configured by an operator, and
their prompts have no limit: they are never removed here.

The limit holds for all files but pinned ones.  `bioproxy.slot_files.removal` decides which files go.  A file that alone
is larger than the limit is not saved at all (`accepts`), as it would push out everything and then go itself.

Removing means: first the record's entry, then the file.  A crash in between leaves a file that no entry names, and that
is removed at the next start.  The other way round would leave an entry without a file, and a user who waits for a
restore that fails.

For Twisted this is plain synchronous code.  It runs within a save, when the gate is closed and nobody restores a file.
A user may be waiting meanwhile, so bytes are not added up here: the record counts them with each change.

Without a visible folder (`slot_save_path`) nothing can be removed, so nothing is limited.  Does not know llama-server,
or when something is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.logger import Logger

from bioproxy.runtime.metrics import Metrics
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.record import Id, SnapshotRecord
from bioproxy.slot_files.removal import HeldFiles, to_remove
from bioproxy.slot_files.snapshot import (
    CHAT,
    CLASSES,
    CONVERSATION,
    NAMES,
    PART,
    PREFIX,
    PROMPT,
    class_of,
    names_of,
)


class Shelf:
    """The slot files of one folder, within their limits.

    Invariant: after `within_limits` the files of each class have at most as many bytes as its limit, pinned files not
    counted, as far as the record could be written.
    """

    log = Logger()

    prompts_limit: int
    """Bytes of all files of learned prompts.  May be changed at any time; `within_limits` applies it."""

    conversations_limit: int
    """Bytes of all files of conversations, those of templates included.  May be changed at any time."""

    def __init__(
        self,
        snapshots: SnapshotRecord,
        folder: SlotFolder,
        metrics: Metrics,
        prompts_limit: int,
        conversations_limit: int,
    ) -> None:
        # Two plain attributes: a reload assigns new values, and then calls `within_limits`.
        self.prompts_limit = prompts_limit
        self.conversations_limit = conversations_limit
        self.removed: Callable[[str], None] = lambda id: None
        """Called with the id of each prompt whose file was removed to make room.  Assigned by assembly."""
        self._snapshots = snapshots
        self._folder = folder
        self._metrics = metrics
        # prometheus-client calls these functions when the metrics are read, so nothing has to be set at each change.
        for each in CLASSES:
            totals = snapshots.totals(each)
            metrics.shelf_files.labels(each).set_function(partial(getattr, totals, "files"))
            metrics.shelf_bytes.labels(each).set_function(partial(getattr, totals, "bytes"))
            metrics.shelf_removed.labels(each)

    def limit(self, of_class: str) -> int | None:
        """Return the limit of a class in bytes, `None` where there is none."""
        if self._folder.path is None:
            return None
        # Without a visible folder no file could be removed, and a record without its file would help nobody.
        return {PROMPT: self.prompts_limit, CONVERSATION: self.conversations_limit}.get(of_class)

    def accepts(self, name: str, kind: str, size: int) -> bool:
        """Tell whether a file of so many bytes could stay within the limit of its class."""
        of_class = class_of(name, kind)
        limit, before = self.limit(of_class), self._snapshots.get(name, kind)
        # Pinned files cannot make room for it, but for the one that it replaces.
        replaced = before.size if before is not None and before.pinned else 0
        return limit is None or size <= limit - self._snapshots.totals(of_class).pinned + replaced

    def make_room(self, size: int, keep: Id) -> bool:
        """Remove files until the disk has room for so many bytes more; return whether it has.

        Conversations go first, then learned prompts.  `keep` is the entry that is about to be replaced.  It stays,
        because the save may fail.  Raises `OSError` if the record cannot be written.
        """
        # Asked again after each class: another program may have freed space, and file systems differ in when they do.
        for of_class in (CONVERSATION, PROMPT):
            missing = self._folder.missing_bytes(size)
            if missing <= 0:
                return True
            # Nothing is removed for nothing: if even all files were not enough, all stay.
            totals = [self._snapshots.totals(each) for each in (CONVERSATION, PROMPT)]
            if missing > sum(each.bytes - each.pinned for each in totals):
                return False
            # Without the entry that is about to be replaced: its file is still needed if the save fails.
            others = HeldFiles(self._snapshots, of_class, without=keep)
            self._remove(of_class, to_remove(others, missing, None, self._snapshots.now()))
        return self._folder.has_room(size)

    def within_limits(self, just_saved: Id | None = None) -> None:
        """Remove files until each class is within its limit.  Called after a save and after a change of limits.

        Never raises: a record that cannot be written is logged, and the files stay until the next start.
        """
        for of_class in (PROMPT, CONVERSATION):
            limit = self.limit(of_class)
            # Two numbers that are there already.  While a class is within its limit, this is all that a save costs.
            excess = 0 if limit is None else self._snapshots.totals(of_class).bytes - limit
            if excess > 0:
                ids = to_remove(HeldFiles(self._snapshots, of_class), excess, just_saved, self._snapshots.now())
                try:
                    self._remove(of_class, ids)
                except OSError as error:
                    self.log.error("the record of slot files cannot be written: {error}", error=error)

    def _remove(self, of_class: str, ids: list[Id]) -> None:
        """Remove files.  Raises `OSError` if the record cannot be written; then no file was removed."""
        # One write for all, and the log has one line for all.
        count = self.discard(*ids)
        self._metrics.shelf_removed.labels(of_class).inc(count)
        if count:
            self.log.info("removed {count} slot files ({of_class}) to make room", count=count, of_class=of_class)
        # Last, when the record and the folder are as they will be.
        for name, kind in ids:
            if kind != CHAT:
                self.removed(name)

    # What an operator or a new conversation asks for.  None of these waits for anything.

    def discard(self, *ids: Id) -> int:
        """Forget files and remove them; return how many there were.

        Raises `OSError` if the record cannot be written; then no file was removed.
        """
        # The names first, since afterwards the record does not have them any more.
        files = [entry.filename for id in ids if (entry := self._snapshots.get(*id)) is not None]
        # All entries with one flush of the disk.  After a limit was lowered there may be thousands of them.
        self._snapshots.drop_all(ids)
        # A file that cannot be removed (missing, or no slot file at all) is no error: what counts is that nothing uses
        # it any more.
        for file in files:
            self._folder.remove(file)
        return len(files)

    def forget_and_remove(self, name: str) -> bool:
        """Forget everything saved under an id and remove its files; return whether there was anything.

        Raises `OSError` if the record cannot be written.
        """
        # Not counted as removed by the shelf: somebody wanted it.
        # All kinds at once: a prompt may have a whole file and a part, and a template's name stands for its last
        # conversation, too.
        return self.discard(*((name, kind) for kind in NAMES)) > 0

    def pin(self, name: str, pinned: bool) -> bool:
        """Have the files of an id stay whatever the limits are, or not; return whether there are any.

        Raises `OSError` if the record cannot be written.
        """
        # One entry after the other; a crash in between leaves some of them pinned, which hurts nobody.  Written only
        # where something changes, because each write waits for the disk.
        found = [(kind, entry) for kind in NAMES if (entry := self._snapshots.get(name, kind)) is not None]
        for kind, entry in found:
            if entry.pinned != pinned:
                self._snapshots.put(name, kind, replace(entry, pinned=pinned))
        return bool(found)

    def has_conversation(self, name: str) -> bool:
        """Tell whether a conversation is saved under an id."""
        return self._snapshots.get(name, CHAT) is not None

    def is_pinned(self, name: str, kind: str) -> bool:
        """Tell whether a new file of this id and kind is pinned, because the one that it replaces is."""
        # The beginning of a prompt and the whole prompt replace each other.  A conversation is a thing of its own.
        # Otherwise the pin of a template's conversation would be inherited by each later one.
        kinds = (CHAT,) if kind == CHAT else (PREFIX, PART)
        return any(entry.pinned for each in kinds if (entry := self._snapshots.get(name, each)) is not None)

    def rename_entry(self, name: str, kind: str, new_name: str) -> bool:
        """Give a file another id; return whether that was possible.  It replaces what has the new id.

        Raises `OSError` if the record cannot be written.  A crash leaves the file as it was, or as a stray file that is
        removed at the next start.
        """
        entry, uses = self._snapshots.get(name, kind), self._snapshots.uses(name, kind)
        if entry is None or name == new_name or self._folder.path is None:
            return False
        # The old entry goes first.  At no moment an entry may name a file that is not there, or has other content.
        replaced = self._snapshots.get(new_name, kind)
        self._snapshots.drop_all([(name, kind), (new_name, kind)])
        if replaced is not None:
            self._folder.remove(replaced.filename)
        # A crash from here on leaves a file without an entry, under the old name or the new one.
        filename = names_of(new_name, kind)[0]
        if self._folder.rename(entry.filename, filename):
            self._snapshots.put(new_name, kind, replace(entry, filename=filename), uses)
            return True
        # `rename` tells only that it failed.  The file is missing or the folder is read-only.  A file that is as it was
        # may be used as before.
        if self._folder.is_intact(entry):
            self._snapshots.put(name, kind, entry, uses)
        return False

    def tell(self) -> dict[str, dict[str, Any]]:
        """Return files, bytes and the limit in bytes (`None`: none) of each class, for `/status`."""
        totals = {each: self._snapshots.totals(each) for each in CLASSES}
        return {
            each: {"files": found.files, "bytes": found.bytes, "limit": self.limit(each)}
            for each, found in totals.items()
        }
