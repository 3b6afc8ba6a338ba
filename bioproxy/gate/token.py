"""The token of the gate: the user or warm-up that holds it may use the slot.

It is Twisted's `DeferredSemaphore` with one token, and a rule about who gets it next.  A semaphore has a list of
waiting Deferreds of its own, and would let in the first of them, strictly in the order of arrival.  Here somebody else
chooses (`bioproxy.gate.queue`), and may also choose nobody although users wait.  So the list of the semaphore stays
empty, and it is asked for its token only when it is free.

The second idea of Twisted here is that firing a Deferred is a call.  `callback` runs the coroutine that awaits the
Deferred at once, before it returns, up to that coroutine's next ``await`` that has to wait.  The user who is let in may
be through by then, so that the token is free again while the code that handed it on is still running.

Does not know who uses the slot, or for what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore

from bioproxy.gate.turn import Turn


class Token:
    """At most one user or warm-up holds it."""

    def __init__(self, choose: Callable[[], Turn | None]) -> None:
        """`choose` takes the turn out of the queue that gets the token now; `None` if none may have it."""
        self._choose = choose
        self._semaphore = DeferredSemaphore(1)
        # Whether `hand_on` is running.
        self._is_handing_on = False

    @property
    def is_free(self) -> bool:
        """Whether nobody holds it.  Users may be waiting nevertheless, if `choose` lets nobody in."""
        return bool(self._semaphore.tokens)

    def take(self) -> Deferred[Any]:
        """Take the token, past all who wait; only while it is free.  The Deferred has fired already."""
        return self._semaphore.acquire()

    def give_back(self) -> None:
        """Give the token back, and hand it on to the user who goes next."""
        self._semaphore.release()
        self.hand_on()

    def hand_on(self) -> None:
        """Let in the user who goes next, if the token is free.  Called whenever that may have changed."""
        # Firing a turn's Deferred runs that user's coroutine before the call returns.  It may end at once and come here
        # again from inside, and so on: a queue of a thousand users would need thousands of stack frames.  So only the
        # outermost call does the work, and goes on as long as the token is free again.
        if self._is_handing_on:
            return
        self._is_handing_on = True
        try:
            while self.is_free and (turn := self._choose()) is not None:
                self.take()
                turn.acquired.callback(None)
        finally:
            self._is_handing_on = False

    async def until_free(self) -> None:
        """Fire when nobody holds it.  Only where `choose` lets nobody in any more; cancelling stops waiting."""
        # The only one who waits in the semaphore's own list, which is served before our queue.  In a gate that is open,
        # this call would be ahead of all users.
        await self._semaphore.acquire()
        self._semaphore.release()
