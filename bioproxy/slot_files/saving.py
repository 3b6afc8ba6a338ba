"""Saves slot 0 to a file, in steps whose order keeps the record true wherever the save is interrupted.

llama-server writes the file, in its own folder, and answers when it is done.  All other steps are
bioproxy's, and can be interrupted by an error, a full disk, a cancelled coroutine, a killed
process, a machine that loses power.  After that, no record may name a file that is incomplete or
has other content than recorded, because llama-server does not check files: a truncated file ends
its process, a file of another model gives wrong answers.

So the record never promises more than the disk has.  The steps of a save, and the state if bioproxy
ends right after each step:

1. Check the slot's witness (`LlamaApi.witness`), the model, and the free space on the disk.  State:
   nothing has changed.
2. Choose a name that no record points to.  Where a kind has only one name, its record is dropped
   first.
3. llama-server writes the file.  State: there is a file, complete or not, that no record names;
   bioproxy removes the file at its next start, if it can see the folder.
4. Compare the number of tokens written, the witness, the process, and the size on the disk.  State:
   as after step 3.
5. Write the record, durably.  State: the record names the new file, which still has its second
   name; the old file is unused, and is removed at the next start.
6. Give the file its usual name, replacing the old file.  State: the record names a file that no
   longer exists.  This is detected before a restore; the record is dropped, and the prompt is
   warmed up again.  This is the only possible loss.  It costs only time, and the window is
   microseconds.
7. Write the record again, with the usual name.  State: the save is complete.
8. Remove older files, if there are more than the limits allow (`bioproxy.slot_files.shelf`).  State
   before that: the limits are exceeded, by this one file, until the next start or save.

All of this happens inside the gate.  Steps 5 to 7 are in `bioproxy.slot_files.record_switch`, because a file from the
shared shelf takes them, too.  This module does not know when a save is worth its time, or how files are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.model_identity import Model, ModelIdentity
from bioproxy.llama.speed import Speed
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.record import Snapshot, SnapshotRecord
from bioproxy.slot_files.record_switch import switch_record
from bioproxy.slot_files.save_failures import SaveFailed, SavePause, SlotChanged, TooLarge
from bioproxy.slot_files.shelf import Shelf
from bioproxy.slot_files.snapshot import class_of


class FileSaver:
    """Saves the slot to files, one save at a time.

    It is the only part of bioproxy that has llama-server write a file.  Invariant: each recorded
    file is complete on the disk.  After a crash between steps 6 and 7 a recorded file may be
    missing, which is detected before it is restored.
    """

    def __init__(
        self,
        llama: LlamaApi,
        identity: ModelIdentity,
        snapshots: SnapshotRecord,
        folder: SlotFolder,
        shelf: Shelf,
        metrics: Metrics,
        speed: Speed,
        clock: IReactorTime,
    ) -> None:
        self._llama = llama
        self._identity = identity
        # A save takes effect when this record changes: before that, any step can be interrupted
        # without consequences, and the steps after that only clean up.
        self._snapshots = snapshots
        self._folder = folder
        # Removes older files, before a save where the disk is full, and after it where there are too many.
        self._shelf = shelf
        self._metrics = metrics
        self._speed = speed
        self._clock = clock
        # Files that llama-server went on writing when nobody waited for them any more.  No limit counts them.
        self._given_up: set[str] = set()
        self.saved: Callable[[str, str, Snapshot], None] = lambda name, kind, entry: None
        """Called with id, kind and entry of each file that was saved.  Assigned by assembly."""
        self.pause = SavePause(clock)
        """Whether saving is worth a try.  `save` does not ask it."""

    # `save` does all steps, in the order of the list above: `_write` has the steps that can be
    # cancelled, `switch_record` the steps that cannot.

    async def save(
        self,
        name: str,
        kind: str,
        key: Key,
        tokens: int,
        marks: tuple[str, ...] = (),
        conversation: Conversation | None = None,
        earlier: tuple[Conversation, ...] = (),
    ) -> Snapshot:
        """Save the slot, which holds exactly so many `tokens`, to a file of this kind, and record the file.

        The other arguments are the fields of the record.
        Fires with the record.  Fails with `SaveFailed`; then the record is as before, except that
        the file of kind `PART` may have lost its entry.  Cancelling closes the connection;
        llama-server still writes the complete file, under a name that is in no record.  A later save removes it.
        """
        # All errors are handled in one place, below, so that each of them leaves the same state: no
        # new record, no new file, and one kind of exception for callers.  The file name is chosen
        # for each save from the present record.
        filename = self._snapshots.free_name(name, kind)
        # Asked now, because the record of kind `PART` is dropped on the way.
        pinned = self._shelf.is_pinned(name, kind)
        try:
            size, model = await self._write(name, kind, filename, tokens)
            # By the wall clock, because it must mean something after a restart.
            now = datetime.fromtimestamp(self._snapshots.now(), timezone.utc).isoformat(timespec="seconds")
            entry = Snapshot(filename, key, tokens, size, model, now, marks, conversation, None, pinned, earlier)
            entry = switch_record(self._snapshots, self._folder, name, kind, entry)
        except CancelledError:
            # llama-server is still writing, and would create the file again if it were removed now.
            self._given_up.add(filename)
            raise
        except (SaveFailed, LlamaCallFailed, OSError) as error:
            # "refused" means that llama-server answered with an error, "failed" is any other error.
            refused = isinstance(error, LlamaError)
            self._metrics.slot_saves.labels(metric_label(name), "refused" if refused else "failed").inc()
            # If a file was written, it is of no use, and is removed.  There is one exception: if
            # only the last step has failed, the record names the file already.  Then the file is
            # good, and stays.
            known = self._snapshots.get(name, kind)
            if known is None or known.filename != filename:
                self._folder.remove(filename)
            self.pause.failed(name, error)
            kind_of_error = TooLarge if isinstance(error, TooLarge) else SaveFailed
            raise kind_of_error(f"saving {filename}: {error}") from None
        self.pause.succeeded()
        self._metrics.slot_saves.labels(metric_label(name), "ok").inc()
        self._metrics.slot_bytes.labels("saved").inc(entry.size)
        # Step 8, after all the others: an older file goes only for one that is complete and recorded.
        self._shelf.within_limits((name, kind))
        # llama-server writes one file after the other, so it is done with those that were given up before.
        if self._given_up:
            for each in self._given_up.difference(self._snapshots.filenames()):
                self._folder.remove(each)
            self._given_up.clear()
        self.saved(name, kind, entry)
        return entry

    async def _write(self, name: str, kind: str, filename: str, tokens: int) -> tuple[int, Model]:
        """Have llama-server write the file; fire with its bytes and the model.  Fails as `save` or `LlamaApi`."""
        # Step 1.  The witness tells how many tokens the slot holds.  If the caller expects another
        # number, the file would be intact, but with the wrong content.
        model = self._identity.current
        before = await self._llama.witness()
        # A file whose model is unknown could never be restored, and identifying the model now would
        # overwrite the content that is to be saved.
        if model is None or not self._identity.certain:
            raise SlotChanged("llama-server was restarted")
        if before is not None and (before.busy or before.tokens != tokens):
            raise SlotChanged("another request used the slot")
        # The space that is needed is estimated from the bytes for each token in the last save; before the first save,
        # any disk counts as large enough.  The free space is checked beforehand: a disk that becomes full during the
        # save leaves a truncated file, and no space for the data of other programs until that file is removed.  Older
        # files make room, but not for a file that could not stay itself.
        size = self._speed.bytes_of(tokens)
        self._check_limit(name, kind, size)
        if not self._shelf.make_room(size, (name, kind)):
            raise SaveFailed(f"about {size >> 20} MiB are needed, and too little is free in {self._folder.path}")

        # Step 2.  `PART` has only one name: from here on that file may be incomplete at any moment, so its record is
        # dropped first.  If the record cannot be written, this raises, and the save does not begin.
        self._snapshots.will_write(name, kind, filename)
        # A file that nobody uses any more may have this name.  llama-server would write into that very file, and it may
        # have a second name by now: on a shared shelf (`bioproxy.shared.folder`).  A new file has only this one.
        self._folder.remove(filename)

        # Step 3.  The longest ``await`` of all, up to seconds for gigabytes.  If it is cancelled,
        # this coroutine ends here, and llama-server goes on writing.  This has no bad effect: the
        # name is in no record, and the next save waits in llama-server's own queue until the
        # writing is done.
        began = self._clock.seconds()
        written = await self._llama.save(filename)
        took = self._clock.seconds() - began

        # Step 4.  Check that this content was saved.  An unchanged witness proves that, and that
        # the process is the same, because a save does not change the slot's last task, which is
        # part of the witness.
        if written.tokens != tokens or await self._llama.witness() != before:
            raise SlotChanged("another request used the slot")
        # The watch notices another process, perhaps with another model, only at its next look.  What
        # that process was asked meanwhile must not be recorded as the old model's.
        if before is not None and not await self._identity.unchanged():
            raise SlotChanged("llama-server was restarted")
        # Without a witness (``--no-slots``) at least the model must still be the same.  Identifying
        # the model overwrites the slot.
        if before is None and not model.matches(await self._identity.find_out()):
            raise SlotChanged("the model changed")
        # The time decides which conversations are worth a save, and the size how much space the next save needs.  Only
        # successful saves are measured.
        self._speed.saved(written.tokens, written.size, took)
        # Once more with the true size.  The first save had no estimate.
        self._check_limit(name, kind, written.size)
        return written.size, model

    def _check_limit(self, name: str, kind: str, size: int) -> None:
        """Raise `TooLarge` if a file of so many bytes could not stay, whatever else was removed for it."""
        if not self._shelf.accepts(name, kind, size):
            limit = self._shelf.limit(class_of(name, kind)) or 0
            raise TooLarge(f"its {size >> 20} MiB are more than the limit of {limit >> 20} MiB leaves room for")
