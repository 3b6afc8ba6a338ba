"""Carries out what `bioproxy.slot.plan` decides: brings the right tokens into slot 0 before a request.

The decisions are pure functions there; they are carried out here, and this is where things can go
wrong: each ``await`` below is a request to llama-server.  It may fail, take seconds, or be
*cancelled*.

Cancelling is how Twisted ends a coroutine from outside.  When a client hangs up, the `Deferred`
that the coroutine is waiting for is cancelled: the connection to llama-server closes, and the
``await`` raises `CancelledError`, which leaves this module like any other exception.  Nothing here
catches it.  So the code must be correct at each ``await`` for the case that nothing after it runs,
and one rule makes it so: *what is known of the slot is forgotten before the first call that changes
the slot, and written down again only after the last one.*  Interrupted in between, the slot is
"unknown", which costs a restore at the next request.  The opposite order could leave a belief that
is wrong.

Calls that change nothing (the witness, a save) are made before that line, so a client that hangs up
during them leaves the slot as well known as it was.

Everything here happens inside the gate, so two preparations never overlap.  Not known here: HTTP,
clients, the queue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_ids import is_learned
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.facts import PromptFacts
from bioproxy.slot.known_content import NO_CONVERSATION
from bioproxy.slot.parking import Displaced, Parking
from bioproxy.slot.plan import CheckProbable, Files, InSlot, Restore, Use, Wanted, plan, plan_replacement
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import CHAT, Snapshot
from bioproxy.slot_files.reuse_check import ReuseCheck


@dataclass(frozen=True)
class Prepared:
    """How the slot came to hold a prompt: `cache` is ``hot``, ``restored`` or ``cold``.

    `miss` says why it was cold, `restore_ms` how long the restore took, in milliseconds.
    `promised` is how many tokens should be reused now, where that is known and worth checking;
    `source` is the kind of file that was restored, and `CHAT` for a conversation that the slot
    held.
    """

    cache: str
    miss: str | None = None
    restore_ms: float | None = None
    promised: int | None = None
    source: str | None = None


REUSES_NOTHING = Prepared("cold", "ineffective")
"""How the slot is prepared for a request that must not reuse anything, whatever the slot holds."""


class SlotPreparer:
    """Prepares slot 0 for the next request.

    Invariant: outside of its calls, `content` never claims something that the slot does not hold.
    """

    log = Logger()

    def __init__(
        self,
        facts: PromptFacts,
        identity: ModelIdentity,
        content: SlotContent,
        files: SlotFiles,
        saver: ConversationSaver,
        reuse_check: ReuseCheck,
        parking: Parking,
        clock: IReactorTime,
    ) -> None:
        # The parts, each the only one of its kind: `Slot` makes this object from its own.
        self._facts = facts
        self._identity = identity
        self._content = content
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check
        self._parking = parking
        self._clock = clock
        # What each prompt was last prepared for.  In memory only, and one key for each prompt:
        # nothing here grows with the number of requests.
        self._last_keys: dict[str, Key] = {}
        self.bring: Callable[[Wanted, Files], Awaitable[None]] = nothing_to_bring
        """Fetches files for a request from elsewhere, given what there is here.  Never fails.  Assigned by assembly."""

    async def prepare(self, name: str, key: Key, turns: ConversationChain = NO_CONVERSATION) -> Prepared:
        """Bring as much as possible of a prompt into the slot without computing it.

        `key` is what the prompt begins with, `turns` its conversation.  Fires with how it went.
        Never fails for reasons of llama-server's or of the disk; cancelling leaves the slot
        unknown, or as known as it was before if nothing had changed it yet.
        """
        await self._content.drop_foreign()
        try:
            prepared = await self._prepare(Wanted(name, key, turns, self._last_keys.get(name) == key))
        except (LlamaCallFailed, OSError) as error:
            # A fault here never harms the request: it is sent anyway, and is only slower.
            # If llama-server is in trouble the request meets the same trouble, and its own line in
            # the log tells.  That is also why there is no reason for the miss: the error that the
            # client will get says more.
            self.log.debug("slot 0 cannot be prepared for {name}: {error}", name=name, error=error)
            self._content.forget()
            prepared = Prepared("cold")
        self._last_keys[name] = key
        return prepared

    async def bring_back(self, name: str, kind: str, entry: Snapshot) -> None:
        """Restore a file before anybody asks for it.  Fires and fails as `prepare`."""
        try:
            await self._content.drop_foreign()
            # In this order for the same reasons as in `_replace`.
            self._content.forget()
            model = await self._identity.find_out()
            if entry.model.matches(model) and await self._files.load(name, kind, entry, for_user=False):
                await self._content.remember(entry_prompt(name, kind), entry.key, entry.conversation, entry.tokens)
        except (LlamaCallFailed, OSError) as error:
            self.log.debug("{file} cannot be brought back: {error}", file=entry.filename, error=error)
            self._content.forget()

    def forget(self, name: str) -> None:
        """Forget a prompt that is gone, so that nothing grows with the prompts that there ever were."""
        self._last_keys.pop(name, None)

    async def _prepare(self, wanted: Wanted) -> Prepared:
        """Collect the facts and carry the plan out.  Fails as `LlamaApi`'s calls do, and with `OSError`."""
        # Files may be had from elsewhere, but nothing is better than the very conversation in the slot.
        if not self._content.is_continued_by(wanted.turns):
            await self._bring(wanted)
        # Collect the facts.  One cheap question to llama-server, and none where nothing is known.
        known = await self._content.confirm()
        # Read only now: while llama-server was asked, an operator may have discarded a file.
        reuse, files = self._facts.reuse(wanted.name), self._facts.files(wanted)
        in_slot = InSlot(known, self._content.probable if known is None else None)
        # Decide.  The loop ends after its first round, since the reply is known then.
        decision = plan(in_slot, wanted, files, reuse)
        while isinstance(decision, CheckProbable):
            there = await self._content.probably_has(wanted.key, wanted.turns, decision.more_than)
            # The tokens may be those of another process with another model, which `GET /slots` does
            # not tell.
            in_slot = replace(in_slot, probable_is_there=there and await self._identity.unchanged())
            decision = plan(in_slot, wanted, files, reuse)

        # Carry it out.  Saving comes first in any case: the next call may overwrite the slot, and
        # after `Use` the request itself cuts the conversation off.  A save changes nothing in the
        # slot, so being cancelled in it does no harm.
        if decision.save_first:
            await self._saver.save_if_due(displaced=True)
        if isinstance(decision, Use):
            if decision.cut_back and not await self._cut_back(wanted.key):
                # The model cannot go back, which is known from now on.  A file has exactly the prompt.
                return await self._replace(wanted)
            return Prepared("hot", promised=decision.promised, source=decision.source)

        # Asked now, while it is still known what the slot holds.  This changes nothing in the slot.
        displaced = await self._parking.look()
        # From the next line on the slot changes.  A request that is cancelled below must leave it unknown.
        self._content.forget()
        # A warm-up looks once more, before it restores a file, and could no longer tell.
        if displaced is None:
            self._content.taken_by_file()
        return await self._replace(wanted, displaced)

    async def _bring(self, wanted: Wanted) -> None:
        """Have files fetched for a request, but none that would not be restored.  Never fails."""
        if not self._facts.reuse(wanted.name).no_restore:
            # What is here is looked up with all turns: that look leaves out by itself what would be of no use.
            files = self._facts.files(wanted)
            await self.bring(replace(wanted, turns=self._saver.restorable(wanted.turns)), files)

    async def _cut_back(self, key: Key) -> bool:
        """Cut the slot down to the prompt that it begins with, where the prompt's tokens are known.

        Fires with whether the slot still holds the prompt.  Fails as `LlamaApi`'s calls do.  Cancelling
        leaves the slot unknown.
        """
        # Just after a start they may be unknown.  The request is not held up for that: it goes on from
        # the first token that differs, and its answer may differ in the last digits.
        tokens = self._facts.tokens_of(key)
        if tokens is None:
            return True
        # The last of these tokens does not belong there (`cut_after`), so it is computed in any case.
        reused = (await self._content.evaluate_for_warmup(tokens)).reused
        # It is a user's request that does this, in contrast to what the name of the call says: what it
        # leaves must not be displaced by what is restored in idle moments.
        self._content.left_by_user = True
        self._reuse_check.went_back(len(tokens) - 1, reused)
        return self._reuse_check.goes_back

    async def _replace(self, wanted: Wanted, displaced: Displaced | None = None) -> Prepared:
        """Restore the best file that llama-server can load, if there is one; `displaced` is parked before."""
        name = wanted.name
        # What the slot holds is given up, so this is the moment to learn which model runs: finding
        # out overwrites it.
        certain = self._identity.certain
        model = await self._identity.find_out()
        # Once more if the model was not known for certain: its files are not fetched then.
        if not certain:
            await self._bring(wanted)
        # Parking.  It comes after finding out the model, because before nobody knows which file fits.
        #
        # Only a restore loses what the slot held.  Where nothing is restored, the request itself takes
        # the slot, and llama-server keeps a copy by itself.  The same is true of the fingerprint by
        # which a model is found out.  So this plan is made only to see whether a restore follows, and
        # once more below, because files may be forgotten while llama-server makes its copy.
        if displaced is not None and certain:
            next_step = plan_replacement(wanted, self._facts.files(wanted), model, self._facts.reuse(name))
            if isinstance(next_step, Restore):
                await self._parking.park(displaced)
        # Read only now: an operator may have had a file forgotten during the last ``await``, and the
        # save before this has perhaps replaced one, or made room for itself.
        files = self._facts.files(wanted)
        reuse, failed, began = self._facts.reuse(name), frozenset[str](), self._clock.seconds()
        # A file that cannot be loaded is out of the record by then, and leaves the slot empty.  The
        # next best is tried; each kind at most once, so this ends.
        while isinstance(decision := plan_replacement(wanted, files, model, reuse, failed), Restore):
            entry = decision.entry
            # A warm-up has no conversation, and is no use of the file: its prompt would look like what was asked for
            # last.
            for_user = bool(wanted.turns.message_digests)
            if await self._files.load(decision.name, decision.kind, entry, for_user):
                took = (self._clock.seconds() - began) * 1000
                # Until the request itself is sent, and also if its client hangs up before.
                self._content.taken_by_file()
                # The slot is known again from here on.  A client that hangs up during this question
                # leaves it unknown, although it is restored: the safe side, at the price of a
                # restore.
                await self._content.remember(name, entry.key, entry.conversation, entry.tokens)
                # How much of a conversation is reused that parts from this one is not known.
                promised = entry.tokens if decision.whole else None
                return Prepared("restored", None, took, promised, decision.kind)
            failed |= {decision.kind}
        return Prepared("cold", decision.miss)


def entry_prompt(name: str, kind: str) -> str:
    """Return the prompt that a file belongs to, by the name under which it is recorded; empty if that does not say."""
    # A conversation of its own name may go on with any prompt.  The key says which, as far as that matters.
    return "" if kind == CHAT and is_learned(name) else name


async def nothing_to_bring(wanted: Wanted, files: Files) -> None:
    """Fetch nothing: without a shared shelf there is nothing elsewhere."""
