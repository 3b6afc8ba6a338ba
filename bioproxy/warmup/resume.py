"""What a warm-up need not compute again, because a file has the beginning of its tokens.

Such a file can be that of an interrupted warm-up (`NAME.part.bin`).  Or it is the file of an older text of the prompt
that begins in the same way: after an edit at the end of a long text only the end has to be computed.

The second needs a model that can go back inside what the slot holds, to where the two texts part.  Models with a
sliding window or recurrent layers cannot, and llama-server does not say so: it would silently compute everything in one
go, and a user who comes would have to wait for all of that.  So it is tried out first, on a few tokens.

For Twisted this is one coroutine with several requests in a row.  Wherever it is cancelled, no later request relies on
what the slot holds then: `bioproxy.warmup.warmup` notes what is in the slot only at its own end.

Runs inside the gate.  Does not know texts, only tokens and their fingerprints, and computes nothing but the trial.
"""

from __future__ import annotations

from collections.abc import Sequence

from bioproxy.llama.api import LlamaApi
from bioproxy.prompts.digests import shared_prefix_length
from bioproxy.slot.record import PART, PREFIX, Snapshot
from bioproxy.slot.reuse_check import helped
from bioproxy.slot.slot import Slot

LEAST = 512
"""Tokens that an older text must share with the new one.  Fewer are computed as quickly as a file is restored.

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

    async def restore(self, name: str, tokens: Sequence[int]) -> int:
        """Restore as much of the beginning of a prompt's tokens as there is in a file.

        `name` is the prompt's id.  Fires with how many of the tokens the slot holds now.  Fails as `Slot.load_file` and
        `LlamaApi`'s calls do.  Cancelling leaves unknown what the slot holds.
        """
        if not self._slot.may_use_files:
            return 0
        part, older = (self._slot.usable_file(name, kind) for kind in (PART, PREFIX))
        in_part = shared_prefix_length(part.marks, part.tokens, tokens) if part is not None else 0
        # Never all of them: if a text was cut at its end, the older file has all tokens of the new one and more, and at
        # least one token has to be evaluated for llama-server to cut the slot down.
        in_older = (
            min(shared_prefix_length(older.marks, older.tokens, tokens), len(tokens) - 1) if older is not None else 0
        )
        if older is not None and in_older >= max(LEAST, in_part + 1) and await self._from_older(name, older, tokens):
            return in_older
        # The part is used only if all of it is wanted.  One of an older text would need going back, too, and after an
        # edit there is mostly the older text's whole file, which has more.
        if part is not None and in_part == part.tokens and await self._slot.load_file(name, PART, part):
            return in_part
        return 0

    async def _from_older(self, name: str, older: Snapshot, tokens: Sequence[int]) -> bool:
        """Restore an older text, if the model can go back inside it to where the texts part.

        Fires with whether the slot holds it now; fails and is cancelled as `restore` is.
        """
        if not self._slot.model_goes_back or not await self._slot.load_file(name, PREFIX, older):
            return False
        if not await self._goes_back(tokens):
            return False
        # Once more: the trial has cut the slot down to a few tokens.
        return await self._slot.load_file(name, PREFIX, older)

    async def _goes_back(self, tokens: Sequence[int]) -> bool:
        """Try whether the model can go on from inside what the slot holds, which begins with these tokens.

        Fires with whether it reused them.  Leaves the slot with `TRIAL` tokens.
        """
        return helped(TRIAL, (await self._llama.evaluate(tokens[:TRIAL])).reused)
