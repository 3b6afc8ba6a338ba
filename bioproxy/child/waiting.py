"""Those who wait until llama.cpp answers.

A request that has its turn while llama.cpp loads its model cannot be sent yet.  Its coroutine waits here for a
`Deferred` of its own.  Firing a Deferred runs the coroutine that awaits it inside the call of `callback`, up to its
next `await`; so the code that fires it must have put everything in order before, and must expect that the coroutine
calls back.

Each waits with a time limit, may be cancelled (its client hangs up), and is told one of three things: llama.cpp
answers, its start has failed, or bioproxy stops.

Does not know what is waited for, nor who waits.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from bioproxy.runtime.errors import LlamaNotRunning, ProxyError


class Waiting:
    """A set of coroutines that wait.

    Invariant: each of them leaves the set when its waiting ends, for whatever reason, so none is told twice.
    """

    def __init__(self, clock: IReactorTime) -> None:
        """Begin with nobody; `clock` measures the time limits."""
        self._clock = clock
        self._waiting: set[Deferred[None]] = set()

    async def wait(self, seconds: float, late: str) -> None:
        """Wait for `let_go`, for so many seconds at most.

        Fires with `None`.  Fails with the error of `turn_away`, or with `LlamaNotRunning` and the text `late` when the
        time is over.  Cancelling ends the waiting.
        """
        waiting: Deferred[None] = Deferred()
        self._waiting.add(waiting)
        try:
            # Negative where all the time was spent in the queue before: that ends in the next turn of the reactor.
            await waiting.addTimeout(max(0.0, seconds), self._clock)
        except TimeoutError:
            raise LlamaNotRunning(late) from None
        finally:
            self._waiting.discard(waiting)

    # Both go through a copy: a coroutine leaves the set when it goes on, which is inside the call below.

    def let_go(self) -> None:
        """Let all go on: llama.cpp answers."""
        for waiting in list(self._waiting):
            waiting.callback(None)

    def turn_away(self, error: Callable[[], ProxyError]) -> None:
        """Fail all; `error` makes a new error for each.

        A new one, because an exception collects the traceback of the place where it is raised, and each is raised in
        another coroutine.
        """
        for waiting in list(self._waiting):
            waiting.errback(error())
