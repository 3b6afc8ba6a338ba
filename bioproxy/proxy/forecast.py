"""How many seconds each waiting request has to wait, for the whole queue at once.

Each waiting client is told its time every few seconds (``ping_interval``), and that time is the sum of what all ahead
of it need.  Were each sum made for itself, the work would grow with the square of the queue: a thousand clients that
are told once a second would need five hundred thousand estimates in each second.  So one pass over the queue makes all
sums, each from the one before, and each client that asks within `SHARED` seconds gets its number from that pass.

On Twisted: each client has a timer of its own (`LoopingCall`), so they do not ask together but one by one, spread over
the interval, and nobody knows which of them is the first.  There is no timer here: a call that comes when the last pass
is too old makes the next one.  All of this runs in one thread and awaits nothing, so nobody can see a half-made pass.

Does not know what a request needs; a function says that.  Nor does it decide who goes next.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from math import isnan, nan
from typing import Any

from twisted.internet.interfaces import IReactorTime

from bioproxy.gate.gate import Gate
from bioproxy.gate.turn import Turn

SHARED = 0.5
"""Seconds for which a pass over the queue serves all who ask.

Clients are told whole seconds, so nobody sees its age.  Halved, a long queue takes twice the work; doubled, a client
may be told one second too many.
"""


class Forecast:
    """The seconds until each place in the queue.

    Invariant: the sums are of the requests that are inside and waiting when somebody asks, in their present order, and
    not older than `SHARED`.
    """

    def __init__(self, gate: Gate, rest: Callable[[Any], float | None], clock: IReactorTime) -> None:
        """`rest` says how many seconds of the slot the request of a turn (`Turn.who`) still needs, if it is known."""
        self._gate = gate
        self._rest = rest
        self._clock = clock
        # The turn inside, if there is one, and those that wait; how long until each of them is over, the first number
        # being 0 for "now"; and when that was found out.
        self._turns: list[Turn] = []
        self._sums = [0.0]
        self._made = clock.seconds()

    def seconds_until(self, turn: Turn) -> float | None:
        """Return after about how many seconds a waiting turn will come in; `None` if one ahead is not known."""
        self._renew()
        # Its own time is in the next sum.
        return known(self._sums[self._turns.index(turn)])

    def for_next(self) -> float | None:
        """Return the same for a request that comes now; `None` also if it need not wait."""
        self._renew()
        # Those that let everybody pass are at the end of the order.
        inside = self._gate.stats.inside
        ahead = sum(turn is inside or turn.fills_for is None for turn in self._turns)
        return known(self._sums[ahead]) if ahead else None

    def _renew(self) -> None:
        """Make a new pass if the last one is too old, or the queue is another one."""
        # Behind a warm-up nobody counts as inside: it gives way within a piece.
        inside, now = self._gate.stats.inside, self._clock.seconds()
        turns = [*([] if inside is None else [inside]), *self._gate.queue.in_order()]
        # Comparing the lists costs some microseconds, as their elements are the same objects.
        if turns == self._turns and now - self._made < SHARED:
            return
        # What is not known is "not a number", and so is each sum with it: a sum without one of those ahead would be too
        # small, and too small is what disappoints.  Mostly all are known after the very first answer.
        rests = (self._rest(turn.who) for turn in turns)
        self._sums = list(accumulate((nan if rest is None else rest for rest in rests), initial=0.0))
        self._turns, self._made = turns, now


def known(seconds: float) -> float | None:
    """Return a sum, or `None` in the place of "not a number"."""
    return None if isnan(seconds) else seconds
