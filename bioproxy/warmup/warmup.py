"""One warm-up: has llama-server process a prompt's tokens, and saves the result.

Why in pieces: llama-server notices a closed connection only between two batches, which may be seconds apart.  A user
who arrives during a warm-up waits for the piece in progress, so a piece has about as many tokens as llama-server
processes in half a second, by the slowest of the latest measurements.  Hardly anything comes on top of that: nothing is
saved when a piece is given up, and the calls that prepare the slot take milliseconds (`benchmarks/warmup_wait.py`).
Each piece is a request with all tokens up to its end.  The tokens of the pieces before are in the slot already, so
sending them again costs nothing.

Pieces must not be sent where the slot holds the whole prompt already, perhaps with a conversation behind it: a request
that is shorter than what the slot holds cuts the slot down to it.  Then all tokens are sent at once, and llama-server
only drops what is too much.

A user's arrival cancels the warm-up.  In Twisted this is an exception like any other: the ``await`` in progress raises
`CancelledError`, ``with`` and ``finally`` do their part, and the connection is closed, by which llama-server learns
that it may stop.  The user's own prompt takes the slot then.  So that not everything has to be computed again, the
beginning is saved from time to time (`NAME.part.bin`), and the next try goes on from there.

Runs inside the gate, so nothing else uses the slot meanwhile; at most one warm-up is there at a time.  Does not know
which prompt is due or why, nor what comes of a failure: that is up to `bioproxy.warmup.attempts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.gate.gate import Gate
from bioproxy.llama.speed import Speed
from bioproxy.prompts.catalogue import Prompt
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.slot import Slot
from bioproxy.slot.warmup_use import WarmupUse
from bioproxy.slot_files.reuse_check import helped
from bioproxy.slot_files.save_failures import SaveFailed
from bioproxy.warmup.progress import LEAST, Progress, piece_end
from bioproxy.warmup.resume import Resume

REST = 20
"""How many times as long as a save takes is computed before the beginning of a warm-up is saved.

So saves take at most a twentieth of a warm-up's time, and an interruption loses at most 20 times what a save takes.
Halved: twice as much time goes into saves.  Doubled: under steady traffic twice as much work is done again and again.
"""

StillWanted = Callable[[], bool]
"""Tells whether a warm-up is still wanted: false as soon as the prompt is another, because its text was edited."""


class Warmup:
    """Warms prompts up, one at a time.

    Invariant: what the slot holds is forgotten before anything changes it, and noted again only after success.  So a
    warm-up may end at each ``await``, and leaves "unknown" at worst, never a wrong belief.
    """

    log = Logger()

    current: str | None
    """The id of the prompt that is being warmed up, if any."""

    progress: dict[str, Progress]
    """How far the last warm-up of each prompt came, by id; only of those that were not finished."""

    longest_piece: int
    """Tokens of a piece at most (``warmup_chunk``).  Changes when the configuration is reloaded."""

    def __init__(
        self, gate: Gate, slot: Slot, resume: Resume, metrics: Metrics, speed: Speed, clock: IReactorTime, piece: int
    ) -> None:
        """Put the parts together; nothing is asked or started before the first `run`.

        `gate` is asked to let saves finish.  `slot` is what gets warm, and `resume` brings what need not be computed
        again.  `metrics` gets the duration of each warm-up, measured by `clock`.  `speed` learns from each piece how
        fast llama-server is, and says how many tokens make a second's work.  `piece` is the first value of
        `longest_piece`.
        """
        self.current = None
        self._gate = gate
        self._slot = slot
        self._resume = resume
        self._metrics = metrics
        self._speed = speed
        self._clock = clock
        self.longest_piece = piece
        self.progress = {}

    async def run(self, prompt: Prompt, tokens: Sequence[int], still_wanted: StillWanted) -> None:
        """Bring a prompt's `tokens` into the slot and save them.

        `still_wanted` is asked between two pieces; when it returns false, the rest is left undone.  Fires with nothing
        when the prompt is warm, or is not wanted any more.  Fails as `LlamaApi`'s calls do, with `SaveFailed`, or with
        `OSError` if the record cannot be written.  Cancelling loses what was computed since the last save.
        """
        # `finally`, because this coroutine mostly ends by cancellation: otherwise the prompt would be shown as
        # "warming" for as long as the user who interrupted it is answered, and longer.
        self.current = prompt.id
        try:
            await self._run(prompt.id, prompt.key, tokens, still_wanted)
        finally:
            self.current = None

    def unfinished(self, name: str, key: Key) -> float | None:
        """Return how far the warm-up for this key has come, from 0 to 1, if it was begun and has not ended yet.

        `None` for a key whose warm-up was never begun, or was finished.  One that a user has interrupted is unfinished,
        and so is one that has failed: the next try goes on with both.
        """
        progress = self.progress.get(name)
        return progress.done if progress is not None and progress.key == key else None

    async def _run(self, name: str, key: Key, tokens: Sequence[int], still_wanted: StillWanted) -> None:
        """Do the work of `run` for the prompt with this id and key, by which the slot and its files know it.

        The steps: save what users left in the slot; look what is there already; have the rest processed; note what the
        slot holds; save it.  Each step may be the last one, if a user comes or there is nothing left to do.
        """
        began = self._clock.seconds()
        # Made anew only after a success or a reload: the same object over all tries, so that what an interruption
        # wasted and how long users let a piece take is known in the next one.
        progress = self.progress.setdefault(name, Progress(key))
        # From here on this key's warm-up counts as begun, also if a user comes before its first piece is done.
        progress.reached(key, progress.of(key))
        # Entering saves a conversation of users if it is worth that, finds out which model runs, restores the prompt's
        # file if there is one, and compares what is there with the tokens.  A user who comes while something is saved
        # is made room for right after the save, because llama-server finishes a save that it began in any case.
        async with self._slot.use_for_warmup(self._gate, name, key, tokens) as use:
            # Nothing to compute and nothing to save: mostly because the file is that of the model's last start.
            if use.already_saved:
                return self._over(name, use)
            if not use.in_slot or not await self._cut_down(tokens, use, progress):
                await self._in_pieces(key, tokens, still_wanted, use, progress)
            # The text has changed meanwhile, or the prompt was forgotten.  What the slot holds now is of no use to
            # anybody, and noting or saving it would replace the file of the old text, whose beginning may still be of
            # use for the new one.
            if not still_wanted():
                return
            # On leaving, what the slot holds is noted first and then saved: a save that fails leaves the prompt warm in
            # the slot at least.
            use.completed()
        # Only a warm-up that computed something is counted as done: finding the file in place is no work, and would
        # make the mean duration of warm-ups look shorter than users have to expect.
        self._over(name, use)
        label = metric_label(name)
        self._metrics.warmups.labels(label, "done").inc()
        self._metrics.warmup_seconds.labels(label).observe(self._clock.seconds() - began)

    # The pieces.

    async def _in_pieces(
        self, key: Key, tokens: Sequence[int], still_wanted: StillWanted, use: WarmupUse, progress: Progress
    ) -> None:
        """Have the tokens evaluated piece by piece, for as long as they are wanted.

        Fires when all are evaluated, or `still_wanted` has returned false; fails as `LlamaApi`'s calls do.  Cancelling
        closes the connection of the piece in progress; what `progress` says then is still right.
        """
        # What a file has already: the beginning of an interrupted warm-up, an older text that begins in the same way,
        # or a conversation on the prompt.
        start = done = await self._resume.restore(tokens, key)
        progress.reached(key, done / len(tokens))
        piece = progress.piece(self._speed, self.longest_piece)
        while done < len(tokens) and still_wanted():
            # A user who comes now cancels the ``await`` below, and waits until llama-server has noticed that: one
            # batch.
            end = piece_end(done, piece, len(tokens))
            # A piece that fails ends the warm-up; what was saved on the way stays, and the next try goes on from there.
            try:
                reused = await self._piece(start, done, end, use, progress)
            except CancelledError:
                if done == start:
                    # Users come so often that not even one piece gets done.  A smaller one may.  Without this, a prompt
                    # could stay cold on a machine where users come every half second.
                    progress.interrupted_early()
                raise
            progress.reached(key, end / len(tokens))
            # The first piece after a restore shows whether the restored tokens were reused: on some models and settings
            # llama-server computes them again, and then restoring is of no use at all.
            if done == start and start:
                use.judge_beginning(start, reused)
            # Some models cannot even go on from the end (a sliding window, in older builds).  Then
            # each piece computes all those before once more.  With equal pieces the work would grow with the square of
            # the length; with pieces that double, everything is computed twice.
            piece = max(progress.piece(self._speed, self.longest_piece), 0 if helped(done, reused) else end)
            # Between two pieces the connection is closed and llama-server is free.  A user who came during the piece
            # has cancelled it, so no user waits when this line is reached.
            #
            # After the last piece the whole is saved by the caller, under its own name.
            done = end
            if done < len(tokens):
                await self._save_part(use, done, progress)

    async def _piece(self, start: int, done: int, end: int, use: WarmupUse, progress: Progress) -> int:
        """Have the tokens up to `end` evaluated, of which `done` are; the first `start` ones came from a file.

        Fires with how many of them llama-server had already; fails as its calls do.  Cancelling closes the connection.
        """
        # All chats begin alike, so the slot may have the first tokens of any prompt.  A short chat has computed them in
        # a small batch, with other numbers than a cold run's, on which those of all later tokens depend.
        reused = await self._evaluate(use, end, progress, anew=not done)
        # An older text's file may have some tokens more than its marks tell of.  What was left of the piece was too
        # small a batch then.
        if done == start < reused and end - reused < LEAST:
            await use.cut_back(start)
            reused = await self._evaluate(use, end, progress)
        return reused

    async def _cut_down(self, tokens: Sequence[int], use: WarmupUse, progress: Progress) -> bool:
        """Have the slot, which holds the prompt already, hold nothing behind it.

        Fires with whether it does; fails as `LlamaApi`'s calls do.  There is next to nothing to compute, so cancelling
        it saves no time.
        """
        # Going back from a conversation to its beginning is what some models cannot do.  Then nothing is gained here,
        # and the prompt has to be computed in pieces.
        #
        # llama-server always computes at least one token.  If it were sent the prompt at once, it would compute the
        # prompt's last token anew, alone, and a token has other numbers in so small a batch.  So the slot is cut back
        # by a whole batch first, with a token behind it that does not belong there; that one is dropped again.
        end = len(tokens) - LEAST
        if end > 0:
            if not self._slot.facts.model_goes_back:
                return False
            # Asked before the request, which has what the slot holds forgotten.
            # (A slot whose content is only believed, not known, teaches nothing.)
            had_more = use.conversation_behind
            result = await use.cut_back(end)
            progress.at_risk += result.ms / 1000
            if had_more:
                use.judge_cut(end, result.reused)
            if not helped(end, result.reused):
                return False
        await self._evaluate(use, len(tokens), progress)
        return True

    async def _evaluate(self, use: WarmupUse, end: int, progress: Progress, anew: bool = False) -> int:
        """Have llama-server evaluate the tokens up to `end`, all of them `anew` or not.

        Fires with how many of them llama-server had already; fails as its calls do.  Cancelling closes the connection.
        """
        result = await use.evaluate(end, anew)
        # llama-server's own measurement, in milliseconds: ours would count the time that the answer waited for its turn
        # in the reactor as llama-server's work.
        progress.at_risk += result.ms / 1000
        # Only what was computed says something about the speed: reused tokens cost nothing.
        self._speed.measured(result.computed, result.ms)
        return result.reused

    async def _save_part(self, use: WarmupUse, done: int, progress: Progress) -> None:
        """Save the beginning of a warm-up, if an interruption would lose enough to be worth a save.

        `done` is how many tokens the slot holds now.  Fires when they are saved, or a save is not worth it; does not
        fail if the save does.  A user's arrival ends the warm-up only after the save: raises `CancelledError` then.
        """
        # The speed of saves is measured with each one; before the first one it is not known, and the save is risked.
        # At least one piece must have been computed since the last save, or a user who comes in every second would meet
        # a save each time instead of a piece.
        seconds = self._speed.save_seconds(done) or 0.0
        if not self._slot.facts.may_use_files or progress.at_risk < max(progress.piece_seconds, REST * seconds):
            return
        # Saving cannot be undone halfway: llama-server would write the file to its end, and the record would not have
        # it.
        with self._gate.without_preemption():
            try:
                await use.save_beginning(done)
            except SaveFailed as error:
                # The warm-up can go on without.  If the disk is the reason, the save at the end will fail, too, and
                # that is logged as a failure.
                self.log.info("{error}", error=error)
            # Also after a failure, so that the next try to save comes as late as this one, not after the next piece.
            progress.at_risk = 0.0

    def _over(self, name: str, use: WarmupUse) -> None:
        """Clean up after a warm-up that was finished.  Raises `OSError` if the record cannot be written."""
        self.progress.pop(name, None)
        # The beginning that was saved on the way is part of the whole now, so its file only takes space.
        use.discard_leftovers()
