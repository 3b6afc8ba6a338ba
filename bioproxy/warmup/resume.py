"""What a warm-up need not compute again, because a file has its beginning.

That can be an interrupted warm-up (`NAME.part.bin`), or the file of an older text of the template that begins in the
same way: after an edit at the end of a long text only the end has to be computed.

The latter needs a model that can go back inside what it holds.  Whether it can is tried out, on a few tokens: were it
simply hoped for, llama-server would compute everything in one go, and a user who comes would have to wait for that.

Runs inside the gate, as part of a warm-up.
"""

from __future__ import annotations

from collections.abc import Sequence

from bioproxy.llama.api import LlamaApi
from bioproxy.prompts.digests import shared_prefix_length
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.record import PART, PREFIX, Snapshot
from bioproxy.slot.reuse_check import ReuseCheck, helped

LEAST = 512
"""Tokens.  Fewer are computed as quickly as a file is restored."""

TRIAL = 64
"""Tokens to which the model is asked to go back, to see whether it can."""


class Resume:
    """Restores the beginning of prefix tokens."""

    def __init__(self, files: SlotFiles, llama: LlamaApi, reuse_check: ReuseCheck) -> None:
        self._files = files
        self._llama = llama
        self._reuse_check = reuse_check

    async def restore(self, name: str, tokens: Sequence[int]) -> int:
        """Restore as much of the beginning of a template's prefix tokens as there is.

        Fires with how many of them the slot has now.  Fails as `SlotFiles.load` and `LlamaApi`'s calls do.
        """
        if not self._files.of_use:
            return 0
        part, older = (self._files.usable(name, kind) for kind in (PART, PREFIX))
        in_part = shared_prefix_length(part.marks, part.tokens, tokens) if part is not None else 0
        # Never all: of a text that was cut at its end, the last token has to be evaluated to cut the slot down to it.
        in_older = (
            min(shared_prefix_length(older.marks, older.tokens, tokens), len(tokens) - 1) if older is not None else 0
        )
        if older is not None and in_older >= max(LEAST, in_part + 1) and await self._from_older(name, older, tokens):
            return in_older
        # A part that is more than what is wanted now would need going back, too.
        if part is not None and in_part == part.tokens and await self._files.load(name, PART, part):
            return in_part
        return 0

    async def _from_older(self, name: str, older: Snapshot, tokens: Sequence[int]) -> bool:
        """Restore an older text, if the model can go back in it to where the texts part."""
        if not self._reuse_check.goes_back or not await self._files.load(name, PREFIX, older):
            return False
        if not await self._goes_back(tokens):
            return False
        # Once more: the trial has left only a few tokens.
        return await self._files.load(name, PREFIX, older)

    async def _goes_back(self, tokens: Sequence[int]) -> bool:
        """Try whether the model can go on from inside what the slot holds, which begins with these tokens."""
        return helped(TRIAL, (await self._llama.evaluate(tokens[:TRIAL])).reused)
