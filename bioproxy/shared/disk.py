"""Calls of the shared folder in threads, with a limit for how long anybody waits for them.

A network disk can hang: a call neither returns nor fails, and nothing can end it.  Three things follow.  A call is made
in a thread (`in_thread`).  Nobody waits longer than `patience` seconds, after which the caller goes on without the
shelf.  And while some calls hang no further ones are made, or threads would pile up.

Trouble is remembered.  For some time after a failure the shelf is not used at all, longer after each one, so that users
wait once and not with each request (`bioproxy.runtime.backoff`).

On Twisted: a thread cannot be cancelled.  `addTimeout` cancels the `Deferred`, which only means that nobody listens
any more; the call itself goes on until the operating system lets it go.

Does not know what is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.runtime.backoff import Backoff

T = TypeVar("T")

CALLS = 4
"""Calls at a time, at most: one that copies, one that looks, and two that hang.

Halved, a large file that is copied keeps others from looking; doubled, more threads hang with a disk that does.
"""

SHORTEST_PAUSE = 5.0
"""Seconds without the shared shelf after a failure; doubled with each failure in a row, up to a minute.

Halved, a disk that is gone is asked twice as often at first; doubled, a short trouble costs more computing.
"""

DISK = "disk"
"""The name under which trouble is kept."""


class Unusable(Exception):
    """The shared shelf cannot be used now.  The text says why, for operators."""


class Disk:
    """The way to the shared folder.

    Invariant: `usable` is false from a failure on until its pause is over.
    """

    log = Logger()

    def __init__(self, in_thread: Callable[[Callable[[], Any]], Deferred[Any]], clock: IReactorTime) -> None:
        """Call functions by `in_thread`; `clock` measures patience and pauses."""
        self._in_thread = in_thread
        self._clock = clock
        self._backoff = Backoff(clock, SHORTEST_PAUSE)
        # One object for each call that has not returned.  Adding to a set and removing from it are atomic in Python, so
        # the thread may do it.
        self._running: set[object] = set()

    @property
    def trouble(self) -> str | None:
        """What is wrong, in words for operators; `None` if the last call succeeded."""
        trouble = self._backoff.current(DISK)
        return None if trouble is None else trouble.text

    @property
    def usable(self) -> bool:
        """Whether the folder may be used now."""
        return self._backoff.waiting(DISK) is None

    async def call(self, work: Callable[[], T], patience: float, late_is_trouble: bool = True) -> T:
        """Call a function in a thread; fire with its result.

        Fails with `Unusable` if it raises `OSError`, takes longer than `patience` seconds, or too many calls hang.
        Where it may be slow because there is much to copy, being late is no sign of trouble.  Cancelling stops waiting.
        """
        if not self.usable or len(self._running) >= CALLS:
            raise Unusable(self.trouble or "earlier calls have not returned")
        mark = object()
        self._running.add(mark)

        def run() -> T:
            try:
                return work()
            finally:
                self._running.discard(mark)

        try:
            result: T = await self._in_thread(run).addTimeout(patience, self._clock)
        except TimeoutError:
            text = f"no answer within {patience:.3g} s"
            if late_is_trouble:
                self.failed(text)
            raise Unusable(text) from None
        except OSError as error:
            self.failed(str(error))
            raise Unusable(str(error)) from None
        if late_is_trouble and self.trouble is not None:
            self.log.info("the shared shelf can be used again")
            self._backoff.over(DISK)
        return result

    def failed(self, text: str) -> None:
        """Note a failure: the folder is not used for a while."""
        # One line for each new reason, not one for each try.
        if self._backoff.failed(DISK, text=text):
            self.log.warn("the shared shelf cannot be used, going on without it: {reason}", reason=text)
