"""What a warm-up may do with slot 0, between entering and leaving `Slot.use_for_warmup`.

A warm-up evaluates a prompt's tokens, in pieces, saves what it has from time to time, and
leaves the slot with exactly the prefix.  In contrast to a user's request it must give way: when a
user comes, the gate *cancels* it, which raises `CancelledError` at the ``await`` that it is waiting
in, in llama-server's call mostly.  So each method here that changes the slot first has it forgotten
what the slot holds, and a warm-up that was cancelled leaves it unknown; the file of its beginning,
if there is one, is what the next attempt goes on from.

Deliberately unknown here: how long a piece is, when saving a beginning is worth its time, and which
prompt comes next.  That is for `bioproxy.warmup` to decide.
"""

from __future__ import annotations

from collections.abc import Sequence

from bioproxy.llama.answers import Evaluated
from bioproxy.llama.prefix_tokens import cut_after
from bioproxy.prompts.digests import prefix_digests
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot.content import SlotContent
from bioproxy.slot.known_content import NO_CONVERSATION
from bioproxy.slot.preparer import Prepared
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import CHAT, PART, PREFIX
from bioproxy.slot_files.reuse_check import ReuseCheck, helped


class WarmupUse:
    """The slot, as one warm-up may use it.

    Invariant: from the first evaluation to the end of the use, nothing is claimed about the slot.
    What was computed then is at risk until `save_beginning` or the end.
    """

    already_saved: bool
    """Whether the prompt's file has exactly these tokens, so that there is nothing to do."""

    in_slot: bool
    """Whether the slot holds all of these tokens, perhaps with more behind."""

    def __init__(
        self,
        content: SlotContent,
        files: SlotFiles,
        reuse_check: ReuseCheck,
        name: str,
        key: Key,
        tokens: Sequence[int],
    ) -> None:
        # What `compare` finds out; until then nothing is claimed.  And whether the body has said
        # that it is done.
        self.already_saved = self.in_slot = self.is_complete = False
        self._content = content
        self._files = files
        self._reuse_check = reuse_check
        self._name = name
        self._key = key
        self._tokens = tokens

    async def compare(self, prepared: Prepared) -> None:
        """Compare what the file and the slot have with the tokens.  `Slot` calls this first, after preparing the slot.

        Fails as `LlamaApi`'s calls do, and with `OSError` if the record cannot be written.
        """
        # Files first: where they have everything, the slot need not be looked at.  By the marks of
        # the tokens, not by the key: what counts is what llama-server will process.
        entry = self._files.usable(self._name, PREFIX)
        self.already_saved = entry is not None and entry.marks == prefix_digests(self._tokens) and self._files.of_use
        if self.already_saved:
            # The file may be recorded for another key: not everything that looks different to us
            # makes other tokens.
            self._files.rename_key(self._name, self._key)
        # An earlier llama-server with other flags may have saved a file that this one cannot go on from.
        if self._reuse_check.tokens_compared(self._name, self.already_saved):
            self.already_saved = False
        if self.already_saved or prepared.cache != "hot":
            return
        # Hot means only that the plan found the slot good enough.  After an answer that was broken
        # off the slot may have less than the whole prompt, and then the pieces must be computed.
        self.in_slot = self._content.has(self._key) or await self._content.probably_has(
            self._key, NO_CONVERSATION, len(self._tokens) - 1
        )

    @property
    def conversation_behind(self) -> bool:
        """Whether the slot is known to hold a conversation behind the prompt."""
        # To be asked before `evaluate`, which has everything forgotten that is known of the slot.
        return self._content.known is not None and self._content.known.conversation is not None

    async def evaluate(self, end: int, anew: bool = False) -> Evaluated:
        """Have the slot hold exactly the first `end` tokens, all of them computed `anew` or not.

        Fires with how many of them were reused and what the rest took.  Fails as `LlamaApi`'s calls
        do.  Cancelling closes the connection, and llama-server stops after the batch it works on.
        """
        return await self._content.evaluate_for_warmup(self._tokens[:end], anew=anew)

    async def cut_back(self, end: int) -> Evaluated:
        """Have the slot, which holds all tokens, hold the first `end` ones and a token that does not belong there.

        Fires, fails and is cancelled as `evaluate`.
        """
        return await self._content.evaluate_for_warmup(cut_after(self._tokens, end))

    def judge_beginning(self, promised: int, reused: int) -> None:
        """Note how many of the `promised` tokens of a restored beginning were reused."""
        # Here the tokens are known to be right: the marks of the file were compared with them.  So
        # there is no doubt to be cleared up, and it counts for or against llama-server at once.
        if helped(promised, reused):
            self._reuse_check.helped()
        else:
            self._reuse_check.did_not_help(promised, reused)

    def judge_cut(self, promised: int, reused: int) -> None:
        """Note how many of the `promised` tokens were reused when a conversation behind the prompt was cut off."""
        # Just what going back means: all of these tokens should have been there.
        self._reuse_check.went_back(promised, reused)

    async def save(self, kind: str, tokens: Sequence[int]) -> None:
        """Save the slot, which holds exactly these tokens, to a file of this kind.  Fails with `SaveFailed`."""
        # Called where the gate does not preempt: llama-server finishes a save in any case, so
        # giving it up would only throw it away.
        await self._files.save(self._name, kind, self._key, len(tokens), prefix_digests(tokens))

    async def save_beginning(self, end: int) -> None:
        """Save the first `end` tokens, which the slot holds, for a later attempt.  Fails with `SaveFailed`."""
        await self.save(PART, self._tokens[:end])

    def completed(self) -> None:
        """Have it written down and saved, on leaving, that the slot holds exactly the prompt."""
        # A mark instead of doing it here, because the gate must not be given up during the save,
        # and the end of the use ensures that.
        self.is_complete = True

    def discard_leftovers(self) -> None:
        """Remove files that are of no more use now that the prompt is warm.  Raises `OSError`."""
        # The beginning is part of the whole now.
        self._files.discard((self._name, PART))
        chat, prefix = self._files.recorded(self._name, CHAT), self._files.recorded(self._name, PREFIX)
        if chat is not None and prefix is not None and chat.key.text != prefix.key.text:
            # A conversation on an older text of the prompt: no request will ever go on with that.
            self._files.discard((self._name, CHAT))
