"""Slot 0 of llama-server: the object through which all other code uses the slot and asks about it.

The slot is where llama-server processes prompts.  It holds the tokens of the last request with
their KV cache, and a prompt that begins with the same tokens goes on from there.  bioproxy's main
task is to have the right tokens in the slot in time.  `Slot` combines several parts, each in its
own module:

* `bioproxy.slot.content`: what the slot holds, and whether that is still true;
* `bioproxy.slot_files.files`: the files that the slot was saved to;
* `bioproxy.slot.conversation_saver`: when a conversation is worth a file;
* `bioproxy.slot.parking`: what llama-server keeps in memory because no file has it;
* `bioproxy.slot_files.reuse_check`: whether restoring and reuse work with the present model;
* `bioproxy.slot.facts`, `bioproxy.slot.plan`, `bioproxy.slot.preparer`: what is known of a prompt,
  what must be done before a request, and the code that does it;
* `bioproxy.slot.recorder`: writes down what the slot was left with;
* `bioproxy.slot.uses`, `bioproxy.slot.head_start_use`: the ``async with`` blocks around requests,
  warm-ups and head starts;
* `bioproxy.slot.prompt_use`: whether an answer has reused what was promised.

Code in other folders does not use these parts directly.  To change the slot, it uses one of the
blocks.  To get information, it calls a method that needs no ``await``: here about what the slot
holds, and of `facts` about files.  The result is what bioproxy knows, which may differ from what
llama-server would say at this moment.

This module does not know who waits at the gate, what requests look like, or which prompt is
warmed up next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.facts import PromptFacts
from bioproxy.slot.head_start_use import HeadStartUses
from bioproxy.slot.known_content import NO_CONVERSATION
from bioproxy.slot.parking import Parking
from bioproxy.slot.plan import Files, Wanted
from bioproxy.slot.preparer import SlotPreparer
from bioproxy.slot.prompt_use import AnswerJudge
from bioproxy.slot.recorder import SlotRecorder
from bioproxy.slot.uses import SlotUses
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import PREFIX, Snapshot
from bioproxy.slot_files.reuse_check import ReuseCheck


class Slot:
    """Slot 0 of llama-server, with all that bioproxy knows about its content and its files.

    Invariant: what is recorded about the slot is true at each point where another coroutine may
    run, that is, at each ``await``.  Twisted runs all coroutines in one thread, and switches
    between them nowhere else.  So a method without ``async`` sees a consistent state, and needs no
    lock.
    """

    facts: PromptFacts
    """Answers questions about the files of prompts, and about what llama-server has shown to reuse."""

    log = Logger()

    def __init__(
        self,
        identity: ModelIdentity,
        content: SlotContent,
        files: SlotFiles,
        saver: ConversationSaver,
        reuse_check: ReuseCheck,
        parking: Parking,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        self._identity = identity
        self._content = content
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check
        self._parking = parking
        # These parts are used only through `Slot`, so they are made here.
        self.facts = PromptFacts(files, saver, reuse_check)
        self._preparer = SlotPreparer(self.facts, identity, content, files, saver, reuse_check, parking, clock)
        self._recorder = SlotRecorder(self.facts, content, files, saver)
        judge = AnswerJudge(content, reuse_check, parking, metrics)
        uses = SlotUses(self._preparer, self._recorder, judge, content, files, saver, reuse_check)
        # Methods that use the slot, always inside the gate.  They are methods of the parts, and are
        # documented there.  First the blocks around requests, warm-ups and head starts.
        self.use_for_prompt = uses.use_for_prompt
        self.use_otherwise = uses.use_otherwise
        self.use_for_warmup = uses.use_for_warmup
        self.use_for_head_start = HeadStartUses(content, files, saver, reuse_check).use
        # The steps of these blocks.  Of these only `bring_back` is called from another folder, in
        # idle moments, to restore a prompt that warm-ups have displaced.  It changes the slot but
        # computes nothing, so no step has to follow.
        self.prepare = self._preparer.prepare
        self.remember = self._recorder.remember
        self.bring_back = self._preparer.bring_back
        # Called when no user is active, and at shutdown.  A save changes nothing in the slot.
        self.save_conversation = saver.save_if_due
        # Only looks at what is known.
        self.switch_seconds = saver.switch_seconds

    async def find_out_model(self) -> None:
        """Find out which model runs, in a warm-up; what the slot holds is lost.  Fires and fails as `LlamaApi`."""
        # Forgotten first, because finding out overwrites the slot, and may be cancelled.
        self._content.forget()
        await self._identity.find_out()

    def bring_files(self, bring: Callable[[Wanted, Files], Awaitable[None]]) -> None:
        """Let `bring` fetch files from elsewhere before a request (`SlotPreparer.bring`)."""
        self._preparer.bring = bring

    # Events in other parts of bioproxy.  These methods may be called at any time, also while a user
    # or a warm-up inside the gate waits for llama-server; `SlotContent` and `SlotFiles` expect that
    # after each ``await``.

    def llama_restarted(self, slot_known: bool = False) -> None:
        """Note that another process of llama-server runs: what was learned from the last one is no longer valid."""
        # The process watch polls every two seconds, so a request may have reached the new process
        # before, and what that request left in the slot may be recorded already.  Then `slot_known`
        # is true, and the record is kept.
        if not slot_known:
            self._content.llama_restarted()
        self._reuse_check.llama_restarted()
        self._parking.llama_restarted()

    def llama_fell_asleep(self) -> None:
        """Note that llama-server has unloaded its model, and the content of the slot with it."""
        # It is the same process with the same flags, so what was learned from its answers stays
        # valid.  But its memory of prompts goes with the model.
        self._content.llama_restarted()
        self._parking.llama_restarted()

    def model_changed(self) -> None:
        """Note that somebody changes the model that runs: its adapters."""
        # The tokens in the slot stay, but their KV cache does not belong to the new model.  The new
        # model is identified, by its behaviour, before the next file is restored.
        self._content.forget()
        self._content.foreign = NO_CONVERSATION
        if not self._content.mixed:
            self._content.mixed = True
            self.log.info(
                "adapters are switched: conversations are kept in files again when llama-server was restarted"
            )
        self._identity.adapters_switched()

    def discard_prompt_file(self, name: str) -> None:
        """Forget a prompt's file, so that it is saved again, and end a pause after failed saves.  For operators."""
        # Only the record is dropped.  The file is not used any more, but stays on the disk until
        # the new file is complete, because saving may fail on a disk that is nearly full.
        self._files.end_pause()
        self._files.forget(name, PREFIX)

    # Questions about the slot.  All are answered from memory.

    def holds(self, key: Key | None) -> bool:
        """Tell whether the slot was left with this key's tokens, as far as is known."""
        # Another client may have used llama-server without bioproxy.  Code that relies on the
        # content checks for that; for display, this answer is good enough.
        return self._content.has(key)

    def holds_conversation(self, entry: Snapshot) -> bool:
        """Tell whether the slot was left with the conversation that a file has, as far as is known."""
        known = self._content.known
        return known is not None and known.key == entry.key and known.conversation == entry.conversation

    def continues(self, conversation: ConversationChain) -> bool:
        """Tell whether a request's conversation goes on with the one that the slot holds, as far as is known."""
        return self._content.is_continued_by(conversation)

    @property
    def tells_content(self) -> bool:
        """Whether llama-server tells what its slot holds; not with ``--no-slots``."""
        return self._content.visible

    def is_used_by_user(self, name: str) -> bool:
        """Tell whether a user left something on this prompt in the slot, in whatever shape."""
        known = self._content.known
        return self._content.left_by_user and known is not None and known.name == name

    def to_bring_back(self, current: Callable[[str, str, Snapshot], bool]) -> tuple[str, str, Snapshot] | None:
        """Return the file of what will probably be asked for next, as name, kind and entry, if it should be restored.

        `None` where the slot holds it, or what a user left there, or where nothing of use is known.
        `current` tells whether a file is still that of a prompt as it is now.
        """
        # After a user's request the slot holds what that user will probably continue, and no other
        # content is more useful.  After warm-ups the slot holds the prompt that was warmed up last,
        # which may be any; after a restart of llama-server it holds nothing.
        content = self._content
        if not content.visible or content.left_by_user or not self.facts.may_use_files:
            return None
        # The last conversation, or the prompt that was used last, whichever is later.
        latest = self._files.latest_used(current)
        if latest is None:
            return None
        name, kind, entry = latest
        return None if self.holds_conversation(entry) or self.facts.is_doubted(name) else (name, kind, entry)

    def tokens_of_conversation(self, turns: ConversationChain) -> int | None:
        """Return how many tokens the slot holds of a conversation as it was answered, `None` if it is not there."""
        known = self._content.known
        mine = known is not None and known.conversation is not None and known.turns == turns and not known.ahead
        return known.witness.tokens if known is not None and mine else None

    def conversation_save_is_due(self) -> bool:
        """Tell whether the slot holds a conversation that is worth saving now."""
        # Asked before the gate is entered, so that it is not entered for nothing.  The answer may
        # have changed by the time the gate is free, so the save checks again.
        return self._saver.due()

    # Files.

    def remove_files(self, id: str) -> bool:
        """Remove all files of a learned prompt or a conversation; return whether there were any."""
        # If the slot holds it, that stays: it harms nobody, and is gone with the next request.
        self._preparer.forget(id)
        self._recorder.forget(id)
        return self._files.forget_and_remove(id)

    async def load_file(self, name: str, kind: str, entry: Snapshot) -> bool:
        """Have llama-server read a file into the slot, in a warm-up.  Fires and fails as `FileLoader.load`."""
        # A user's prompt may be there that no file has.
        displaced = await self._parking.look()
        # This brings only the beginning of a prompt into the slot, and nothing is recorded about
        # that.
        self._content.taken_by_warmup()
        if displaced is not None:
            await self._parking.park(displaced)
        return await self._files.load(name, kind, entry, for_user=False)
