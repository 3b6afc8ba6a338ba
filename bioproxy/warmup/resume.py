"""What a warm-up need not compute again, because a file has the beginning of its tokens.

Any file may have it: that of an interrupted warm-up (`NAME.part.bin`); that of an older text of the prompt, after an
edit at its end; that of another prompt which begins in the same way, as the agents of one program do.  Only the tokens
count, which are compared by their digests, and not whose file it is.  Of a conversation the tokens are not known, but
on which prompt it is: a prompt is mostly learned when conversations on it have been saved.

A file all of whose tokens are wanted can be used with every model.  Of any other file only the beginning is wanted, and
that needs a model that can go back inside what the slot holds, to where the tokens part.  Models with a sliding window
or recurrent layers cannot, and llama-server does not say so: it would silently compute everything in one go, and a user
who comes would have to wait for all of that.  So it is tried out first, on a few tokens.

For Twisted this is one coroutine with several requests in a row.  Wherever it is cancelled, no later request relies on
what the slot holds then: `bioproxy.warmup.warmup` notes what is in the slot only at its own end.

Runs inside the gate.  Does not know texts, only tokens and their fingerprints, and computes nothing but the trial.
"""

from __future__ import annotations

from collections.abc import Sequence

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.prefix_tokens import cut_after
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot.slot import Slot
from bioproxy.slot_files.record import CHAT, Snapshot
from bioproxy.slot_files.reuse_check import helped
from bioproxy.warmup.progress import LEAST as LEAST_BATCH

LEAST = 512
"""Tokens that must be the same for going back to where they part.  Fewer are computed as quickly as that.

Halved: short common beginnings cost two restores and a trial, and save nothing.  Doubled: up to 1,023 tokens are
computed again after an edit, which takes a slow machine a minute.
"""

TRIAL = 64
"""Tokens to which the model is asked to go back, to see whether it can.

Halved or doubled: the trial itself becomes cheaper or dearer where the model cannot, as these tokens are computed then.
Must be smaller than `LEAST`.
"""


class Resume:
    """Restores the beginning of a prompt's tokens.

    Invariant: what `restore` fires with is what the slot holds, no more; 0 is always right.
    """

    def __init__(self, slot: Slot, llama: LlamaApi) -> None:
        self._slot = slot
        self._llama = llama

    async def restore(self, tokens: Sequence[int], key: Key | None = None) -> int:
        """Restore as much of the beginning of these tokens as there is in a file.

        Conversations are looked at only if the tokens are those of a whole prompt, which `key` then says.
        Fires with how many of the tokens the slot holds now.  Fails as `Slot.load_file` and `LlamaApi`'s calls do.
        Cancelling leaves unknown what the slot holds.
        """
        if not self._slot.facts.may_use_files:
            return 0
        # The rest must be worth a batch, or its numbers would not be those of a cold run.
        most = len(tokens) - LEAST_BATCH
        if key is not None and most >= LEAST and (found := self._slot.facts.conversation_on(key)) is not None:
            name, entry = found
            if await self._go_back(name, CHAT, entry, tokens):
                # More of the prompt is there, and would be used.  A token that does not belong there cuts it off.
                await self._llama.evaluate(cut_after(tokens, most))
                return most
        goes_back = True
        for name, kind, entry, shared in self._slot.facts.files_sharing(tokens):
            if shared == entry.tokens <= most:
                # The longest of those that need no going back.  A file that cannot be loaded is out of the record then.
                if await self._slot.load_file(name, kind, entry):
                    return shared
            elif goes_back and min(shared, most) >= LEAST:
                if await self._go_back(name, kind, entry, tokens):
                    return min(shared, most)
                # The file has these tokens, which nobody knows of a conversation's, so it is the model that cannot.
                # Many files may begin in the same way, and each try reads one.
                goes_back = False
        return 0

    async def _go_back(self, name: str, kind: str, entry: Snapshot, tokens: Sequence[int]) -> bool:
        """Restore a file of which only the beginning is wanted, if the model can go back inside it.

        Fires with whether the slot holds it now; fails and is cancelled as `restore` is.
        """
        if not self._slot.facts.model_goes_back or not await self._slot.load_file(name, kind, entry):
            return False
        # Whether the model reuses the first tokens of what the slot holds now.  That cuts the slot down to these.
        if not helped(TRIAL, (await self._llama.evaluate(tokens[:TRIAL])).reused):
            return False
        return await self._slot.load_file(name, kind, entry)
