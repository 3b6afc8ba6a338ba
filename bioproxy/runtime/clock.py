"""Time that cannot be set, and that passes only while bioproxy can run.

Every timer in the process, ours and those inside Twisted, is kept by the reactor, which asks its own method `seconds`
what time it is.  Twisted takes the wall clock for that, `time.time`, and the wall clock is set: by hand, by NTP after a
start without a battery, by a laptop that wakes up.  Ten minutes back, and for ten minutes nothing is due; an hour
ahead, and who has waited for one second has waited for an hour.  `UsableTime` takes the monotonic clock, which nobody
can set.  (On Linux it does not count the time in which the machine sleeps, and that is right: llama-server slept, too.)

There is a second trouble.  When this process stands still (a paused virtual machine, `SIGSTOP`, or one long
computation), then all timers of that time are due at once when it goes on, perhaps before the sockets were read on
which everything has arrived meanwhile.  llama-server would be called dumb because *we* did not listen.  So there is a
heartbeat, a call that the reactor makes every tenth of a second; as it makes it, it also reads its sockets.  When a
beat is overdue, time here stands still too, a moment later, until the beat comes.  What is over is simply no time that
passed: no timer needs to know of it.

The same holds for all durations that are measured: they leave out what bioproxy itself stood still.  The
heartbeat tells that by itself, in the log and in ``bioproxy_reactor_stall_seconds``.

Moments that a person reads (`datetime.now`) are the wall clock's.  Nothing waits for them or is decided by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Any

from prometheus_client import Histogram
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

BEAT = 0.1
"""Seconds between heartbeats."""

GRACE = 0.4
"""Seconds that a beat may be overdue before time stands still.  Up to there it is a busy moment, which counts."""

NOTED = 0.05
"""Seconds by which a beat is late that are worth counting."""

WARNED_OF = 1.0
"""Seconds by which a beat is late that are worth a warning."""


class UsableTime:
    """The time in which this process could run, in seconds, from `begin` on.  It never goes back.

    It stands still while a beat is overdue by more than `GRACE`.  Before the first `beat`, and after `rest`, nobody
    beats, and all of `monotonic` counts.
    """

    def __init__(self, begin: float = 0.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._shift = begin - monotonic()
        self._due = self._end = inf

    def seconds(self) -> float:
        """Return the time.  The reactor calls this, in the place of its own method."""
        return min(self._monotonic(), self._end) + self._shift

    def beat(self) -> float:
        """Let time go on, for as long as the next beat may take; return by how many seconds this one was late."""
        now = self._monotonic()
        late = max(0.0, now - self._due)
        self._shift -= max(0.0, now - self._end)
        self._due = now + BEAT
        self._end = self._due + GRACE
        return late

    def rest(self) -> None:
        """Count all time from now on: there will be no beats."""
        self.beat()
        self._due = self._end = inf


def install(reactor: Any, monotonic: Callable[[], float] = time.monotonic) -> UsableTime:
    """Have a reactor, and so all its timers, go by `UsableTime`; return that.  Once is enough, twice does no harm.

    Time goes on from what the reactor says now, so that calls that are pending already stay as far away as they are.
    """
    installed = getattr(reactor.seconds, "__self__", None)
    if isinstance(installed, UsableTime):
        return installed
    usable = UsableTime(reactor.seconds(), monotonic)
    # An attribute of this object hides the method of its class, and the reactor itself looks for `self.seconds`.
    reactor.seconds = usable.seconds
    for call in reactor.getDelayedCalls():
        call.seconds = usable.seconds  # each has its own reference, by which `reset` counts
    return usable


class Heartbeat(Service):
    """Beats for a `UsableTime`, as calls of its reactor, and tells in `stalls` and in the log when they come late.

    What it measures is the least that bioproxy stood still: a stall that ends before the next beat is due is not seen.
    """

    log = Logger()

    def __init__(self, reactor: Any, usable: UsableTime, stalls: Histogram) -> None:
        self.setName("heartbeat")
        self._reactor = reactor
        self._usable = usable
        self._stalls = stalls
        self._call: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin.  Called by the parent service."""
        super().startService()
        self._usable.rest()  # what the start took was no stall
        self._beat()

    def stopService(self) -> None:
        """End.  Called by the parent service."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
        self._usable.rest()

    def _beat(self) -> None:
        # Not a `LoopingCall`: that keeps to a grid, and how late a beat is would depend on the one before.
        late = self._usable.beat()
        self._call = self._reactor.callLater(BEAT, self._beat)
        if late > NOTED:
            self._stalls.observe(late)
        if late > WARNED_OF:
            self.log.warn(
                "bioproxy itself stood still for {seconds:.1f} s: nothing was read or sent meanwhile, and no time-out"
                " counts it",
                seconds=late,
            )
