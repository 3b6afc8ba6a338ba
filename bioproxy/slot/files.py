"""The slot files of all templates: which may be used, loading them, and forgetting them in time.

llama-server reads a slot file without any check that it belongs to its model or to the text that is
asked for.  So a file is loaded only if the record has it (`bioproxy.slot.record`), it was saved
from the model that runs now, and the disk, where it can be seen, still has it as it was recorded.
Whenever one of these is in doubt the file is *forgotten*:  dropped from the record, while it stays
on the disk until it is written anew.  Forgetting is always safe, it costs a warm-up.  So it comes
first, and what makes the file doubtful comes after: a crash in between loses time and nothing else.

How a file is made is in `bioproxy.slot.saving`.  It is a part of this object, so that others need
to know only one.

Calls that load or save happen inside the gate.  Calls that only forget may come at any time, from
an operator for example; therefore nobody keeps a record over an ``await`` and believes that it is
still in force.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.speed import Speed
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.folder import SlotFolder
from bioproxy.slot.record import PREFIX, Snapshot, SnapshotRecord
from bioproxy.slot.reuse_check import ReuseCheck
from bioproxy.slot.saving import FileSaver


class SlotFiles:
    """The slot files of all templates.  Invariant: no file is loaded that the record does not have."""

    log = Logger()

    enabled: bool | None
    """Whether llama-server runs with ``--slot-save-path``; `None`: it was not asked yet."""

    folder: SlotFolder
    """The folder with the files, as far as this host sees it."""

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
        self.enabled = None
        self.folder = folder
        self._llama = llama
        self._identity = identity
        self._snapshots = snapshots
        self._metrics = metrics
        self._reuse_check = reuse_check
        self._saver = FileSaver(llama, identity, snapshots, folder, metrics, speed, clock)
        # `FileSaver` says what these do; here they are offered under the same names.
        self.save = self._saver.save
        self.end_pause = self._saver.end_pause

    # What there is.

    @property
    def of_use(self) -> bool:
        """Whether llama-server keeps slot files, they can be saved, and restoring them helps.

        All three can change at any time, so it is asked each time it matters and never remembered.
        """
        return bool(self.enabled) and self._reuse_check.trouble is None and not self._saver.paused

    @property
    def model_known(self) -> bool:
        """Whether it is known which model runs; without that nothing can be saved."""
        return self._identity.certain

    def recorded(self, name: str, kind: str) -> Snapshot | None:
        """Return what the record has, whatever model it is of, and without a look at the disk."""
        return self._snapshots.get(name, kind)

    def usable(self, name: str, kind: str) -> Snapshot | None:
        """Return the snapshot if it is of the model that runs now, and intact on the disk where that is seen.

        For judging what is warm.  Before a file is loaded the model is identified once more, by its
        behaviour.
        """
        entry, model = self._snapshots.get(name, kind), self._identity.current
        if entry is None or model is None or not entry.model.matches(model):
            return None
        return entry if self.folder.is_intact(entry) else None

    # Loading.

    async def load(self, name: str, kind: str, entry: Snapshot) -> bool:
        """Have llama-server read a file into the slot; fire with whether it did.

        A file that could not be read is forgotten, and the slot is empty then.  Fails with
        `UpstreamError` or `UpstreamTimeout`, and with `OSError` if the record cannot be written.
        Cancelling leaves the slot unknown and the file recorded: nothing is wrong with it.
        """
        result, loaded = "missing", None
        try:
            # Looked at before llama-server is: a file that was cut short would end its process.
            if self.folder.is_intact(entry):
                loaded = await self._llama.restore(entry.filename)
        except LlamaError as error:
            # 501: it runs without --slot-save-path now.  Anything else: it does not like the file,
            # mostly because there is none of that name.
            result = "refused" if error.status == 501 else "missing"
        except (UpstreamError, UpstreamTimeout):
            # It did not answer.  Perhaps it has died of this very file, and it would die again: so
            # the file is never tried twice.  The error goes on, because what follows would fail as
            # well.
            self._metrics.slot_restores.labels(name, "failed").inc()
            self._snapshots.drop(name, kind)
            raise
        if loaded is not None:
            # It was read, but is it the file that was recorded?  Tokens and bytes must be the same.
            same = loaded.tokens == entry.tokens and loaded.size == entry.size
            result = "ok" if same else "failed"
        self._metrics.slot_restores.labels(name, result).inc()
        if loaded is None or result != "ok":
            self._snapshots.drop(name, kind)
            return False
        self._metrics.slot_bytes.labels("restored").inc(loaded.size)
        return True

    # Forgetting, and correcting the record.

    def written_by_client(self, filename: str | None) -> None:
        """Note that a client is about to have llama-server write this file, `None` for one that is not known."""
        for name, kind, entry in self._snapshots.items():
            if filename is None:
                # That may be any file.  Those that are looked at before they are used, and would
                # look different after being written, can stay: they are found out then.
                stays = self.folder.would_notice_write(entry)
            else:
                # Some file systems take "Code.bin" and "code.bin" for the same file.  To forget one
                # too many is cheap.
                stays = entry.filename.casefold() != filename.casefold()
            if not stays:
                self.forget(name, kind)
                self.log.info("{file} may have been overwritten by a client, not using it", file=entry.filename)

    def forget(self, name: str, kind: str) -> None:
        """Forget a file, which stays on the disk until it is written anew."""
        try:
            self._snapshots.drop(name, kind)
        except OSError as error:
            # Forgotten it is all the same while this process runs.  Only after a restart it would
            # be believed again.
            self.log.error("the record of slot files cannot be written: {error}", error=error)

    def discard(self, name: str, kind: str) -> None:
        """Forget a file that is of no more use, and remove it if that is possible.  Raises `OSError`."""
        entry = self._snapshots.get(name, kind)
        if entry is not None:
            # First the record, then the file: a record without its file is a lie, a file without a
            # record is litter.
            self._snapshots.drop(name, kind)
            self.folder.remove(entry.filename)

    def rename_key(self, name: str, key: Key) -> None:
        """Note that a template's file is right for this key, because the tokens are the same.  Raises `OSError`."""
        entry = self._snapshots.get(name)
        if entry is not None and entry.key != key:
            self._snapshots.put(name, PREFIX, replace(entry, key=key))

    def tidy_folder(self, templates: Iterable[str]) -> None:
        """Say what is unwise about the slot folder, and remove what a crash has left there of these templates."""
        for text in self.folder.warnings():
            self.log.warn("{text}", text=text)
        removed = self.folder.remove_leftovers(templates, (entry.filename for _, _, entry in self._snapshots.items()))
        if removed:
            self.log.info(
                "removed from {folder}, not in use: {files}", folder=self.folder.path, files=", ".join(removed)
            )
