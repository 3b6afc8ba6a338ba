"""What went wrong with a template's warm-up, and when to try again.

Trouble that lasts must neither keep llama-server busy nor fill the log.  So the pause doubles after each failure in a
row, and only news is worth a line.  And trouble is always *about* something, for example a text that is too long for
a model; once either is another, the trouble is over without anybody having to say so.

Knows nothing of templates or of llama-server.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

LONGEST_PAUSE = 60.0
"""Seconds after many failures in a row."""

JITTER = 0.2
"""A pause is longer by up to this part of it: what failed together is not tried again together."""

REST = 20
"""The pause is at least so many times as long as the try: a costly failure does not keep llama-server busy."""


@dataclass(frozen=True)
class Trouble:
    """What failed, how many times in a row, and when to try again (`None`: not before it is about something else)."""

    about: object
    text: str
    failures: int
    retry_at: float | None


class Backoff:
    """The present trouble of each name, if it has any."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._known: dict[str, Trouble] = {}

    def current(self, name: str, about: object) -> Trouble | None:
        """Return the trouble of this name, unless it was about something else."""
        trouble = self._known.get(name)
        return trouble if trouble is not None and trouble.about == about else None

    def must_wait(self, name: str, about: object) -> bool:
        """Tell whether it is too early for another try."""
        trouble = self.current(name, about)
        return trouble is not None and (trouble.retry_at is None or self._clock.seconds() < trouble.retry_at)

    def note(self, name: str, about: object, text: str, took: float | None) -> bool:
        """Note a failure that `took` so many seconds (`None`: trying again would be of no use).

        Returns whether it is news.
        """
        last = self.current(name, about)
        failures = 1 if last is None else last.failures + 1
        retry_at = None
        if took is not None:
            pause = max(min(LONGEST_PAUSE, 2.0**failures), took * REST)
            retry_at = self._clock.seconds() + pause * random.uniform(1, 1 + JITTER)
        self._known[name] = Trouble(about, text, failures, retry_at)
        return last is None or last.text != text

    def over(self, name: str) -> None:
        """Note a success."""
        self._known.pop(name, None)
