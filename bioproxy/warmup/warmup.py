"""One warm-up: has llama-server process a template's prefix tokens, and saves the result.

Why in pieces: llama-server notices that nobody waits any more only between batches, which may take seconds.  A user
who arrives during a warm-up waits for the piece in progress, so a piece is as long as llama-server needs about one
second for.  Each piece is a request with all tokens up to its end; those of the pieces before are in the slot
already, so it costs nothing to send them again.

Pieces must not be sent where the slot holds the template already, with a conversation behind it perhaps: a prompt that
is shorter than what the slot holds cuts the slot down to it.  Then all tokens are sent at once, and llama-server only
drops what is too much.

A user's arrival cancels a warm-up, and the user's own prompt takes the slot.  So that not everything has to be computed
again, the beginning is saved from time to time (`NAME.part.bin`), and the next try goes on from there.  Not after every
piece: only when what would be lost has taken `REST` times as long as saving it will.

Runs inside the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.speed import Speed
from bioproxy.prompts.digests import prefix_digests
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.files import SaveFailed
from bioproxy.slot.gate import Gate
from bioproxy.slot.record import CHAT, PART, PREFIX
from bioproxy.slot.reuse_check import helped
from bioproxy.slot.slot import NOBODY, Slot
from bioproxy.warmup.resume import Resume

SMALLEST_PIECE = 64
"""Tokens.  Below that a piece's fixed costs outweigh what a user gains."""

FIRST_PIECE = 256
"""Tokens of a piece while the speed is not known."""

PIECE_SECONDS = 1.0
"""How long a piece should take."""

REST = 20
"""So many times as long as saving takes, computing may go on without."""


class Warmup:
    """Warms templates up, one at a time.

    `current` is the template that is being warmed up, if any.
    """

    log = Logger()

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
        self.current: str | None = None
        self._gate = gate
        self._slot = slot
        self._files = slot.files
        self._llama = llama
        self._metrics = metrics
        self._speed = speed
        self._clock = clock
        self.longest_piece = longest_piece
        self._resume = Resume(slot.files, llama, slot.reuse_check)
        self._progress: dict[str, tuple[Key, float]] = {}
        self._at_risk: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def progress(self, name: str, key: Key) -> float:
        """Return how far the template's last warm-up for this key came, from 0 to 1."""
        about, progress = self._progress.get(name, (key, 0.0))
        return progress if about == key else 0.0

    async def run(self, name: str, key: Key, tokens: Sequence[int], wanted: Callable[[], bool]) -> None:
        """Bring a template's prefix tokens into the slot and save them; stop between pieces if not `wanted` any more.

        Fails as `LlamaApi`'s calls do, or with `SaveFailed`.  Cancelling it loses at most what was computed since the
        last save.
        """
        self.current = name
        try:
            await self._run(name, key, tokens, wanted)
        finally:
            self.current = None

    async def _run(self, name: str, key: Key, tokens: Sequence[int], wanted: Callable[[], bool]) -> None:
        began = self._clock.seconds()
        if not self._files.model_known:
            # llama-server was restarted, and a question was answered since.  What it left in the slot is right, but to
            # learn which model it belongs to costs just that: it has to be computed again.
            self._slot.content.forget()
        # What users left in the slot would be lost, also where it is a conversation on this very template.  The
        # template itself does not count then: it is about to be saved.
        if self._slot.content.has(key):
            self._slot.content.now_saved(len(tokens))
        with self._gate.let_finish():
            await self._slot.saver.keep()
        prepared = await self._slot.prepare(name, key)
        same = self._same_as_saved(name, key, tokens)
        self._slot.looked_at(name, same)
        if same:
            return self._over(name)
        content = self._slot.content
        if prepared.cache == "hot" and (content.has(key) or await content.has_perhaps(key, NOBODY, len(tokens) - 1)):
            await self._cut_down(name, tokens)
        else:
            await self._in_pieces(name, key, tokens, wanted)
            if not wanted():
                return
        await self._slot.note(name, key)
        if self._files.of_use:
            with self._gate.let_finish(last=True):
                await self._files.save(name, PREFIX, key, len(tokens), prefix_digests(tokens))
        self._over(name)
        self._metrics.warmups.labels(name, "done").inc()
        self._metrics.warmup_seconds.labels(name).observe(self._clock.seconds() - began)

    async def _in_pieces(self, name: str, key: Key, tokens: Sequence[int], wanted: Callable[[], bool]) -> None:
        """Evaluate the tokens piece by piece, for as long as they are wanted."""
        start = done = await self._resume.restore(name, tokens)
        self._tell(name, key, done / len(tokens))
        piece = self._piece(name)
        while done < len(tokens) and wanted():
            end = min(done + piece, len(tokens))
            try:
                reused = await self._evaluate(name, tokens, end)
            except CancelledError:
                if done == start:
                    # Users come so often that not even one piece gets done.  A smaller one may.
                    self._seconds[name] = self._seconds.get(name, PIECE_SECONDS) / 2
                raise
            self._tell(name, key, end / len(tokens))
            if done == start and start:
                self._slot.reuse_check.helped() if helped(start, reused) else self._slot.reuse_check.did_not_help(
                    start, reused
                )
            # Some models cannot even go on from the end (a sliding window without --swa-full, in older builds).  Then
            # each piece computes all those before once more, and pieces that double keep that bearable.
            piece = self._piece(name) if helped(done, reused) else max(self._piece(name), end)
            done = end
            if done < len(tokens):
                await self._save_part(name, key, tokens[:done])

    async def _cut_down(self, name: str, tokens: Sequence[int]) -> None:
        """Have the slot, which holds the template already, hold nothing behind it."""
        had_more = self._slot.content.now is not None and self._slot.content.now.conversation is not None
        reused = await self._evaluate(name, tokens, len(tokens))
        if had_more:
            self._slot.reuse_check.gone_back(len(tokens), reused)

    async def _evaluate(self, name: str, tokens: Sequence[int], end: int) -> int:
        """Have llama-server evaluate the tokens up to `end`; fire with how many of them it had already."""
        self._slot.content.taken_by_warmup()
        result = await self._llama.evaluate(tokens[:end])
        self._at_risk[name] = self._at_risk.get(name, 0.0) + result.ms / 1000
        self._speed.measured(result.computed, result.ms)
        return result.reused

    async def _save_part(self, name: str, key: Key, tokens: Sequence[int]) -> None:
        """Save the beginning of a warm-up, if it has become worth that."""
        seconds = self._speed.save_seconds(len(tokens)) or 0.0
        least = self._seconds.get(name, PIECE_SECONDS)
        if not self._files.of_use or self._at_risk.get(name, 0.0) < max(least, REST * seconds):
            return
        with self._gate.let_finish():
            try:
                await self._files.save(name, PART, key, len(tokens), prefix_digests(tokens))
            except SaveFailed as error:
                # It can be done without.  If it is the disk, the end of the warm-up will say so.
                self.log.info("{error}", error=error)
            self._at_risk[name] = 0.0

    def _same_as_saved(self, name: str, key: Key, tokens: Sequence[int]) -> bool:
        """Tell whether there is a file with just these tokens, and have the record say so."""
        entry = self._files.usable(name, PREFIX)
        if entry is None or entry.marks != prefix_digests(tokens) or not self._files.of_use:
            return False
        # Perhaps of another key: not everything that looks different to us makes other tokens.
        self._files.rename_key(name, key)
        return True

    def _over(self, name: str) -> None:
        """Clean up after a warm-up that was finished."""
        self._progress.pop(name, None)
        self._at_risk.pop(name, None)
        self._seconds.pop(name, None)
        self._files.discard(name, PART)
        chat, prefix = self._files.recorded(name, CHAT), self._files.recorded(name, PREFIX)
        if chat is not None and prefix is not None and chat.key.text != prefix.key.text:
            self._files.discard(name, CHAT)  # of an older text: nobody can go on with that

    def _tell(self, name: str, key: Key, progress: float) -> None:
        self._progress[name] = (key, progress)

    def _piece(self, name: str) -> int:
        """Return how many tokens the next piece may have: about `PIECE_SECONDS` of work, at the speed measured."""
        seconds = self._seconds.get(name, PIECE_SECONDS)
        tokens = self._speed.tokens_in(seconds, otherwise=int(FIRST_PIECE * seconds))
        return min(max(tokens, SMALLEST_PIECE), self.longest_piece)
