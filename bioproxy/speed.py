"""How fast llama-server processes prompts, as last measured.

Two things need it: how long a piece of a warm-up may be so that it takes about a second, and how much time was saved by
tokens that did not have to be computed.

Knows nothing of the rest of bioproxy.
"""

from __future__ import annotations

ENOUGH = 64
"""Tokens.  The fixed costs of a request blur the speed of computing fewer than that."""


class Speed:
    """Seconds that one prompt token takes.  0 until it was measured."""

    def __init__(self) -> None:
        self.seconds_per_token = 0.0

    def measured(self, tokens: float, ms: float) -> None:
        """Note that computing so many tokens took so many milliseconds."""
        if tokens >= ENOUGH and ms > 0:
            self.seconds_per_token = ms / 1000 / tokens

    def tokens_in(self, seconds: float, otherwise: int) -> int:
        """Return how many tokens can be computed in some seconds, or `otherwise` while nobody knows."""
        return int(seconds / self.seconds_per_token) if self.seconds_per_token else otherwise
