"""Keeps open live pages up to date, with server-sent events.

A browser requests ``/events`` and gets an answer that does not end.  Each event in it is a few lines of text and an
empty line.  If the connection is lost, the browser requests it again by itself.  There are three kinds of events:

* ``status`` comes first and has everything, so that a page that reconnects needs no memory of what it had.
* ``change`` has what is new: the parts of the state that changed, and the requests and plot points that were added.
* ``beat`` comes after a while without another event, so that both sides notice a connection that is dead.

One `LoopingCall` compares the state once a second, for all pages together, and only while a page is open.  What it
finds is encoded once, and the same bytes go to every page.

The idea of Twisted in this module is the *producer*.  Twisted never blocks when it writes: bytes that the network does
not accept yet are kept in memory.  A sender that registers as the producer of a connection is told to pause when 64 KiB
are waiting, and to resume when these have been sent.  A page that does not read (a sleeping laptop, a slow network) is
paused: it gets no events meanwhile and the whole state when it reads again, and is disconnected after a minute of
pause.  So the memory that open pages take is limited, whatever they do.

This module does not know what the state consists of (`bioproxy.operator.status`), nor what the page does with it.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.web.server import Request
from zope.interface import implementer

from bioproxy.operator.history import History
from bioproxy.operator.status import Status

INTERVAL = 1.0
"""Seconds between comparisons, which is also the longest delay of a page.

With half of it an open page costs twice the computing time while something happens; with twice as much, short requests
may begin and end between two comparisons.
"""

BEAT = 15.0
"""Seconds without an event after which a ``beat`` is sent.

Proxies between browser and bioproxy often close connections that are silent for 30 or 60 seconds.  Half of it only
sends more events; with twice as much, the first of those limits is reached.
"""

PATIENCE = 60.0
"""Seconds that a page may stay paused, with a full buffer, before it is disconnected.

Half of it would disconnect pages on a network that stalls for a moment; twice as much keeps the memory of dead
connections longer.  A page that is disconnected reconnects by itself, so neither does much harm.
"""

LIMIT = 50
"""Open pages at most; one more is answered with 503.

Each takes a connection of the operator's port, which has 100, and 64 KiB of memory or a bit more.  Half of it would be
enough for a team; with twice as much, pages could take all connections, and nobody could reload or read the metrics.
"""


# Declares the interface whose three methods Twisted calls: `pauseProducing`, `resumeProducing`, `stopProducing`.
@implementer(IPushProducer)
class Viewer:
    """One open page, as the producer of its connection."""

    over: Deferred[None]
    """Fires when the page is to get no more events because bioproxy stops."""

    missed: bool
    """Whether an event was not sent to the page while it was paused."""

    def __init__(self, request: Request, clock: IReactorTime) -> None:
        """Take the request for ``/events`` that the page has sent; `clock` measures how long the page is paused."""
        self.over = Deferred()
        self.missed = False
        self._request = request
        self._clock = clock
        self._paused_at: float | None = None

    def tell(self, event: bytes) -> None:
        """Send an event.  Never blocks; what the network does not take yet is kept in the connection's buffer."""
        # Set before writing, which may call `pauseProducing` right away.
        self.missed = False
        self._request.write(event)

    @property
    def paused(self) -> bool:
        """Whether the page does not read at the moment."""
        return self._paused_at is not None

    @property
    def lost(self) -> bool:
        """Whether the page has not read for `PATIENCE` seconds."""
        # This needs no timer: each comparison, once a second, reads it.
        return self._paused_at is not None and self._clock.seconds() - self._paused_at >= PATIENCE

    def drop(self) -> None:
        """Close the connection at once, and discard what is still in its buffer."""
        # The page's browser reconnects by itself if it is still alive.  A normal close would first wait until the page
        # has read the buffer.  Twisted sets `channel` to `None` when the connection is gone already.
        if (channel := self._request.channel) is not None:
            channel.forceAbortClient()

    def pauseProducing(self) -> None:
        """Send nothing for now.  Called by Twisted when the connection's buffer is full."""
        self._paused_at = self._clock.seconds()

    def resumeProducing(self) -> None:
        """Send again.  Called by Twisted when the buffer is empty.  The next comparison sends what was missed."""
        self._paused_at = None

    def stopProducing(self) -> None:
        """Do nothing when the connection of a page is lost.  Called by Twisted.

        Klein also cancels the route that serves the page, and `LiveEvents.attend` cleans up there.
        """


# How an event gets to a page:
#
#   `_look`, once a second      compares the state with the one before
#     -> `_encode`              makes bytes of what is new, once for all pages
#       -> `Viewer.tell`        gives them to the connection of each page that reads


class LiveEvents(Service):
    """Sends events to all open pages.

    Invariants: the loop runs if and only if there are viewers; a viewer that is neither paused nor has `missed` an
    event has been sent all changes up to the last comparison.
    """

    log = Logger()

    def __init__(self, status: Status, history: History, clock: IReactorTime) -> None:
        """Make the service, without pages; `clock` times the comparisons."""
        self.setName("events")
        self._status = status
        self._history = history
        self._clock = clock
        # The open pages, in the order in which they came.
        self._viewers: list[Viewer] = []
        # What the last comparison found: the state, and how many requests and points there had been by then.
        self._known: dict[str, Any] = {}
        self._requests = self._points = 0
        # When the last event was sent, in the clock's seconds.
        self._told_at = 0.0
        # Calls `_look` repeatedly between its `start` and its `stop`.  With `clock` a test decides when.
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    # The route checks this before it calls `attend`, because a page cannot be refused once its answer has begun.
    @property
    def full(self) -> bool:
        """Whether `LIMIT` pages are open, so that another one has to be refused."""
        return len(self._viewers) >= LIMIT

    async def attend(self, request: Request) -> None:
        """Send events to a page, as the answer to its `request`.

        Fires when the service stops.  Klein cancels this when the connection is lost, and the page is then removed from
        the list.
        """
        viewer = Viewer(request, self._clock)
        # `no-store`, because neither a cache in between nor the browser may repeat old events.
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        # `True`: a push producer, which sends by itself and is told to pause and to resume.  (The other kind sends only
        # when it is asked.)
        request.registerProducer(viewer, True)
        if not self._viewers:
            # The first event of this page contains all that happened while no page was open, so that must not count as
            # a change.
            self._news()
            self._told_at = self._clock.seconds()
            # `start` returns a Deferred that fails if `_look` raises, which would be a bug.  Without an errback Twisted
            # would log it much later or never, while the pages are no longer updated.
            self._loop.start(INTERVAL, now=False).addErrback(lambda failure: self.log.failure("live page", failure))
        # Before the first event is sent: if sending pauses the viewer at once, the next comparison must know it.
        self._viewers.append(viewer)
        # Cancelling raises `CancelledError` at the `await`; `finally` cleans up both then and at the normal end.
        try:
            viewer.tell(self._everything())
            await viewer.over
        finally:
            self._viewers.remove(viewer)
            if not self._viewers and self._loop.running:
                self._loop.stop()
            # An answer can be ended only after this call.  Without a channel the connection is gone, and there is no
            # answer to end.
            if request.channel is not None:
                request.unregisterProducer()

    def stopService(self) -> None:
        """End the answers to all pages, which then try to reconnect.  Called by the parent service."""
        super().stopService()
        # A copy: each callback runs the rest of an `attend` at once, which removes its viewer from the list.
        for viewer in list(self._viewers):
            viewer.over.callback(None)

    def _look(self) -> None:
        """Compare the state, and send what is new to all pages.  Called by the loop, every `INTERVAL` seconds."""
        news, silent = self._news(), self._clock.seconds() - self._told_at
        event = self._encode("change", news) if news else self._encode("beat", {}) if silent >= BEAT else None
        if event is not None:
            self._told_at = self._clock.seconds()
        # Made when the first viewer needs it, and then used for all: it is by far the largest event.
        everything: bytes | None = None
        for viewer in list(self._viewers):
            # In this order: a viewer that is lost is also paused, and one that is paused may also have missed
            # something.
            if viewer.lost:
                viewer.drop()
            elif viewer.paused:
                viewer.missed = viewer.missed or event is not None
            elif viewer.missed:
                # A ``change`` makes sense only after all those before it, so a viewer that missed an event gets the
                # whole state.
                everything = everything or self._everything()
                viewer.tell(everything)
            elif event is not None:
                viewer.tell(event)

    def _everything(self) -> bytes:
        """Return the event that a page begins with: the whole state, all requests and all points.

        Also tells the browser to wait 2000 ms before it reconnects.  With half of it, pages send many requests while
        bioproxy is restarted; with twice as much, a page has no connection for longer after a restart.
        """
        return b"retry: 2000\n" + self._encode("status", {**self._status.whole(), "history": self._history.latest()})

    def _news(self) -> dict[str, Any]:
        """Return what changed since this was last called, and remember the present state for the next call."""
        # Keys that are gone would be missed here, but `now` always has the same keys.
        now, request_log, history = self._status.now(), self._status.request_log, self._history
        # The whole value of each top-level key is sent: if one template's progress changes, all templates are sent.
        # There are few templates, and the list of prompts has an end, and the page needs no code to merge changes.
        news = {key: value for key, value in now.items() if value != self._known.get(key)}
        # Requests and points are only ever added, so a count of all that there ever were tells which ones are new,
        # also when old ones have been dropped meanwhile.
        if request_log.kept > self._requests:
            news["requests"] = request_log.latest(request_log.kept - self._requests)
        if history.taken > self._points:
            news["history"] = history.latest(history.taken - self._points)
        # `Status.now` returns new objects, so what is stored here does not change later.
        self._known, self._requests, self._points = now, request_log.kept, history.taken
        return news

    def _encode(self, event: str, data: dict[str, Any]) -> bytes:
        """Return one event as bytes.

        Each event has the present time twice.  `told_at` is the time of day, from which the page computes ages: the
        browser's own clock may be wrong.  `clock` is the reactor's time in seconds, in which the plots' points are.
        """
        # JSON has no line ends inside, so one ``data:`` line is enough.  Both times end at milliseconds: the page
        # cannot show more, and each event repeats them.
        told_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        clock = round(self._clock.seconds(), 3)
        text = json.dumps({"told_at": told_at, "clock": clock, **data}, separators=(",", ":"))
        return f"event: {event}\ndata: {text}\n\n".encode()
