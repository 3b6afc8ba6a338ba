"""Calls an async function again and again, for as long as the service runs.

Twisted's `LoopingCall` calls a function every so many seconds.  If the function returns a `Deferred` (an object that
stands for a result that comes later), the next call waits for the result, so two rounds never overlap.  A round that
takes longer than the interval skips the calls that it missed.  `Periodic` adds two things that `LoopingCall` leaves to
its user:

* A call that raises ends a `LoopingCall` for good, without a log line.  Here the error is logged and the loop goes on:
  one file that cannot be read must not end the poller.
* Stopping a `LoopingCall` does not stop the round in progress.  Here that round is cancelled, so that the process can
  end at once, and `stopService` waits until the round is really over.

A `Service` is an object with `startService` and `stopService`.  Services form a tree (`bioproxy.service`): twistd
starts and stops the root, and the root its children.

Does not know what the function does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger


class Periodic(Service):
    """Calls an async function every `interval` seconds while the service runs, the first time at the start.

    At most one round runs at a time, and none after `stopService` has fired.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, interval: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Make the service `name`, which calls `work` every `interval` seconds by `clock`."""
        self.setName(name)
        self._interval = interval
        self._work = work
        # The round in progress, for `stopService` to cancel.
        self._round: Deferred[None] | None = None
        self._loop = LoopingCall(self._run)
        self._loop.clock = clock

    def every(self, interval: float) -> None:
        """Change the interval, in seconds.  The round that is due next still comes by the old one."""
        self._interval = self._loop.interval = interval

    def startService(self) -> None:
        """Begin with a first round.  Called by the parent service."""
        super().startService()
        # Returns a Deferred that would report the end of the loop.  Since no round fails, it can only be stopped.
        self._loop.start(self._interval, now=True)

    def stopService(self) -> Deferred[None] | None:
        """Cancel the round in progress; fires when that is over.  Called by the parent service, which waits for it.

        Returns `None` if no round is in progress.
        """
        super().stopService()
        self._loop.stop()
        if self._round is None:
            return None
        # A second Deferred, because the first one belongs to `LoopingCall`, which has callbacks of its own on it.  A
        # coroutine usually ends inside `cancel`, but it may wait for something on its way out.
        over: Deferred[None] = Deferred()
        self._round.addBoth(over.callback)
        self._round.cancel()
        return over

    def _run(self) -> Deferred[None]:
        """Start one round.  Called by `LoopingCall`.  Fires with `None` when the round is over, and never fails."""
        # Nothing runs when a coroutine is only called.  `fromCoroutine` runs it up to its first `await` that has to
        # wait, and resumes it whenever the awaited Deferred fires.
        self._round = Deferred.fromCoroutine(self._guarded())
        return self._round

    async def _guarded(self) -> None:
        """Do the work, and log what it raises."""
        try:
            await self._work()
        except CancelledError:
            # From `stopService`.  This clause comes first because in Twisted, unlike asyncio, `CancelledError` is an
            # `Exception`, and would be logged as a bug below.
            pass
        except Exception:
            self.log.failure("{name} failed and goes on", name=self.name)
        # Reached in each case, before the Deferred of the round fires.
        finally:
            self._round = None
