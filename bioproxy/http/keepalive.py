"""Keeps clients from giving up while they wait for a stream.

A client that hears nothing gives up after a while (official ones after 600 s) and then asks again, which makes the
queue longer; so do other proxies on the way, much sooner.  A stream of events may carry comments, lines that begin with
a colon and that every client skips.  So to who waits for long, a comment is sent from time to time.

The first one takes the head of the answer along, with the status 200, although nobody knows yet how it will end.  So it
is not sent a moment before: who waits less gets the status that llama-server gives.

Twisted's `LoopingCall` calls a function again and again; it is how anything periodic is done there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from bioproxy.http.client_output import ClientOutput
from bioproxy.http.own_answers import send_stream_head
from bioproxy.runtime.errors import ProxyError

Streams = Callable[[], Coroutine[Deferred[Any], Any, bool]]


class Keepalive:
    """Comments to one client, every `interval` seconds (0: none) from `begin` to `end`.  `sent` tells how many."""

    log = Logger()

    def __init__(self, output: ClientOutput, clock: IReactorTime, interval: float) -> None:
        self.sent = 0
        self._output = output
        self._interval = interval
        self._streams: Streams | None = None
        self._place: Callable[[], int] = int
        self._call = LoopingCall(self._ping)
        self._call.clock = clock

    def begin(self, streams: Streams, place: Callable[[], int]) -> None:
        """Begin to wait for an answer.

        `streams` fires with whether it will be a stream, and is called only when a comment is due: in a large request
        that takes a while to find out.  `place` tells the place in the queue, 0 for none.
        """
        if self._interval:
            self._streams = streams
            self._place = place
            self._call.start(self._interval, now=False).addErrback(lambda failure: self.log.failure("ping", failure))

    def end(self) -> None:
        """Send no more."""
        if self._call.running:
            self._call.stop()
        # What was here holds on to the request, which may be large.
        self._streams, self._place = None, int

    async def _ping(self) -> None:
        if not self.sent and self._streams is not None:
            try:
                streams = await self._streams()
            except ProxyError:  # it cannot be found out; whoever answers the request says so
                streams = False
            if not self._call.running:
                return  # the answer came meanwhile
            if not streams:
                return self.end()
            send_stream_head(self._output)
        self.sent += 1
        place = self._place()
        self._output.write(b": waiting, place %d in the queue\n\n" % place if place else b": being prepared\n\n")
