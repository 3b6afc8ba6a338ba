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

A user who arrives during a warm-up waits for the piece in progress.  Halved: users wait half as long, and the fixed
cost of a piece weighs twice as much.  Doubled: a user may have to wait for a second.
"""

PIECES = (512, 256, 128, 64)
"""Tokens that a piece may have.

Where pieces end decides whether an answer is, bit for bit, that of a cold run.  llama.cpp computes a prompt in batches
of 512 tokens, and a token gets the same numbers in a smaller batch only if that batch begins and ends at a multiple of
64.  Measured with a real model (SmolLM2-135M, Q4_1, on the CPU, prompts of 2,071 to 2,500 tokens, largest difference of
the next token's log-probabilities): 0 with all ends at multiples of 64, more than 0.1 with ends at multiples of 200.
The last piece ends where the prompt does: with 6 tokens behind the last multiple of 64 the difference was 0, with 51 of
them 0.2.

At least 64, because each piece is a request of its own, with all tokens before it: below that the fixed cost of a
request outweighs what a user gains by waiting for less.  At most 512, llama.cpp's own batch (``-ub``).
"""

FIRST_PIECE = 512
"""Tokens of a piece while llama-server's speed is not known, for a piece of one second: 256 for half a second.

Halved or doubled: the first piece after a start is as much shorter or longer; from the second one on the speed is
known.
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

    It ends at the next multiple of its size, not `piece` tokens further: what came before may have ended anywhere, as
    the file of an older text does.
    """
    return min((done // piece + 1) * piece, total)
