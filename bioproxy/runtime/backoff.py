"""Pauses after failures: what failed, how often in a row, and when the next try is allowed.

Trouble that lasts must neither keep llama-server busy nor fill the log.  So the pause doubles with each failure in a
row, and the caller is told whether a failure is news that deserves a line in the log.

A failure is always *about* something, for example about a text and a process of llama-server.  When the text is edited
or llama-server restarted, the caller asks with another `about`, and the old failure does not count any more.  So
nothing has to be reset, and no reset can be forgotten.

No timer runs here.  In Twisted a timer is an object that must be cancelled when it is no longer wanted, and tested with
a clock that is advanced.  A pause as a value needs neither: the caller, which runs regularly anyway
(`bioproxy.warmup.warmer` twice a second), asks whether the pause is over.

What each part is good for is replayed by ``python -m benchmarks.replay_pauses``; the figures stand beside the
constants.

Does not know prompts or llama-server: any string can be a name, and anything that can be compared an `about`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from twisted.internet.interfaces import IReactorTime

LONGEST_PAUSE = 60.0
"""Seconds that a pause doubles up to.

With doubling there are 59 tries in an hour of failures at once; with pauses of
2 seconds, 1,412; without any, 6,546.

Halved: a llama-server in trouble gets twice as many tries.  Doubled: after a repair, warm-ups resume up to two minutes
later.
"""

JITTER = 0.2
"""The part of a pause by which the pause is lengthened at random, so that what failed together is retried apart.

Halved or doubled: no visible difference; at 0 all prompts would be retried in the same round.
"""

REST = 20
"""A pause is at least this many times as long as the try took: a failing warm-up takes 1/21 of llama-server's time.

Without: a warm-up that fails after 30 seconds takes a third of llama-server's time, instead of a twentieth.  Halved:
twice that part.  Doubled: after one costly failure (a minute of computing, say) the next try comes after 40
minutes instead of 20.
"""


ONLY = ""
"""The name in a `Backoff` that is about one thing alone."""


@dataclass(frozen=True)
class Trouble:
    """The last failure under one name."""

    about: object
    """What the failure was about: a failure about something else does not count."""

    text: str
    """What failed, in words for an operator."""

    failures: int
    """How many failures in a row there were about the same thing."""

    retry_at: float | None
    """When the next try is allowed, in seconds of the clock.  `None`: not until `about` changes."""

    retry_at_utc: str | None
    """The same in ISO 8601, for operators only: nothing is decided by the wall clock, which can be set."""


class Backoff:
    """The last failure of each name; where there is only one thing that fails, it needs no name.

    Invariant: a name without an entry, or with an entry about something else, may be tried at once.
    """

    def __init__(
        self,
        clock: IReactorTime,
        shortest: float,
        longest: float = LONGEST_PAUSE,
        free: int = 0,
        jitter: float = JITTER,
    ) -> None:
        """Pause for `shortest` seconds after a failure, doubled with each further one, up to `longest` seconds.

        The first `free` failures in a row are not followed by a pause at all.
        """
        self._clock = clock
        self._shortest = shortest
        self._longest = longest
        self._free = free
        self._jitter = jitter
        self._known: dict[str, Trouble] = {}

    def current(self, name: str = ONLY, about: object = None) -> Trouble | None:
        """Return the last failure of this name, unless it was about something else.

        Also after its pause: the failure is over only with a success (`over`).
        """
        trouble = self._known.get(name)
        return trouble if trouble is not None and trouble.about == about else None

    def waiting(self, name: str = ONLY, about: object = None) -> Trouble | None:
        """Return the last failure if it is too early for another try, else `None`.

        The failure and not just a yes, so that the caller can report why there is a pause and until when.
        """
        trouble = self.current(name, about)
        if trouble is None or (trouble.retry_at is not None and self._clock.seconds() >= trouble.retry_at):
            return None
        return trouble

    def failed(self, name: str = ONLY, about: object = None, text: str = "", took: float | None = 0.0) -> bool:
        """Note a failure of a try that took so many seconds (`None`: another try about the same would be useless).

        Returns whether the failure is news: the first one, or another `text` than the last time.
        """
        last = self.current(name, about)
        failures = 1 if last is None else last.failures + 1
        retry_at = retry_at_utc = None
        if took is not None:
            pause = max(self._pause(failures), took * REST) * random.uniform(1, 1 + self._jitter)
            retry_at = self._clock.seconds() + pause
            retry_at_utc = (datetime.now(timezone.utc) + timedelta(seconds=pause)).isoformat(timespec="seconds")
        self._known[name] = Trouble(about, text, failures, retry_at, retry_at_utc)
        return last is None or last.text != text

    def over(self, name: str = ONLY) -> None:
        """Note a success: the next failure of this name is the first one again."""
        self._known.pop(name, None)

    def _pause(self, failures: int) -> float:
        """Return the seconds to pause after so many failures in a row."""
        doublings = failures - self._free - 1
        if doublings < 0:
            return 0.0
        # Without `min`, 2.0**1024 raises OverflowError: that many failures in a row are a night's worth.
        return min(self._shortest * 2.0 ** min(doublings, 64), self._longest)
