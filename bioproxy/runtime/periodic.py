"""Does something again and again for as long as the service runs.

Twisted's `LoopingCall` calls a function every so many seconds; if the function returns a `Deferred` (a value
that will come later), the next call waits for it, so two rounds never overlap.  Two things it leaves to its
user, and they are what this class adds:

* A call that raises ends the loop for good, silently.  Here the error is logged, and the loop goes on: a
  poller that dies of one bad file would be worse than none.
* Stopping it does not stop the round in progress.  Here that round is cancelled, so that the process can end
  at once, and `stopService` waits until it is really over.

A `Service` is anything with `startService` and `stopService`.  Services form a tree (see
`bioproxy.service`); twistd starts and stops the root, and the root its children.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger


class Periodic(Service):
    """Calls an async function every `interval` seconds while the service runs, first at once."""

    log = Logger()

    def __init__(self, clock: IReactorTime, interval: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        self.setName(name)
        self._interval = interval
        self._work = work
        self._round: Deferred[None] | None = None
        self._loop = LoopingCall(self._run)
        self._loop.clock = clock

    def every(self, interval: float) -> None:
        """Call it every so many seconds from now on."""
        self._interval = self._loop.interval = interval

    def startService(self) -> None:
        """Begin.  Called by the parent service."""
        super().startService()
        self._loop.start(self._interval, now=True)

    def stopService(self) -> Deferred[None] | None:
        """Cancel what runs; fires when it is over.  Called by the parent service."""
        super().stopService()
        self._loop.stop()
        if self._round is None:
            return None
        over: Deferred[None] = Deferred()
        self._round.addBoth(over.callback)
        self._round.cancel()
        return over

    def _run(self) -> Deferred[None]:
        """Start one round; the Deferred never fails.  `LoopingCall` calls this."""
        self._round = Deferred.fromCoroutine(self._guarded())
        return self._round

    async def _guarded(self) -> None:
        try:
            await self._work()
        except CancelledError:
            pass  # stopService asked for it
        except Exception:
            self.log.failure("{name} failed and goes on", name=self.name)
        finally:
            self._round = None
