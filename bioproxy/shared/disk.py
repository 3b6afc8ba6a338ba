"""Calls of the shared folder in threads, with a limit for how long anybody waits for them.

A network disk can hang: a call neither returns nor fails, and nothing can end it.  Three things follow.  A call is made
in a thread (`in_thread`).  Nobody waits longer than `patience` seconds, after which the caller goes on without the
shelf.  And while several calls hang no further ones are made, or threads would pile up.

Trouble is remembered.  After a failure the shelf is not used by requests and warm-ups until a look has succeeded again,
and looks are made at growing intervals (`bioproxy.runtime.backoff`).  So one user waits for a disk that hangs, and not
the next ones.  A disk that is full or read-only is no such trouble: what is there can still be fetched.

On Twisted: a thread cannot be cancelled.  `addTimeout` cancels the `Deferred`, which only means that nobody listens
any more; the call itself goes on until the operating system lets it go.

Nor can a thread be killed.  Python waits for the threads of a pool when it ends, so a pool would keep bioproxy from
stopping for as long as the disk hangs.  Therefore each call has a *daemon thread* of its own, for which nobody waits
(`bioproxy.runtime.daemon_thread`).

Does not know what is called.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from threading import Event
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.runtime.backoff import Backoff

T = TypeVar("T")

HANGING = 4
"""Calls that nobody waits for any more and that have not returned, at most; then no further call is made.

Halved, two clients that hang up while large files are copied keep all others from the shelf; doubled, more threads hang
with a disk that does.
"""

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""The errors of a disk that can still be read: no space, no quota, read-only."""

SHORTEST_PAUSE = 5.0
"""Seconds without the shared shelf after a failure; doubled with each failure in a row, up to a minute.

Halved, a disk that is gone is asked twice as often at first; doubled, a short trouble costs more computing.
"""


class Unusable(Exception):
    """The shared shelf cannot be used now.  The text says why, for operators.

    It stands for every kind of trouble with the disk, since all callers do the same about it: go on without.
    """


class Disk:
    """The way to the shared folder, for all callers of one process.

    Invariant: `usable` is false from a failure on until a later call has succeeded.
    """

    log = Logger()

    def __init__(self, in_thread: Callable[[Callable[[], Any]], Deferred[Any]], clock: IReactorTime) -> None:
        """Call functions by `in_thread`; `clock` measures patience and pauses."""
        self._in_thread = in_thread
        self._clock = clock
        self._backoff = Backoff(clock, SHORTEST_PAUSE)
        # One event for each call that nobody waits for; its thread sets the event when the call returns.
        self._abandoned: set[Event] = set()

    @property
    def trouble(self) -> str | None:
        """What is wrong, in words for operators; `None` if the last call succeeded."""
        trouble = self._backoff.current()
        return None if trouble is None else trouble.text

    @property
    def usable(self) -> bool:
        """Whether the last call did not fail, so that somebody may be made to wait for the next one."""
        return self.trouble is None

    @property
    def may_try(self) -> bool:
        """Whether the folder may be called now: after a failure only when its pause is over."""
        return self._backoff.waiting() is None

    async def call(self, work: Callable[[], T], patience: float, copies: bool = False) -> T:
        """Call a function in a thread; fire with its result.

        Fails with `Unusable` if it raises `OSError`, takes longer than `patience` seconds, or too many calls hang.
        Where it `copies` a file, being late is no sign of trouble, and being done no sign that trouble is over.
        Cancelling stops waiting; the function goes on.
        """
        # Asked first of all, so that nobody waits for a disk that is known to be in trouble.
        # Pruned here and not by a thread: a call that has returned since it was abandoned does not count.
        self._abandoned = {each for each in self._abandoned if not each.is_set()}
        if not self.may_try or len(self._abandoned) >= HANGING:
            raise Unusable(self.trouble or "earlier calls have not returned")
        returned = Event()

        def run() -> T:
            """Do the work, and note when it ends.  Called in the other thread."""
            try:
                return work()
            finally:
                returned.set()

        try:
            result: T = await self._in_thread(run).addTimeout(patience, self._clock)
        except TimeoutError:
            # The thread goes on, and its result is dropped.
            self._abandoned.add(returned)
            text = f"no answer within {patience:.3g} s"
            if not copies:
                self.failed(text)
            raise Unusable(text) from None
        except CancelledError:
            # A client that hangs up says nothing about the disk, so this is no failure.
            self._abandoned.add(returned)
            raise
        except OSError as error:
            # Without the path, which would make each file another reason, with another line in the log.
            text = error.strerror or str(error)
            if error.errno not in CANNOT_WRITE:
                self.failed(text)
            raise Unusable(text) from None
        # A short call has succeeded, so the disk answers again.  A copy proves less: it may have
        # begun long before the trouble.
        if not copies and self.trouble is not None:
            self.log.info("the shared shelf can be used again")
            self._backoff.over()
        return result

    def failed(self, text: str) -> None:
        """Note a failure: the folder is not used until a later call succeeds.

        `text` is the reason, for operators.  The next call may come after a pause, which grows from failure to failure.
        """
        # One line for each new reason, not one for each try: a disk may be away for a night, with a try a minute.
        if self._backoff.failed(text=text):
            self.log.warn("the shared shelf cannot be used, going on without it: {reason}", reason=text)
