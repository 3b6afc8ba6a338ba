"""Requests that name templates, from their arrival to their turn."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from tempfile import SpooledTemporaryFile
from typing import Any

from twisted.internet.defer import Deferred

from bioproxy.http.request_body import PORTION_SIZE, SHORT_BODY, RequestBody
from bioproxy.prompts import request_search
from bioproxy.prompts.api_formats import UNGATED
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.prompts.template_search import MOST_FILLED, may_name_template
from bioproxy.proxy.request_reader import RequestReader
from bioproxy.runtime.errors import ProxyError, TooComplex, TooDeep, Unavailable
from bioproxy.runtime.spool import SMALL
from tests.support.world import CODE, World, WorldTest, read_here

CHAT = "/v1/chat/completions"
MESSAGE = {"role": "user", "content": "@code why?"}


class Turns(WorldTest):
    """A request is read when it comes, and filled when its turn has come."""

    def busy_world(self, **settings: Any) -> World:
        """Build a world whose gate is busy."""
        world = self.warm_world(**settings)
        self.occupy(world)
        return world

    def occupy(self, world: World) -> None:
        """Let somebody into the gate, who stays."""
        world.llama_server.pause_at = {CHAT}
        world.chat("hello")

    def test_newest_text(self) -> None:
        """The text is that of the moment in which the request gets its turn."""
        world = self.busy_world()
        call = world.chat("@code why?")
        self.template("code", "Changed: <{message}>")
        world.go_on()
        self.assertEqual(200, call.status)
        self.assertTrue(any(b"Changed: why?" in body for _, _, body in world.llama_server.raw))

    def test_refused_before(self) -> None:
        """What cannot be filled is refused at once: it need not wait for that."""
        world = self.busy_world(max_body=1000)
        for text, status in (("no place", 500), ("long " * 300 + "<{message}>", 413)):
            self.template("code", text)
            self.successResultOf(world.start(world.poller.poll))
            self.assertEqual(status, world.chat("@code why?").status)
            self.assertEqual(0, world.gate.waiting)

    def test_refused_then(self) -> None:
        """A template that gets lost, or too large, while the request waits is an error then."""
        world = self.warm_world(max_body=1000)
        for text, status in (("no place", 500), ("long " * 300 + "<{message}>", 413)):
            self.occupy(world)
            self.template("code", CODE)
            self.successResultOf(world.start(world.poller.poll))
            call = world.chat("@code why?")
            self.assertEqual(1, world.gate.waiting)
            self.template("code", text)
            before = len(world.llama_server.requests)
            world.go_on()
            self.assertEqual(status, call.status)
            sent = [path for path, _ in world.llama_server.requests[before:]]
            self.assertNotIn(CHAT, sent)
            self.assertIsNone(world.gate.busy)

    def test_nothing_held(self) -> None:
        """Waiting requests on a large template take no more memory than they have themselves."""
        world = self.busy_world()
        self.template("code", "x" * 1_000_000 + "<{message}>")
        for _ in range(20):
            world.chat("@code why?")
        exchanges = [exchange for exchange in world.proxy.running.exchanges if exchange.record.template]
        self.assertEqual(20, len(exchanges))
        self.assertLess(max(exchange.body.size for exchange in exchanges), 200)

    def test_too_many(self) -> None:
        """A request that names templates too often is refused, and says how often it may."""
        world = self.ready_world()
        allowed = json.dumps({"messages": [MESSAGE] * MOST_FILLED}).encode()
        self.assertNotEqual(413, world.send("POST", CHAT, allowed).status)
        call = world.send("POST", CHAT, json.dumps({"messages": [MESSAGE] * (MOST_FILLED + 1)}).encode())
        self.assertEqual(413, call.status)
        self.assertIn(str(MOST_FILLED), call.json()["error"]["message"])


class Sizes(WorldTest):
    """Bodies of every size are filled alike: short, small and large ones."""

    def send_all(self, world: World) -> None:
        """Let a large body be sent, one portion in each turn of the reactor."""
        for _ in range(40):
            world.advance(0)

    def sent(self, world: World) -> bytes:
        """Return the body of the last chat that llama-server got."""
        return max(enumerate(world.llama_server.raw), key=lambda each: (b"why?" in each[1][2], each[0]))[1][2]

    def test_each_size(self) -> None:
        """A body arrives whole and filled, however it is kept and read meanwhile."""
        edges = [edge + more for edge in (SHORT_BODY, SMALL, PORTION_SIZE) for more in (-90, 0, 90)]
        world = self.ready_world()
        for size in [10, *edges, 3 * SMALL]:
            padding = "é" * (size // 2)
            source = json.dumps({"x": padding, "messages": [MESSAGE], "y": padding}, ensure_ascii=False)
            call = world.send("POST", CHAT, source.encode())
            self.send_all(world)
            self.assertEqual(200, call.status)
            expected = source.replace("@code why?", CODE.replace("<{message}>", "why?"))
            self.assertEqual('{"id_slot": 0, ' + expected[1:], self.sent(world).decode())

    def test_large_template(self) -> None:
        """A short body with a large template arrives whole, too."""
        text = 'a "large" one\n' * 30_000
        world = self.ready_world({"code": text + "<{message}>\n<{message}>"})
        world.chat("@code why?")
        self.send_all(world)
        sent = json.loads(self.sent(world))
        self.assertEqual(f"{text}why?\nwhy?", sent["messages"][0]["content"])

    def test_no_room(self) -> None:
        """Where a body to be read has no place in a file, its client is told to come again."""
        world = self.ready_world()
        self.patch(tempfile, "tempdir", str(self.folder / "gone"))
        source = json.dumps({"messages": [MESSAGE], "x": "x" * SHORT_BODY}).encode()
        call = world.send("POST", CHAT, source)
        self.assertEqual(503, call.status)
        self.assertIn("temporary file", call.json()["error"]["message"])


def chat_body(words: str, size: int = 0) -> bytes:
    """Return a chat of at least `size` bytes."""
    return json.dumps({"messages": [{"role": "user", "content": words}], "x": "x" * size}).encode()


class Learning(WorldTest):
    """`RequestReader.find` of a chat that names no template."""

    def setUp(self) -> None:
        """Have a reader with a template, which counts what the worker is asked."""
        super().setUp()
        self.built = self.ready_world()
        self.asked: list[Callable[..., Any]] = []
        self.fails: dict[Callable[..., Any] | None, ProxyError] = {}
        self.reader = RequestReader(self.built.poller, self.elsewhere, 1 << 20, 1000)

    def without_templates(self) -> None:
        """Have a reader that knows no template."""
        world = self.ready_world({}, state_dir=self.folder / "other")
        self.reader = RequestReader(world.poller, self.elsewhere, 1 << 20, 1000)

    async def elsewhere(self, function: Callable[..., Any], descriptor: int, *args: Any) -> Any:
        """Do what the worker does, or fail."""
        self.asked.append(function)
        error = self.fails.get(function, self.fails.get(None))
        if error is not None:
            raise error
        return await read_here(function, descriptor, *args)

    def start(self, content: bytes, path: str = CHAT) -> Deferred[NamedTemplates | ChatRequest | None]:
        """Begin to find what is in a body, which is kept as a body that has arrived."""
        file = SpooledTemporaryFile(SMALL)  # noqa: SIM115  (closed by the cleanup)
        self.addCleanup(file.close)
        file.write(content)
        return Deferred.fromCoroutine(self.reader.find(path, RequestBody(file)))

    def find(self, content: bytes, path: str = CHAT) -> NamedTemplates | ChatRequest | None:
        """Return what is found in a body."""
        return self.successResultOf(self.start(content, path))

    def failure(self, content: bytes, *kinds: type[Exception]) -> None:
        """Check that reading a body fails in one of these ways."""
        self.failureResultOf(self.start(content), *kinds)

    def test_kinds(self) -> None:
        """A body of any size is read, a large one by the worker; templates are found before anything is learned."""
        for size in (1000, 2 * SHORT_BODY):
            self.assertIsInstance(self.find(chat_body("hello", size)), ChatRequest)
            self.assertIsInstance(self.find(chat_body("@code x", size)), NamedTemplates)
        self.assertEqual(2, len(self.asked))
        self.assertIsNone(self.find(chat_body("hello", 100)))
        self.assertIsInstance(self.find(chat_body("@code x", 100)), NamedTemplates)

    def test_changed(self) -> None:
        """The minimum may be changed at any time, and nothing is learned without one."""
        for least, kind in ((None, type(None)), (0, ChatRequest), (1 << 20, type(None))):
            self.reader.learn_minimum = least
            self.assertIsInstance(self.find(chat_body("hello", 100)), kind)
        self.assertIsNone(RequestReader(self.built.poller, self.elsewhere, 1 << 20).learn_minimum)
        self.assertIsNone(self.built.parts.reader.learn_minimum)

    def test_no_detour(self) -> None:
        """A large body from which nothing can be found is not handed to the worker."""
        self.reader = RequestReader(
            self.ready_world({}, state_dir=self.folder / "other").poller, self.elsewhere, 1 << 20, 1000
        )
        self.assertIsNone(self.find(chat_body("hello", 2 * SHORT_BODY), "/completion"))
        self.assertIsNone(self.find(chat_body("hello", 2 * SHORT_BODY), "/v1/messages/count_tokens"))
        self.reader.learn_minimum = None
        self.assertIsNone(self.find(chat_body("hello", 2 * SHORT_BODY)))
        self.assertEqual([], self.asked)

    def test_worker_fails(self) -> None:
        """If the worker cannot read a body, the request goes on if it cannot name a template, and else fails."""
        hello, named = (chat_body(words, 2 * SHORT_BODY) for words in ("hello", "@code x"))
        for error in (TooComplex("too much"), Unavailable("no process")):
            # The worker works again when it is asked the simpler question.
            self.fails = {request_search.read_request: error}
            self.assertIsNone(self.find(hello))
            self.assertEqual([request_search.read_request, may_name_template], self.asked[-2:])
            self.failure(named, type(error))
            # It never does.  The client of a body that may name a template has to be told.
            self.fails = {None: error}
            self.failure(hello, type(error))

    def test_worker_fails_without_templates(self) -> None:
        """Where there are no templates no body can name one, and no failure of the worker stops a request."""
        self.reader = RequestReader(
            self.ready_world({}, state_dir=self.folder / "other").poller, self.elsewhere, 1 << 20, 1000
        )
        for error in (TooComplex("too much"), Unavailable("no process")):
            self.fails = {None: error}
            self.assertIsNone(self.find(chat_body("@code x", 2 * SHORT_BODY)))
        self.assertEqual([request_search.read_request] * 2, self.asked)

    def test_no_room(self) -> None:
        """Nor does a temporary file that cannot be written."""
        self.reader = RequestReader(
            self.ready_world({}, state_dir=self.folder / "other").poller, self.elsewhere, 1 << 20, 1000
        )
        self.patch(tempfile, "tempdir", str(self.folder / "gone"))
        self.assertIsNone(self.find(chat_body("hello", 2 * SHORT_BODY)))
        self.assertEqual([], self.asked)

    def test_too_deep(self) -> None:
        """What nests too deep is refused if it may name a template, as short bodies and as large ones."""

        def nested(text: str, levels: int) -> bytes:
            return chat_body(text, 1000)[:-1] + b', "y": ' + b"[" * levels + b"]" * levels + b"}"

        # From Python 3.13 on, `json` reads more levels than fit in a short body.
        too_deep, fine = ([200_000], [5000]) if sys.version_info >= (3, 13) else ([5000, 200_000], [500])
        for levels in too_deep:
            self.assertIsNone(self.find(nested("hello", levels)))
            self.failure(nested("@code x", levels), TooDeep)
        for levels in fine:
            self.assertIsInstance(self.find(nested("hello", levels)), ChatRequest)
            self.assertIsInstance(self.find(nested("@code x", levels)), NamedTemplates)

    def test_proxy(self) -> None:
        """A chat from which something may be learned is sent on byte for byte."""
        self.built.parts.reader.learn_minimum = 0
        for size in (0, 2 * SHORT_BODY):
            content = b" " + chat_body("hello \u00e9", size).replace(b": ", b" :")
            call = self.built.send("POST", CHAT, content)
            for _ in range(40):
                self.built.advance(0)
            self.assertEqual(200, call.status)
            self.assertIn(content, [raw for _, _, raw in self.built.llama_server.raw])


class Ungated(WorldTest):
    """What tells something of a request without using the slot is told of the filled one."""

    def test_each_path(self) -> None:
        """The texts are filled, the slot is not named, and nobody waits, not even for the gate."""
        world = self.ready_world()
        world.llama_server.pause_at = {CHAT}
        world.chat("hello")
        for path in sorted(UNGATED):
            name = "input" if "responses" in path else "messages"
            source = f'{{"x":1e400,"{name}":[{{"role":"user","content":"@code why?"}}]}}'
            world.send("POST", path, source.encode())
            expected = source.replace("@code why?", CODE.replace("<{message}>", "why?"))
            self.assertEqual(expected, world.llama_server.raw[-1][2].decode(), path)

    def test_template_lost(self) -> None:
        """Text with a known prefix never goes out unfilled there, either."""
        world = self.ready_world()
        (self.folder / "code.txt").unlink()
        before = len(world.llama_server.requests)
        for path in sorted(UNGATED - {"/v1/responses/input_tokens", "/responses/input_tokens"}):
            self.assertEqual(500, world.send("POST", path, json.dumps({"messages": [MESSAGE]}).encode()).status)
        self.assertEqual(before, len(world.llama_server.requests))
