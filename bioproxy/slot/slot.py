"""Slot 0 and its rules: whoever uses llama-server's slot does so in an ``async with`` block of this module.

The slot is llama-server's working place: the tokens that it has processed, with their KV cache.  Each request leaves
something there that the next one may reuse, so each use has a before (save what would be lost, bring in what helps) and
an after (write down what was left).  There are three kinds of use, and each is one context manager:

* `Slot.use_for_template`: a user's request that names a template;
* `Slot.use_otherwise`: any other request of a user that changes the slot, and clients' own calls to ``/slots``;
* `Slot.use_for_warmup`: a warm-up.

``async with`` is ``with`` whose entering and leaving may wait, and here both wait for llama-server.  The important part
is what happens when the body does not run to its end.  When a client hangs up, Twisted *cancels* the coroutine of its
request: the ``await`` in the body raises `CancelledError`, and Python runs the leaving part of each ``async with`` on
the way out.  So the rule "unknown unless all went well" needs no code at the places where something may fail: what was
known is forgotten when the body begins, and only a body that says ``answered`` has it written down again.

The rest of this module answers questions (`holds`, `saved`, `may_use_files`, …), so that nobody else needs to know the
parts that the slot consists of.

Deliberately unknown here: what a request looks like, when it is sent, and what a client is told of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.conversation import Turns
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.content import ProbableContent, SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.gate import Gate
from bioproxy.slot.preparer import Prepared, SlotPreparer
from bioproxy.slot.record import CHAT, PREFIX, Snapshot
from bioproxy.slot.reuse_check import ReuseCheck, helped
from bioproxy.slot.turn import Turn
from bioproxy.slot.warmup_use import WarmupUse

REUSES_NOTHING = Prepared("cold", "ineffective")
"""How the slot is prepared for a request that must not reuse anything, whatever the slot holds."""


class TemplateUse:
    """A user's request on a template while it uses the slot.

    `prepared` is how the slot was prepared for it.
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


class Slot:
    """Slot 0.

    Invariant: what is known of the slot is true, at each point where another coroutine may run.
    """

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
        self._identity = identity
        self._content = content
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check
        self._metrics = metrics
        self._clock = clock
        self._preparer = SlotPreparer(identity, content, files, saver, reuse_check, clock)
        self.prepare = self._preparer.prepare
        self.remember = self._preparer.remember
        self.bring_back = self._preparer.bring_back

    # Using the slot.  Each of these is called inside the gate.

    @asynccontextmanager
    async def use_for_template(
        self, turn: Turn, name: str, key: Key, turns: Turns, *, reuses: bool = True, llama_continues: bool = False
    ) -> AsyncIterator[TemplateUse]:
        """Use the slot for a user's request on the template `name`, which begins with `key` and `turns`.

        `turn` is the user's at the gate.  A request that does not reuse (``reuses=False``: it has ``"cache_prompt":
        false`` or adapters of its own) leaves nothing of use either.  `llama_continues` tells that llama-server goes on
        with the request even if nobody listens any more.

        Entering never fails for reasons of llama-server's.  Cancelling while entering leaves the slot unknown, or as it
        was; cancelling in the body leaves it unknown.
        """
        if reuses:
            prepared = await self.prepare(name, key, turns)
        else:
            await self._saver.save_if_due()
            prepared = REUSES_NOTHING
        use = TemplateUse(prepared)
        with self._user_changes_slot(turn, ProbableContent(key, turns) if reuses else None, llama_continues):
            yield use
        # The client has its whole answer by now.  It may hang up any moment, and that would cancel this coroutine in
        # the middle of writing down what the slot holds.  So the turn does that instead: it keeps the gate closed for
        # this work, in a coroutine of its own that no client can cancel, and only then lets the next user in.
        if use.is_answered:
            turn.hold_gate_for(lambda: self._after_answer(name, key, turns, use))

    @asynccontextmanager
    async def use_otherwise(
        self, turn: Turn, *, may_write: str | None = "", llama_continues: bool = False
    ) -> AsyncIterator[None]:
        """Use the slot for a user's request that has nothing to do with any template.

        `may_write` is the file that a client's own call may have llama-server write; empty for none, `None` if it may
        be any (`bioproxy.slot.client_calls.saved_to`).  `turn` and `llama_continues` are as in `use_for_template`.
        """
        await self._saver.save_if_due()  # what the slot holds will be lost
        # Before the call is sent: once it is, the file may change, and a crash here must not leave it in the record.
        self._files.written_by_client(may_write)
        with self._user_changes_slot(turn, None, llama_continues):
            yield

    @asynccontextmanager
    async def use_for_warmup(self, gate: Gate, name: str, key: Key, tokens: Sequence[int]) -> AsyncIterator[WarmupUse]:
        """Use the slot for a warm-up of the template `name` with these prefix tokens.

        If the body says ``completed``, what the slot holds is written down and saved on leaving; that part is not given
        up when a user comes.  Fails as `LlamaApi`'s calls do, on leaving with `SaveFailed`, or with `OSError`.
        """
        use = WarmupUse(self._content, self._files, self._reuse_check, name, key, tokens)
        if not self._files.model_known:
            # llama-server was restarted, and a question was answered since.  What it left in the slot is right, but a
            # file needs to be told which model it belongs to, and finding that out overwrites the slot.  So the slot
            # counts as unknown: the prefix has to be computed again.
            self._content.forget()
        # What users left in the slot would be lost, also where it is a conversation on this very template.  The
        # template's own tokens do not count as unsaved then: this warm-up is about to save them.
        if self._content.has(key):
            self._content.mark_saved(len(tokens))
        with gate.without_preemption():
            await self._saver.save_if_due()
        await use.compare(await self.prepare(name, key))
        yield use
        if use.is_complete:
            await self.remember(name, key)
            if self.may_use_files:
                with gate.without_preemption(last=True):
                    await use.save(PREFIX, tokens)

    @contextmanager
    def _user_changes_slot(self, turn: Turn, probable: ProbableContent | None, llama_continues: bool) -> Iterator[None]:
        """Send a user's request inside this ``with``: from here on the slot changes, and how is not known.

        `probable` is what the request will probably leave in the slot.  It is kept even if the request is broken off,
        and confirmed before it is relied on.
        """
        # This is the line between "known" and "unknown".  Whatever ends the body from here on, an error of llama-server
        # as well as a client that hangs up, nothing has to be undone: it has been forgotten already.
        self._content.taken_by_user(probable)
        try:
            yield
        except CancelledError:
            if llama_continues:
                # llama-server goes on with requests that have an X-Conversation-Id although their connection is closed:
                # the answer can be picked up at /v1/stream.  The next user would find the slot busy, and an answer of
                # somebody else growing in it.  So the gate stays closed until llama-server says that the slot is idle.
                turn.hold_gate_for(lambda: self._content.until_idle(self._clock))
            raise

    async def _after_answer(self, name: str, key: Key, turns: Turns, use: TemplateUse) -> None:
        """Learn from an answer whether preparing helped, and write down what it left in the slot."""
        if use.reused is not None:
            self.judge(name, use.prepared, use.reused)
        await self.remember(name, key, turns)

    async def save_conversation(self) -> None:
        """Save the conversation in the slot if that is due.  Never fails for reasons of llama-server's."""
        await self._saver.save_if_due()

    def judge(self, name: str, prepared: Prepared, reused: int) -> None:
        """Compare how many tokens an answer says were `reused` with what was promised."""
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
            # Either this llama-server reuses nothing, or the chat template makes other tokens of the same text now: one
            # with a date in it does at midnight, for all templates.  The next warm-up compares, and tells which.
            self._reuse_check.doubt(name, prepared.promised, reused)

    # What happened elsewhere.

    def llama_restarted(self, slot_known: bool = False) -> None:
        """Note that another process of llama-server runs: nothing learned from the last one counts.

        With `slot_known` what the slot holds was written down of this process already, by a request that met it before
        the watch did.
        """
        if not slot_known:
            self._content.llama_restarted()
        self._reuse_check.llama_restarted()

    def llama_fell_asleep(self) -> None:
        """Note that llama-server has unloaded its model, and the slot with it.  What answers have shown stays true."""
        self._content.llama_restarted()

    def model_changed(self) -> None:
        """Note that somebody changes the model that runs: its adapters."""
        self._content.forget()
        self._identity.current = None

    def tokens_compared(self, name: str, same: bool) -> None:
        """Note that a template's tokens were compared with its file, and whether they are the `same`."""
        self._reuse_check.tokens_compared(name, same)

    def discard_template_file(self, name: str) -> None:
        """Have a template saved anew, for an operator: forget its file, and end a pause after failed saves."""
        self._files.end_pause()
        self._files.forget(name, PREFIX)

    # Questions about the slot.

    def holds(self, key: Key | None) -> bool:
        """Tell whether the slot was left with this key's tokens, as far as is known without asking llama-server."""
        return self._content.has(key)

    def may_compute(self, name: str, key: Key) -> bool:
        """Tell whether computing a template in the slot makes it warm, where there are no files.

        Not where nobody could tell afterwards that the slot holds it, nor where a user left something on this template
        there, even if it is in another shape.
        """
        known = self._content.known
        theirs = self._content.left_by_user and known is not None and known.name == name
        return self._content.visible and not self.holds(key) and not theirs

    def was_displaced(self, name: str, key: Key) -> bool:
        """Tell whether a warm-up, and no user, took the slot from a template that a file could bring back."""
        content = self._content
        ours = content.visible and not content.left_by_user and not content.has(key)
        return ours and self.saved(name, key) is not None

    def conversation_save_is_due(self) -> bool:
        """Tell whether the slot holds a conversation that is worth saving now."""
        return self._saver.due()

    # Questions about files.

    def saved(self, name: str, key: Key | None) -> Snapshot | None:
        """Return the template's file if it may be restored now: for this key, by the model that runs."""
        usable = self.may_use_files and not self.is_doubted(name)
        return self._preparer.file_for(name, key) if usable else None

    def is_doubted(self, name: str) -> bool:
        """Tell whether the template's tokens must be compared with its file before that is restored again."""
        return self._reuse_check.is_doubted(name)

    @property
    def llama_keeps_files(self) -> bool | None:
        """Whether llama-server runs with ``--slot-save-path``; `None`: it was not asked yet."""
        return self._files.enabled

    @llama_keeps_files.setter
    def llama_keeps_files(self, enabled: bool | None) -> None:
        self._files.enabled = enabled

    @property
    def may_use_files(self) -> bool:
        """Whether slot files can be saved now, and restoring them helps."""
        return self._files.of_use

    @property
    def restore_trouble(self) -> str | None:
        """Why nothing is restored with this llama-server, in a sentence for operators; `None` if that is not so."""
        return self._reuse_check.trouble

    @property
    def model_goes_back(self) -> bool:
        """Whether the model can go on from inside what the slot holds, as far as is known."""
        return self._reuse_check.goes_back

    def usable_file(self, name: str, kind: str) -> Snapshot | None:
        """Return a template's file of this kind if it is of the model that runs now, whatever text it was made of."""
        return self._files.usable(name, kind)

    async def load_file(self, name: str, kind: str, entry: Snapshot) -> bool:
        """Have llama-server read a file into the slot.  Fires and fails as `SlotFiles.load`."""
        return await self._files.load(name, kind, entry)
