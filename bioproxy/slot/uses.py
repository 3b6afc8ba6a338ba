"""The three ways to use slot 0, each an ``async with`` block that does what must come before and after.

The slot is llama-server's working place: the tokens that it has processed, with their KV cache.
Each request leaves something there that the next one may reuse, so each use has a before (save what
would be lost, bring in what helps) and an after (write down what was left).  If callers had to do both
by hand, some path would forget one of them.

``async with`` is ``with`` whose entering and leaving may wait, and here both wait for llama-server.
`asynccontextmanager` makes one of a function with a ``yield``: what stands before the ``yield`` is
entering, what stands behind is leaving, and an error of the body is raised at the ``yield`` itself.

What happens when the body does not run to its end is the heart of it.  When a client hangs up,
Twisted *cancels* the coroutine of its request: the ``await`` in the body raises `CancelledError`,
and so does, on its way out, the ``yield`` here.  The rule "unknown unless all went well" then needs
no code at any place that may fail: what is known is forgotten when the body begins, and only a body
that says ``answered`` has it written down again.

Deliberately unknown here: what a request looks like, when it is sent, and what a client is told of
it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.content import ProbableContent, SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.gate import Gate
from bioproxy.slot.preparer import Prepared, SlotPreparer
from bioproxy.slot.record import CHAT, PREFIX
from bioproxy.slot.reuse_check import ReuseCheck, helped
from bioproxy.slot.turn import Turn
from bioproxy.slot.warmup_use import WarmupUse

REUSES_NOTHING = Prepared("cold", "ineffective")
"""How the slot is prepared for a request that must not reuse anything, whatever the slot holds."""


class TemplateUse:
    """A user's request on a template while it uses the slot.

    `prepared` is how the slot was prepared for it.  Invariant: unless `answered` was called,
    nothing is written down about the slot when the use ends.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.is_answered = False
        self.reused: int | None = None

    def answered(self, reused: int | None) -> None:
        """Have it written down what the slot holds, because llama-server answered the request to its end.

        `reused` is how many tokens it says that it reused, `None` where it does not say.
        """
        self.is_answered, self.reused = True, reused


class SlotUses:
    """The uses of the slot.  Each begins inside the gate, and no two overlap.

    Invariant: while a body runs, nothing is claimed about the slot but what it probably gets.
    """

    def __init__(
        self,
        preparer: SlotPreparer,
        content: SlotContent,
        files: SlotFiles,
        saver: ConversationSaver,
        reuse_check: ReuseCheck,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        self._preparer = preparer
        self._content = content
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check
        self._metrics = metrics
        self._clock = clock

    @asynccontextmanager
    async def use_for_template(
        self,
        turn: Turn,
        name: str,
        key: Key,
        turns: ConversationChain,
        *,
        reuses: bool = True,
        llama_continues: bool = False,
    ) -> AsyncIterator[TemplateUse]:
        """Use the slot for a user's request on the template `name`, which begins with `key` and `turns`.

        `turn` is the user's at the gate.  A request that does not reuse (``reuses=False``: it has
        ``"cache_prompt": false`` or adapters of its own) leaves nothing of use either.
        `llama_continues` tells that llama-server goes on with the request even if its client is
        gone.

        Entering never fails for reasons of llama-server's.  Cancelling while entering leaves the
        slot unknown, or as it was; cancelling in the body leaves it unknown.
        """
        if reuses:
            prepared = await self._preparer.prepare(name, key, turns)
        else:
            await self._saver.save_if_due()
            prepared = REUSES_NOTHING
        use = TemplateUse(prepared)
        with self._user_changes_slot(turn, ProbableContent(key, turns) if reuses else None, llama_continues):
            yield use
        # The client has its whole answer by now.  It may hang up any moment, and that would cancel
        # this coroutine in the middle of writing down what the slot holds.  So the turn does that
        # instead: it keeps the gate closed for this work, in a coroutine of its own that no client
        # can cancel, and only then lets the next user in.
        if use.is_answered:
            turn.hold_gate_for(lambda: self._after_answer(name, key, turns, use))

    @asynccontextmanager
    async def use_otherwise(
        self, turn: Turn, *, may_write: str | None = "", llama_continues: bool = False
    ) -> AsyncIterator[None]:
        """Use the slot for a user's request that has nothing to do with any template.

        `may_write` is the file that a client's own call may have llama-server write; empty for
        none, `None` if it may be any (`bioproxy.slot.client_calls.saved_to`).  `turn` and
        `llama_continues` are as in `use_for_template`.
        """
        await self._saver.save_if_due()  # what the slot holds will be lost
        # Forgotten before the call is sent, not after: from then on the file may change at any time,
        # and a crash of bioproxy must not leave it in the record.
        self._files.written_by_client(may_write)
        with self._user_changes_slot(turn, None, llama_continues):
            yield

    @asynccontextmanager
    async def use_for_warmup(self, gate: Gate, name: str, key: Key, tokens: Sequence[int]) -> AsyncIterator[WarmupUse]:
        """Use the slot for a warm-up of the template `name` with these prefix tokens.

        If the body says ``completed``, what the slot holds is written down and saved on leaving;
        that part is not given up when a user comes.  Fails as `LlamaApi`'s calls do, on leaving
        with `SaveFailed`, or with `OSError`.
        """
        # A warm-up is cancelled whenever a user comes, here as well as in the body.  Up to the
        # first evaluation that leaves the slot as known as `prepare` left it.
        use = WarmupUse(self._content, self._files, self._reuse_check, name, key, tokens)
        if not self._files.model_known:
            # llama-server was restarted, and a question was answered since.  What it left in the
            # slot is right, but a file needs to be told which model it belongs to, and finding that
            # out overwrites the slot.  So the slot counts as unknown: the prefix has to be computed
            # again.
            self._content.forget()
        # What users left in the slot would be lost, also where it is a conversation on this very
        # template.  The template's own tokens do not count as unsaved then: this warm-up is about
        # to save them.
        if self._content.has(key):
            self._content.mark_saved(len(tokens))
        with gate.without_preemption():
            await self._saver.save_if_due()
        await use.compare(await self._preparer.prepare(name, key))
        yield use
        # An error in the body, or its cancellation, is raised at the ``yield``, so this is not
        # reached.  Writing down comes before saving: a user who comes during the save is let in
        # right after it, and then there must be nothing left to do.
        if use.is_complete:
            await self._preparer.remember(name, key)
            if self._files.of_use:
                with gate.without_preemption(last=True):
                    await use.save(PREFIX, tokens)

    @contextmanager
    def _user_changes_slot(self, turn: Turn, probable: ProbableContent | None, llama_continues: bool) -> Iterator[None]:
        """Send a user's request inside this ``with``: from here on the slot changes, and how is not known.

        `probable` is what the request will probably leave in the slot.  It is kept even if the
        request is broken off, and confirmed before it is relied on.
        """
        # This is the line between "known" and "unknown".  Whatever ends the body from here on, an
        # error of llama-server as well as a client that hangs up, nothing has to be undone: it has
        # been forgotten already.
        self._content.taken_by_user(probable)
        try:
            yield
        except CancelledError:
            if llama_continues:
                # llama-server goes on with requests that have an X-Conversation-Id although their
                # connection is closed: the answer can be picked up at /v1/stream.  The next user
                # would find the slot busy, with another client's answer growing in it.  So the
                # gate stays closed until llama-server says that the slot is idle.
                turn.hold_gate_for(lambda: self._content.until_idle(self._clock))
            raise

    async def _after_answer(self, name: str, key: Key, turns: ConversationChain, use: TemplateUse) -> None:
        """Learn from an answer whether preparing helped, and write down what it left in the slot."""
        # In this order: what was learned decides which of the files count as saved.
        if use.reused is not None:
            self.judge(name, use.prepared, use.reused)
        await self._preparer.remember(name, key, turns)

    def judge(self, name: str, prepared: Prepared, reused: int) -> None:
        """Compare how many tokens an answer says were `reused` with what was promised."""
        # Three things can be learned, from three kinds of promises: whether the model goes back in
        # what it holds, whether restored conversations are of use, and whether restored templates
        # are.
        if prepared.promised is None:
            return
        if prepared.source is None:
            return self._reuse_check.went_back(prepared.promised, reused)
        useful = helped(prepared.promised, reused)
        if not useful and prepared.cache == "restored":
            self._metrics.slot_restores.labels(name, "ineffective").inc()
        if prepared.source == CHAT:
            self._reuse_check.conversation_restored(useful)
        elif useful:
            self._reuse_check.helped()
        else:
            # Either this llama-server reuses nothing, or the chat template makes other tokens of
            # the same text now: one with a date in it does at midnight, for all templates.  The
            # next warm-up compares, and tells which.
            self._reuse_check.doubt(name, prepared.promised, reused)
