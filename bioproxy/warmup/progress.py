"""What is remembered of a prompt's warm-up between its tries.

Users interrupt warm-ups, so a long one needs several tries.  Three things are carried from one try to the next: how far
the warm-up came, how much work an interruption would waste now, and how long a piece of work may take.

A try ends by cancellation: Twisted makes the ``await`` in progress raise `CancelledError`, in the middle of
`bioproxy.warmup.warmup`.  So every number here is written down as soon as it is known, before the next ``await``, and
is right at whatever point a try ends.

Does not know why a try ended, and neither the slot nor llama-server's calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioproxy.llama.speed import Speed
from bioproxy.prompts.prompt_shape import Key

PIECE_SECONDS = 0.5
"""How many seconds of llama-server's work a piece should be.

A user who arrives during a warm-up waits for the piece in progress, or for a save in progress.  Halved: users wait
half as long, and a warm-up takes 5 % more of a processor (`benchmarks/pieces.py`).  Doubled: a user may have to wait
for a second.
"""

PIECES = (512, 256, 128, 64)
"""Tokens that a piece may have; the last one may have up to 63 more or fewer.

At least 64 (`LEAST`), also where these take longer than `PIECE_SECONDS`.  At most 512, llama.cpp's own batch (``-ub``),
so that a piece is one batch.
"""

LEAST = 64
"""Tokens that a batch must have for its numbers to be, bit for bit, those of a cold run.

llama.cpp computes a prompt in batches of 512 tokens.  On a CPU, attention takes another path for a batch of fewer than
64 tokens (``GGML_FA_TILE_Q``), and a token gets slightly other numbers there.  So every piece has at least 64 tokens,
and a warm-up ends so far before the prompt's end that the question's own batch has as many.  Measured with real models
(docs/same-answer.md): differences of up to 0.2 in the logarithm of a probability otherwise, and none like this.
Doubled, each request computes up to 64 tokens more than it needs to; halved, answers differ.
"""

BATCH = 512
"""Tokens of llama.cpp's own batch, with its default of ``-ub``.

Where the first batches of a cold run end, a warm-up may end as well.  With another ``-ub`` answers may differ for a few
lengths of prompts.
"""

FIRST_PIECE = 256
"""Tokens of a piece while llama-server's speed is not known, for a piece of one second: 128 for half a second.

The first piece after a start is there to measure the speed, which every later piece goes by.  Halved, it may be too
small for that, as the slot often holds its first tokens already (`bioproxy.llama.speed.ENOUGH`); doubled, a user of a
slow machine (60 tokens a second) may wait for four seconds in that piece instead of two.
"""


@dataclass
class Progress:
    """The state of one prompt's warm-up.

    Invariant: `done` is about `key`; the other numbers are about the traffic, and stay when the key changes.
    """

    key: Key
    """The key of the prompt that the last try was for."""

    done: float = 0.0
    """The part of the tokens that the last try came to, from 0 to 1."""

    at_risk: float = 0.0
    """Seconds of llama-server's work since the last save, over all tries: what an interruption would waste."""

    piece_seconds: float = PIECE_SECONDS
    """How many seconds a piece should take: shorter after each try in which not even one piece got done."""

    def reached(self, key: Key, done: float) -> None:
        """Note how far the present try has come."""
        self.key, self.done = key, done

    def of(self, key: Key) -> float:
        """Return how far the warm-up for this key has come, from 0 to 1."""
        return self.done if self.key == key else 0.0

    def piece(self, speed: Speed, longest: int) -> int:
        """Return how many tokens the next piece may have: `piece_seconds` of work at the measured `speed`.

        It is one of `PIECES`, unless an operator allows fewer tokens than the smallest: `longest` is the most tokens
        that a piece may have (``warmup_chunk``).
        """
        tokens = min(speed.tokens_in(self.piece_seconds, otherwise=int(FIRST_PIECE * self.piece_seconds)), longest)
        return next((size for size in PIECES if size <= tokens), min(PIECES[-1], longest))

    def interrupted_early(self) -> None:
        """Note that a user came before one piece was done: a shorter piece may get done next time."""
        self.piece_seconds /= 2


def piece_end(done: int, piece: int, total: int) -> int:
    """Return where a piece of at most `piece` tokens ends that begins behind `done` tokens of `total`.

    It ends at the next multiple of its size, where the batches of a cold run end as well.  Neither it nor the rest has
    fewer than `LEAST` tokens, if that can be.
    """
    end = (done // piece + 1) * piece
    # A piece that an operator wants to be tiny stays so.
    if piece < LEAST:
        return min(end, total)
    # What came before may have ended anywhere, as the file of an older text does.
    if end - done < LEAST:
        end = (done // LEAST + 2) * LEAST
    if total - end >= LEAST:
        return end
    # The rest would be too small: both are one piece, or a little is moved from this piece to the rest.
    return total if total - done <= max(piece, 2 * LEAST - 1) else total - LEAST


def exact_end(total: int) -> int:
    """Return how many tokens of a prompt of `total` are warmed up: all but those that each request has to compute.

    So many are left that a request has at least `LEAST` tokens to compute, however short its question is; or the end is
    one of a cold run's own batches.  A prompt of fewer than two such batches is not worth the care.
    """
    return total if total < 2 * LEAST else max(total - LEAST + 1, total // BATCH * BATCH)
