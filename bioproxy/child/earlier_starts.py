"""The starts of llama.cpp that have failed, and its crashes: what is told of them, and when the next try is allowed.

A *crash* is the end of a process that has answered before.  It is probably over with the next start, so those who wait
go on waiting.  A *failed start* is the end of a process that never answered, and it will mostly fail again for the same
reason: a broken file, too little memory, a port that is taken.  So those who wait are told at once.

Both are followed by a pause, which doubles while one follows the other (`bioproxy.runtime.backoff`): loading a model of
many gigabytes again and again would keep the machine busy for nothing.  A failure belongs to the settings with which
llama.cpp was started; other settings begin without a past.

No timer runs here, so nothing has to be cancelled; `bioproxy.child.life` waits.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.runtime.backoff import Backoff
from bioproxy.runtime.errors import LlamaNotRunning
from bioproxy.settings.configuration import Settings

FIRST_PAUSE = 0.5
"""Seconds between the end of a process and the next start; doubled with each further end, up to a minute.

Halved or doubled, one crash is over a moment sooner or later.
"""

STEADY = 10.0
"""Seconds that a process must have answered requests for, so that its end counts as the first one again.

Halved, a llama.cpp that crashes with each request is started more often; doubled, two crashes that have nothing to do
with each other cost a second.
"""


class EarlierStarts:
    """What is known of earlier starts.

    Invariant: `trouble` is the reason of the last start if that has failed, and `None` in all other cases.
    """

    log = Logger()

    trouble: str | None = None
    """Why the last start has failed, in words for an operator and for clients."""

    def __init__(self, clock: IReactorTime) -> None:
        """Know of none yet; `clock` measures the pauses."""
        self._clock = clock
        self._backoff = Backoff(clock, FIRST_PAUSE)

    def is_first(self, settings: Settings) -> bool:
        """Tell whether nothing has failed with these settings: then the process may write into the log."""
        return self._backoff.current(about=settings) is None

    def succeeded(self) -> None:
        """Note that llama.cpp answers.  The pauses go on growing until it has done so for `STEADY` seconds."""
        self.trouble = None

    def crashed(self, settings: Settings, reason: str, seconds: float) -> None:
        """Note the end of a process that had answered for so many seconds, and log it."""
        if seconds >= STEADY:
            self._backoff.over()
        self._backoff.failed(about=settings, text=reason)
        # Each crash is news: a request may have been lost by it.
        self.log.warn("llama.cpp ended and is started again: {reason}", reason=reason)

    def failed(self, settings: Settings, reason: str) -> None:
        """Note the end of a process that never answered, and log it once for each reason."""
        self.trouble = f"llama.cpp does not start: {reason}"
        if self._backoff.failed(about=settings, text=reason):
            self.log.error("{trouble}", trouble=self.trouble)

    def seconds_left(self, settings: Settings) -> float:
        """Return in how many seconds the next start with these settings is allowed."""
        last = self._backoff.current(about=settings)
        return max(0.0, (last.retry_at or 0.0) - self._clock.seconds()) if last is not None else 0.0

    def error(self, settings: Settings) -> LlamaNotRunning:
        """Return the error for a client while `trouble` is known; it may come again after the pause."""
        return LlamaNotRunning(self.trouble or "", max(1, round(self.seconds_left(settings))))
