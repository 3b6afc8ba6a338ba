"""Keeps open pages up to date: server-sent events.

A browser asks for `/events` and gets an answer that does not end: each event in it is a few lines of text and an empty
one.  If the connection is lost the browser asks again by itself.

* ``status`` comes first: everything, so a page that reconnects needs to know nothing.
* ``change`` has what is new since: of the state the parts that changed, of requests and history the latest.
* ``beat`` comes when there was nothing else for a while, so that both sides notice a connection that died silently.

One `LoopingCall` looks once a second for all pages together, and only while there are any.  What it finds is made into
bytes once.  A page that does not read (a laptop that was closed, a slow network) is told nothing until it does, and
then everything anew; after a minute its connection is ended.  So whatever pages do, little is held for them.
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
"""Seconds between looks."""

BEAT = 15.0
"""Seconds of silence at most."""

PATIENCE = 60.0
"""Seconds that a page may leave its connection's buffer (64 KiB) full."""

LIMIT = 50
"""Pages open at most."""


@implementer(IPushProducer)
class Viewer:
    """One open page.  `over` fires when it should be told no more, which is never its own doing."""

    def __init__(self, request: Request, clock: IReactorTime) -> None:
        self.over: Deferred[None] = Deferred()
        self.missed = False
        self._request = request
        self._clock = clock
        self._paused_at: float | None = None

    def tell(self, event: bytes) -> None:
        """Send an event."""
        self.missed = False
        self._request.write(event)

    @property
    def paused(self) -> bool:
        """Whether it does not read at the moment."""
        return self._paused_at is not None

    @property
    def lost(self) -> bool:
        """Whether it has not read for too long."""
        return self._paused_at is not None and self._clock.seconds() - self._paused_at >= PATIENCE

    def drop(self) -> None:
        """End the connection, with what is still on its way."""
        if (channel := self._request.channel) is not None:
            channel.forceAbortClient()

    def pauseProducing(self) -> None:
        """Send nothing for now.  Called by Twisted when the connection's buffer is full."""
        self._paused_at = self._clock.seconds()

    def resumeProducing(self) -> None:
        """Go on.  Called by Twisted when it is empty again."""
        self._paused_at = None

    def stopProducing(self) -> None:
        """The client has hung up.  Called by Twisted, and Klein cancels the route besides."""


class LiveEvents(Service):
    """Tells all open pages what happens."""

    log = Logger()

    def __init__(self, status: Status, history: History, clock: IReactorTime) -> None:
        self.setName("events")
        self._status = status
        self._history = history
        self._clock = clock
        self._viewers: list[Viewer] = []
        self._known: dict[str, Any] = {}
        self._requests = self._points = 0
        self._told_at = 0.0
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    @property
    def full(self) -> bool:
        """Whether no more pages can be told."""
        return len(self._viewers) >= LIMIT

    async def attend(self, request: Request) -> None:
        """Tell a page what happens, until the service stops; being cancelled means that the page has gone."""
        viewer = Viewer(request, self._clock)
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        request.setHeader(b"cache-control", b"no-store")
        request.registerProducer(viewer, True)
        if not self._viewers:
            self._news()  # whatever was before this page is in its first event
            self._told_at = self._clock.seconds()
            self._loop.start(INTERVAL, now=False).addErrback(lambda failure: self.log.failure("events", failure))
        self._viewers.append(viewer)
        try:
            viewer.tell(self._everything())
            await viewer.over
        finally:
            self._viewers.remove(viewer)
            if not self._viewers and self._loop.running:
                self._loop.stop()
            if request.channel is not None:  # it is still there
                request.unregisterProducer()

    def stopService(self) -> None:
        """Let all pages go: they will look for the next process.  Called by the parent service."""
        super().stopService()
        for viewer in list(self._viewers):
            viewer.over.callback(None)

    def _look(self) -> None:
        """Tell everybody what is new."""
        news, silent = self._news(), self._clock.seconds() - self._told_at
        event = self._encode("change", news) if news else self._encode("beat", {}) if silent >= BEAT else None
        if event is not None:
            self._told_at = self._clock.seconds()
        everything: bytes | None = None
        for viewer in list(self._viewers):
            if viewer.lost:
                viewer.drop()
            elif viewer.paused:
                viewer.missed = viewer.missed or event is not None
            elif viewer.missed:
                everything = everything or self._everything()
                viewer.tell(everything)
            elif event is not None:
                viewer.tell(event)

    def _everything(self) -> bytes:
        """Return the event that a page begins with."""
        return b"retry: 2000\n" + self._encode("status", {**self._status.whole(), "history": self._history.latest()})

    def _news(self) -> dict[str, Any]:
        """Return what changed since this was last called."""
        now, request_log, history = self._status.now(), self._status.request_log, self._history
        news = {key: value for key, value in now.items() if value != self._known.get(key)}
        if request_log.kept > self._requests:
            news["requests"] = request_log.latest(request_log.kept - self._requests)
        if history.taken > self._points:
            news["history"] = history.latest(history.taken - self._points)
        self._known, self._requests, self._points = now, request_log.kept, history.taken
        return news

    def _encode(self, event: str, data: dict[str, Any]) -> bytes:
        """Return one event.  It carries the time of day, by which the browser's may be wrong, and the clock's time."""
        told_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        clock = round(self._clock.seconds(), 3)
        text = json.dumps({"told_at": told_at, "clock": clock, **data}, separators=(",", ":"))
        return f"event: {event}\ndata: {text}\n\n".encode()
