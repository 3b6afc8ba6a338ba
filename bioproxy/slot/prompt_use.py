"""A user's request on a prompt while it uses slot 0, and what its answer shows about the slot.

Before the request is sent, the slot is prepared, and with that goes a promise: so many tokens will be reused.
llama-server reports with each answer how many it has reused.  The difference is the only way to find out whether
restoring and going back work with the model and the flags that llama-server runs with
(`bioproxy.slot_files.reuse_check`).

The Twisted idea is in who runs this.  An answer is judged after its last byte has gone to the client, who may hang up
at any moment.  A hang-up cancels the client's coroutine, so the judging runs in another one, which the gate starts
(`bioproxy.gate.turn.Turn.hold_gate_for`).  Everything that it needs to know of the request is therefore kept in a value
of its own, `PromptUse`, and not in the local variables of the client's coroutine.

Does not know how the slot is prepared, or what it is left with: `bioproxy.slot.preparer` and `bioproxy.slot.recorder`
do.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.content import SlotContent
from bioproxy.slot.known_content import KnownContent
from bioproxy.slot.parking import Parking
from bioproxy.slot.preparer import REUSES_NOTHING, Prepared
from bioproxy.slot_files.record import CHAT
from bioproxy.slot_files.reuse_check import ReuseCheck, helped


@dataclass(eq=False)
class PromptUse:
    """A user's request on a prompt while it uses the slot.

    Invariant: unless `answered` was called, nothing is recorded about the slot when the use ends.
    """

    name: str
    """The prompt's id; empty where the request begins with no prompt that is known."""
    key: Key
    """What the request begins with."""
    turns: ConversationChain
    """Its conversation."""
    prepared: Prepared
    """How the slot was prepared for it."""
    before: KnownContent | None
    """What slot 0 held then, for a request that may run in another slot; `None` for one that cannot."""
    is_answered: bool = False
    """Whether llama-server answered the request to its end."""
    reused: int | None = None
    """Tokens that llama-server reports as reused; `None` if it reports no number."""
    prompt_tokens: int | None = None
    """Tokens of the whole prompt; `None` likewise."""

    def answered(self, reused: int | None, prompt_tokens: int | None = None) -> None:
        """Have the slot's content recorded on leaving, because llama-server answered the request to its end.

        The numbers are those of the attributes.
        """
        self.is_answered, self.reused, self.prompt_tokens = True, reused, prompt_tokens


class AnswerJudge:
    """Compares what answers have reused with what was promised.

    Invariant: nothing is learned from a request that ran in another slot, or that must not reuse anything.
    """

    def __init__(self, content: SlotContent, reuse_check: ReuseCheck, parking: Parking, metrics: Metrics) -> None:
        # Parts of `bioproxy.slot.slot.Slot`, which makes this object from its own.
        self._content = content
        self._reuse_check = reuse_check
        self._parking = parking
        self._metrics = metrics

    async def judge(self, use: PromptUse) -> None:
        """Learn from an answer whether preparing the slot helped.  Fires when that is done, and never fails."""
        if use.reused is not None and not await self._ran_elsewhere(use, use.reused):
            self.compare(use.name, use.prepared, use.reused)
            # What is reused although nothing was prepared comes from llama-server's memory.  A request
            # that must not reuse anything proves nothing about that.
            if use.prepared.cache == "cold" and use.prepared is not REUSES_NOTHING:
                self._parking.judge(use.key, use.turns, use.reused)
        self._parking.answered(use.prompt_tokens)

    async def _ran_elsewhere(self, use: PromptUse, reused: int) -> bool:
        """Tell whether a request that reused too little has used another slot than the one that was prepared for it.

        Fires with that; never fails for reasons of llama-server's.
        """
        # llama-server chooses the slot of a request that names none: where it has several, the least recently used one
        # if too small a part of the prompt is in any.  That says nothing about what was restored into slot 0.  One more
        # question, but only where otherwise restoring would be given up after two such answers.
        promised = use.prepared.promised
        if use.before is None or promised is None or helped(promised, reused):
            return False
        now = await self._content.as_it_is()
        return now is not None and now.witness == use.before.witness

    def compare(self, name: str, prepared: Prepared, reused: int) -> None:
        """Compare the number of tokens that an answer reports as `reused` with the number that was promised."""
        # There are three kinds of promises, and each shows one fact: whether the model can continue
        # from a point inside the slot's tokens, whether restoring conversations helps, and whether
        # restoring templates helps.
        if prepared.promised is None:
            return
        if prepared.source is None:
            return self._reuse_check.went_back(prepared.promised, reused)
        useful = helped(prepared.promised, reused)
        if not useful and prepared.cache == "restored":
            self._metrics.slot_restores.labels(metric_label(name), "ineffective").inc()
        if prepared.source == CHAT:
            self._reuse_check.conversation_restored(useful)
        elif useful:
            self._reuse_check.helped()
        else:
            # Either this llama-server reuses nothing, or the chat template makes other tokens of
            # the same text now, for example after midnight if it contains the date.  That then
            # concerns all templates.  The next warm-up compares the tokens and so finds the cause.
            self._reuse_check.doubt(name, prepared.promised, reused)
