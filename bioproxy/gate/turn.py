"""One user's way through the gate: wait, be inside, leave.

A `Turn` is an *asynchronous context manager*: ``async with turn as waited:`` waits at the gate on entering, and lets
the next one in on leaving.  Python guarantees the leaving, whatever ends the block: its last line, an error, or Twisted
cancelling the coroutine because the client has hung up.  Therefore no path through the code can leave the gate closed,
and nobody has to think of it at each place where something may fail.

Leaving has one exception.  Some work belongs to a turn but must not depend on its client: writing down what the slot
holds, or waiting until llama-server has really stopped.  If that were awaited inside the block, a client that hangs up
would cancel it.  `Turn.hold_gate_for` moves it out of the client's coroutine: the block ends at once, and the gate
opens only when the work is done.

In which order turns come in is decided by `bioproxy.gate.order`.  A turn only carries what that depends on, such as
whether it goes on with what the slot holds.  That is a function and not a value, because the slot holds something else
each time the gate opens.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from math import inf
from typing import Any, Protocol

from twisted.internet.defer import Deferred

Work = Coroutine[Deferred[Any], Any, None]
"""A coroutine that awaits Deferreds and gives nothing: what ``async def f() -> None`` makes when it is called."""


class Gatekeeper(Protocol):
    """What a turn needs of the gate (`bioproxy.gate.gate.Gate`), which in turn makes the turns.

    Named here, so that the two modules do not import each other.
    """

    async def enter(self, turn: Turn) -> float:
        """Wait until the turn may come in."""

    def leave(self, turn: Turn, work: Callable[[], Work] | None) -> None:
        """Let the next one in, after `work`."""


class Turn:
    """A user at the gate.

    Invariant: between entering and leaving, no other user and no warm-up is inside.
    """

    who: Any
    """Whom the turn belongs to.  For operators; the gate never looks at it."""

    goes_on: Callable[[], bool]
    """Tells whether the request goes on with the conversation that the slot holds at that moment, from memory."""

    fills_for: Hashable
    """The client for which the request only fills llama-server's cache; `None` for any other request."""

    switch_seconds: Callable[[], float]
    """Tells how many seconds it would take to bring this conversation back, if another one displaced it now."""

    lingers: bool
    """Whether the answer ended with tool calls, so that the conversation's next request will come soon.

    Set inside.
    """

    went_on: bool
    """Whether the request went on with the slot's conversation when it was let in from the queue."""

    passed_s: float
    """Seconds by which the turn was passed over so far, by the clock."""

    passed_since: float | None
    """The clock's time since which the turn is being passed over and that is not yet in `passed_s`; `None`: it is not.

    Both are kept by `bioproxy.gate.queue`.
    """

    since: str
    """When the user began to wait or, once inside, came in: ISO 8601, empty before either."""

    acquired: Deferred[Any]
    """What fires when the gate lets the user in.  Only a turn that waits or has waited has it."""

    def __init__(
        self,
        gate: Gatekeeper,
        who: Any,
        goes_on: Callable[[], bool] = lambda: False,
        fills_for: Hashable = None,
        switch_seconds: Callable[[], float] = lambda: inf,
    ) -> None:
        self.who = who
        self.goes_on = goes_on
        self.fills_for = fills_for
        self.switch_seconds = switch_seconds
        self.lingers = self.went_on = False
        self.passed_s = 0.0
        self.passed_since = None
        self.since = ""
        self._gate = gate
        self._work_afterwards: Callable[[], Work] | None = None

    def hold_gate_for(self, work: Callable[[], Work]) -> None:
        """Keep the gate closed after leaving, until `work` is done, whether it succeeds or fails.

        For what must happen before the next user comes in but must not be cancelled with this one.  `work` is called
        when the block is left; only the last one given counts.
        """
        self._work_afterwards = work

    async def __aenter__(self) -> float:
        """Wait to be let in.

        Fires with the seconds waited.  Fails with `Unavailable` if too many wait already, if waiting took too long, if
        the gate is or gets closed, or if a newer request replaces this one.  Cancelling leaves the queue.
        """
        return await self._gate.enter(self)

    async def __aexit__(self, *_: object) -> None:
        """Leave, and let the next one in when the work afterwards is done.  Never waits itself, never fails."""
        self._gate.leave(self, self._work_afterwards)
