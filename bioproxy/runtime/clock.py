"""Time that cannot be set, and that passes only while bioproxy can run.

The *reactor* is Twisted's event loop.  It keeps all timers of the process, ours and those inside Twisted, and it asks
its own method `seconds` what time it is.  By default that is the wall clock, `time.time`, which can be set: by hand, by
NTP, or when a laptop wakes up.  Ten minutes back, and no timer fires for ten minutes; an hour ahead, and a request that
has waited for one second has waited for an hour.  `UsableTime` uses the monotonic clock instead, which nobody can set.
(On Linux it does not count the time in which the machine sleeps.  That is right: llama-server sleeps then, too.)

There is a second problem.  While this process is stopped (a paused virtual machine, `SIGSTOP`, one long computation),
timers go on.  When the process runs again, all of them are due at once, perhaps before the sockets are read where the
answers have arrived meanwhile: llama-server would be declared unresponsive because bioproxy did not read.  So there is
a heartbeat, a call that the reactor makes every tenth of a second.  Each turn of the reactor also reads the sockets, so
a beat proves that they were read.  When a beat is overdue, `UsableTime` stands still until the beat comes.  No timer
needs to know: for all of them, the time of the stall has not passed.

Measured durations leave out stalls in the same way.  The heartbeat reports stalls in the log and in
``bioproxy_reactor_stall_seconds``.  Timestamps for people (`datetime.now`) still come from the wall clock; nothing
waits for them or is decided by them.

Does not know who uses the time.
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
"""Seconds between heartbeats.

With half of it an idle proxy wakes up 20 times a second; with twice as much, stalls are noticed later, and `GRACE`
would have to grow with it.
"""

GRACE = 0.4
"""Seconds that a beat may be overdue before time stands still.

Until then the reactor is only busy, and busy time counts, because users wait through it.  Half of it would hide
ordinary load from the time-outs; twice as much lets a stall take nearly a second of everybody's time-out.
"""

NOTED = 0.05
"""Seconds by which a beat must be late to be counted in the metric.

Half of it would count ordinary scheduling of the operating system; twice as much would hide short computations.
"""

WARNED_OF = 1.0
"""Seconds by which a beat must be late to be logged as a warning.

A second is what a user notices.  Half of it fills the log on a busy machine; twice as much hides real stalls.  Between
`NOTED` and this, stalls are only in the metric.
"""


def elapsed() -> float:
    """Return seconds that nobody can set, and that pass while this process is stopped, too.

    On Linux they also pass while the machine sleeps.  For what others do meanwhile, such as closing a connection.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class UsableTime:
    """The time in which this process could run, in seconds.

    It begins at `begin` and never goes back.  It stands still while a beat is overdue by more than `GRACE`.  Before the
    first `beat` and after `rest` there are no beats, and all of `monotonic` counts.
    """

    def __init__(self, begin: float = 0.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin at `begin` seconds; `monotonic` returns seconds since any moment, and never goes back."""
        self._monotonic = monotonic
        # What to add to `monotonic` to get our time.  It shrinks with each stall.
        self._shift = begin - monotonic()
        # By `monotonic`: when the next beat is due, and from when on time stands still if it has not come.
        self._due = self._end = inf

    def seconds(self) -> float:
        """Return the time.  The reactor calls this instead of its own method, several times in each turn."""
        # Up to `_end` time passes as it should.  If the next beat has not come by then, this returns the same again
        # and again, and for every timer it is still that moment.
        return min(self._monotonic(), self._end) + self._shift

    def beat(self) -> float:
        """Let time pass for as long as the next beat may take; return by how many seconds this beat was late."""
        now = self._monotonic()
        late = max(0.0, now - self._due)
        # `seconds` returned `_end + _shift` during the stall.  Now `now` takes the place of `_end`, so the difference
        # has to leave the shift: otherwise time would jump ahead by what it just stood still.
        self._shift -= max(0.0, now - self._end)
        # The next beat is due from now on and not from when this one was due: after a stall there is nothing to catch
        # up with.
        self._due = now + BEAT
        self._end = self._due + GRACE
        return late

    def rest(self) -> None:
        """Count all time from now on, because there will be no beats."""
        self.beat()  # a stall that ends here still does not count
        self._due = self._end = inf


def install(reactor: Any, monotonic: Callable[[], float] = time.monotonic) -> UsableTime:
    """Make a reactor, and so all its timers, use a `UsableTime`; return that.

    A second call for the same reactor returns the same object.  Time goes on from what the reactor says now, so that
    calls that are pending already stay as far away as they are.
    """
    # A bound method knows its object: the reactor itself, or the `UsableTime` of an earlier call.
    installed = getattr(reactor.seconds, "__self__", None)
    if isinstance(installed, UsableTime):
        return installed
    usable = UsableTime(reactor.seconds(), monotonic)
    # The reactor's code calls `self.seconds()`.  An attribute of the object hides the method of its class.
    reactor.seconds = usable.seconds
    # Each pending call has a reference of its own to the clock, which its `reset` and `delay` use.
    for call in reactor.getDelayedCalls():
        call.seconds = usable.seconds
    return usable


class Heartbeat(Service):
    """Beats for a `UsableTime`, from inside its reactor, and reports beats that come late.

    While the service runs, exactly one beat is pending.  What is reported is the least that bioproxy stood still: a
    stall that ends before the next beat is due is not seen.
    """

    log = Logger()

    def __init__(self, reactor: Any, usable: UsableTime, stalls: Histogram) -> None:
        """Make a heartbeat for `usable`, the time of `reactor`; `stalls` counts the seconds of late beats.

        To be the last of all services: they start in order, so all the others run when the first beat comes.
        """
        self.setName("heartbeat")
        self._reactor = reactor
        self._usable = usable
        self._stalls = stalls
        # The next beat, a call that the reactor will make and that can be cancelled.
        self._call: IDelayedCall | None = None

    def startService(self) -> None:
        """Make the first beat.  Called by the parent service."""
        super().startService()
        # Starting all services may have taken long, in one turn of the reactor; that was no stall.
        self._usable.rest()
        self._beat()

    def stopService(self) -> None:
        """Stop beating.  Called by the parent service."""
        super().stopService()
        if self._call is not None:
            self._call.cancel()
        # Other services may still be stopping, with time-outs that must fire.
        self._usable.rest()

    def _beat(self) -> None:
        """Beat, and have the reactor call this again."""
        late = self._usable.beat()
        # Not a `LoopingCall`: that keeps to a fixed grid, and how late a beat is would depend on the beat before.
        self._call = self._reactor.callLater(BEAT, self._beat)
        if late > NOTED:
            self._stalls.observe(late)
        if late > WARNED_OF:
            self.log.warn(
                "bioproxy was stopped or busy for {seconds:.1f} s: it read and sent nothing meanwhile, and no time-out"
                " counts it",
                seconds=late,
            )
