"""What a head start may do with slot 0: turn a conversation that was answered into the one that will come back.

After an answer the slot holds the conversation as the model wrote it.  The next prompt has it as the chat template
writes it, which may be something else from the last answer on.  A head start evaluates that while nobody waits, and
leaves the same conversation in the slot, ready for its next question.

An ``async with`` block encloses the work, as those of `bioproxy.slot.uses` do.  The rule is the same: what is known of
the slot is forgotten before the first change, and written down again only when all went well.  A user who comes
*cancels* the block: the ``await`` in progress raises `CancelledError`, the code behind the ``yield`` does not run, and
the slot stays "unknown".

Runs inside the gate.  Does not know texts or chat templates, only tokens, and not how long a piece is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bioproxy.gate.gate import Gate
from bioproxy.llama.answers import Evaluated
from bioproxy.llama.prefix_tokens import cut_after
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.known_content import ProbableContent
from bioproxy.slot_files.file_search import SavedConversation
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import CHAT
from bioproxy.slot_files.reuse_check import ReuseCheck, helped

TRIAL = 128
"""Tokens with which it is tried out whether the model can go back.

llama-server keeps no states to go back to of a model for fewer than 64.  So halved, hybrid models look like ones that
cannot go back; doubled, the trial takes twice as long.
"""


class HeadStartUse:
    """The slot, as one head start may use it.

    Invariant: nothing is claimed about the slot until `completed` was called and the block is left.
    """

    def __init__(
        self,
        content: SlotContent,
        files: SlotFiles,
        reuse_check: ReuseCheck,
        tokens: Sequence[int],
        probable: ProbableContent,
        saved: SavedConversation | None,
    ) -> None:
        """Store the parts.

        The next prompt begins with `tokens`, `probable` is the conversation in the slot, and `saved` the file that has
        all of it, if there is one.
        """
        self.is_complete = False
        self._content = content
        self._files = files
        self._reuse_check = reuse_check
        self._tokens = tokens
        self._probable = probable
        self._saved = saved

    async def try_going_back(self) -> bool:
        """Find out whether the model can go back inside what it holds, with `TRIAL` tokens.

        Fires with whether the slot holds the conversation and the model goes back, as far as is known.  Each of the two
        requests has so few tokens that a user who comes waits for less than a piece, whatever the model is.  Fails and
        is cancelled as `evaluate`.
        """
        # Without a file the conversation would be lost by the trial.
        if self._reuse_check.has_gone_back or self._saved is None:
            return self._reuse_check.goes_back
        # Nothing is probable during the trial: the slot has next to nothing of the conversation then.
        await self._content.evaluate_for_warmup(self._tokens[:TRIAL])
        # Two tokens back, since the states that llama-server keeps for models with a sliding window or recurrent layers
        # are a few tokens before the end of a prompt.  They are looked up only if what follows is another token.
        end = min(TRIAL, len(self._tokens)) - 2
        reused = (await self._content.evaluate_for_warmup(cut_after(self._tokens, end))).reused
        if not self.judge_going_back(end, reused):
            return False
        # These states are in the file as well.  If the file cannot be read, the slot is empty, and the caller begins as
        # with a model that cannot go back.
        there = await self._files.load(self._saved.name, CHAT, self._saved.entry, for_user=False)
        self._content.taken_by_warmup(self._probable if there else None)
        return there

    async def evaluate(self, end: int) -> Evaluated:
        """Have the slot hold exactly the first `end` tokens.

        Fires with how many of them were reused and what the rest took.  Fails as `LlamaApi`'s calls do.  Cancelling
        closes the connection, and llama-server stops after the batch it works on.
        """
        return await self._content.evaluate_for_warmup(self._tokens[:end], self._probable)

    def judge_going_back(self, promised: int, reused: int) -> bool:
        """Note how many of the `promised` tokens were reused when the end of the conversation was cut off.

        Return whether the model could go back.
        """
        self._reuse_check.went_back(promised, reused)
        return helped(promised, reused)

    def completed(self) -> None:
        """Have it written down, on leaving, that the slot holds the conversation as it will come back."""
        self.is_complete = True


class HeadStartUses:
    """Makes the blocks around head starts.  Invariant: as in `bioproxy.slot.uses.SlotUses`."""

    def __init__(
        self, content: SlotContent, files: SlotFiles, saver: ConversationSaver, reuse_check: ReuseCheck
    ) -> None:
        # Parts of `bioproxy.slot.slot.Slot`, which makes this object.
        self._content = content
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check

    @asynccontextmanager
    async def use(
        self, gate: Gate, conversation: ConversationChain, tokens: Sequence[int], shared: int
    ) -> AsyncIterator[HeadStartUse | None]:
        """Use the slot for a head start of this conversation, whose next prompt begins with `tokens`.

        The first `shared` of these were in the prompt that was answered, too.
        The block gets `None`, and may do nothing, if the slot does not hold the conversation any more.  If the block
        calls ``completed``, what the slot holds is recorded on leaving.  Fails as `LlamaApi`'s calls do; cancelling
        leaves the slot unknown, or as known as it was if nothing has changed it yet.
        """
        known = await self._content.confirm()
        if known is None or known.conversation is None or known.turns != conversation:
            yield None
            return
        # A user who comes in the middle takes a slot of which nothing is known, so nobody could save the conversation
        # then.  Where the model cannot go back, a file of it as it was answered would be of no use: its end is not
        # what comes back, and the model could not drop that.
        if self._reuse_check.goes_back:
            with gate.without_preemption():
                await self._saver.save_if_due()
        found = self._saver.saved_beginning(known.turns)
        whole = found if found is not None and found.entry.tokens == known.witness.tokens else None
        # The ``async with`` block begins at the ``yield`` below.  Until here nothing was changed, so a user who comes
        # finds what was known before.
        #
        # Whatever happens from here on, the slot has some of this conversation.  So its next request still counts as
        # going on with what the slot holds: it may pass others at the gate, and no file is restored for it where the
        # model goes back.
        probable = ProbableContent(known.key, known.turns, known.name)
        self._content.taken_by_warmup(probable)
        use = HeadStartUse(self._content, self._files, self._reuse_check, tokens, probable, whole)
        yield use
        if not use.is_complete:
            return
        # A file may have the conversation as it was answered.  That file counts for what is the same in both.  Some
        # builds of llama-server could not use more of it with models that go back only with the help of checkpoints,
        # since their files have none: if the rest is long enough, the conversation is saved once more, in place of that
        # file.  Asked anew, because the first piece may have shown that the file is of no use.
        found = self._saver.saved_beginning(known.turns)
        saved = min(found.tokens, shared) if found is not None else 0
        await self._content.remember(known.name, known.key, known.conversation, saved, known.turns, ahead=True)
        # Before anything else may run: what a user left goes on being what a user left, so that no file is brought back
        # in its place.
        self._content.left_by_user = True
