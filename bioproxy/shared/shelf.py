"""The shared shelf: what one bioproxy has computed, others with the same model restore.

Several bioproxies, each with a llama-server and a slot folder of its own, may name one folder as ``shared_shelf``.
Then each of them

* *looks* what the others have put there (`bioproxy.shared.view`);
* *publishes* what it has saved: the files of prompts and of conversations (`bioproxy.shared.publishing`);
* *fetches* a file before it would compute what somebody else has computed, for a user (`bioproxy.shared.bringing`) and
  for a warm-up: into its own slot folder, where it is recorded and from then on treated like a file that was saved here
  (`bioproxy.shared.fetching`);
* *claims* a prompt before a warm-up, so that only one of them computes it (`bioproxy.shared.prompt_claims`);
* *keeps the folder in order*, one process for all (`bioproxy.shared.upkeep`).

This module puts these parts together and says what happens in a round.  None of them talks to another process: all that
they know of each other is files in one folder, so there is no protocol, no port, and no process that must run first.

Everything that makes a restore safe stays where it is, in each process: a file is used only for the model that this
process has identified itself, and for just the text that is asked for.  The shelf adds files, and never a reason to
believe one.  If the folder cannot be used, everything goes on as without it.

On Twisted: the methods below run in the reactor's thread, and what they await is done in others.  Between two of their
``await`` nothing else runs, so what a thread has found is taken over in one piece.

Does not know the slot, the queue, or when a warm-up is due.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.speed import Speed
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.bringing import Bringing
from bioproxy.shared.claims import Claims
from bioproxy.shared.disk import Unusable
from bioproxy.shared.fetching import Fetching
from bioproxy.shared.finding import Finding
from bioproxy.shared.local_files import LocalFiles
from bioproxy.shared.prompt_claims import PromptClaims
from bioproxy.shared.publishing import Publishing
from bioproxy.shared.removal import REMOVAL, Limits
from bioproxy.shared.upkeep import Upkeep
from bioproxy.shared.view import PATIENCE, SharedView
from bioproxy.slot.plan import Files, Wanted
from bioproxy.slot_files.snapshot import CHAT, PREFIX, TEMPLATE, Snapshot, class_of

INTERVAL = 2.0
"""Seconds between two looks at the shared folder.

Halved, twice as many small calls reach the disk; doubled, a prompt that another process has finished is found later.
"""


class SharedShelf:
    """One process's part in the shared shelf.

    Invariant: without a usable folder each method returns at once, with the answer that changes nothing.
    """

    log = Logger()

    # Assigned by a reload as well, and read by the next round of removal.
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
        self._metrics = metrics
        # Stems of files that an operator wants to be gone, and that are still there.
        self._unwanted: set[str] = set()
        # From those that know only the folder to those that put them together.
        # What follows exists only with a folder.  Each method below asks for that first.
        if view is not None:
            self._claims = Claims(view)
            self._finding = Finding(view, identity)
            self._fetching = Fetching(view, local, metrics)
            self._publishing = Publishing(view, local, metrics, clock)
            self._bringing = Bringing(view, self._finding, self._fetching, speed)
            self._prompt_claims = PromptClaims(view, self._finding, self._claims, self._fetching, local, metrics)
            self._upkeep = Upkeep(view, local, self._claims, self._finding.prompt, metrics, clock)

    @property
    def usable(self) -> bool:
        """Whether there is a shared folder, and nothing is known to be wrong with it.

        The warmer asks before a warm-up: without a shelf it need not claim anything.
        """
        # Also before it was looked at for the first time: a warm-up must not begin before that, or each start of a
        # process would compute what all others have.
        return self._view is not None and self._view.disk.usable

    def tell(self) -> dict[str, Any] | None:
        """Return what `/status` shows, `None` without a shared shelf."""
        view = self._view
        if view is None:
            return None
        # The numbers are those of the whole folder, files of all bioproxies included.
        # Everything is in memory already: `/status` is asked often, and must never wait for a disk.
        totals = view.mirror.totals()
        return {
            "path": str(view.folder.path),
            "usable": view.usable,
            # A folder that cannot be read comes first: whether it can be written does not matter then.
            "trouble": view.disk.trouble or self._publishing.trouble,
            "files": {of_class: {"files": files, "bytes": size} for of_class, (files, size) in totals.items()},
            # The prompts that this process has claimed, without the model's part of their keys.
            "computing": sorted(key.rpartition(".")[0] for key in view.leases.mine if key != REMOVAL),
            "to_publish": len(self._publishing.waiting),
            "tokens_fetched": self._fetching.tokens,
        }

    # What comes by itself.

    async def round(self) -> None:
        """Look, and tell the others that this process is alive.

        Called every two seconds.  After a failure the calls go on, and `may_try` lets one through now and then, at
        growing intervals.  Fires when that is done, or the folder cannot be used.  Cancelling stops waiting for the
        disk.
        """
        view = self._view
        if view is None or not view.disk.may_try:
            return
        # In this order: a folder that was never checked must not be read, and a look may show that a lease is lost,
        # which then is not renewed.
        try:
            await view.check()
            await view.look()
            # Every second call, as a beat is due every four seconds.  In this coroutine and not in a timer of its own:
            # a process that cannot look any more should not claim to be alive.
            await self._claims.renew()
        except Unusable:
            # `Disk` has logged the reason, once.  Nothing else is to be done: everybody asks `usable` before.
            pass
        finally:
            # Also when it was cancelled; then it is what it was.
            self._metrics.shared_shelf_up.set(view.usable)

    async def publish(self) -> None:
        """Publish what was saved here since the last call, and remove what is too much.

        Fires when that is done, or the folder cannot be used.  Cancelling leaves the rest for the next call.
        """
        # Apart from `round`, which must not stand still while a large file is copied: the leases need their beats.
        view = self._view
        if view is None or not view.usable:
            return
        # A round of its own, every two seconds as well.  A file that was saved a moment ago is published by the next
        # one. Prompts first, since others wait for them.  In this order: nobody may find neither the file nor the
        # lease. The list is taken before, so that what is released while a file is copied waits for the next call: its
        # own file may be noted only now.
        released = self._prompt_claims.released()
        await self._remove_unwanted()
        await self._publishing.publish_all(PREFIX)
        for name in released:
            await self._prompt_claims.give_up(name)
        await self._publishing.publish_all(CHAT)
        # Last, and at most once a minute: what was just published may be what is too much.
        await self._upkeep.do(self.limits, self._publishing.lacking)

    async def finish(self) -> None:
        """Publish what is left and give up all leases, because this process stops.  Fires and never fails.

        Called when the last request is answered and the slot was saved.  Cancelling, by a stop that takes too long,
        leaves the rest unpublished; the leases then die by themselves.
        """
        if self._view is not None:
            await self._remove_unwanted()
            # Prompts are small in number and help everybody; a conversation helps one client.
            for kind in (PREFIX, CHAT):
                await self._publishing.publish_all(kind)
            await self._claims.give_up_all()

    async def _remove_unwanted(self) -> None:
        """Remove what was forgotten.

        Fires when it is gone, or the folder cannot be used; cancelling leaves the rest for the next call.
        """
        view, stems = self._view, set(self._unwanted)
        # Where the folder cannot be used or written, as `Disk` has logged, they stay for the next call.
        with suppress(Unusable):
            if view is not None and stems:
                await view.disk.call(partial(view.folder.remove, stems), PATIENCE)
                self._unwanted -= stems

    # What others tell and ask.

    def saved(self, name: str, kind: str, entry: Snapshot) -> None:
        """Note that a file was saved, to be published soon.  The arguments are those of the record.

        Called inside the gate, so it only notes: a user may be the next to get in.
        """
        if self._view is not None:
            self._publishing.saved(name, kind, entry)

    def forget(self, name: str) -> bool:
        """Have the files of a learned prompt or a conversation removed; return whether there are any that are known.

        From now on nothing of them is used here, and soon they are gone for others, too.
        """
        if self._view is None:
            return False
        self._publishing.forget(name)
        mirror = self._view.mirror
        stems = {
            stem
            for stem, entry in mirror.entries.items()
            if entry.name == name and class_of(name, entry.kind) != TEMPLATE
        }
        for stem in stems:
            mirror.ignore(stem)
        # The disk is slow, and the operator's answer does not wait for it.
        self._unwanted |= stems
        return bool(stems)

    def prompt_tokens(self, name: str, key: Key) -> int:
        """Return how many tokens a prompt with just this text and shape has on the shelf, 0 if it is not there.

        Asked about a prompt that was seen for the first time: where another bioproxy has found it worth a file, it is
        learned here at once.
        """
        prompt = None if self._view is None else self._finding.prompt(name, key)
        return 0 if prompt is None else prompt.snapshot.tokens

    def is_computed_elsewhere(self, name: str) -> bool:
        """Tell whether another process has claimed a prompt and is alive: then it is not due here."""
        # Asked for each prompt twice a second, and answered from memory.
        return self._view is not None and self._prompt_claims.is_computed_elsewhere(name)

    async def bring(self, wanted: Wanted, files: Files) -> None:
        """Fetch what a request can use and this process does not have: `Bringing.bring`.  Never fails.

        Awaited inside the gate, before it is decided what the slot gets.
        """
        if self._view is not None:
            await self._bringing.bring(wanted, files)

    async def claim(self, name: str, key: Key) -> bool:
        """Tell whether this process is to compute a prompt: `PromptClaims.claim`.  True without a folder.

        What is false was fetched, or is computed by another process; either way there is nothing to be done now.
        """
        return self._view is None or await self._prompt_claims.claim(name, key)

    def release(self, name: str) -> None:
        """Have the claim of a prompt given up when its file is published: `PromptClaims.release`.

        Without a claim it does nothing, so the warmer calls it after each warm-up, whatever became of that.
        """
        if self._view is not None:
            self._prompt_claims.release(name)
