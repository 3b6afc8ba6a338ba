"""One warm-up: has llama-server process a prompt's tokens, and saves the result.

Why in pieces: llama-server notices that nobody waits any more only between two batches, which may be seconds apart.  A
user who arrives during a warm-up waits for the piece in progress, so a piece has about as many tokens as llama-server
processes in one second.  Each piece is a request with all tokens up to its end.  The tokens of the pieces before are in
the slot already, so sending them again costs nothing.

Pieces must not be sent where the slot holds the whole prompt already, perhaps with a conversation behind it: a request
that is shorter than what the slot holds cuts the slot down to it.  Then all tokens are sent at once, and llama-server
only drops what is too much.

A user's arrival cancels the warm-up.  In Twisted this is an exception like any other: the ``await`` in progress raises
`CancelledError`, ``with`` and ``finally`` do their part, and the connection is closed, by which llama-server learns
that it may stop.  The user's own prompt takes the slot then.  So that not everything has to be computed again, the
beginning is saved from time to time (`NAME.part.bin`), and the next try goes on from there.

Runs inside the gate, so nobody else uses the slot meanwhile.  Does not know which prompt is due or why, nor what comes
of a failure: that is up to `bioproxy.warmup.warmer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.speed import Speed
from bioproxy.prompts.catalogue import Prompt
from bioproxy.prompts.digests import marks
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.files import SaveFailed
from bioproxy.slot.gate import Gate
from bioproxy.slot.record import CHAT, PART, PREFIX
from bioproxy.slot.reuse_check import helped
from bioproxy.slot.slot import NOBODY, Slot
from bioproxy.warmup.progress import Progress
from bioproxy.warmup.resume import Resume

REST = 20
"""How many times as long as a save takes is computed before the beginning of a warm-up is saved.

So saves take at most a twentieth of a warm-up's time, and an interruption loses at most 20 times what a save takes.
Halved: twice as much time goes into saves.  Doubled: under steady traffic twice as much work is done again and again.
"""


class Warmup:
    """Warms prompts up, one at a time.

    Invariant: what the slot holds is forgotten before anything changes it, and noted again only after success.  So a
    warm-up may end at each ``await``, and leaves "unknown" at worst, never a wrong belief.
    """

    log = Logger()

    current: str | None
    """The id of the prompt that is being warmed up, if any."""

    longest_piece: int
    """Tokens of a piece at most (``warmup_chunk``).  Changes when the configuration is reloaded."""

    def __init__(
        self,
        gate: Gate,
        slot: Slot,
        llama: LlamaApi,
        metrics: Metrics,
        speed: Speed,
        clock: IReactorTime,
        longest_piece: int,
    ) -> None:
        """Put the parts together; `speed` learns from each piece, and `clock` measures how long a warm-up takes."""
        self.current = None
        self._gate = gate
        self._slot = slot
        self._files = slot.files
        self._llama = llama
        self._metrics = metrics
        self._speed = speed
        self._clock = clock
        self.longest_piece = longest_piece
        self._resume = Resume(slot.files, llama, slot.reuse_check)
        # By id, of the prompts whose last warm-up was not finished.
        self._progress: dict[str, Progress] = {}

    def progress(self, prompt: Prompt) -> float:
        """Return how far the last warm-up of just this prompt came, from 0 to 1."""
        known = self._progress.get(prompt.id)
        return 0.0 if known is None else known.of(prompt.key)

    def forget(self, id: str) -> None:
        """Forget how far a prompt's warm-up came: the prompt is gone, or another one with this id has come."""
        self._progress.pop(id, None)

    async def run(self, prompt: Prompt, tokens: Sequence[int], wanted: Callable[[], bool]) -> None:
        """Bring a prompt's `tokens` into the slot and save them.

        `wanted` is asked between two pieces; when it returns false, the rest is left undone.  Fires with nothing when
        the prompt is warm, or is not wanted any more.  Fails as `LlamaApi`'s calls do, with `SaveFailed`, or with
        `OSError` if the record cannot be written.  Cancelling loses what was computed since the last save.
        """
        self.current = prompt.id
        try:
            await self._run(prompt.id, prompt.key, tokens, wanted)
        finally:
            self.current = None

    async def _run(self, name: str, key: Key, tokens: Sequence[int], wanted: Callable[[], bool]) -> None:
        """Do the same, with the prompt's id and key, as the slot and its files know it."""
        began = self._clock.seconds()
        progress = self._progress.setdefault(name, Progress(key))
        if not self._files.model_known:
            # llama-server was restarted, and a question was answered since.  What it left in the slot is right, but to
            # learn which model it belongs to costs just that: it has to be computed again.
            self._slot.content.forget()
        # A conversation that users left in the slot would be lost, also where it is on this very prompt: so that is
        # saved first, if it is worth it.  The prompt's own tokens do not count for that question, as they are about to
        # be saved anyhow.  llama-server finishes a save that it began, even if nobody waits; so a user's arrival does
        # not cancel it (`let_finish`), but ends the warm-up right after it.
        if self._slot.content.has(key):
            self._slot.content.now_saved(len(tokens))
        with self._gate.let_finish():
            await self._slot.saver.keep()
        # This finds out which model runs, restores the prompt's file if there is one for this very key, and says
        # whether the slot holds the prompt now.  A restored file mostly means that the warm-up is over: see below.
        prepared = await self._slot.prepare(name, key)
        same = self._same_as_saved(name, key, tokens)
        self._slot.looked_at(name, same)
        if same:
            return self._over(name)
        # "hot" alone only says that the slot holds the beginning of this prompt's requests.  It must be the whole
        # prompt, known or at least seen by its length, or cutting down would compute the missing rest in one go, which
        # a user who comes would have to wait for.
        content = self._slot.content
        if prepared.cache == "hot" and (content.has(key) or await content.has_perhaps(key, NOBODY, len(tokens) - 1)):
            await self._cut_down(tokens, progress)
        else:
            await self._in_pieces(name, key, tokens, wanted, progress)
            if not wanted():
                return
        # First what the slot holds, then the file: a save that fails leaves the prompt warm in the slot at least.
        await self._slot.note(name, key)
        if self._files.of_use:
            with self._gate.let_finish(last=True):
                await self._files.save(name, PREFIX, key, len(tokens), marks(tokens))
        self._over(name)
        self._metrics.warmups.labels(name, "done").inc()
        self._metrics.warmup_seconds.labels(name).observe(self._clock.seconds() - began)

    async def _in_pieces(
        self, name: str, key: Key, tokens: Sequence[int], wanted: Callable[[], bool], progress: Progress
    ) -> None:
        """Have the tokens evaluated piece by piece, for as long as they are wanted.

        Fires when all are evaluated, or `wanted` has returned false; fails as `LlamaApi`'s calls do.  Cancelling closes
        the connection of the piece in progress; what `progress` says then is still right.
        """
        # What a file has already: the beginning of an interrupted warm-up, or an older text that begins in the same
        # way.
        start = done = await self._resume.restore(name, tokens)
        progress.reached(key, done / len(tokens))
        piece = progress.piece(self._speed, self.longest_piece)
        while done < len(tokens) and wanted():
            end = min(done + piece, len(tokens))
            try:
                reused = await self._evaluate(tokens, end, progress)
            except CancelledError:
                if done == start:
                    # Users come so often that not even one piece gets done.  A smaller one may.  Without this, a prompt
                    # could stay cold for ever on a machine where users come every half second.
                    progress.interrupted_early()
                raise
            progress.reached(key, end / len(tokens))
            # The first piece after a restore shows whether the restored tokens were reused: on some models and settings
            # llama-server computes them again, and then restoring is of no use at all.
            if done == start and start:
                self._slot.reuse_check.helped() if helped(start, reused) else self._slot.reuse_check.did_not_help(
                    start, reused
                )
            # Some models cannot even go on from the end (a sliding window without --swa-full, in older builds).  Then
            # each piece computes all those before once more.  With equal pieces the work would grow with the square of
            # the length; with pieces that double, everything is computed twice.
            usual = progress.piece(self._speed, self.longest_piece)
            piece = usual if helped(done, reused) else max(usual, end)
            done = end
            if done < len(tokens):
                await self._save_part(name, key, tokens[:done], progress)

    async def _cut_down(self, tokens: Sequence[int], progress: Progress) -> None:
        """Have the slot, which holds the prompt already, hold nothing behind it.

        Fires when it does; fails as `LlamaApi`'s calls do.  There is next to nothing to compute, so this is one
        request, and cancelling it saves nobody any time.
        """
        had_more = self._slot.content.now is not None and self._slot.content.now.conversation is not None
        reused = await self._evaluate(tokens, len(tokens), progress)
        # Going back from a conversation to its beginning is what some models cannot do.  This is an occasion to learn
        # whether the present one can, for free.
        if had_more:
            self._slot.reuse_check.gone_back(len(tokens), reused)

    async def _evaluate(self, tokens: Sequence[int], end: int, progress: Progress) -> int:
        """Have llama-server evaluate the tokens up to `end`.

        Fires with how many of them llama-server had already; fails as its calls do.  Cancelling closes the connection.
        """
        # Before the request, not after: from here on the slot's content changes, whatever becomes of the answer.
        self._slot.content.taken_by_warmup()
        result = await self._llama.evaluate(tokens[:end])
        progress.at_risk += result.ms / 1000
        self._speed.measured(result.computed, result.ms)
        return result.reused

    async def _save_part(self, name: str, key: Key, tokens: Sequence[int], progress: Progress) -> None:
        """Save the beginning of a warm-up, if an interruption would lose enough to be worth a save.

        Fires when that is done, or not worth it; does not fail if the save does.  A user's arrival ends the warm-up
        only after the save: raises `CancelledError` then.
        """
        # The speed of saves is measured with each one; before the first one it is not known, and the save is risked.
        seconds = self._speed.save_seconds(len(tokens)) or 0.0
        if not self._files.of_use or progress.at_risk < max(progress.piece_seconds, REST * seconds):
            return
        with self._gate.let_finish():
            try:
                await self._files.save(name, PART, key, len(tokens), marks(tokens))
            except SaveFailed as error:
                # The warm-up can go on without.  If the disk is the reason, the save at the end will fail, too, and
                # that is logged as a failure.
                self.log.info("{error}", error=error)
            # Also after a failure, so that the next try to save comes as late as this one, not after the next piece.
            progress.at_risk = 0.0

    def _same_as_saved(self, name: str, key: Key, tokens: Sequence[int]) -> bool:
        """Return whether there is a file with just these tokens, and have the record say so.

        Raises `OSError` if the record cannot be written.
        """
        entry = self._files.usable(name, PREFIX)
        if entry is None or entry.marks != marks(tokens) or not self._files.of_use:
            return False
        # Perhaps the file is of another key: not everything that looks different to us makes other tokens.  A chat
        # template may ignore a field of the request, for example.  Then nothing needs to be computed.
        self._files.rename_key(name, key)
        return True

    def _over(self, name: str) -> None:
        """Clean up after a warm-up that was finished.  Raises `OSError` if the record cannot be written."""
        self._progress.pop(name, None)
        self._files.discard(name, PART)
        chat, prefix = self._files.recorded(name, CHAT), self._files.recorded(name, PREFIX)
        if chat is not None and prefix is not None and chat.key.text != prefix.key.text:
            # The conversation is on an older text: no request can go on with it.
            self._files.discard(name, CHAT)
