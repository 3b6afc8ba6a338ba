"""How to get the right thing into slot 0.

The slot is llama-server's working place: the tokens that it has processed, with their KV cache.  A prompt that
begins with the same tokens goes on from there, so before a question on a template is sent, the slot should hold as much
of it as possible.  In this order (`Slot.prepare`):

1. The slot holds the conversation that the question goes on with: *hot*.
2. A file has that conversation: *restored*.
3. The slot holds the template, alone or with another question behind it: *hot*.
4. A file has the template: *restored*.
5. Nothing of this: *cold*.

Before a conversation in the slot is lost to something else, it is saved, if that is worth it
(`bioproxy.slot.conversation_saver`).

Everything here happens inside the gate.  A fault of these calls never harms the request they are made for: it is
sent all the same, and is merely slower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.conversation import Turns
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.plan import CheckProbable, Files, InSlot, Restore, Reuse, Use, Wanted, plan, plan_replacement
from bioproxy.slot.record import CHAT, PREFIX, Snapshot
from bioproxy.slot.reuse_check import ReuseCheck, helped

NOBODY = Turns()
"""The conversation of a warm-up: none."""


@dataclass(frozen=True)
class Prepared:
    """How the slot came to hold a template: `cache` is ``hot``, ``restored`` or ``cold``.

    `miss` says why it was cold, `restore_ms` how long the restore took, in milliseconds.  `promised` is how many tokens
    should be reused now, where that is known and worth checking; `source` is the kind of file that was restored, and
    `CHAT` for a conversation that the slot held.
    """

    cache: str
    miss: str | None = None
    restore_ms: float | None = None
    promised: int | None = None
    source: str | None = None


class Slot:
    """Slot 0.

    It has four parts: what it is `content`, its `files`, the `saver` of conversations, and the `reuse_check` that all
    this helps.
    """

    log = Logger()

    def __init__(
        self,
        identity: ModelIdentity,
        content: SlotContent,
        files: SlotFiles,
        saver: ConversationSaver,
        reuse_check: ReuseCheck,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        self.content = content
        self.files = files
        self.saver = saver
        self.reuse_check = reuse_check
        self._identity = identity
        self._metrics = metrics
        self._clock = clock
        self._seen: dict[str, Key] = {}
        self._last: dict[str, Turns] = {}
        self._doubted: dict[str, tuple[int, int]] = {}

    def llama_restarted(self, slot_known: bool = False) -> None:
        """Note that another process of llama-server runs: nothing learned from the last one counts.

        With `slot_known` what the slot holds was noted of this process already.
        """
        if not slot_known:
            self.content.llama_restarted()
        self.reuse_check.llama_restarted()
        self._doubted.clear()

    def model_changed(self) -> None:
        """Note that somebody changes the model that runs: its adapters."""
        self.content.forget()
        self._identity.current = None

    def saved(self, name: str, key: Key | None) -> Snapshot | None:
        """Return the template's snapshot if it is for this key and the model that runs now."""
        return self._for_key(name, key) if self.files.of_use and name not in self._doubted else None

    async def prepare(self, name: str, key: Key, turns: Turns = NOBODY) -> Prepared:
        """Bring as much as possible of a prompt into the slot without computing it.

        `key` is what the prompt begins with, `turns` its conversation.  Never fails for reasons of llama-server's;
        cancelling leaves the slot unknown.
        """
        try:
            prepared = await self._prepare(Wanted(name, key, turns, self._seen.get(name) == key))
        except (LlamaCallFailed, OSError) as error:
            # The request itself will meet the same trouble, and its line in the log tells.
            self.log.debug("slot 0 cannot be prepared for {name}: {error}", name=name, error=error)
            self.content.forget()
            prepared = Prepared("cold")  # the error that the client will get says more than any reason here
        self._seen[name] = key
        return prepared

    async def remember(self, name: str, key: Key, turns: Turns = NOBODY) -> None:
        """Remember that the slot was left holding a template, with a conversation on it."""
        prefix, chat = self._for_key(name, key), self.saver.saved_beginning(name, turns)
        saved = max((entry.tokens for entry in (prefix, chat) if entry is not None), default=0)
        await self.content.remember(name, key, turns.whole if turns.chain else None, saved)
        if turns.chain:
            self._last[name] = turns

    def judge(self, name: str, prepared: Prepared, reused: int) -> None:
        """Compare how many tokens an answer says were `reused` with what was promised."""
        if prepared.promised is None:
            return
        if prepared.source is None:
            return self.reuse_check.went_back(prepared.promised, reused)
        useful = helped(prepared.promised, reused)
        if not useful and prepared.cache == "restored":
            self._metrics.slot_restores.labels(name, "ineffective").inc()
        if prepared.source == CHAT:
            self.reuse_check.conversation_restored(useful)
        elif useful:
            self.reuse_check.helped()
        else:
            # Or does the chat template make other tokens of the same text now?  One with a date in it does, at
            # midnight, for all templates.  Nothing is restored for this one before its tokens were looked at.
            self._doubted[name] = (prepared.promised, reused)

    def doubted(self, name: str) -> bool:
        """Tell whether the template's tokens should be looked at again."""
        return name in self._doubted

    def looked_at(self, name: str, same: bool) -> None:
        """Note that the template's tokens were looked at, and whether they are the `same` as in its file."""
        numbers = self._doubted.pop(name, None)
        if numbers is not None and same:
            self.reuse_check.did_not_help(*numbers)

    async def bring_back(self, name: str, key: Key) -> None:
        """Restore a template, with the last conversation on it if that was saved."""
        await self.prepare(name, key, self._last.get(name, NOBODY))

    def _for_key(self, name: str, key: Key | None) -> Snapshot | None:
        entry = self.files.usable(name, PREFIX)
        return entry if entry is not None and entry.key == key else None

    async def _prepare(self, wanted: Wanted) -> Prepared:
        """Carry out what `bioproxy.slot.plan` decides.  Fails as `LlamaApi`'s calls do, and with `OSError`."""
        name = wanted.name
        known = await self.content.confirm()
        prefix, reuse = self._for_key(name, wanted.key), self._reuse(name)
        files = Files(
            chat=self.saver.saved_beginning(name, wanted.turns),
            template_tokens=prefix.tokens if prefix is not None else None,
        )
        in_slot = InSlot(known, self.content.probable if known is None else None)
        decision = plan(in_slot, wanted, files, reuse)
        while isinstance(decision, CheckProbable):
            there = await self.content.probably_has(wanted.key, wanted.turns, decision.more_than)
            # The tokens may be those of another process with another model, which `GET /slots` does not tell.
            in_slot = replace(in_slot, probable_is_there=there and await self._identity.unchanged())
            decision = plan(in_slot, wanted, files, reuse)
        # From here on the conversation in the slot is in danger, whatever was decided.
        if decision.save_first:
            await self.saver.save_if_due()
        if isinstance(decision, Use):
            return Prepared("hot", promised=decision.promised, source=decision.source)
        # Before the first call that changes the slot: whoever is cancelled below must leave it unknown.
        self.content.forget()
        return await self._replace(wanted, files)

    async def _replace(self, wanted: Wanted, files: Files) -> Prepared:
        """Restore the best file that llama-server can load, if there is one."""
        name = wanted.name
        # What the slot holds is given up, so this is the moment to learn which model runs: finding out overwrites it.
        model = await self._identity.find_out()
        files = replace(files, prefix=self.files.recorded(name, PREFIX))
        reuse, failed, began = self._reuse(name), frozenset[str](), self._clock.seconds()
        while isinstance(decision := plan_replacement(wanted, files, model, reuse, failed), Restore):
            entry = decision.entry
            if await self.files.load(name, decision.kind, entry):
                took = (self._clock.seconds() - began) * 1000
                await self.content.remember(name, wanted.key, entry.conversation, entry.tokens)
                return Prepared("restored", None, took, entry.tokens, decision.kind)
            failed |= {decision.kind}
        return Prepared("cold", decision.miss)

    def _reuse(self, name: str) -> Reuse:
        """Return what answers have shown so far, as far as it matters for a template."""
        check = self.reuse_check
        return Reuse(check.goes_back, check.conversations, check.trouble is not None or name in self._doubted)
