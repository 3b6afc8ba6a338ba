"""Saves slot 0 to a file, in an order of steps that leaves a true record wherever it is broken off.

llama-server writes the file, in its own folder, and answers when it is done.  Everything around
that is bioproxy's, and can be interrupted: by an error, a full disk, a cancelled coroutine, a
killed process, a machine that loses power.  What is left then must never be a record of a file that
is not whole or not of what the record says, because llama-server believes any file: one that was
cut short ends its process, one of another model gives wrong answers.

So there is no moment at which the record promises more than the disk has.  The steps of a save, and
what each leaves behind if everything ends right after it:

1. Look at the slot's witness, the model, and the room on the disk.  Nothing has changed.
2. Choose a name that no record points to.  Where a kind has only one name, its record is dropped
   first.
3. llama-server writes.  A file, whole or not, that no record points to: removed at the next start,
   where the folder can be seen.
4. Compare: the tokens written, the witness again, the size on the disk.  The same.
5. Write the record, durably.  The new file under its second name; the old file, out of use, is
   removed at the start.
6. Give the file its usual name, replacing the old one.  A record of a name that is gone: found out
   before it is restored, dropped, and warmed up again.  The one loss in all this, of time only, and
   the window is microseconds.
7. Write the record once more.  Done.

Everything here happens inside the gate.  Not known here: when a save is worth its time, and how
files are loaded.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

from twisted.internet.interfaces import IReactorTime

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.model_identity import Model, ModelIdentity
from bioproxy.llama.speed import Speed
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.backoff import Backoff
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.folder import SlotFolder
from bioproxy.slot.record import Snapshot, SnapshotRecord, names_of


class SaveFailed(Exception):
    """The slot could not be saved.  The text says why, for operators.

    It stands for all that can go wrong in a save: those who call do the same in any case.
    """


class SlotChanged(SaveFailed):
    """Something else happened to the slot meanwhile; the next save may well succeed.

    Told apart because it is no reason for a pause: there is nothing wrong with the disk.
    """


SHORTEST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds without saving after saves of two templates have failed; doubled with each failure in a row.

During a pause nothing is warmed up for a file.  Half the shortest, and a full disk is tried, at the
price of a warm-up, twice as often.  Twice the longest, and it takes up to twenty minutes until
somebody's tidying up is noticed.
"""


SAVES = "saves"
"""The name under which the pause of all saves is kept."""


class FileSaver:
    """Saves the slot to files, one save at a time.

    It is the only part of bioproxy that has llama-server write a file.  Invariant: what is recorded
    is whole on the disk.  After a crash between steps 6 and 7 it may be gone instead, which is
    found out before it is restored.
    """

    def __init__(
        self,
        llama: LlamaApi,
        identity: ModelIdentity,
        snapshots: SnapshotRecord,
        folder: SlotFolder,
        metrics: Metrics,
        speed: Speed,
        clock: IReactorTime,
    ) -> None:
        self._llama = llama
        self._identity = identity
        # The record is what a save is about: all steps before its change can be broken off without
        # a trace, and all steps after it only make things tidy.
        self._snapshots = snapshots
        self._folder = folder
        self._metrics = metrics
        self._speed = speed
        self._clock = clock
        # The templates whose last save failed.
        self._failed: set[str] = set()
        # Not lengthened at random, as the pauses of warm-ups are: there is one pause for all files, so nothing that
        # failed together would be tried again together.
        self._backoff = Backoff(clock, SHORTEST_PAUSE, LONGEST_PAUSE, jitter=0)

    @property
    def paused(self) -> bool:
        """Whether saving pauses because it has failed, and would probably fail again."""
        # Asked before anything is computed or begun for the sake of a file.  `save` itself does not
        # look: whoever has got as far as that may as well try.
        return self._backoff.waiting(SAVES) is not None

    def end_pause(self) -> None:
        """End a pause, because an operator says that saving will work now."""
        # The word of an operator counts like a success: if saving does not work after all, the next pause is the
        # shortest again.
        self._backoff.over(SAVES)

    # `save` is the whole of it, and in the order of the list above: `_write` has the steps that can
    # be cancelled, `_record` those that cannot.

    async def save(
        self,
        name: str,
        kind: str,
        key: Key,
        tokens: int,
        marks: tuple[str, ...] = (),
        conversation: Conversation | None = None,
    ) -> Snapshot:
        """Save the slot, which holds exactly so many `tokens`, to a file of this kind, and record the file.

        Fires with the record.  Fails with `SaveFailed`; then what was recorded before still is, but
        for `PART`.  Cancelling closes the connection; llama-server writes the file to its end all
        the same, under a name that no record points to.
        """
        # All errors end in one place, below, so that whatever went wrong leaves the same state: no
        # new record, no new file, and one kind of exception for those who call.  The name is chosen
        # anew for each save, from the record as it is now.
        filename = self._snapshots.free_name(name, kind)
        try:
            size, model = await self._write(name, kind, filename, tokens)
            # For people: nothing is ever decided by the wall clock.
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entry = Snapshot(filename, key, tokens, size, model, now, marks, conversation)
            entry = self._record(name, kind, entry)
        except (SaveFailed, LlamaCallFailed, OSError) as error:
            # `CancelledError` is not among these, on purpose: llama-server is still writing then,
            # and a file that is removed now would only come into being again.  "Refused" is an
            # answer of llama-server's with an error in it, "failed" is anything else.
            refused = isinstance(error, LlamaError)
            self._metrics.slot_saves.labels(name, "refused" if refused else "failed").inc()
            # What was written, if anything was, is of no use.  But the record may point to it
            # already, where only the very last step has failed; then it is good, and stays.
            known = self._snapshots.get(name, kind)
            if known is None or known.filename != filename:
                self._folder.remove(filename)
            # A slot that somebody else has used, or a llama-server in trouble, says nothing about
            # the disk.
            if not isinstance(error, SlotChanged | UpstreamError | UpstreamTimeout):
                self._begin_pause(name)
            raise SaveFailed(f"saving {filename}: {error}") from None
        # One save that worked shows that the disk is well: failures before it were about something
        # else, and the next pause begins with the shortest again.
        self._backoff.over(SAVES)
        self._failed.clear()
        self._metrics.slot_saves.labels(name, "ok").inc()
        self._metrics.slot_bytes.labels("saved").inc(entry.size)
        return entry

    def _begin_pause(self, name: str) -> None:
        """Do without saving for a while, if it is not only this template that cannot be saved."""
        # Seconds by the reactor's clock, which stands still while bioproxy cannot run.
        # One template alone may be too large, or have an unlucky name, and must not keep the others
        # from their files.  When a second one fails it is a full disk or a wrong folder: the next
        # one would fare no better, and computing it, for minutes perhaps, would be in vain.  A set,
        # because one template that fails again and again is still only one.
        self._failed.add(name)
        if len(self._failed) > 1:
            self._backoff.failed(SAVES)

    async def _write(self, name: str, kind: str, filename: str, tokens: int) -> tuple[int, Model]:
        """Have llama-server write the file; fire with its bytes and the model.  Fails as `save`, or `LlamaApi`."""
        # Step 1.  The witness tells how many tokens the slot holds.  If these are not those that
        # the caller believes to be there, the file would be a good file of the wrong thing.
        model = self._identity.current
        before = await self._llama.witness()
        # A file of which nobody knows the model could never be restored.  And finding it out now
        # would overwrite what is to be saved.
        if model is None or not self._identity.certain:
            raise SlotChanged("llama-server was restarted")
        if before is not None and (before.busy or before.tokens != tokens):
            raise SlotChanged("another request used the slot")
        # The room is estimated from the bytes a token took in the last save; before the first, any
        # disk is large enough.  It is asked beforehand, because a disk that fills up in the middle
        # leaves a file that is cut short, and no room for anybody else's data until that is
        # removed.
        if not self._folder.has_room(size := self._speed.bytes_of(tokens)):
            raise SaveFailed(f"about {size >> 20} MiB are needed, and too little is free in {self._folder.path}")

        # Step 2.  `PART` has only one name: from here on that file may be half written at any
        # moment, so its record goes first.  If the record cannot be written, this raises, and the
        # save does not begin.
        known = self._snapshots.get(name, kind)
        if known is not None and known.filename == filename:
            self._snapshots.drop(name, kind)

        # Step 3.  The longest ``await`` of all, up to seconds for gigabytes.  If it is cancelled,
        # this coroutine ends here, and llama-server goes on writing.  No harm is done: no record
        # has the name, and the next save waits in llama-server's own queue until the disk is free.
        began = self._clock.seconds()
        written = await self._llama.save(filename)
        took = self._clock.seconds() - began

        # Step 4.  Was it still this content that was saved?  An unchanged witness says so, and that
        # it is the same process, because a save is a task that leaves the slot's last task alone.
        if written.tokens != tokens or await self._llama.witness() != before:
            raise SlotChanged("another request used the slot")
        # Without a witness (``--no-slots``) at least the model must still be the same.  This
        # overwrites the slot.
        if before is None and not model.matches(await self._identity.find_out()):
            raise SlotChanged("the model changed")
        # How long it took decides which conversations are worth a save, and its size how much room
        # the next one needs.  Only good saves are measured.
        self._speed.saved(written.tokens, written.size, took)
        return written.size, model

    def _record(self, name: str, kind: str, entry: Snapshot) -> Snapshot:
        """Switch the record to a file that llama-server has written, and give it its usual name."""
        # No ``await`` here: these steps cannot be cancelled, only killed.  That is on purpose, and
        # the reason why the small writes to the disk are not moved to a thread.  The end of step 4.
        # llama-server has said how many bytes it wrote; if the folder can be seen, the disk must
        # say the same.  A file that is not there at all is an operator's mistake, and the most
        # frequent one, so the message names the two settings that must agree.
        entry = replace(entry, written_at=self._folder.written_at(entry.filename))
        if not self._folder.is_intact(entry):
            raise SaveFailed(
                f"there is no such file of {entry.size} bytes in {self._folder.path}:"
                " is slot_save_path the folder that llama-server was given as --slot-save-path?"
            )
        # Step 5.  Before the rename, not after: the old file is still there under its name, and the
        # record must leave it before it is replaced.
        self._snapshots.put(name, kind, entry)
        # From here on the save is good, whatever happens.  Step 6.  Only for people who look into
        # the folder, and so that there are never more than two names of a kind.  Where the folder
        # cannot be seen the file keeps its second name, and the next save takes the first one.
        usual = names_of(name, kind)[0]
        if entry.filename != usual and self._folder.rename(entry.filename, usual):
            # Step 7.  Until this is on the disk the record names a file that is gone, and says
            # nothing of the one that has taken its place.
            entry = replace(entry, filename=usual)
            self._snapshots.put(name, kind, entry)
        return entry
