"""The shared shelf: what one bioproxy has computed, others with the same model restore.

Several bioproxies, each with a llama-server and a slot folder of its own, may name one folder as ``shared_shelf``.
Then each of them

* *looks* what the others have put there (`bioproxy.shared.view`);
* *publishes* what it has saved: the files of prompts and of conversations (`bioproxy.shared.publishing`);
* *fetches* a file before it would compute what somebody else has computed: into its own slot folder, where it is
  recorded and from then on treated like a file that was saved here (`bioproxy.shared.fetching`);
* *claims* a prompt before a warm-up, so that only one of them computes it (`bioproxy.shared.claims`).

Everything that makes a restore safe stays where it is, in each process: a file is used only for the model that this
process has identified itself, and for just the text that is asked for.  The shelf adds files, and never a reason to
believe one.  If the folder cannot be used, everything goes on as without it.

On Twisted: the methods below run in the reactor's thread, and what they await is done in others.  Between two of their
``await`` nothing else runs, so what a thread has found is taken over in one piece.

Does not know the slot, the queue, or when a warm-up is due.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.model_identity import Model, ModelIdentity
from bioproxy.llama.speed import Speed
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.claims import Claims
from bioproxy.shared.disk import Unusable
from bioproxy.shared.entry import SharedEntry, model_name
from bioproxy.shared.fetching import Fetching
from bioproxy.shared.local_files import LocalFiles
from bioproxy.shared.publishing import COPY_SECONDS, Publishing
from bioproxy.shared.removal import INTERVAL as REMOVAL_INTERVAL
from bioproxy.shared.removal import REMOVAL, STRAY, Limits, to_remove
from bioproxy.shared.view import PATIENCE, SharedView
from bioproxy.slot.plan import Files, Wanted
from bioproxy.slot.snapshot import PREFIX, Snapshot

INTERVAL = 2.0
"""Seconds between two looks at the shared folder.

Halved, twice as many small calls reach the disk; doubled, a prompt that another process has finished is found later.
"""

UNKNOWN_SPEED_SECONDS = 10.0
"""Seconds that a user waits for a file as long as it is not known how long computing it would take.

Halved, the first file of a slow disk is given up; doubled, the first user waits longer for a disk that is stuck.
"""


class SharedShelf:
    """One process's part in the shared shelf.

    Invariant: without a usable folder each method returns at once, with the answer that changes nothing.
    """

    log = Logger()

    limits: Limits
    """Bytes of files on the shelf, at most.  May be changed at any time; where processes differ, the lowest counts."""

    def __init__(
        self,
        view: SharedView | None,
        local: LocalFiles,
        identity: ModelIdentity,
        speed: Speed,
        metrics: Metrics,
        clock: IReactorTime,
        limits: Limits,
    ) -> None:
        """Share the files of `local` in the folder that `view` shows; with `None` nothing is shared.

        `identity` tells which model runs, and `speed` how long computing would take.
        """
        self.limits = limits
        self._view = view
        self._local = local
        self._identity = identity
        self._speed = speed
        self._metrics = metrics
        self._clock = clock
        if view is not None:
            self._claims = Claims(view)
            self._fetching = Fetching(view, local, metrics)
            self._publishing = Publishing(view, local, metrics)
        self._removed_at = clock.seconds()
        # When each prompt was used, as far as the others were told, by id.
        self._told_uses: dict[str, str] = {}

    @property
    def usable(self) -> bool:
        """Whether there is a shared folder, and it can be used now."""
        return self._view is not None and self._view.usable

    def tell(self) -> dict[str, Any] | None:
        """Return what `/status` shows, `None` without a shared shelf."""
        view = self._view
        if view is None:
            return None
        totals = view.mirror.totals()
        return {
            "path": str(view.folder.path),
            "usable": view.usable,
            "trouble": view.disk.trouble,
            "files": {of_class: {"files": files, "bytes": size} for of_class, (files, size) in totals.items()},
            "computing": sorted(key.rpartition(".")[0] for key in view.leases.mine),
            "to_publish": len(self._publishing.waiting),
        }

    # What comes by itself.

    async def round(self) -> None:
        """Look; tell the others that this process is alive, and what it uses; remove what is too much.

        Fires when that is done, or the folder cannot be used.  Cancelling stops waiting for the disk.
        """
        view = self._view
        if view is None or not view.disk.usable:
            return
        try:
            await view.check()
            await view.look()
            await self._claims.renew()
            await self._tell_uses(view)
            if self._clock.seconds() - self._removed_at >= REMOVAL_INTERVAL:
                self._removed_at = self._clock.seconds()
                await self._remove(view)
        except Unusable:
            # `Disk` has logged the reason, once.
            pass
        finally:
            self._metrics.shared_shelf_up.set(view.usable)

    async def publish(self) -> None:
        """Publish what was saved here since the last call.  Fires, and is cancelled, as `Publishing.publish_all`."""
        # Apart from `round`, which must not stand still while a large file is copied: the leases need their beats.
        if self._view is not None:
            await self._publishing.publish_all()

    async def finish(self) -> None:
        """Publish what is left and give up all leases, because this process stops.  Fires and never fails."""
        if self._view is not None:
            await self._publishing.publish_all()
            await self._claims.give_up_all()

    # What others tell and ask.

    def saved(self, name: str, kind: str, entry: Snapshot) -> None:
        """Note that a file was saved, to be published soon.  The arguments are those of the record."""
        if self._view is not None:
            self._publishing.saved(name, kind, entry)

    def has_prompt(self, name: str, key: Key) -> bool:
        """Tell whether the shelf has a prompt with just this text and shape, for the model that runs."""
        return self._prompt(name, key) is not None

    def is_computed_elsewhere(self, name: str) -> bool:
        """Tell whether another process has claimed a prompt and is alive."""
        view, model = self._view, self._identity.current
        if view is None or not view.usable or model is None:
            return False
        return view.leases.holder_of(lease_key(name, model)) is not None

    async def bring(self, wanted: Wanted, files: Files) -> None:
        """Fetch what a request can use and this process does not have.  `files` is what it has.

        Fires when that is here, or is not to be had in less time than computing it would take.  Never fails.
        Cancelling leaves nothing behind.
        """
        view, model = self._view, self._identity.current
        # Files of a model that is only believed to run are of no use.  The caller asks again when it is certain.
        if view is None or not view.usable or model is None or not self._identity.certain:
            return
        try:
            await view.look_for_user()
            # The conversation has the prompt in it.
            chat = view.mirror.conversation(model, wanted.turns)
            longer = chat if chat is not None and messages_in(chat) > files.messages else None
            if longer is not None and await self._fetching.fetch(longer, self._worth(longer)):
                return
            prompt = self._prompt(wanted.name, wanted.key)
            if prompt is not None and files.prompt_tokens is None:
                await self._fetching.fetch(prompt, self._worth(prompt))
        except (Unusable, OSError) as error:
            # The request is served all the same, and is merely slower.
            self.log.debug("nothing is fetched for {prompt}: {error}", prompt=wanted.name, error=error)

    async def claim(self, name: str, key: Key) -> bool:
        """Tell whether this process is to compute a prompt: nobody else has it, nor is computing it.

        A prompt that the shelf has is fetched, and one that nobody has claimed is claimed, until `release`.  Fires with
        true where the shelf cannot be used; never fails.  Cancelling stops waiting.
        """
        view, model = self._view, self._identity.current
        if view is None or not view.usable or model is None:
            return True
        try:
            await view.look()
            prompt = self._prompt(name, key)
            if prompt is not None and await self._fetching.fetch(prompt, COPY_SECONDS):
                self._metrics.shared_warmups_saved.inc()
                return False
            return await self._claims.take(lease_key(name, model))
        except (Unusable, OSError):
            return True

    async def release(self, name: str) -> None:
        """Publish a prompt that was claimed, if it was saved, and give up the claim.  Fires and never fails."""
        if self._view is None:
            return
        # In this order: nobody may find neither the file nor the lease.
        await self._publishing.publish((name, PREFIX))
        for key in [key for key in self._view.leases.mine if key.rpartition(".")[0] == name]:
            await self._claims.give_up(key)

    # How it is done.

    def _prompt(self, name: str, key: Key) -> SharedEntry | None:
        """Return the entry of a prompt for the model that runs, if the shelf can be used and has one."""
        view, model = self._view, self._identity.current
        if view is None or not view.usable or model is None:
            return None
        return view.mirror.prompt(model, name, key)

    async def _tell_uses(self, view: SharedView) -> None:
        """Tell the others which prompts were used here, so that these are not removed.  Fails with `Unusable`."""
        # The uses of conversations need not be told: one that goes on is published again.
        touched: list[str] = []
        for name, key, last_used in self._local.prompt_uses():
            shared = self._prompt(name, key)
            if shared is not None and self._told_uses.get(name) != last_used:
                self._told_uses[name] = last_used
                touched.append(shared.stem)
        if touched:
            await view.disk.call(partial(view.folder.touch, *touched), PATIENCE)

    async def _remove(self, view: SharedView) -> None:
        """Remove what is too much, unless another process does.  Fails with `Unusable`."""
        if not await self._claims.take(REMOVAL):
            return
        entries, limits, folder = list(view.mirror.entries.values()), self.limits, view.folder

        def work() -> tuple[list[str], int]:
            now = folder.now()
            removed = to_remove(entries, folder.used_at(), now, limits)
            folder.remove(removed)
            return removed, folder.remove_strays(now - STRAY)

        try:
            removed, strays = await view.disk.call(work, COPY_SECONDS)
        finally:
            await self._claims.give_up(REMOVAL)
        for stem in removed:
            view.mirror.drop(stem)
        self._metrics.shared_files.labels("removed", "ok").inc(len(removed))
        if removed or strays:
            text = "removed {files} files from the shared shelf, and {strays} leftovers"
            self.log.info(text, files=len(removed), strays=strays)

    def _worth(self, shared: SharedEntry) -> float:
        """Return how many seconds a user may wait for a file: as long as computing its tokens would take."""
        return shared.snapshot.tokens * self._speed.seconds_per_token or UNKNOWN_SPEED_SECONDS


def lease_key(name: str, model: Model) -> str:
    """Return the key of the lease for computing a prompt with a model."""
    return f"{name}.{model_name(model)}"


def messages_in(shared: SharedEntry) -> int:
    """Return how many messages the conversation of an entry has."""
    conversation = shared.snapshot.conversation
    return 0 if conversation is None else conversation.length
