"""The operator's port: the live page, is it alive, is it ready, what is warm, and all the numbers.

A Klein app like the proxy's, with ordinary routes: each function answers one path.  What a route returns is sent: bytes
or text as the body.  Only a POST changes anything.
"""

from __future__ import annotations

import json
from typing import Any

from klein import Klein
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Request
from werkzeug.exceptions import MethodNotAllowed, NotFound

from bioproxy.http.resources import RoutedResource
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.page import FIRST, Page, protect
from bioproxy.operator.reload import Reload
from bioproxy.operator.status import Status
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.runtime.errors import ConfigError, TemplateError
from bioproxy.runtime.metrics import Metrics
from bioproxy.warmup.warmer import Warmer


class Admin:
    """The admin port."""

    app = Klein()

    def __init__(
        self,
        status: Status,
        events: LiveEvents,
        page: Page,
        poller: TemplatePoller,
        warmer: Warmer,
        watch: ProcessWatch,
        reload: Reload,
        metrics: Metrics,
    ) -> None:
        self._status = status
        self._events = events
        self._page = page
        self._poller = poller
        self._warmer = warmer
        self._watch = watch
        self._reload = reload
        self._metrics = metrics

    def resource(self) -> IResource:
        """Return what a `Site` serves."""
        return RoutedResource(self.app.resource())

    @app.handle_errors(NotFound, MethodNotAllowed)
    def no_route(self, request: Any, failure: Failure) -> bytes:
        """Say in plain text that there is no such path, or that it wants another method.  Called by Klein."""
        error: Any = failure.value
        request.setResponseCode(error.code)
        for name, value in error.get_headers():
            request.setHeader(name, value)
        return plain(request, f"{error.description}\n")

    @app.route("/", methods=["GET", "HEAD"])
    def live(self, request: Request) -> bytes:
        """Answer with the live page."""
        return self._page.serve(request, FIRST)

    @app.route("/page/<path:path>", methods=["GET", "HEAD"])
    def page(self, request: Request, path: str) -> bytes:
        """Answer with one of the live page's files."""
        return self._page.serve(request, path)

    @app.route("/events", methods=["GET"])
    async def events(self, request: Request) -> bytes | None:
        """Answer with an endless stream of what happens, for the live page."""
        if request.method == b"HEAD":  # comes along with GET
            return plain(request, "")
        if self._events.full:
            request.setResponseCode(503)
            return plain(request, "too many pages are open\n")
        await self._events.attend(request)
        return None

    @app.route("/healthz", methods=["GET", "HEAD"])
    def healthz(self, request: Request) -> bytes:
        """Answer 200 as long as the process runs."""
        return plain(request, "ok\n")

    @app.route("/readyz", methods=["GET", "HEAD"])
    async def readyz(self, request: Request) -> bytes:
        """Answer 200 when llama-server is up with its model loaded, else 503 and why.  It is asked now."""
        await self._watch.look()
        if self._watch.up:
            return plain(request, "ready\n")
        request.setResponseCode(503)
        return plain(request, f"{self._watch.trouble}\n")

    @app.route("/metrics", methods=["GET", "HEAD"])
    def metrics(self, request: Request) -> bytes:
        """Answer with all numbers, for Prometheus."""
        request.setHeader(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        return self._metrics.text()

    @app.route("/status", methods=["GET", "HEAD"])
    def status(self, request: Request) -> bytes:
        """Answer with everything that an operator may want to know, as JSON."""
        request.setHeader(b"content-type", b"application/json; charset=utf-8")
        return json.dumps(self._status.whole(), indent=1).encode()

    @app.route("/templates/<name>/render", methods=["GET", "HEAD"])
    async def render(self, request: Request, name: str) -> bytes:
        """Answer with a template filled with ``?message=``, as llama-server would get it; 500 where it is broken."""
        protect(request)
        template = self._poller.templates.get(name)
        if template is None:
            return unknown(request, name)
        message = (request.args or {}).get(b"message", [b""])[0].decode("utf-8", "replace")
        try:
            text = await self._poller.read_current(template)
        except TemplateError as error:
            request.setResponseCode(500)
            return plain(request, f"{error}\n")
        return plain(request, text.fill(message))

    @app.route("/templates/<name>/warm", methods=["POST"])
    def warm(self, request: Request, name: str) -> bytes:
        """Have a template warmed up next, as far as users leave time for it."""
        if name not in self._poller.templates:
            return unknown(request, name)
        self._warmer.schedule.want(name)
        request.setResponseCode(202)
        return plain(request, f"template {name} is warmed up next\n")

    @app.route("/reload", methods=["POST"])
    def reload(self, request: Request) -> bytes:
        """Read the configuration again; answer with what changed, or with 400 and what is wrong."""
        request.setHeader(b"content-type", b"application/json; charset=utf-8")
        try:
            reloaded = self._reload.run()
        except ConfigError as error:
            request.setResponseCode(400)
            return json.dumps({"error": str(error)}).encode()
        return json.dumps({"changed": reloaded.changed, "needs_restart": reloaded.restart}).encode()


def plain(request: Request, text: str) -> bytes:
    """Return text as a plain text answer."""
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    return text.encode("utf-8", "replace")


def unknown(request: Request, name: str) -> bytes:
    """Answer that there is no such template."""
    request.setResponseCode(404)
    return plain(request, f"there is no template {name}\n")
