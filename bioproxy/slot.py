"""What slot 0 holds, and how to get the right thing into it.

The slot is llama-server's working place: the tokens that it has processed, with their KV cache.  A prompt that
begins with the same tokens goes on from there, so before a question on a template is sent, the slot should hold that
template.  It may

1. hold it already (*hot*): it was used for the same template last, and its witness says that nobody used it since;
2. get it from a file (*restored*), if the record has one for this very text and this very model;
3. have to compute it (*cold*).

What bioproxy believes about the slot is forgotten *before* anything changes the slot, and noted again only when all
went well.  So a fault in the middle, or a cancelled request, leaves "unknown", never something wrong.

Everything here happens inside the gate.  A fault of these calls never harms the request they are made for: it is
sent all the same, and is merely slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.errors import LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.identity import Identity
from bioproxy.llama import Llama, Witness
from bioproxy.metrics import Metrics
from bioproxy.snapshots import Snapshot, Snapshots


@dataclass(frozen=True)
class Prepared:
    """How the slot came to hold a template: `cache` is ``hot``, ``restored`` or ``cold``.

    `miss` says why it was cold, `restore_ms` how long the restore took, in milliseconds.
    """

    cache: str
    miss: str | None = None
    restore_ms: float | None = None


class SaveFailed(Exception):
    """The slot could not be saved.  The text says why, for a person."""


class Slot:
    """Slot 0.

    `files` tells whether llama-server can save and restore it (`None`: not known yet), `visible` whether it tells
    what the slot holds (with ``--no-slots`` it does not).
    """

    log = Logger()

    def __init__(
        self, llama: Llama, identity: Identity, snapshots: Snapshots, metrics: Metrics, clock: IReactorTime
    ) -> None:
        self.files: bool | None = None
        self.visible = True
        self._llama = llama
        self._identity = identity
        self._snapshots = snapshots
        self._metrics = metrics
        self._clock = clock
        self._held: tuple[str, Witness] | None = None
        self._seen: dict[str, str] = {}

    def holds(self, key: str) -> bool:
        """Tell whether the slot was left with this key's tokens, as far as is known."""
        return self._held is not None and self._held[0] == key

    def saved(self, name: str, key: str) -> Snapshot | None:
        """Return the template's snapshot if it is for this key and the model that runs now."""
        entry, model = self._snapshots.get(name), self._identity.current
        if entry is None or entry.key != key or model is None or not entry.model.matches(model):
            return None
        return entry if self._snapshots.whole_on_disk(entry) else None

    def model_known(self) -> bool:
        """Tell whether it is known which model runs; without that nothing can be saved."""
        return self._identity.current is not None

    def forget(self) -> None:
        """Note that what the slot holds is unknown."""
        self._held = None

    def file_changed(self, filename: str) -> None:
        """Note that somebody else had llama-server write this file."""
        for name, entry in self._snapshots.items():
            if entry.filename == filename:
                try:
                    self._snapshots.drop(name)
                except OSError as error:  # forgotten it is all the same, while the process runs
                    self.log.error("the record cannot be written: {error}", error=error)

    async def prepare(self, name: str, key: str, bare_key: str) -> Prepared:
        """Bring the template into the slot if that can be done without computing it.

        `key` is that of the request, `bare_key` that of the same template text in a bare request.  Never fails for
        reasons of llama-server's; cancelling leaves the slot unknown.
        """
        try:
            if self.holds(key) and await self._unchanged():
                return Prepared("hot")
            self.forget()
            prepared = await self._restore(name, key, bare_key)
        except (LlamaError, UpstreamError, UpstreamTimeout, OSError) as error:
            self.log.warn("slot 0 cannot be prepared for {name}: {error}", name=name, error=error)
            self.forget()
            prepared = Prepared("cold")  # the error that the client will get says more than any reason here
        self._seen[name] = key
        return prepared

    async def note(self, key: str) -> None:
        """Remember that the slot was left holding this key's tokens, if its witness can be had."""
        self.forget()
        try:
            witness = await self._llama.witness()
        except (LlamaError, UpstreamError, UpstreamTimeout):
            return
        self.visible = witness is not None
        # A slot without any task is that of a fresh server, and the next fresh server's will look just the same.
        if witness is not None and witness.task is not None and not witness.busy:
            self._held = (key, witness)

    async def save(self, name: str, key: str, tokens: int) -> Snapshot:
        """Save the slot, which holds exactly the `tokens` prefix tokens of the template, and record the file.

        Fires with the record.  Raises `SaveFailed`; then the template has no snapshot at all.
        """
        try:
            entry = await self._save(name, key, tokens)
        except (SaveFailed, LlamaError, UpstreamError, UpstreamTimeout, OSError) as error:
            refused = isinstance(error, LlamaError)
            self._metrics.slot_saves.labels(name, "refused" if refused else "failed").inc()
            raise SaveFailed(f"saving {name}.bin: {error}") from None
        self._metrics.slot_saves.labels(name, "ok").inc()
        self._metrics.slot_bytes.labels("saved").inc(entry.size)
        return entry

    async def _unchanged(self) -> bool:
        """Ask the witness whether the slot still holds what was left in it."""
        assert self._held is not None
        return await self._llama.witness() == self._held[1]

    async def _restore(self, name: str, key: str, bare_key: str) -> Prepared:
        # Here the slot's content is not known to be of use, so this is the moment to learn which model runs: finding
        # out overwrites the slot.
        model = await self._identity.find_out()
        entry = self._snapshots.get(name)
        if entry is None:
            return Prepared("cold", "slot-taken" if self._seen.get(name) == key else "first")
        if entry.key != key:
            return Prepared("cold", "shape-changed" if entry.key == bare_key else "content-changed")
        if not entry.model.matches(model):
            return Prepared("cold", "other-model")
        began = self._clock.seconds()
        if not await self._load(name, entry):
            self._snapshots.drop(name)
            return Prepared("cold", "no-file")
        await self.note(key)
        return Prepared("restored", None, (self._clock.seconds() - began) * 1000)

    async def _load(self, name: str, entry: Snapshot) -> bool:
        """Have llama-server read a file; fire with whether it did."""

        def count(result: str) -> None:
            self._metrics.slot_restores.labels(name, result).inc()

        if not self._snapshots.whole_on_disk(entry):
            count("missing")
            return False
        try:
            loaded = await self._llama.restore(entry.filename)
        except LlamaError as error:
            count("refused" if error.status == 501 else "missing")
            return False
        except (UpstreamError, UpstreamTimeout):
            # It may have died of this very file: it is not tried again.
            count("failed")
            self._snapshots.drop(name)
            raise
        if loaded.tokens != entry.tokens:
            count("failed")
            return False
        count("ok")
        self._metrics.slot_bytes.labels("restored").inc(loaded.size)
        return True

    async def _save(self, name: str, key: str, tokens: int) -> Snapshot:
        model = self._identity.current
        before = await self._llama.witness()
        if model is None:
            raise SaveFailed("llama-server was restarted")
        if before is not None and (before.busy or before.tokens != tokens):
            raise SaveFailed("somebody else used the slot")
        # From here on the file may be half written at any moment: first the record goes.
        self._snapshots.drop(name)
        filename = f"{name}.bin"
        written = await self._llama.save(filename)
        # Was it still this content that was saved?  An unchanged witness says so, and that it is the same process.
        if written.tokens != tokens or await self._llama.witness() != before:
            raise SaveFailed("somebody else used the slot")
        # Without a witness at least the model must still be the same.
        if before is None and not model.matches(await self._identity.find_out()):
            raise SaveFailed("the model changed")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = Snapshot(filename, key, written.tokens, written.size, model, now)
        if not self._snapshots.whole_on_disk(entry):
            raise SaveFailed(
                f"there is no such file of {entry.size} bytes in {self._snapshots.slot_folder}:"
                " is slot_save_path the folder that llama-server was given as --slot-save-path?"
            )
        self._snapshots.put(name, entry)
        return entry
