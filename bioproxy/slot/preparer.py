"""Carries out what `bioproxy.slot.plan` decides: brings the right tokens into slot 0 before a request.

The decisions are pure functions there; here are the deeds, and with them everything that can go
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

from dataclasses import dataclass, replace

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.plan import CheckProbable, Files, InSlot, Restore, Reuse, Use, Wanted, plan, plan_replacement
from bioproxy.slot.record import PREFIX, Snapshot
from bioproxy.slot.reuse_check import ReuseCheck

NO_CONVERSATION = ConversationChain()
"""The conversation of a warm-up: none, so it continues no other one."""


@dataclass(frozen=True)
class Prepared:
    """How the slot came to hold a template: `cache` is ``hot``, ``restored`` or ``cold``.

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


class SlotPreparer:
    """Prepares slot 0, and writes down afterwards what it was left with.

    Invariant: outside of its calls, `content` never claims something that the slot does not hold.
    """

    log = Logger()

    def __init__(
        self,
        identity: ModelIdentity,
        content: SlotContent,
        files: SlotFiles,
        saver: ConversationSaver,
        reuse_check: ReuseCheck,
        clock: IReactorTime,
    ) -> None:
        # The parts, each the only one of its kind: `Slot` makes this object from its own.
        self._identity = identity
        self._content = content
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check
        self._clock = clock
        # What each template was last prepared for, and the last conversation on it.  In memory
        # only, and one of each for each template: nothing here grows with the number of requests.
        self._last_keys: dict[str, Key] = {}
        self._last_turns: dict[str, ConversationChain] = {}

    def file_for(self, name: str, key: Key | None) -> Snapshot | None:
        """Return the template's file if it is for this key, for the model that runs now, and unchanged on disk."""
        # Whether restoring helps at all is another question (`Slot.saved`).  Also a file that is
        # not to be restored tells how many tokens the template has, and how much of the slot is
        # saved.
        entry = self._files.usable(name, PREFIX)
        return entry if entry is not None and entry.key == key else None

    async def prepare(self, name: str, key: Key, turns: ConversationChain = NO_CONVERSATION) -> Prepared:
        """Bring as much as possible of a prompt into the slot without computing it.

        `key` is what the prompt begins with, `turns` its conversation.  Fires with how it went.
        Never fails for reasons of llama-server's or of the disk; cancelling leaves the slot
        unknown, or as known as it was before if nothing had changed it yet.
        """
        try:
            prepared = await self._prepare(Wanted(name, key, turns, self._last_keys.get(name) == key))
        except (LlamaCallFailed, OSError) as error:
            # A fault here never harms the request: it is sent all the same, and is merely slower.
            # If llama-server is in trouble the request meets the same trouble, and its own line in
            # the log tells.  That is also why there is no reason for the miss: the error that the
            # client will get says more.
            self.log.debug("slot 0 cannot be prepared for {name}: {error}", name=name, error=error)
            self._content.forget()
            prepared = Prepared("cold")
        self._last_keys[name] = key
        return prepared

    async def bring_back(self, name: str, key: Key) -> None:
        """Restore a template, with the last conversation on it if that was saved.  Fires and fails as `prepare`."""
        # By the conversation's fingerprints alone; which messages they stand for is not kept.
        await self.prepare(name, key, self._last_turns.get(name, NO_CONVERSATION))

    async def remember(self, name: str, key: Key, turns: ConversationChain = NO_CONVERSATION) -> None:
        """Write down that the slot was left holding a template, with a conversation on it.

        Fires when llama-server has told the witness, or cannot; then the slot is unknown.
        Cancelling leaves it unknown too.
        """
        # How much of it a file has already, from whichever file has more: only what has grown since
        # is worth a save.
        prefix, chat = self.file_for(name, key), self._saver.saved_beginning(name, turns)
        saved = max((entry.tokens for entry in (prefix, chat) if entry is not None), default=0)
        await self._content.remember(name, key, turns.all_messages if turns.message_digests else None, saved)
        if turns.message_digests:
            self._last_turns[name] = turns

    async def _prepare(self, wanted: Wanted) -> Prepared:
        """Collect the facts and carry the plan out.  Fails as `LlamaApi`'s calls do, and with `OSError`."""
        # Collect the facts.  One cheap question to llama-server, and none where nothing is known.
        name = wanted.name
        known = await self._content.confirm()
        # Read only now: while llama-server was asked, an operator may have discarded a file.
        prefix, reuse = self.file_for(name, wanted.key), self._reuse(name)
        files = Files(
            chat=self._saver.saved_beginning(name, wanted.turns),
            template_tokens=prefix.tokens if prefix is not None else None,
        )
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
            await self._saver.save_if_due()
        if isinstance(decision, Use):
            return Prepared("hot", promised=decision.promised, source=decision.source)

        # From the next line on the slot changes.  Whoever is cancelled below must leave it unknown.
        self._content.forget()
        return await self._replace(wanted, files)

    async def _replace(self, wanted: Wanted, files: Files) -> Prepared:
        """Restore the best file that llama-server can load, if there is one."""
        name = wanted.name
        # What the slot holds is given up, so this is the moment to learn which model runs: finding
        # out overwrites it.
        model = await self._identity.find_out()
        # Read only now, because an operator may have had the file forgotten during the last
        # ``await``.
        files = replace(files, prefix=self._files.recorded(name, PREFIX))
        reuse, failed, began = self._reuse(name), frozenset[str](), self._clock.seconds()
        # A file that cannot be loaded is out of the record by then, and leaves the slot empty.  The
        # next best is tried; each kind at most once, so this ends.
        while isinstance(decision := plan_replacement(wanted, files, model, reuse, failed), Restore):
            entry = decision.entry
            if await self._files.load(name, decision.kind, entry):
                took = (self._clock.seconds() - began) * 1000
                # The slot is known again from here on.  A client that hangs up during this question
                # leaves it unknown, although it is restored: the safe side, at the price of a
                # restore.
                await self._content.remember(name, wanted.key, entry.conversation, entry.tokens)
                return Prepared("restored", None, took, entry.tokens, decision.kind)
            failed |= {decision.kind}
        return Prepared("cold", decision.miss)

    def _reuse(self, name: str) -> Reuse:
        """Return what answers have shown so far, as far as it matters for a template."""
        # As a value: whatever happens during the next ``await``, one plan is made from one state.
        check = self._reuse_check
        return Reuse(check.goes_back, check.conversations, check.trouble is not None or check.is_doubted(name))
