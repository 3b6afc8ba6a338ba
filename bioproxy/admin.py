"""The operator's port: is it alive, is it ready, what is warm, and all the numbers.

A Klein app like the proxy's, with ordinary routes: each function answers one path.  What a route returns is sent: bytes
or text as the body.
"""

from __future__ import annotations

import json
from typing import Any

from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource
from twisted.web.server import Request

from bioproxy import __version__
from bioproxy.errors import ConfigError
from bioproxy.gate import Gate
from bioproxy.journal import Journal
from bioproxy.metrics import Metrics
from bioproxy.poller import Poller
from bioproxy.ports import OwnPaths
from bioproxy.reload import Reload
from bioproxy.slot import Slot
from bioproxy.upstream import Upstream
from bioproxy.warmer import Warmer
from bioproxy.watch import Watch


class Admin:
    """The admin port."""

    app = Klein()

    def __init__(
        self,
        poller: Poller,
        gate: Gate,
        slot: Slot,
        warmer: Warmer,
        watch: Watch,
        upstream: Upstream,
        journal: Journal,
        reload: Reload,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        self._poller = poller
        self._gate = gate
        self._slot = slot
        self._warmer = warmer
        self._watch = watch
        self._upstream = upstream
        self._journal = journal
        self._reload = reload
        self._metrics = metrics
        self._clock = clock
        self._began = clock.seconds()

    def resource(self) -> IResource:
        """Return what a `Site` serves."""
        return OwnPaths(self.app.resource())

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
        status = {
            "version": __version__,
            "uptime_s": round(self._clock.seconds() - self._began, 1),
            "llama": {
                "url": self._upstream.url,
                "up": self._watch.up,
                "model": self._watch.model,
                "build": self._watch.build,
                "slot_save": self._slot.files.enabled,
                "note": self._slot.proof.trouble if self._watch.up else self._watch.trouble,
            },
            "gate": {"busy": self._gate.busy, "waiting": self._gate.waiting},
            "templates": [self._template(name) for name in self._poller.templates],
            "requests": self._journal.latest(),
        }
        return json.dumps(status, indent=1).encode()

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

    def _template(self, name: str) -> dict[str, Any]:
        template = self._poller.templates[name]
        reading = self._poller.readings.get(name)
        includes = reading.text.includes if reading is not None and reading.text is not None else ()
        state, error = self._warmer.state(name)
        snapshot = self._slot.saved(name, self._warmer.key(name))
        return {
            "name": name,
            "prefix": template.prefix,
            "path": str(template.path),
            "includes": [str(include) for include in includes],
            "state": state,
            "progress": round(self._warmer.progress(name), 3),
            "tokens": snapshot.tokens if snapshot else self._warmer.tokens.get(name),
            "warmed_at": snapshot.saved_at if snapshot else None,
            "error": error,
            "note": self._warmer.note(name),
        }


def plain(request: Request, text: str) -> bytes:
    """Return text as a plain text answer."""
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    return text.encode()
