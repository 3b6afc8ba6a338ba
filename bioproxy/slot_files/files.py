"""The slot files of all prompts, for all code that uses the slot: one object that has all that can be done with them.

A file is loaded only if the record has it (`bioproxy.slot_files.record`), it was saved from the model that runs now,
and the disk, where it can be seen, still has it as it was recorded.  Whenever one of these is in doubt the file is
*forgotten*: dropped from the record, while it stays on the disk until it is written anew.  Forgetting is always safe,
it costs a warm-up.  So it comes first, and what makes the file doubtful comes after: a crash in between loses time and
nothing else.

How a file is saved (`bioproxy.slot_files.saving`), loaded (`loading`), found (`file_search`) and removed (`shelf`) is
in modules of their own.  Here is how files are forgotten and how the record is corrected.

Nothing here has an ``await``, so on Twisted's one thread each of these methods is done when it returns, and may be
called at any time, from an operator for example.  Therefore code that loads or saves, which happens inside the gate,
does not keep a record over an ``await`` and believe that it is still in force.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from twisted.logger import Logger

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot_files.file_search import FileSearch
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.loading import FileLoader
from bioproxy.slot_files.record import PREFIX, Id, Snapshot, SnapshotRecord
from bioproxy.slot_files.reuse_check import ReuseCheck
from bioproxy.slot_files.saving import FileSaver
from bioproxy.slot_files.shelf import Shelf


class SlotFiles:
    """The slot files of all prompts, by id and kind (`PREFIX`, `CHAT`, `PART`).

    Invariant: no file is loaded that the record does not have, and each file that was found to be
    of no use is out of the record before anybody can ask for it again.
    """

    log = Logger()

    enabled: bool | None
    """Whether llama-server runs with ``--slot-save-path``; `None`: it was not asked yet.

    The watch sets it for each new process.  Without that flag all slot actions are refused with
    status 501, and bioproxy works with what the slot itself holds.
    """

    folder: SlotFolder
    """The folder with the files, as far as this host sees it.

    Where it is not seen, all files count as intact, and llama-server's own answers are all there
    is.
    """

    saver: FileSaver
    """How files are made."""

    def __init__(
        self,
        identity: ModelIdentity,
        snapshots: SnapshotRecord,
        folder: SlotFolder,
        shelf: Shelf,
        saver: FileSaver,
        loader: FileLoader,
        reuse_check: ReuseCheck,
    ) -> None:
        # Not known before llama-server was asked: its answers do not tell how it was started.
        self.enabled = None
        self.folder = folder
        self.saver = saver
        self._identity = identity
        self._snapshots = snapshots
        self._shelf = shelf
        self._reuse_check = reuse_check
        # What other objects do with the same record and the same folder, offered under the same names.  The classes say
        # what the methods do.  First the two ways between the slot and a file.
        self.save = saver.save
        self.end_pause = saver.pause.end
        self.load = loader.load
        # Which file may be used for what, in `FileSearch`.
        search = FileSearch(identity, snapshots, folder)
        self.usable = search.usable
        self.longest_conversation = search.longest_conversation
        self.continued_conversations = search.continued_conversations
        self.shortest_conversation_on = search.shortest_conversation_on
        self.sharing = search.sharing
        self.latest_used = search.latest_used
        # What is done with files as a whole, in `Shelf`.
        self.discard = shelf.discard
        self.forget_and_remove = shelf.forget_and_remove
        self.tell_shelf = shelf.tell
        # And their uses, in `SnapshotRecord`.
        self.used = snapshots.used
        self.now = snapshots.now

    # What there is.  Answered from memory, and by a look at the disk where the folder is seen.

    @property
    def of_use(self) -> bool:
        """Whether llama-server keeps slot files, they can be saved, and restoring them helps."""
        # All three can change at any time, by a restart with other flags, a full disk, or an answer
        # that reused nothing.  So it is asked each time it matters and never remembered.
        return bool(self.enabled) and self._reuse_check.trouble is None and not self.saver.pause.in_force

    @property
    def model_known(self) -> bool:
        """Whether it is known which model runs; without that nothing can be saved."""
        # A file of an unknown model could never be restored, because nobody could tell whether it
        # fits.  The model is found out at the next restore, since that overwrites the slot.
        return self._identity.certain

    def recorded(self, name: str, kind: str) -> Snapshot | None:
        """Return what the record has, whatever model it is of, and without a look at the disk."""
        # What is recorded may have become useless meanwhile; that is found out when it is loaded.
        # It serves for reasons ("made with another model") and for candidates.
        return self._snapshots.get(name, kind)

    # Forgetting, and correcting the record.

    def rename_entry(self, name: str, kind: str, new_name: str) -> bool:
        """Give a file another id; return whether that was possible.  Raises `OSError` as `Shelf.rename_entry`."""
        renamed = self._shelf.rename_entry(name, kind, new_name) and self._snapshots.get(new_name, kind)
        # Told like a save.  Code that has noted the file under its old id (the shared shelf, which publishes every two
        # seconds) would take the next file with that id for a newer version of it, and never publish this one.
        if renamed:
            self.saver.saved(new_name, kind, renamed)
        return bool(renamed)

    def written_by_client(self, filename: str | None) -> None:
        """Note that a client is about to have llama-server write this file, `None` for one that is not known."""
        if filename == "":
            return
        # Before, not after: the record must be right even if bioproxy is killed during the call.  The price is that a
        # call which fails in the end costs a file, too.
        written: dict[Id, str] = {}
        for name, kind, entry in self._snapshots.items():
            if filename is None:
                # That may be any file.  Those that are checked before they are used, and would look different after
                # being written, can stay: the check finds out.
                stays = self.folder.would_notice_write(entry)
            else:
                # The comparison must not be stricter than the file system.  Some take "Code.bin" and "code.bin" for the
                # same file.  To forget one too many is cheap.
                stays = entry.filename.casefold() != filename.casefold()
            if not stays:
                written[name, kind] = entry.filename
        # All at once, because each change of the disk takes some milliseconds, and a user is waiting.
        if written:
            self._forget_all(written)
        # Logged, because an operator will wonder why a prompt is warmed up again.
        for file in written.values():
            self.log.info("{file} may have been overwritten by a client, not using it", file=file)

    def forget(self, name: str, kind: str) -> None:
        """Forget a file, which stays on the disk until it is written anew."""
        self._forget_all([(name, kind)])

    def _forget_all(self, ids: Iterable[Id]) -> None:
        """Forget files.  For callers that must go on even if the record cannot be written."""
        try:
            self._snapshots.drop_all(ids)
        except OSError as error:
            # In memory it is forgotten anyway, so this process is safe.  After a restart the
            # old record would be believed again, unless it can be written by then: worth an error.
            self.log.error("the record of slot files cannot be written: {error}", error=error)

    def rename_key(self, name: str, key: Key) -> None:
        """Note that a prompt's file is right for this key, because the tokens are the same.  Raises `OSError`."""
        # Otherwise requests in this shape would go on being told that the shape has changed.  White
        # space at the end of a system message, for example, makes another key, and with many chat
        # templates the same tokens.  Saving the same file again would be a waste.
        entry = self._snapshots.get(name)
        if entry is not None and entry.key != key:
            self._snapshots.put(name, PREFIX, replace(entry, key=key))

    def tidy_folder(self, templates: Iterable[str]) -> None:
        """Say what is unwise about the slot folder, and remove what a crash has left there of these templates."""
        # The first thing that is done with the folder once it is locked.  Only at the start: while
        # bioproxy runs, a file that no record points to may be one that llama-server is just
        # writing.
        for text in self.folder.warnings():
            self.log.warn("{text}", text=text)
        # Of a save that was broken off there may be a whole file or half of one; of a rename that
        # was, two names.  Whatever the record does not name is not of use any more.
        removed = self.folder.remove_leftovers(templates, self._snapshots.filenames())
        if removed:
            self.log.info(
                "removed from {folder}, not in use: {files}", folder=self.folder.path, files=", ".join(removed)
            )
        # The limits may be lower now than at the last start.
        self._shelf.within_limits()
