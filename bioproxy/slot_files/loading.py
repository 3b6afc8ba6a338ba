"""Loads a slot file into slot 0, and forgets a file that proves to be of no use.

llama-server reads a slot file without any check that it belongs to its model or to the text that is asked for, and a
file that was cut short ends its process.  So the disk is looked at before llama-server is asked, where it can be seen,
and what llama-server says that it read is compared with the record afterwards.  Whenever the file is in doubt it is
dropped from the record, and stays on the disk until it is written anew.  That costs a warm-up; a file that is wrong
would cost the user's answer.

The Twisted idea is what happens at the one ``await``: four things may come back from it.  llama-server answers that it
read the file; it answers with an error; it does not answer; or the coroutine is *cancelled*, because a client has hung
up.  Only the last one says nothing about the file, so `CancelledError` is the one exception that nothing here catches.

Loading happens inside the gate.  Does not know why a file is loaded, whose model it is of (`file_search`), or what the
slot holds: that is for the caller to forget before.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.speed import Speed
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.runtime.errors import LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.record import Snapshot, SnapshotRecord


class FileLoader:
    """Loads files into the slot.  It is the only part of bioproxy that has llama-server read one.

    Invariant: a file that could not be read, or was another than the recorded one, is out of the record before anybody
    can ask for it again.
    """

    def __init__(
        self,
        llama: LlamaApi,
        snapshots: SnapshotRecord,
        folder: SlotFolder,
        metrics: Metrics,
        speed: Speed,
        clock: IReactorTime,
    ) -> None:
        self._llama = llama
        self._snapshots = snapshots
        self._folder = folder
        self._metrics = metrics
        self._speed = speed
        # Measures how long reading a file takes.
        self._clock = clock

    async def load(self, name: str, kind: str, entry: Snapshot, for_user: bool = True) -> bool:
        """Have llama-server read a file into the slot; fire with whether it did.

        Only what is loaded `for_user` counts as a use of the file: warm-ups say nothing about what is asked for.
        A file that could not be read is forgotten, and the slot is empty then.  One that is not
        recorded any more is not read, and the slot stays as it is.  Fails with
        `UpstreamError` or `UpstreamTimeout`, and with `OSError` if the record cannot be written.
        Cancelling leaves the slot unknown and the file recorded: nothing is wrong with it.
        """
        # The caller may have awaited something since it chose the file.  Meanwhile an operator may
        # have had it forgotten, or another file has taken its place.
        known = self._snapshots.get(name, kind)
        if known is None or not known.is_same_file(entry):
            return False
        # What the slot holds is for the caller to forget before this, because from the next
        # ``await`` on it may be anything: the old content, this file, or nothing.
        result, loaded = "missing", None
        began = self._clock.seconds()
        try:
            # The disk is looked at before llama-server is asked.  llama-server believes the sizes
            # that it reads in the file, and one that was cut short ends its process (builds b11434,
            # b11549).
            if self._folder.is_intact(entry):
                loaded = await self._llama.restore(entry.filename)
        except LlamaError as error:
            # It answered that it did not load the file.  501: it runs without --slot-save-path now.
            # Anything else: it cannot use the file, mostly because there is none of that name.  The
            # slot is empty then, which is no worse than what the caller had given up.
            result = "refused" if error.status == 501 else "missing"
        except (UpstreamError, UpstreamTimeout):
            # It did not answer.  Perhaps it has died of this very file, and it would die again: so
            # the file is never tried twice.  The error goes on, because what follows would fail as
            # well.  `CancelledError` is not caught here: a client that hangs up says nothing about
            # the file.
            self._metrics.slot_restores.labels(metric_label(name), "failed").inc()
            self._snapshots.drop(name, kind)
            raise
        if loaded is not None:
            # It was read, but is it the file that was recorded?  Tokens and bytes must be the same.
            # That catches a file that somebody else has saved under this name where the folder
            # cannot be seen, unless it has just as many tokens.
            same = loaded.tokens == entry.tokens and loaded.size == entry.size
            result = "ok" if same else "failed"
        # Counted by what came of it, so that an operator sees a wrong flag ("refused"), a folder
        # that somebody tidies up ("missing") and a broken file ("failed") apart.
        self._metrics.slot_restores.labels(metric_label(name), result).inc()
        # Whatever the reason was, the file is forgotten: asking for it once more would fail once
        # more, and cost the next user the same time.  The next warm-up writes a new one.
        if loaded is None or result != "ok":
            self._snapshots.drop(name, kind)
            return False
        self._metrics.slot_bytes.labels("restored").inc(loaded.size)
        # For operators, who are told what a file is worth: seconds of computing against seconds of reading.
        self._speed.restored(loaded.tokens, self._clock.seconds() - began)
        # A use: the file goes behind all others in the order in which files are removed.
        if for_user:
            self._snapshots.used(name, kind)
        return True
