"""How fast llama-server is: at processing prompts and at writing slot files, as last measured.

What depends on it: how long a piece of a warm-up may be so that it takes about a second, how much time was saved by
tokens that did not have to be computed, and whether a save is worth its time and fits the disk.

Knows nothing of the rest of bioproxy.
"""

from __future__ import annotations

ENOUGH = 64
"""Tokens.  The fixed costs of a request blur the speed of computing fewer than that."""

QUICKEST, SLOWEST = 1e-9, 3600.0
"""Seconds a token.  What is said to be quicker or slower was not measured."""


class Speed:
    """`seconds_per_token` is what one prompt token takes, 0 until it was measured."""

    def __init__(self) -> None:
        self.seconds_per_token = 0.0
        self._save_seconds_per_token: float | None = None
        self._bytes_per_token = 0.0

    def measured(self, tokens: float, ms: float) -> None:
        """Note that computing so many tokens took so many milliseconds, as llama-server says."""
        if tokens >= ENOUGH and QUICKEST <= ms / 1000 / tokens <= SLOWEST:
            self.seconds_per_token = ms / 1000 / tokens

    def tokens_in(self, seconds: float, otherwise: int) -> int:
        """Return how many tokens can be computed in some seconds, or `otherwise` while nobody knows."""
        return int(seconds / self.seconds_per_token) if self.seconds_per_token else otherwise

    def saved(self, tokens: int, size: int, seconds: float) -> None:
        """Note that saving so many tokens took `size` bytes and so many seconds."""
        if tokens > 0:
            self._save_seconds_per_token = seconds / tokens
            self._bytes_per_token = size / tokens

    def save_seconds(self, tokens: int) -> float | None:
        """Return how long saving so many tokens will take, or `None` while nobody knows."""
        return None if self._save_seconds_per_token is None else tokens * self._save_seconds_per_token

    def bytes_of(self, tokens: int) -> int:
        """Return how large a file with so many tokens will be, 0 while nobody knows."""
        return int(tokens * self._bytes_per_token)
