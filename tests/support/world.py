"""A whole bioproxy in memory, with a `FakeLlama` behind it.

`World` builds all parts without sockets, threads or real time: `RequestTraversalAgent` carries requests to the fake
through memory, a `Call` is a client's connection, and a `Clock` stands still until the test advances it.  `settle`
moves everything that can move.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable
from mmap import ACCESS_READ, mmap
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

from bioproxy.assembly.assemble import assemble
from bioproxy.assembly.outside import Outside
from bioproxy.llama.connections import Agents
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Key
from bioproxy.settings.configuration import Settings
from bioproxy.slot.preparer import Prepared
from tests.support.fakes import FakeLlama
from tests.support.folders import FolderTest
from tests.support.network import Call

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


async def read_here(function: Callable[..., T], descriptor: int, *args: Any) -> T:
    """Have a function read an open file: what `Worker.call` does, without another process."""
    with mmap(descriptor, 0, access=ACCESS_READ) as view:
        return function(view, *args)


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
        self.in_thread: Callable[..., Any] = maybeDeferred
        self.on_shared_disk: Callable[..., Any] = maybeDeferred
        self.free = 1 << 50
        self.new_settings = self.settings
        outside = Outside(
            agents=agents or Agents(self.agent, self.agent, self.agent, self.agent, self.agent),
            in_thread=lambda work: self.in_thread(work),
            on_shared_disk=lambda work: self.on_shared_disk(work),
            elsewhere=read_here,
            free_space=lambda _: self.free,
        )
        parts = self.parts = assemble(self.settings, self.clock, outside, lambda: self.new_settings)
        parts.keys.read()
        parts.state.open()
        parts.snapshots.load()
        parts.shape_learning.load()
        # A clock of their own: the time that a connection may take is no matter here.
        self.http_clock = Clock()
        self.clients_port = parts.clients_site(self.http_clock)
        self.operators_port = parts.operators_site(self.http_clock)

        self.metrics, self.speed, self.keys, self.state = parts.metrics, parts.speed, parts.keys, parts.state
        self.upstream, self.llama, self.identity = parts.upstream, parts.llama, parts.identity
        self.gate, self.slot, self.content, self.files = parts.gate, parts.slot, parts.content, parts.files
        self.snapshots, self.slot_folder, self.saver = parts.snapshots, parts.folder, parts.saver
        self.reuse_check, self.watch, self.poller = parts.reuse_check, parts.watch, parts.poller
        self.shape_learning, self.catalogue, self.schedule = parts.shape_learning, parts.catalogue, parts.schedule
        self.warmup, self.warmer, self.readiness = parts.warmup, parts.warmer, parts.readiness
        self.request_log, self.proxy, self.limits = parts.request_log, parts.proxy, parts.limits
        self.history, self.status, self.events = parts.history, parts.status, parts.events
        self.reload, self.admin = parts.reload, parts.admin

    def close(self) -> None:
        """End all that is still going on, so that nothing of it reaches into another test."""
        for call in self._calls:
            call.hang_up()
        for result in self._started:
            result.cancel()
            result.addErrback(lambda _: None)
        self.settle()
        self.state.close()

    def settle(self) -> None:
        """Carry everything that is on its way to and from the fake until nothing moves any more."""
        quiet = 0
        while quiet < 3:
            before = len(self.llama_server.requests)
            self.agent.flush()
            quiet = quiet + 1 if len(self.llama_server.requests) == before else 0

    def go_on(self) -> None:
        """Have llama-server pause nowhere any more, and all that was paused go on."""
        self.llama_server.pause_at = set()
        self.llama_server.go_on()
        self.settle()

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

    def chat(self, *messages: str, system: str | None = None, **more: Any) -> Call:
        """Send a chat through the proxy; messages are the user's and the assistant's in turn, after the system's."""
        roles = ("user", "assistant")
        turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(messages)]
        first = [] if system is None else [{"role": "system", "content": system}]
        return self.send("POST", "/v1/chat/completions", json.dumps({"messages": [*first, *turns], **more}).encode())

    def send(self, method: str, target: str | bytes, body: bytes = b"", **headers: str) -> Call:
        """Send any request through the proxy; `content_type="x"` is a header."""
        return self._call(self.clients_port, method, target, body, headers)

    def operate(self, method: str, target: str, **headers: str) -> Call:
        """Send a request to the admin port."""
        return self._call(self.operators_port, method, target, b"", headers)

    def _call(self, site: Site, method: str, target: str | bytes, body: bytes, headers: dict[str, str]) -> Call:
        target = target if isinstance(target, bytes) else target.encode()
        headers = {"Host": "localhost", **headers}
        lines = [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
        if body:
            lines.append(b"Content-Length: %d" % len(body))
        head = [method.encode() + b" " + target + b" HTTP/1.1", *lines]
        call = Call(site, b"\r\n".join(head) + b"\r\n\r\n" + body)
        self._calls.append(call)
        self.settle()
        return call

    def saved(self, name: str = "code", kind: str = "prefix") -> list[int] | None:
        """Return the tokens in a template's slot file: the one that the record names, `None` if it names none."""
        entry = self.snapshots.get(name, kind)
        return None if entry is None else self.llama_server.read(entry.filename)

    def sample(self, name: str, **labels: str) -> float:
        """Return a metric's value, 0 if nothing was counted."""
        return self.metrics.registry.get_sample_value(f"bioproxy_{name}", labels) or 0.0


CODE = "Know this: abc. <{message}>"
PREFIX = [1, *map(ord, "<user>Know this: abc. ")]
KEY = USER_MESSAGE_ONLY.key(digest("Know this: abc. "))
"""A template, the prefix tokens that the fake makes of it, and its key in a request with nothing else."""

STORY = "Once upon a time there was <{message}>"
STORY_PREFIX = [1, *map(ord, "<user>Once upon a time there was ")]
BOTH = {"code": CODE, "story": STORY}
"""Another template, its prefix tokens, and both templates by name."""


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


class WarmTest(WorldTest):
    """A world that is ready but cold, and its warm-ups, whose rounds the test starts."""

    def use(self, templates: dict[str, str] | None = None, *, files: bool = True, **settings: Any) -> World:
        """Build one."""
        self.built = self.world({"code": CODE} if templates is None else templates, **settings)
        self.server = self.built.llama_server
        if not files:
            self.server.files = None
        self.look()
        self.poll()
        return self.built

    def look(self) -> None:
        """Look at llama-server."""
        self.successResultOf(self.built.start(self.built.watch.look))

    def poll(self) -> None:
        """Look at the files."""
        self.successResultOf(self.built.start(self.built.poller.poll))

    def edit(self, text: str, name: str = "code") -> None:
        """Write a template anew, and let that be noticed."""
        self.template(name, text)
        self.poll()

    def begin(self) -> Deferred[None]:
        """Begin a round."""
        return self.built.start(self.built.warmer.round)

    def rounds(self, count: int = 1) -> list[str]:
        """Let so many rounds pass, half a second apart; return what llama-server was asked for in them."""
        before = len(self.server.requests)
        for _ in range(count):
            self.successResultOf(self.begin())
            self.built.clock.advance(0.5)
        return self.server.paths()[before:]

    def go_on(self) -> None:
        """Let what is paused continue."""
        self.server.go_on()
        self.built.settle()

    def ask(self, *messages: str, **more: Any) -> tuple[str, int]:
        """Ask as a user; return whether it was hot, restored or cold, and how many tokens were reused."""
        call = self.built.chat(*messages, **more)
        return call.headers["x-bioproxy-cache"], call.json()["timings"]["cache_n"]

    def pieces(self, before: int = 0) -> list[int]:
        """Return how many tokens each evaluation asked for since that number of requests, fingerprints left out."""
        asked = self.server.requests[before:]
        return [len(body["prompt"]) for path, body in asked if path == "/completion" and not body["n_predict"]]

    def slot_calls(self, action: str, before: int = 0) -> list[str]:
        """Return the files that were to be saved or restored since that number of requests."""
        asked = self.server.requests[before:]
        names = [body["filename"] for path, body in asked if path == f"/slots/0?action={action}"]
        return [name for name in names if name != "/"]  # the question whether there are files at all

    def state(self, name: str = "code") -> str:
        """Return a template's state."""
        return self.built.readiness.state(name)[0]

    def error(self, name: str = "code") -> str:
        """Return what is wrong with a template."""
        return self.built.readiness.state(name)[1] or ""

    def ended(self, result: str) -> float:
        """Return how many warm-ups of ``@code`` ended so."""
        return self.built.sample("warmups_total", template="code", result=result)


class SlotTest(WorldTest):
    """The slot of a world that is warm for ``@code`` to begin with."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        self.use(self.warm_world())

    def use(self, world: World) -> None:
        """Use another."""
        self.built, self.server, self.slot, self.files = world, world.llama_server, world.slot, world.files

    def slots_folder(self) -> Path:
        """Make a folder for slot files that the proxy sees."""
        path = self.folder / "slots"
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def run_now(self, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
        """Run a coroutine to its end."""
        return self.successResultOf(self.built.start(work))

    def prepare(self, key: Key = KEY, *chain: str, name: str = "code") -> Prepared:
        """Prepare the slot for a question in a conversation with this chain."""
        return self.run_now(lambda: self.slot.prepare(name, key, ConversationChain(chain)))

    def evaluate(self, tokens: list[int]) -> None:
        """Have llama-server use the slot behind the proxy's back."""
        self.run_now(lambda: self.built.llama.evaluate(tokens))

    def converse(self, *chain: str, grown: int = 300, key: Key = KEY, name: str = "code") -> list[int]:
        """Have a conversation of so many tokens behind the template's in the slot; return all tokens."""
        held = [*PREFIX, *map(ord, ("".join(chain) * grown)[:grown])]
        self.evaluate(held)
        self.run_now(lambda: self.slot.remember(name, key, ConversationChain(chain)))
        return held

    def count(self, what: str, result: str) -> float:
        """Return how often something was counted for ``@code``."""
        return self.built.sample(f"slot_{what}_total", template="code", result=result)

    def asked_since(self, before: int) -> list[str]:
        """Return the paths that llama-server was asked for since it had this number of requests."""
        return self.server.paths()[before:]
