"""The operator's port: the live page, status, metrics, health checks, and a few actions.

This is a Klein app.  Klein is to Twisted what Flask is to WSGI: `app.route` connects a path with a method, and what the
method returns is sent as the body.  A method may be a coroutine; Klein then waits for it without blocking other
requests, and cancels it when the client hangs up.

Only a POST changes anything.  That is what `bioproxy.operator.host_check` relies on, which lets pages of other sites
send a GET (they cannot read the answer) but no POST.  It is applied before a request comes here
(`bioproxy.http.ports`), as are the limits for bodies and connections.

The routes fall into three groups: what the live page needs (``/``, ``/page/...``, ``/events``), what programs read
(``/healthz``, ``/readyz``, ``/metrics``, ``/status``), and what an operator does with a template, a prompt or the
configuration.  Paths and formats are part of the interface, since scripts and dashboards use them.

Does not know how anything works: each route asks another part and puts the result into HTTP.
"""

from __future__ import annotations

import json
from typing import Any

from klein import Klein
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import Request
from werkzeug.exceptions import MethodNotAllowed, NotFound

from bioproxy.gate.gate import Gate
from bioproxy.http.resources import RoutedResource
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.page import FIRST, Page, secure
from bioproxy.operator.prompt_actions import PromptActions, Result, no_template
from bioproxy.operator.reload import Reload
from bioproxy.operator.status import Status
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.runtime.errors import ConfigError, TemplateError
from bioproxy.runtime.metrics import Metrics


class Admin:
    """The routes of the operator's port.  Keeps no state of its own."""

    app = Klein()
    """The routes.  Made once for the class; Klein passes the object that `resource` was called on as `self`."""

    def __init__(
        self,
        status: Status,
        events: LiveEvents,
        page: Page,
        poller: TemplatePoller,
        watch: ProcessWatch,
        reload: Reload,
        prompt_actions: PromptActions,
        metrics: Metrics,
        gate: Gate,
    ) -> None:
        """Make the routes to these parts.  Nothing is served before `resource` is put into a `Site`."""
        self._status = status
        self._events = events
        self._page = page
        self._poller = poller
        self._watch = watch
        self._reload = reload
        self._prompt_actions = prompt_actions
        self._metrics = metrics
        self._gate = gate

    def resource(self) -> IResource:
        """Return what a `Site`, Twisted's web server, serves."""
        # Klein would answer a path that is not UTF-8 by itself, with a traceback in the log; this class does it first.
        return RoutedResource(self.app.resource())

    @app.handle_errors(NotFound, MethodNotAllowed)
    def no_route(self, request: Any, failure: Failure) -> bytes:
        """Answer in plain text that there is no such path, or that it needs another method.

        Called by Klein when no route matches.  Its own answer would be a page of HTML.
        """
        # A `Failure` is an exception as Twisted hands it on; `value` is the exception, here one of werkzeug's, which
        # matches the paths for Klein.  Its headers say, for 405, which methods are allowed.
        error: Any = failure.value
        request.setResponseCode(error.code)
        for name, value in error.get_headers():
            request.setHeader(name, value)
        return plain(request, f"{error.description}\n")

    # HEAD asks for the head of an answer only: Twisted drops the body that a route returns, so one method serves both.

    @app.route("/", methods=["GET", "HEAD"])
    def live(self, request: Request) -> bytes:
        """Answer with the live page."""
        return self._page.serve(request, FIRST)

    # `path` as a converter matches slashes, too, because some of the files are in folders.
    @app.route("/page/<path:path>", methods=["GET", "HEAD"])
    def page(self, request: Request, path: str) -> bytes:
        """Answer with one of the live page's files; 404 for any other path."""
        return self._page.serve(request, path)

    @app.route("/events", methods=["GET"])
    async def events(self, request: Request) -> bytes | None:
        """Answer with a stream of events that does not end, for the live page; 503 if too many pages are open.

        Fires when bioproxy stops.  Cancelling means that the page is gone.
        """
        # A route for GET also gets HEAD requests, and a HEAD request must not be kept waiting for a body.
        if request.method == b"HEAD":
            return plain(request, "")
        if self._events.full:
            request.setResponseCode(503)
            return plain(request, "too many pages are open\n")
        await self._events.attend(request)
        # All was written already; `None` tells Klein to end the answer.
        return None

    # Two questions that supervisors and load balancers ask.  "Is it alive?" decides whether to restart bioproxy, and
    # must not depend on llama-server; "is it ready?" decides whether to send requests.

    @app.route("/healthz", methods=["GET", "HEAD"])
    def healthz(self, request: Request) -> bytes:
        """Answer 200.  An answer at all means that the process runs and its reactor is not blocked."""
        return plain(request, "ok\n")

    @app.route("/readyz", methods=["GET", "HEAD"])
    async def readyz(self, request: Request) -> bytes:
        """Answer 200 if llama-server is up with its model loaded, else 503 and the reason; also during the shutdown.

        llama-server is asked now, since what the last look found may be two seconds old.  Takes at most five seconds.
        """
        # From SIGTERM on, before the clients' port closes, so that a balancer sends nobody here any more.
        if self._gate.closed:
            request.setResponseCode(503)
            return plain(request, "shutting down\n")
        # The same look as the one of every two seconds, so what it finds is known to all other parts as well.
        await self._watch.look()
        if self._watch.up:
            return plain(request, "ready\n")
        request.setResponseCode(503)
        return plain(request, f"{self._watch.trouble}\n")

    @app.route("/metrics", methods=["GET", "HEAD"])
    def metrics(self, request: Request) -> bytes:
        """Answer with all metrics in Prometheus' text format."""
        # The version is that of the format.
        request.setHeader(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        return self._metrics.text()

    @app.route("/status", methods=["GET", "HEAD"])
    def status(self, request: Request) -> bytes:
        """Answer with the state of everything, as JSON; `bioproxy.operator.status` says what is in it.

        With line ends and spaces, for people who read it in a terminal.
        """
        request.setHeader(b"content-type", b"application/json; charset=utf-8")
        return json.dumps(self._status.whole(), indent=1).encode()

    # For an operator who edits a template and wants to see what becomes of it, without asking the model.
    @app.route("/templates/<name>/render", methods=["GET", "HEAD"])
    async def render(self, request: Request, name: str) -> bytes:
        """Answer with a template filled with the message in ``?message=``, as llama-server would get it.

        The files are read again first.  404 for an unknown name, 500 if the template cannot be used.  Fires with the
        text; cancelling leaves the thread that reads to itself.
        """
        # The text may contain anything, HTML with scripts too.  These headers keep a browser from running it.
        secure(request)
        template = self._poller.templates.get(name)
        if template is None:
            return told(request, no_template(name))
        # Twisted keeps the query as bytes, with a list for each name, because a name may occur several times.
        message = (request.args or {}).get(b"message", [b""])[0].decode("utf-8", "replace")
        # The files are read in a thread, as for a request of a user; the `await` waits for it without blocking.
        try:
            text = await self._poller.read_current(template)
        # The same status that a user's request on this template gets.
        except TemplateError as error:
            request.setResponseCode(500)
            return plain(request, f"{error}\n")
        return plain(request, text.fill(message))

    @app.route("/templates/<name>/warm", methods=["POST"])
    def warm(self, request: Request, name: str) -> bytes:
        """Have a template warmed up next.  Answers 202 at once: the warm-up waits until no user needs the slot."""
        return told(request, self._prompt_actions.warm_template(name))

    # For an operator who does not want to keep what was learned from requests, or wants to keep it in any case.  The id
    # is one of those in `prompts` of ``/status``.
    @app.route("/prompts/<id>/forget", methods=["POST"])
    def forget_prompt(self, request: Request, id: str) -> bytes:
        """Forget a learned prompt or a conversation, with its files; 409 for a template, 404 for an unknown id."""
        return told(request, self._prompt_actions.forget(id))

    @app.route("/prompts/<id>/pin", methods=["POST"])
    def pin_prompt(self, request: Request, id: str) -> bytes:
        """Keep the files of an id whatever the limits are; 404 if it has none."""
        return told(request, self._prompt_actions.pin(id, True))

    @app.route("/prompts/<id>/unpin", methods=["POST"])
    def unpin_prompt(self, request: Request, id: str) -> bytes:
        """Keep the files of an id within the limits again; 404 if it has none."""
        return told(request, self._prompt_actions.pin(id, False))

    @app.route("/prompts/<id>/warm", methods=["POST"])
    def warm_prompt(self, request: Request, id: str) -> bytes:
        """Have a prompt warmed up next.  Answers 202 at once, as for a template; 404 for an unknown id."""
        return told(request, self._prompt_actions.warm(id))

    # For an operator who cannot send signals, as with a container.
    @app.route("/reload", methods=["POST"])
    def reload(self, request: Request) -> bytes:
        """Reload the configuration; answer with the settings that changed, or with 400 and the mistake."""
        request.setHeader(b"content-type", b"application/json; charset=utf-8")
        # The same as SIGHUP does, but with the result as an answer instead of only in the log.
        try:
            reloaded = self._reload.run()
        except ConfigError as error:
            request.setResponseCode(400)
            return json.dumps({"error": str(error)}).encode()
        return json.dumps({"changed": reloaded.changed, "needs_restart": reloaded.restart}).encode()


def plain(request: Request, text: str) -> bytes:
    """Return text as the body of a plain text answer, after setting the header for that."""
    # Half of a surrogate pair, from a file name that is not UTF-8, has no place in UTF-8 and becomes a question mark.
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    return text.encode("utf-8", "replace")


def told(request: Request, result: Result) -> bytes:
    """Answer with what came of an action on a prompt."""
    status, text = result
    request.setResponseCode(status)
    return plain(request, f"{text}\n")
