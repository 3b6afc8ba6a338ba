"""Evaluates what the next prompt of a conversation begins with, in pieces, inside the gate.

Where to begin depends on the model.  One that can go back drops the end of what the slot holds, from where the two
prompts part, and goes on from there: all pieces together are hardly more than the last answer.  One that cannot go back
must begin with a file of which all is wanted, such as that of the prompt before the conversation, or with nothing.
llama-server does not say which kind of model runs.  The first piece shows it: if it has reused next to nothing, the
model could not go back, and that is remembered until llama-server is started again.

On Twisted: the whole is one coroutine that the gate *cancels* when a user comes.  The ``await`` in progress raises
`CancelledError`, which closes the connection; llama-server stops at the end of its batch.  So the length of a piece is
how long a user may have to wait, and each piece is a request of its own.  Nothing is cleaned up here, because what is
known of the slot was forgotten before the first piece (`bioproxy.slot.head_start_use`).

Does not know how the prompt was found, nor whether its client will really send it.
"""

from __future__ import annotations

from bioproxy.gate.gate import Gate
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.llama.speed import Speed
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.slot.head_start_use import TRIAL
from bioproxy.slot.known_content import NO_KEY
from bioproxy.slot.slot import Slot
from bioproxy.slot_files.reuse_check import helped
from bioproxy.warmup.next_prompt import NextPrompt
from bioproxy.warmup.progress import Progress, piece_end
from bioproxy.warmup.resume import Resume
from bioproxy.warmup.warmup import Warmup


class HeadStartEvaluation:
    """Evaluates the beginnings of next prompts, one at a time.

    Invariant: only what was evaluated to its end is noted as what the slot holds.  The gate lets one of them in at a
    time, so `computed` belongs to the last one.
    """

    computed: int | None
    """How many tokens the last run has computed; `None` if it did not come to its end."""

    def __init__(
        self, gate: Gate, slot: Slot, resume: Resume, watch: ProcessWatch, warmup: Warmup, speed: Speed
    ) -> None:
        """Store the parts.

        `gate` is asked to let a save finish, `slot` is what is used, and `resume` restores files.  `watch` tells which
        process runs.  `warmup` has the longest piece, and `speed` says how many tokens a piece has.
        """
        self.computed = None
        self._gate = gate
        self._slot = slot
        self._watch = watch
        self._warmup = warmup
        self._speed = speed
        self._resume = resume

    async def run(self, conversation: ConversationChain, found: NextPrompt) -> None:
        """Have the slot, which holds this conversation as it was answered, hold the beginning of its next prompt.

        Fires when that is done, with `computed` set, or when the slot is found to hold something else.  Fails as
        `LlamaApi`'s calls do.  Cancelling leaves the slot unknown; llama-server keeps what it has computed.
        """
        # First of all, so that a run that is cancelled never looks like the one before it.
        self.computed = None
        use_of_slot = self._slot.use_for_head_start(self._gate, conversation, found.tokens, found.shared)
        async with use_of_slot as use:
            if use is None:
                return
            process, goes_back = self._watch.process, self._slot.facts.model_goes_back
            # From here on nothing is known of the slot but that it probably has some of this conversation.
            #
            # Only the size of pieces is taken from it.  A head start is tried once, so there is nothing to carry over.
            progress = Progress(NO_KEY)
            # A model that cannot go back would compute all up to the end of the first piece in one request, and a user
            # who comes would wait for a whole batch of llama-server's, 2,048 tokens.
            if goes_back and found.end > max(progress.piece(self._speed, self._warmup.longest_piece), TRIAL):
                goes_back = await use.try_going_back()
            if goes_back:
                # The prompt that was answered is there, so the first piece goes back to where the next one parts.  At
                # least one token is evaluated in any case, since only that cuts off what stands behind.
                done = min(found.shared, found.end - 1)
            else:
                # A file all of whose tokens are wanted, such as the prompt's own, or nothing.  Files are known to be of
                # the model that runs only where the model is known.
                done = await self._resume.restore(found.tokens[: found.end]) if self._slot.facts.model_is_known else 0
            computed, first, least = 0, True, 0
            while done < found.end:
                piece = max(progress.piece(self._speed, self._warmup.longest_piece), least)
                end = piece_end(done, piece, found.end)
                # The one ``await`` that takes long, and the one that a user who comes usually ends.
                result = await use.evaluate(end)
                # The speed of this piece decides how long the next one is.
                self._speed.measured(result.computed, result.ms)
                computed += result.computed
                # Tokens of one process mean nothing to the next one, which may have another model.
                if self._watch.process != process:
                    return
                # Once more, also after a trial: only this piece shows whether the prompt's own end can be gone back to.
                if first and goes_back and done:
                    use.judge_going_back(done, result.reused)
                # Where nothing is reused, each piece computes all those before it once more.  With pieces that double,
                # everything is computed twice at most (`bioproxy.warmup.warmup` does the same).
                least = 0 if first or helped(done, result.reused) else end
                first, done = False, end
            use.completed()
        # Behind the block: what the slot holds is noted by now.  A user who comes in the last ``await`` of the block,
        # which asks for the witness, leaves the number unset.
        self.computed = computed
