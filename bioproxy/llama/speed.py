"""How fast llama-server is, as last measured: at processing prompts, and at writing and reading slot files.

Three decisions depend on it: how many tokens a piece of a warm-up may have, so that a user who comes meanwhile waits
only a moment; whether a save is worth its time and fits on the disk; and, for the metrics and for operators, how
much time is saved by tokens that need not be computed.

Nothing is measured here.  llama-server times itself (`timings` in its answers), and the code that gets such an answer
passes the numbers on.  Estimates are made from the last measurement, without an average: the speed changes at once when
another process runs, or when the machine has other work, and a wrong guess corrects itself with the next piece.

The size of a piece is different, because a user waits for it.  Too small costs a warm-up some milliseconds; too large
costs that user a second.  So pieces are sized by the slowest of the latest measurements (`tokens_in`).

Pure: knows no clock and no other module.
"""

from __future__ import annotations

from collections import deque

ENOUGH = 64
"""Tokens.  Fewer than that are no measurement: the fixed costs of a request blur the speed.

Halved, pieces vary more in length; doubled, a llama-server that mostly reuses tokens is rarely measured.
"""

RECENT = 4
"""Latest measurements of which the slowest one says how large a piece may be.

Halved, a machine with changing other work is taken for a quick one more often, and more pieces are too long; doubled,
pieces stay small for longer after a slow moment.  With 1, only the last measurement counts.
"""

QUICKEST, SLOWEST = 1e-9, 3600.0
"""Seconds a token.  A number outside is a mistake of llama-server, and is ignored.

Far from anything real on both sides, so their exact values do not matter; they keep divisions harmless.
"""


class Speed:
    """The last measurements.

    Invariant: what is not known yet is 0 or `None`, and each method says what it returns then.
    """

    def __init__(self, recent: int = RECENT) -> None:
        """`recent` is how many measurements `tokens_in` looks at; another number is for comparisons only."""
        self.seconds_per_token = 0.0
        """Seconds that computing one prompt token takes, 0 until it was measured."""
        self.restore_seconds_per_token: float | None = None
        """Seconds that restoring one token from a file takes, `None` until it was measured."""
        self._recent: deque[float] = deque(maxlen=recent)
        self._save_seconds_per_token: float | None = None
        self._bytes_per_token = 0.0

    def measured(self, tokens: float, ms: float) -> None:
        """Note that computing so many prompt tokens took `ms` milliseconds, as llama-server says."""
        if tokens >= ENOUGH and QUICKEST <= ms / 1000 / tokens <= SLOWEST:
            self.seconds_per_token = ms / 1000 / tokens
            self._recent.append(self.seconds_per_token)

    def tokens_in(self, seconds: float, otherwise: int) -> int:
        """Return how many prompt tokens take hardly more than some seconds, or `otherwise` if that is not known."""
        return int(seconds / max(self._recent)) if self._recent else otherwise

    def saved(self, tokens: int, size: int, seconds: float) -> None:
        """Note that saving so many tokens took `size` bytes and so many seconds."""
        if tokens > 0:
            self._save_seconds_per_token = seconds / tokens
            self._bytes_per_token = size / tokens

    def save_seconds(self, tokens: int) -> float | None:
        """Return how many seconds saving so many tokens will take, or `None` if that is not known."""
        return None if self._save_seconds_per_token is None else tokens * self._save_seconds_per_token

    def restored(self, tokens: int, seconds: float) -> None:
        """Note that restoring so many tokens from a file took so many seconds."""
        if tokens >= ENOUGH:
            self.restore_seconds_per_token = seconds / tokens

    def restore_seconds(self, tokens: int) -> float | None:
        """Return how many seconds restoring so many tokens will take, or `None` if that is not known."""
        return None if self.restore_seconds_per_token is None else tokens * self.restore_seconds_per_token

    def bytes_of(self, tokens: int) -> int:
        """Return how many bytes a file with so many tokens will have, 0 if that is not known.

        A file grows with its tokens almost exactly: each one adds the same amount to the KV cache.
        """
        return int(tokens * self._bytes_per_token)
