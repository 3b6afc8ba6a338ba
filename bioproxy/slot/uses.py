"""How requests and warm-ups use slot 0: ``async with`` blocks that do what is necessary before and after each use.

Slot 0 holds the tokens that llama-server has processed last, with their KV cache.  Each request
leaves tokens there that the next request may reuse.  So each use has steps before it (save what
would be lost, restore what helps) and after it (record what was left).  If callers had to do these
steps themselves, some code path would forget one.

An ``async with`` block may wait while it is entered and left; here it waits for llama-server.
`asynccontextmanager` makes such a block from a function with a ``yield``: the code before the
``yield`` runs on entering, the code after it on leaving, and an error of the body is raised at the
``yield`` itself.

The important case is a body that does not run to its end.  When a client hangs up, Twisted
*cancels* the coroutine of its request: the ``await`` in the body raises `CancelledError`, and so
does, on its way out, the ``yield`` here.  The rule "unknown unless all went well" needs no code at
the places that may fail: the record of the slot's content is dropped when the body begins, and is
written again only if the body has called ``answered``.

This module does not know what a request looks like, when it is sent, or what its client is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from twisted.internet.defer import CancelledError

from bioproxy.gate.gate import Gate
from bioproxy.gate.turn import Turn
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.known_content import ProbableContent
from bioproxy.slot.preparer import REUSES_NOTHING, SlotPreparer
from bioproxy.slot.prompt_use import AnswerJudge, PromptUse
from bioproxy.slot.recorder import SlotRecorder
from bioproxy.slot.warmup_use import WarmupUse
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import PREFIX
from bioproxy.slot_files.reuse_check import ReuseCheck


class SlotUses:
    """The uses of the slot.  Each begins inside the gate, and no two overlap.

    Invariant: while a body runs, only the slot's probable new content is recorded.
    """

    def __init__(
        self,
        preparer: SlotPreparer,
        recorder: SlotRecorder,
        judge: AnswerJudge,
        content: SlotContent,
        files: SlotFiles,
        saver: ConversationSaver,
        reuse_check: ReuseCheck,
    ) -> None:
        self._preparer = preparer
        self._recorder = recorder
        self._judge = judge
        self._content = content
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check

    @asynccontextmanager
    async def use_for_prompt(
        self,
        turn: Turn,
        name: str,
        key: Key,
        turns: ConversationChain,
        *,
        reuses: bool = True,
        adapters: bool = False,
        pinned: bool = True,
        llama_continues: bool = False,
    ) -> AsyncIterator[PromptUse]:
        """Use the slot for a user's request on the prompt `name`, which begins with `key` and `turns`.

        The name is empty where the request begins with no prompt that is known.  `turn` is the
        user's turn at the gate.  `pinned` tells that the request names slot 0; another one may use
        any slot of a llama-server that has several.  A request that does not reuse (``reuses=False``: it
        has ``"cache_prompt": false`` or adapters of its own) leaves nothing that can be reused
        either.  `adapters` tells that it has the latter.  `llama_continues` tells that llama-server
        goes on with the request even if its client is gone.

        Errors of llama-server never make entering fail.  After cancelling while entering, the
        slot's content is unknown or unchanged; after cancelling in the body, it is unknown.
        """
        if reuses:
            prepared = await self._preparer.prepare(name, key, turns)
        else:
            await self._saver.save_if_due(displaced=True)
            # The same conversation with the same adapters may go on: with others, llama-server computes all anew.
            if not (adapters and self._content.foreign is not None and turns.begins_with(self._content.foreign)):
                await self._content.drop_foreign()
            prepared = REUSES_NOTHING
        # A request that names no slot may run in another one.  Slot 0 then still holds afterwards what it
        # holds now, and only a witness of this moment can prove that.  Cancelled in this ``await``,
        # nothing has changed.
        before = None if pinned else await self._content.as_it_is()
        use = PromptUse(name, key, turns, prepared, before)
        if adapters:
            self._content.foreign = turns
        with self._user_changes_slot(turn, ProbableContent(key, turns, name) if reuses else None, llama_continues):
            yield use
        # The client has its whole answer by now.  The client may hang up at any moment, and that
        # would cancel this coroutine while it records what the slot holds.  So the turn does this
        # work instead: it keeps the gate closed, runs the work in a separate coroutine that no
        # client can cancel, and then lets the next user in.
        if use.is_answered:
            turn.hold_gate_for(lambda: self._after_answer(use))

    @asynccontextmanager
    async def use_otherwise(
        self, turn: Turn, *, may_write: str | None = "", llama_continues: bool = False
    ) -> AsyncIterator[None]:
        """Use the slot for a user's request whose prompt is not looked at.

        `may_write` is the file that llama-server may write for this call of a client; empty for no
        file, `None` if it may be any file (`bioproxy.slot_files.client_calls.saved_to`).  `turn` and
        `llama_continues` are as in `use_for_prompt`.
        """
        await self._saver.save_if_due(displaced=True)  # the request overwrites what the slot holds
        # llama-server would keep a copy in its memory.  A client that saves the slot wants what is there.
        if may_write == "":
            await self._content.drop_foreign()
        # The file's record is dropped before the call is sent, not after: from then on the file may
        # change at any time, and a crash of bioproxy must not leave the record in place.
        self._files.written_by_client(may_write)
        with self._user_changes_slot(turn, None, llama_continues):
            yield

    @asynccontextmanager
    async def use_for_warmup(self, gate: Gate, name: str, key: Key, tokens: Sequence[int]) -> AsyncIterator[WarmupUse]:
        """Use the slot for a warm-up of the prompt `name` with these tokens.

        If the body calls ``completed``, what the slot holds is recorded and saved on leaving; an
        arriving user does not cancel the save.  Fails as `LlamaApi`'s calls do, on leaving with
        `SaveFailed`, or with `OSError`.
        """
        # A warm-up is cancelled whenever a user comes, here as well as in the body.  Before the
        # first evaluation, cancelling does not change what `prepare` has recorded about the slot.
        use = WarmupUse(self._content, self._files, self._reuse_check, name, key, tokens)
        if not self._files.model_known or self._content.mixed:
            # llama-server was restarted, and has answered a request since.  What that request left
            # in the slot is correct, but the record of a file needs the model, and identifying the
            # model overwrites the slot.  So the slot's content counts as unknown, and the prefix
            # has to be computed again.  The same is true where the slot's content may be of other
            # adapters.
            self._content.forget()
        # What users left in the slot would be lost, even if it is a conversation on this template,
        # so it is saved first.  The template's own tokens are marked as saved before that, because
        # this warm-up will save them.
        if self._content.has(key):
            self._content.mark_saved(len(tokens))
        with gate.without_preemption():
            await self._saver.save_if_due(displaced=True)
        await use.compare(await self._preparer.prepare(name, key))
        yield use
        # An error in the body, or its cancellation, is raised at the ``yield``, so the code below
        # does not run.  Recording comes before saving: a user who comes during the save enters
        # right after it, and then no work may be left.
        if use.is_complete:
            await self._recorder.remember(name, key)
            if self._files.of_use:
                with gate.without_preemption(last=True):
                    await use.save(PREFIX, tokens)
                self._recorder.warmed_up(name)

    @contextmanager
    def _user_changes_slot(self, turn: Turn, probable: ProbableContent | None, llama_continues: bool) -> Iterator[None]:
        """Enclose the sending of a user's request: from here on the slot's content is not known.

        `probable` is what the request will probably leave in the slot.  It is kept even if the
        request is interrupted, and checked before it is relied on.
        """
        # From here on the slot's content is unknown.  If an error of llama-server or a client that
        # hangs up ends the body, nothing has to be undone, because the record has been dropped
        # already.
        self._content.taken_by_user(probable)
        try:
            yield
        except CancelledError:
            if llama_continues:
                # llama-server goes on with requests that have an X-Conversation-Id although their
                # connection is closed: the answer can be picked up at /v1/stream.  The next user
                # would find the slot busy with another client's answer.  So the gate stays closed
                # until llama-server says that the slot is idle.
                turn.hold_gate_for(self._content.until_idle)
            raise

    async def _after_answer(self, use: PromptUse) -> None:
        """Learn from an answer whether preparing helped, and record what the request left in the slot."""
        # Runs inside the gate but outside the client's coroutine, so no hang-up can end it.
        # `judge` comes first: its result decides which files count as saved.
        await self._judge.judge(use)
        # A file that is restored counts as used at that moment, even if its client hangs up before the answer.
        is_counted = use.prepared.cache == "restored" and use.prepared.source == PREFIX
        await self._recorder.remember(use.name, use.key, use.turns, use.before, is_counted=is_counted)
