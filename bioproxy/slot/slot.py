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

from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.record import CHAT, PREFIX, Snapshot
from bioproxy.slot.reuse_check import ReuseCheck, helped

NOBODY = ConversationChain()
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
        self._last: dict[str, ConversationChain] = {}
        self._doubted: dict[str, tuple[int, int]] = {}

    def begin_anew(self, slot_known: bool = False) -> None:
        """Note that another process of llama-server runs: nothing learned from the last one counts.

        With `slot_known` what the slot holds was noted of this process already.
        """
        if not slot_known:
            self.content.begin_anew()
        self.reuse_check.begin_anew()
        self._doubted.clear()

    def model_changed(self) -> None:
        """Note that somebody changes the model that runs: its adapters."""
        self.content.forget()
        self._identity.current = None

    def saved(self, name: str, key: Key | None) -> Snapshot | None:
        """Return the template's snapshot if it is for this key and the model that runs now."""
        return self._for_key(name, key) if self.files.of_use and name not in self._doubted else None

    async def prepare(self, name: str, key: Key, turns: ConversationChain = NOBODY) -> Prepared:
        """Bring as much as possible of a prompt into the slot without computing it.

        `key` is what the prompt begins with, `turns` its conversation.  Never fails for reasons of llama-server's;
        cancelling leaves the slot unknown.
        """
        try:
            prepared = await self._prepare(name, key, turns)
        except (LlamaCallFailed, OSError) as error:
            # The request itself will meet the same trouble, and its line in the log tells.
            self.log.debug("slot 0 cannot be prepared for {name}: {error}", name=name, error=error)
            self.content.forget()
            prepared = Prepared("cold")  # the error that the client will get says more than any reason here
        self._seen[name] = key
        return prepared

    async def note(self, name: str, key: Key, turns: ConversationChain = NOBODY) -> None:
        """Remember that the slot was left holding a template, with a conversation on it."""
        prefix, chat = self._for_key(name, key), self.saver.continued(name, turns)
        saved = max((entry.tokens for entry in (prefix, chat) if entry is not None), default=0)
        await self.content.note(name, key, turns.all_messages if turns.message_digests else None, saved)
        if turns.message_digests:
            self._last[name] = turns

    def judge(self, name: str, prepared: Prepared, reused: int) -> None:
        """Compare how many tokens an answer says were `reused` with what was promised."""
        if prepared.promised is None:
            return
        if prepared.source is None:
            return self.reuse_check.gone_back(prepared.promised, reused)
        useful = helped(prepared.promised, reused)
        if not useful and prepared.cache == "restored":
            self._metrics.slot_restores.labels(name, "ineffective").inc()
        if prepared.source == CHAT:
            self.reuse_check.conversation(useful)
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

    async def _prepare(self, name: str, key: Key, turns: ConversationChain) -> Prepared:
        held, chat = await self.content.look(), self.saver.continued(name, turns)
        prefix = self._for_key(name, key)
        template_tokens = prefix.tokens if prefix is not None else None
        # 1. The slot holds the conversation.  Asking the same once more needs a model that can go back to the question.
        same = held is not None and held.key == key
        conversation = held.conversation if held is not None else None
        if same and conversation is not None and turns.continues(conversation):
            if turns.is_longer_than(conversation) and self.reuse_check.conversations:
                return Prepared("hot", promised=template_tokens, source=CHAT)
            if self.reuse_check.goes_back:
                return Prepared("hot", promised=template_tokens)
        if held is None and self.reuse_check.goes_back:
            goes_on = self.content.perhaps is not None and turns.continues(self.content.perhaps.turns.all_messages)
            perhaps = (goes_on or chat is None) and await self.content.has_perhaps(key, turns, template_tokens or 0)
            if perhaps and await self._identity.unchanged():
                return Prepared("hot")
        # 2. A file has it.  Another conversation on this template is not kept then: it would be written over this one.
        if chat is None or held is None or held.name != name:
            await self.saver.keep()
        # 3. The slot holds the template.
        if same and chat is None and conversation is None:
            return Prepared("hot")
        if same and chat is None and self.reuse_check.goes_back:
            return Prepared("hot", promised=template_tokens)
        self.content.forget()
        return await self._restore(name, key, chat)

    async def _restore(self, name: str, key: Key, chat: Snapshot | None) -> Prepared:
        # Here the slot's content is not known to be of use, so this is the moment to learn which model runs: finding
        # out overwrites the slot.
        model = await self._identity.find_out()
        if self.reuse_check.trouble is not None or name in self._doubted:
            return Prepared("cold", "ineffective")
        prefix = self.files.recorded(name, PREFIX)
        began = self._clock.seconds()
        # 2. and 4.
        for kind, entry in ((CHAT, chat), (PREFIX, prefix)):
            if entry is None or entry.key != key or not entry.model.matches(model):
                continue
            if await self.files.load(name, kind, entry):
                took = (self._clock.seconds() - began) * 1000
                await self.content.note(name, key, entry.conversation, entry.tokens)
                return Prepared("restored", None, took, entry.tokens, kind)
        # 5.
        if prefix is None:
            return Prepared("cold", "slot-taken" if self._seen.get(name) == key else "first")
        if prefix.key.text != key.text:
            return Prepared("cold", "content-changed")
        if prefix.key != key:
            return Prepared("cold", "shape-changed")
        return Prepared("cold", "no-file" if prefix.model.matches(model) else "other-model")
