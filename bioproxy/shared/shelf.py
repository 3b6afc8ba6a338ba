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
from bioproxy.shared.removal import REMOVAL, Limits
from bioproxy.shared.upkeep import Upkeep
from bioproxy.shared.view import SharedView
from bioproxy.slot.plan import Files, Wanted
from bioproxy.slot.snapshot import CHAT, PREFIX, Snapshot

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
        if view is not None:
            self._claims = Claims(view)
            self._fetching = Fetching(view, local, metrics)
            self._publishing = Publishing(view, local, metrics, clock)
            self._upkeep = Upkeep(view, local, self._claims, self._prompt, metrics, clock)
        # Prompts whose claims are given up when their files are published.
        self._released: set[str] = set()

    @property
    def usable(self) -> bool:
        """Whether there is a shared folder, and nothing is known to be wrong with it."""
        # Also before it was looked at for the first time: a warm-up must not begin before that.
        return self._view is not None and self._view.disk.usable

    def tell(self) -> dict[str, Any] | None:
        """Return what `/status` shows, `None` without a shared shelf."""
        view = self._view
        if view is None:
            return None
        # Everything is in memory already: `/status` is asked often, and must never wait for a disk.
        totals = view.mirror.totals()
        return {
            "path": str(view.folder.path),
            "usable": view.usable,
            "trouble": view.disk.trouble or self._publishing.trouble,
            "files": {of_class: {"files": files, "bytes": size} for of_class, (files, size) in totals.items()},
            "computing": sorted(key.rpartition(".")[0] for key in view.leases.mine if key != REMOVAL),
            "to_publish": len(self._publishing.waiting),
            "tokens_fetched": self._fetching.tokens,
        }

    # What comes by itself.

    async def round(self) -> None:
        """Look, and tell the others that this process is alive.

        Fires when that is done, or the folder cannot be used.  Cancelling stops waiting for the disk.
        """
        view = self._view
        if view is None or not view.disk.may_try:
            return
        # In this order: a folder that was never checked must not be read, and a look may show that a lease is lost,
        # which then is not renewed.
        try:
            await view.check()
            await view.look()
            await self._claims.renew()
        except Unusable:
            # `Disk` has logged the reason, once.
            pass
        finally:
            self._metrics.shared_shelf_up.set(view.usable)

    async def publish(self) -> None:
        """Publish what was saved here since the last call, and remove what is too much.

        Fires when that is done, or the folder cannot be used.  Cancelling leaves the rest for the next call.
        """
        # Apart from `round`, which must not stand still while a large file is copied: the leases need their beats.
        view = self._view
        if view is None or not view.usable:
            return
        # Prompts first, since others wait for them.  In this order: nobody may find neither the file nor the lease.
        released = list(self._released)
        await self._publishing.publish_all(PREFIX)
        for name in released:
            await self._give_up(view, name)
        await self._publishing.publish_all(CHAT)
        await self._upkeep.do(self.limits, self._publishing.lacking)

    async def finish(self) -> None:
        """Publish what is left and give up all leases, because this process stops.  Fires and never fails."""
        if self._view is not None:
            # Prompts are small in number and help everybody; a conversation helps one client.
            for kind in (PREFIX, CHAT):
                await self._publishing.publish_all(kind)
            await self._claims.give_up_all()

    # What others tell and ask.

    def saved(self, name: str, kind: str, entry: Snapshot) -> None:
        """Note that a file was saved, to be published soon.  The arguments are those of the record."""
        if self._view is not None:
            self._publishing.saved(name, kind, entry)

    def prompt_tokens(self, name: str, key: Key) -> int:
        """Return how many tokens a prompt with just this text and shape has on the shelf, 0 if it is not there."""
        prompt = self._prompt(name, key)
        return 0 if prompt is None else prompt.snapshot.tokens

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
        # Any trouble ends in the last lines: the request is never worse off than without the shelf, but for a second.
        try:
            await view.look_for_user()
            # The conversation has the prompt in it.
            chat = view.mirror.conversation(model, wanted.turns)
            longer = chat if chat is not None and messages_in(chat) > files.messages else None
            if longer is not None and await self._fetching.fetch(longer, self._worth(longer, files)):
                return
            prompt = self._prompt(wanted.name, wanted.key)
            if prompt is not None and files.prompt_tokens is None:
                await self._fetching.fetch(prompt, self._worth(prompt, files))
        except (Unusable, OSError) as error:
            # The request is served all the same, and is merely slower.
            self.log.debug("nothing is fetched for {prompt}: {error}", prompt=wanted.name, error=error)

    async def claim(self, name: str, key: Key) -> bool:
        """Tell whether this process is to compute a prompt: nobody else has it, nor is computing it.

        A prompt that the shelf has is fetched, and one that nobody has claimed is claimed, until `release`.  Fires with
        true where the shelf cannot be used; never fails.  Cancelling stops waiting.
        """
        # Without certainty about the model there is no name for the lease.  `Warmer` finds the model out before.
        view, model = self._view, self._identity.current
        if view is None or not self.usable or model is None or not self._identity.certain:
            return True
        self._released.discard(name)
        try:
            # The first claim may come before the first round.
            await view.check()
            await view.look()
            if await self._fetch_for_warmup(name, key):
                return False
            if not await self._claims.take(lease_key(name, model)):
                return False
            # Between the look and the claim, somebody may have published it and given up the claim.
            await view.look()
            return not await self._fetch_for_warmup(name, key)
        except (Unusable, OSError):
            return True

    def release(self, name: str) -> None:
        """Have the claim of a prompt given up, if there is one, as soon as its file is published, if it was saved."""
        if self._view is not None and self._keys(self._view, name):
            self._released.add(name)

    # How it is done.

    def _keys(self, view: SharedView, name: str) -> list[str]:
        """Return the keys of this process's leases for a prompt: mostly one, more after a change of the model."""
        return [key for key in view.leases.mine if key.rpartition(".")[0] == name]

    async def _give_up(self, view: SharedView, name: str) -> None:
        """Give up the claim of a prompt, unless it was claimed again meanwhile.  Fires and never fails."""
        # Asked again here, behind an ``await``: the warmer may have claimed the prompt once more while its file was
        # being copied.
        if name in self._released:
            self._released.discard(name)
            for key in self._keys(view, name):
                await self._claims.give_up(key)

    async def _fetch_for_warmup(self, name: str, key: Key) -> bool:
        """Fetch a prompt that is not here; fire with whether that was done.  Fails as `Fetching.fetch`."""
        shared = self._prompt(name, key)
        # What is here and due all the same has to be computed, for example because its tokens are doubted.
        if shared is None or self._local.has(name, PREFIX, shared.snapshot):
            return False
        # No user waits for this, so the copy has all the time that it needs.
        if not await self._fetching.fetch(shared, COPY_SECONDS):
            return False
        self._metrics.shared_warmups_saved.inc()
        self.log.info("{prompt}: fetched from the shared shelf", prompt=name)
        return True

    def _prompt(self, name: str, key: Key) -> SharedEntry | None:
        """Return the entry of a prompt for the model that runs, if the shelf can be used and has one."""
        view, model = self._view, self._identity.current
        if view is None or not view.usable or model is None:
            return None
        # Compared by text and shape.  The id alone is a name, which may mean another text at another bioproxy.
        return view.mirror.prompt(model, name, key)

    def _worth(self, shared: SharedEntry, files: Files) -> float:
        """Return how many seconds a user may wait for a file: as long as computing what it has more would take."""
        # What is restored from a file here need not be computed.
        more = max(0, shared.snapshot.tokens - (files.prompt_tokens or 0))
        return more * self._speed.seconds_per_token or UNKNOWN_SPEED_SECONDS


def lease_key(name: str, model: Model) -> str:
    """Return the key of the lease for computing a prompt with a model."""
    return f"{name}.{model_name(model)}"


def messages_in(shared: SharedEntry) -> int:
    """Return how many messages the conversation of an entry has."""
    conversation = shared.snapshot.conversation
    return 0 if conversation is None else conversation.length
