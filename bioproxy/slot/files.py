"""Saves slot 0 to files and restores it, and sees to it that no file is restored that should not be.

The order of steps is what matters here.  A save goes to a name that no record points to.  When llama-server says that
it wrote the file whole, the slot's witness says that nobody touched the slot meanwhile, and the disk says that the file
has that size, the record switches to it; only then, if the folder can be seen, it gets its usual name.  At each moment
the record points to a good file or to none.

Everything here happens inside the gate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.model_identity import Model, ModelIdentity
from bioproxy.llama.speed import Speed
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.folder import SlotFolder
from bioproxy.slot.record import PREFIX, Snapshot, SnapshotRecord, names_of
from bioproxy.slot.reuse_check import ReuseCheck


class SaveFailed(Exception):
    """The slot could not be saved.  The text says why, for a person."""


class SlotChanged(SaveFailed):
    """Something else happened to the slot meanwhile; the next save may well succeed."""


SHORTEST_REST, LONGEST_REST = 30.0, 600.0
"""Seconds without slot files after saves of two templates failed, doubled with each failure in a row."""


class SlotFiles:
    """The slot files of all templates.

    `enabled` tells whether llama-server runs with ``--slot-save-path``; `None`: not known yet.
    """

    log = Logger()

    def __init__(
        self,
        llama: LlamaApi,
        identity: ModelIdentity,
        snapshots: SnapshotRecord,
        folder: SlotFolder,
        metrics: Metrics,
        speed: Speed,
        reuse_check: ReuseCheck,
        clock: IReactorTime,
    ) -> None:
        self.enabled: bool | None = None
        self.folder = folder
        self._llama = llama
        self._identity = identity
        self._snapshots = snapshots
        self._metrics = metrics
        self._speed = speed
        self._reuse_check = reuse_check
        self._clock = clock
        self._failed: set[str] = set()
        self._pause = 0.0
        self._rests_until = -math.inf

    @property
    def of_use(self) -> bool:
        """Whether llama-server keeps slot files, they can be saved, and restoring them helps."""
        rests = self._clock.seconds() < self._rests_until
        return bool(self.enabled) and self._reuse_check.trouble is None and not rests

    @property
    def model_known(self) -> bool:
        """Whether it is known which model runs; without that nothing can be saved."""
        return self._identity.certain

    def recorded(self, name: str, kind: str) -> Snapshot | None:
        """Return what the record has, whatever model it is of."""
        return self._snapshots.get(name, kind)

    def usable(self, name: str, kind: str) -> Snapshot | None:
        """Return the snapshot if it is of the model that runs now, and whole."""
        entry, model = self._snapshots.get(name, kind), self._identity.current
        if entry is None or model is None or not entry.model.matches(model):
            return None
        return entry if self.folder.is_intact(entry) else None

    def rename_key(self, name: str, key: Key) -> None:
        """Note that a template's snapshot is right for this key.  Raises `OSError`."""
        entry = self._snapshots.get(name)
        if entry is not None and entry.key != key:
            self._snapshots.put(name, PREFIX, replace(entry, key=key))

    def tidy_folder(self, templates: Iterable[str]) -> None:
        """Say what is unwise about the slot folder, and remove what a crash has left there of these templates."""
        for text in self.folder.complaints():
            self.log.warn("{text}", text=text)
        removed = self.folder.sweep(templates, (entry.filename for _, _, entry in self._snapshots.items()))
        if removed:
            self.log.info(
                "removed from {folder}, not in use: {files}", folder=self.folder.path, files=", ".join(removed)
            )

    def written_by_client(self, filename: str | None) -> None:
        """Note that somebody else has llama-server write this file, `None` for one that is not known.

        That may be any.  Those that are looked at before they are used, and would look different then, stay recorded.
        """
        for name, kind, entry in self._snapshots.items():
            if filename is None:
                stays = self.folder.would_notice_write(entry)
            else:
                stays = entry.filename.casefold() != filename.casefold()
            if not stays:
                self.forget(name, kind)
                self.log.info("{file} may have been written by a client, it is used no more", file=entry.filename)

    def forget(self, name: str, kind: str) -> None:
        """Forget a file, which stays where it is until it is written anew."""
        try:
            self._snapshots.drop(name, kind)
        except OSError as error:  # forgotten it is all the same, while the process runs
            self.log.error("the record cannot be written: {error}", error=error)

    def end_pause(self) -> None:
        """Use files again, even if saving failed: somebody says that it will work now."""
        self._rests_until = -math.inf

    def discard(self, name: str, kind: str) -> None:
        """Forget a file that is of no more use, and remove it if that is possible.  Raises `OSError`."""
        entry = self._snapshots.get(name, kind)
        if entry is not None:
            self._snapshots.drop(name, kind)
            self.folder.remove(entry.filename)

    async def load(self, name: str, kind: str, entry: Snapshot) -> bool:
        """Have llama-server read a file into the slot; fire with whether it did.  A file that is of no use is dropped.

        Fails with `UpstreamError` or `UpstreamTimeout`, and with `OSError` if the record cannot be written.
        """
        result, loaded = "missing", None
        try:
            if self.folder.is_intact(entry):
                loaded = await self._llama.restore(entry.filename)
        except LlamaError as error:
            result = "refused" if error.status == 501 else "missing"
        except (UpstreamError, UpstreamTimeout):
            # It may have died of this very file: it is not tried again.
            self._metrics.slot_restores.labels(name, "failed").inc()
            self._snapshots.drop(name, kind)
            raise
        if loaded is not None:
            same = loaded.tokens == entry.tokens and loaded.size == entry.size
            result = "ok" if same else "failed"
        self._metrics.slot_restores.labels(name, result).inc()
        if loaded is None or result != "ok":
            self._snapshots.drop(name, kind)
            return False
        self._metrics.slot_bytes.labels("restored").inc(loaded.size)
        return True

    async def save(
        self,
        name: str,
        kind: str,
        key: Key,
        tokens: int,
        marks: tuple[str, ...] = (),
        conversation: Conversation | None = None,
    ) -> Snapshot:
        """Save the slot, which holds exactly so many `tokens`, and record the file.

        Fires with the record.  Fails with `SaveFailed`; then what was recorded before still is, but for `PART`.
        """
        filename = self._snapshots.free_name(name, kind)
        try:
            size, model = await self._write(name, kind, filename, tokens)
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entry = Snapshot(filename, key, tokens, size, model, now, marks, conversation)
            entry = self._record(name, kind, entry)
        except (SaveFailed, LlamaCallFailed, OSError) as error:
            refused = isinstance(error, LlamaError)
            self._metrics.slot_saves.labels(name, "refused" if refused else "failed").inc()
            known = self._snapshots.get(name, kind)
            if known is None or known.filename != filename:
                self.folder.remove(filename)  # what was written there, if anything was, is of no use to anybody
            if not isinstance(error, SlotChanged | UpstreamError | UpstreamTimeout):
                self._rest(name)
            raise SaveFailed(f"saving {filename}: {error}") from None
        self._pause = 0.0
        self._failed.clear()
        self._metrics.slot_saves.labels(name, "ok").inc()
        self._metrics.slot_bytes.labels("saved").inc(entry.size)
        return entry

    def _rest(self, name: str) -> None:
        """Do without files for a while, if it is not only this template that cannot be saved.

        With a full disk, or a wrong folder, the next one would fare no better, and computing it would be in vain.
        """
        self._failed.add(name)
        if len(self._failed) > 1:
            self._pause = min(max(SHORTEST_REST, 2 * self._pause), LONGEST_REST)
            self._rests_until = self._clock.seconds() + self._pause

    async def _write(self, name: str, kind: str, filename: str, tokens: int) -> tuple[int, Model]:
        """Have llama-server write the file; fire with its bytes and the model."""
        model = self._identity.current
        before = await self._llama.witness()
        if model is None or not self._identity.certain:
            raise SlotChanged("llama-server was restarted")
        if before is not None and (before.busy or before.tokens != tokens):
            raise SlotChanged("somebody else used the slot")
        if not self.folder.has_room(size := self._speed.bytes_of(tokens)):
            raise SaveFailed(f"about {size >> 20} MiB are needed, and too little is free in {self.folder.path}")
        known = self._snapshots.get(name, kind)
        if known is not None and known.filename == filename:
            # The only name that this kind has: from here on the file may be half written at any moment.
            self._snapshots.drop(name, kind)
        began = self._clock.seconds()
        written = await self._llama.save(filename)
        took = self._clock.seconds() - began
        # Was it still this content that was saved?  An unchanged witness says so, and that it is the same process.
        if written.tokens != tokens or await self._llama.witness() != before:
            raise SlotChanged("somebody else used the slot")
        # Without a witness at least the model must still be the same.
        if before is None and not model.matches(await self._identity.find_out()):
            raise SlotChanged("the model changed")
        self._speed.saved(written.tokens, written.size, took)
        return written.size, model

    def _record(self, name: str, kind: str, entry: Snapshot) -> Snapshot:
        """Switch the record to a file that llama-server has written, and give it its usual name."""
        entry = replace(entry, written_at=self.folder.written_at(entry.filename))
        if not self.folder.is_intact(entry):
            raise SaveFailed(
                f"there is no such file of {entry.size} bytes in {self.folder.path}:"
                " is slot_save_path the folder that llama-server was given as --slot-save-path?"
            )
        self._snapshots.put(name, kind, entry)
        usual = names_of(name, kind)[0]
        # A crash between these two lines leaves a record of a file that is not there: no harm, only a warm-up.
        if entry.filename != usual and self.folder.rename(entry.filename, usual):
            entry = replace(entry, filename=usual)
            self._snapshots.put(name, kind, entry)
        return entry
