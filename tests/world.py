"""A whole bioproxy in memory, with a `FakeLlama` behind it.

`World` builds all parts without sockets, threads or real time: `RequestTraversalAgent` carries requests to the fake
through memory, a `Call` is a client's connection, and a `Clock` stands still until the test advances it.  `settle`
moves everything that can move.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from twisted.web.server import Site
from zope.interface import implementer

from bioproxy.admin import Admin
from bioproxy.config import Settings
from bioproxy.connections import Agents
from bioproxy.gate import Gate
from bioproxy.identity import Identity
from bioproxy.journal import Journal
from bioproxy.llama import Llama
from bioproxy.metrics import Metrics
from bioproxy.poller import Poller
from bioproxy.ports import QuietSite
from bioproxy.proxy import Proxy
from bioproxy.slot import Slot
from bioproxy.snapshots import Snapshots
from bioproxy.speed import Speed
from bioproxy.upstream import Upstream
from bioproxy.warmup import Warmer
from bioproxy.watch import Watch
from tests.fakes import FakeLlama
from tests.folders import FolderTest
from tests.network import Call

T = TypeVar("T")


@implementer(IAgent)
class ToFake:
    """Carries requests to a `FakeLlama`, unless that is down.

    Stands for `ProxyAgent` too, which sends a request's target as it is instead of a whole address.
    """

    def __init__(self, llama_server: FakeLlama) -> None:
        self._llama_server = llama_server
        self._agent = RequestTraversalAgent(llama_server.app.resource())
        self.flush = self._agent.flush

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """Send it."""
        if self._llama_server.down:
            return fail(ConnectionRefusedError())
        if uri.startswith(b"/"):
            uri = b"http://llama" + uri
        answer: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
        return answer


def logged(events: Iterable[LogEvent]) -> list[str]:
    """Return log events as text."""
    return [formatEvent(event) for event in events]


class World:
    """All of bioproxy, in memory."""

    def __init__(self, folder: Path, agents: Agents | None = None, **settings: Any) -> None:
        self.folder = folder
        self._calls: list[Call] = []
        self._started: list[Deferred[Any]] = []
        self.settings = Settings(**{"state_dir": folder / "state", "llama_url": "http://llama", **settings})
        self.llama_server = FakeLlama()
        self.llama_server.folder = self.settings.slot_save_path
        self.clock = Clock()
        self.agent = ToFake(self.llama_server)
        self.metrics, self.speed = Metrics(), Speed()
        self.upstream = Upstream("http://llama", agents or Agents(*[self.agent] * 4), self.clock)
        self.llama = Llama(self.upstream)
        self.identity = Identity(self.llama)
        self.snapshots = Snapshots(self.settings.state_dir, self.settings.slot_save_path)
        self.snapshots.open()
        self.slot = Slot(self.llama, self.identity, self.snapshots, self.metrics, self.clock)
        self.watch = Watch(
            self.llama,
            self.upstream,
            self.identity,
            self.slot,
            self.metrics,
            self.clock,
            self.settings.upstream_timeout,
        )
        self.in_thread: Callable[..., Any] = maybeDeferred
        self.poller = Poller(self.settings.templates, lambda work: self.in_thread(work), self.metrics)
        self.gate = Gate(self.clock, self.metrics, self.settings.queue_limit, self.settings.queue_timeout)
        self.warmer = Warmer(
            self.poller,
            self.gate,
            self.slot,
            self.llama,
            self.watch,
            self.metrics,
            self.speed,
            self.clock,
            self.settings.warmup_chunk,
            self.settings.warmup,
        )
        self.journal = Journal(self.metrics, self.speed, self.clock)
        self.proxy = Proxy(
            self.poller,
            self.gate,
            self.slot,
            self.warmer,
            self.upstream,
            self.journal,
            self.clock,
            self.settings.max_body,
        )
        self.admin = Admin(
            self.poller,
            self.gate,
            self.slot,
            self.warmer,
            self.watch,
            self.upstream,
            self.journal,
            self.metrics,
            self.clock,
        )
        # A clock of their own: the time that Twisted lets a connection be idle is no matter here.
        self.clients_port = QuietSite("clients' port", self.proxy.resource(), Clock())
        self.operators_port = QuietSite("operator's port", self.admin.resource(), Clock())

    def close(self) -> None:
        """End all that is still going on, so that nothing of it reaches into another test."""
        for call in self._calls:
            call.hang_up()
        for result in self._started:
            result.cancel()
            result.addErrback(lambda _: None)
        self.settle()
        self.snapshots.close()

    def settle(self) -> None:
        """Carry everything that is on its way to and from the fake until nothing moves any more."""
        quiet = 0
        while quiet < 3:
            before = len(self.llama_server.requests)
            self.agent.flush()
            quiet = quiet + 1 if len(self.llama_server.requests) == before else 0

    def start(self, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> Deferred[T]:
        """Start a coroutine and let everything move as far as it can."""
        result = Deferred.fromCoroutine(work())
        self._started.append(result)
        self.settle()
        return result

    def advance(self, seconds: float) -> None:
        """Let time pass, and then everything move."""
        self.clock.advance(seconds)
        self.settle()

    def chat(self, *messages: str, **more: Any) -> Call:
        """Send a chat through the proxy; messages are the user's and the assistant's in turn."""
        roles = ("user", "assistant")
        body = {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(messages)], **more}
        return self.send("POST", "/v1/chat/completions", json.dumps(body).encode())

    def send(self, method: str, target: str | bytes, body: bytes = b"", **headers: str) -> Call:
        """Send any request through the proxy; `content_type="x"` is a header."""
        return self._call(self.clients_port, method, target, body, headers)

    def operate(self, method: str, target: str, **headers: str) -> Call:
        """Send a request to the admin port."""
        return self._call(self.operators_port, method, target, b"", headers)

    def _call(self, site: Site, method: str, target: str | bytes, body: bytes, headers: dict[str, str]) -> Call:
        target = target if isinstance(target, bytes) else target.encode()
        headers = {"Host": "proxy", **headers}
        lines = [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
        if body:
            lines.append(b"Content-Length: %d" % len(body))
        head = [method.encode() + b" " + target + b" HTTP/1.1", *lines]
        call = Call(site, b"\r\n".join(head) + b"\r\n\r\n" + body)
        self._calls.append(call)
        self.settle()
        return call

    def sample(self, name: str, **labels: str) -> float:
        """Return a metric's value, 0 if nothing was counted."""
        return self.metrics.registry.get_sample_value(f"bioproxy_{name}", labels) or 0.0


CODE = "Know this: abc. <{message}>"
PREFIX = [1, *map(ord, "<user>Know this: abc. ")]
"""A template, and the prefix tokens that the fake makes of it."""


class WorldTest(FolderTest):
    """A test with a folder of its own, templates in it, and a `World`."""

    def world(self, templates: dict[str, str] | None = None, agents: Agents | None = None, **settings: Any) -> World:
        """Build a world with these templates: name and text; the prefix of ``code`` is ``@code``."""
        prefixes = {f"@{name}": self.template(name, text) for name, text in (templates or {}).items()}
        world = World(self.folder, agents, prefixes=prefixes, **settings)
        self.addCleanup(world.close)
        return world

    def ready_world(self, templates: dict[str, str] | None = None, **settings: Any) -> World:
        """Build a world, and let it find llama-server and its templates."""
        world = self.world({"code": CODE} if templates is None else templates, **settings)
        self.successResultOf(world.start(world.watch.look))
        self.successResultOf(world.start(world.poller.poll))
        return world

    def warm_world(self, templates: dict[str, str] | None = None, **settings: Any) -> World:
        """Build such a world, and let it warm its templates up."""
        world = self.ready_world(templates, **settings)
        for _ in world.settings.prefixes:
            self.successResultOf(world.start(world.warmer.round))
        return world
