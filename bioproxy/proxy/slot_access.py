"""How one request and the slot come together: which use it makes of the slot, what its client is told, what is learned.

`bioproxy.slot` knows prompts and tokens, and nothing of HTTP; `bioproxy.proxy.exchange` knows one request and its
answer.  This module translates between the two, in three steps that `bioproxy.proxy.proxy` takes in this order:

1. before: choose the use of the slot that fits the request (`SlotAccess.use`);
2. when the slot is prepared: tell the client how, in headers, and note it for the log (`SlotAccess.tell`);
3. after the answer: find out whether that helped (`SlotAccess.learn`).

A use of the slot is an *asynchronous context manager*: entering an ``async with`` block prepares the slot, and leaving
it notes what the slot holds.  `SlotAccess.use` only makes such an object, and nothing happens before the block is
entered.  The other two methods await nothing.  In Twisted other code runs only while a coroutine awaits something, so
no other request, warm-up or hang-up can come into the middle of them.

This module does not know the queue, nor how a request is sent.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from bioproxy.gate.turn import Turn
from bioproxy.http.targets import SLOT_ACTIONS
from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.learning.shape_learning import ShapeLearning
from bioproxy.proxy.asked import Asked
from bioproxy.proxy.exchange import Exchange
from bioproxy.proxy.miss_reasons import MissReasons
from bioproxy.slot.preparer import Prepared
from bioproxy.slot.prompt_use import PromptUse
from bioproxy.slot.slot import Slot
from bioproxy.slot_files.client_calls import saved_to
from bioproxy.warmup.client_kinds import client_kind
from bioproxy.warmup.last_talk import LastTalk
from bioproxy.warmup.talks import Talk


class SlotAccess:
    """Brings requests and the slot together.

    Invariant: it has no state of its own, so what is known of a request is in its `Exchange` and nowhere else.
    """

    def __init__(
        self,
        slot: Slot,
        shape_learning: ShapeLearning,
        prompt_learning: PromptLearning,
        miss_reasons: MissReasons,
        last_talk: LastTalk,
    ) -> None:
        """Put the parts together.

        `slot` is used; the two learnings are told of each question; `miss_reasons` explains cold answers; `last_talk`
        gets each conversation with its answer.
        """
        self._slot = slot
        self._shape_learning = shape_learning
        self._prompt_learning = prompt_learning
        self._miss_reasons = miss_reasons
        self._last_talk = last_talk

    def use(self, turn: Turn, exchange: Exchange, asked: Asked | None) -> AbstractAsyncContextManager[PromptUse | None]:
        """Return the use of the slot that a request makes, to be entered inside its `turn` at the gate.

        Awaits nothing itself.  Entering what it returns waits for llama-server, and does not fail for its reasons;
        cancelling that leaves the slot unknown, or as it was.

        `asked` is what the request asks for, `None` if it is neither a chat nor names a template.  The block gets a
        `PromptUse` in the first case and `None` in the second.
        """
        # llama-server continues such a request when its connection is closed: the client can fetch the answer later, at
        # /v1/stream.  If that client hangs up, the slot is busy although nobody waits here, and the gate must know it.
        headers = exchange.request.requestHeaders
        # Whatever this request leaves in the slot: a conversation that was there is not the one to go on with.
        self._last_talk.user_came()
        continues = headers.hasHeader("x-conversation-id")
        if asked is not None:
            return self._slot.use_for_prompt(
                turn,
                asked.prompt,
                asked.key,
                asked.conversation,
                reuses=asked.reusable,
                adapters=asked.adapters,
                pinned=asked.pinned,
                llama_continues=continues,
            )
        # Anything else displaces what the slot holds, and leaves something there that is of no use for prompts.
        # A client may itself have llama-server save the slot to a file, perhaps to one of ours.  The record must not
        # claim then that this file has a prompt.
        is_slot_call = exchange.record.path.startswith(SLOT_ACTIONS)
        written = saved_to(exchange.target, headers, exchange.body) if is_slot_call else ""
        return self._slot.use_otherwise(turn, may_write=written, llama_continues=continues)

    def tell(self, exchange: Exchange, asked: Asked, prepared: Prepared) -> None:
        """Tell the client how the slot was prepared for its request, and note the same in the record.

        `prepared` is what entering the use has found.  If the head of the answer is out already, only the record gets
        it, so `/status` and the log are always complete.
        """
        # The record gets the same words as the headers, so a client's complaint can be found in the log by its id.
        # Nothing is rounded there: the log and `/status` do that, and the metrics need the exact number.
        record = exchange.record
        if asked.prompt:
            record.prompt = asked.prompt
            exchange.tell("X-Bioproxy-Prompt", asked.prompt)
        record.cache, record.restore_ms = prepared.cache, prepared.restore_ms
        exchange.tell("X-Bioproxy-Cache", prepared.cache)
        if prepared.miss is not None:
            # The slot's word first becomes the client's word: a warm-up in progress is a better reason than "the slot
            # holds something else", which is only what its interruption looks like from inside.
            record.miss = self._miss_reasons.reason(asked, prepared.miss)
            exchange.tell("X-Bioproxy-Miss", record.miss)
        record.miss_detail = self._miss_reasons.detail(asked, record.miss)
        if record.miss_detail is not None:
            exchange.tell("X-Bioproxy-Miss-Detail", record.miss_detail)
        if prepared.restore_ms is not None:
            exchange.tell("X-Bioproxy-Restore-Ms", f"{prepared.restore_ms:.1f}")
        # The body as it is sent now, with its templates filled in.  When the answer has ended, its file is closed.
        if asked.reusable and asked.conversation.message_digests:
            agent = exchange.request.getHeader(b"user-agent") or b""
            talk = Talk(record.path, client_kind(agent, record.path), asked.prompt, asked.conversation)
            exchange.answer = self._last_talk.request_sent(talk, exchange.body)

    def learn(self, exchange: Exchange, asked: Asked) -> int | None:
        """Draw conclusions from an answer that has ended well.

        Return how many tokens llama-server says it reused, or `None` if the answer does not say.
        """
        record, reused = exchange.record, exchange.timings.values.get("cache_n")
        # A belief is compared with a fact here.  The slot was prepared as hot or restored, and llama-server counted
        # what it really reused.  This is known only when the answer is over, so the client cannot be told in a header;
        # a miss that was already explained keeps its first reason.
        if reused is not None and record.miss is None and asked.prompt:
            ineffective = self._miss_reasons.afterwards(asked, int(reused))
            if ineffective is not None:
                record.miss, record.miss_detail = "ineffective", ineffective
        # Questions are counted here and not when they arrive: one that failed teaches nothing.
        if asked.chat is not None:
            self._prompt_learning.answered(asked.chat)
        else:
            # Only the first question of a conversation says in which shape the next one will come.  A later one is told
            # without its shape, and counts only as a use of the template.
            self._shape_learning.asked(asked.prompt, asked.shape if asked.first_question else None)
        self._last_talk.answered(exchange.answer, None if reused is None else int(reused), record.cache == "hot")
        return None if reused is None else int(reused)
