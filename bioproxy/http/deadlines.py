"""The deadlines of a client's connection: how long a head, a body and a closing connection may take.

Every open connection costs memory and a file descriptor.  A client that sends one byte a minute, or never reads its
answer, holds both for as long as it likes ("slowloris").  Twisted's own protection is an idle timeout, which each
received byte restarts; so it does not end a client that sends slowly but steadily.  The deadlines here do.

In Twisted nothing blocks, so there is no call that could be given a timeout.  A deadline is a second event instead:
`callLater` has the reactor call a function in so many seconds, and that call is cancelled if the head or body arrives
in time.  A forgotten call would keep its connection in memory and act on a request that is long answered, so `Deadline`
keeps at most one call and `bioproxy.http.channel` stops all of them when its connection is lost.

The deadlines do not know HTTP and close nothing: each calls a function of the channel, which decides what to answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from bioproxy.runtime.errors import TooSlow

CallLater = Callable[[float, Callable[[], Any]], IDelayedCall]
"""`reactor.callLater`, or that of a test's clock: gets seconds and a function to call then."""

HEAD_SECONDS = 10.0
"""Seconds in which a request's head must arrive, counted from its first byte.

A head fits into one or two packets, so 10 s are enough on any usable network.  Halved, some mobile clients would be
refused; doubled, a slow attacker holds each connection twice as long.
"""

BODY_SECONDS = 10.0
"""Seconds of each interval in which `BODY_BYTES` of a body must arrive.

Halved, a client whose network pauses for five seconds is refused; doubled, a stalled upload is noticed later.
"""

BODY_BYTES = 10_000
"""Bytes of a body that must arrive in each interval of `BODY_SECONDS`: a rate of one kilobyte a second.

Halved, a body of 64 MiB could take 37 hours instead of 18; doubled, clients on a bad connection are refused sooner.
"""

REFUSAL_SECONDS = 2.0
"""Seconds for which the connection of a refused client stays open, so that the client can read the answer.

Halved, a distant client that is still sending may see a reset connection instead of the reason; doubled, each refused
client holds its connection twice as long.
"""

CLIENT_STALL_SECONDS = 60.0
"""Seconds in which a client must read what is in its connection's send buffer (64 KiB and one piece more).

That is about one kilobyte a second, like the rate for bodies.  Halved, a laptop that sleeps for half a minute loses its
answer; doubled, a client that has vanished holds its buffers twice as long.
"""


class Deadline:
    """A function that is called unless `stop` is called in time.  At most one such call is pending at any moment.

    `was_started` stays true after the deadline has expired or was stopped.  It marks deadlines that may run only once
    in the life of a connection.
    """

    def __init__(self, call_later: CallLater) -> None:
        self.was_started = False
        self._call_later = call_later
        self._pending: IDelayedCall | None = None

    @property
    def is_running(self) -> bool:
        """Whether the function is still to be called."""
        return self._pending is not None

    def start(self, seconds: float, expired: Callable[[], Any]) -> None:
        """Call `expired` in so many seconds, in place of what was to be called before."""
        self.stop()
        self.was_started = True

        def expire() -> None:
            # First forget the call: `expired` may start the deadline again or stop it, and cancelling a call that has
            # already happened raises `AlreadyCalled`.
            self._pending = None
            expired()

        self._pending = self._call_later(seconds, expire)

    def stop(self) -> None:
        """Call nothing.  Stopping a deadline that is not running is fine."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None


class ArrivalDeadline(Deadline):
    """The deadline of the head or the body that is arriving.  One is enough: HTTP/1.1 sends them one after another."""

    def expect_head(self, expired: Callable[[TooSlow], None]) -> None:
        """Limit the time of a head whose first byte has just arrived; too late a head calls `expired` with the error.

        The time is that of the whole head.  A limit on the pause between two bytes would let a client send a head of
        16 KiB, one byte at a time, for days.
        """
        self.start(HEAD_SECONDS, lambda: expired(TooSlow(f"the request's head took longer than {HEAD_SECONDS:g} s")))

    def expect_body(self, received: Callable[[], int], expired: Callable[[TooSlow], None]) -> None:
        """Watch the rate of a body from now on; too slow a body calls `expired` with the error.

        `received` returns the bytes received so far.  The whole time of a body cannot be limited: a large one on a slow
        line takes long, and there is nothing wrong with that.  So each interval is judged by itself.  A fast beginning
        does not count later, otherwise a client could send most of a body at once and the rest never.
        """
        before = received()

        def look() -> None:
            if received() - before >= BODY_BYTES:
                self.expect_body(received, expired)
            else:
                expired(TooSlow(f"less than {BODY_BYTES} bytes of the body arrived in {BODY_SECONDS:g} s"))

        self.start(BODY_SECONDS, look)
