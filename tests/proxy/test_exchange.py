"""What a client is told, before and after the head of its answer went out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http.buffer_budget import BufferBudget
from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.resources import CatchAllResource
from bioproxy.http.site import CheckedSite
from bioproxy.proxy.exchange import Exchange
from bioproxy.runtime.errors import ProxyError
from bioproxy.runtime.spool import SMALL
from tests.support.fakes import Refusal
from tests.support.network import Call, Wire
from tests.support.world import KEY, World, WorldTest

CHAT = "/v1/chat/completions"
PING = b": waiting, 1st of 1\n\n"
PREPARED = b": being prepared\n\n"
PATHS = (CHAT, "/v1/messages", "/v1/responses")
"""One of each dialect."""


def ping(path: str) -> bytes:
    """Return what the first in the queue is told, in the path's dialect."""
    return PING if path != "/v1/messages" else PING[:-1] + b'event: ping\ndata: {"type": "ping"}\n\n'


class LateTest(WorldTest):
    """A user inside, and others who wait longer than the ten seconds after which there are comments."""

    def occupied(self, **settings: Any) -> World:
        """Build a world where somebody is inside until `free`."""
        world = self.ready_world(**settings)
        world.llama_server.pause_at = {CHAT}
        self.inside = world.chat("hello")
        self.assertEqual("user", world.gate.busy)
        return world

    def free(self, world: World) -> None:
        """Let the one inside, and all that follow, get their answers."""
        world.go_on()
        self.assertEqual(200, self.inside.status)

    def ask(self, world: World, path: str = CHAT, stream: bool = True, text: str = "@code why?") -> Call:
        """Ask, as a web page does."""
        body = {"messages": [{"role": "user", "content": text}], "stream": stream}
        return world.send("POST", path, json.dumps(body).encode(), Origin="http://page")

    def record(self, world: World, call: Call) -> dict[str, Any]:
        """Return what is kept of a request."""
        return next(each for each in world.request_log.latest() if each["id"] == call.headers["x-bioproxy-request-id"])

    def check_event(self, path: str, rest: bytes, kind: str, words: str) -> None:
        """Check that this is nothing but one error event, in the path's dialect."""
        *name, data = rest.decode().removeprefix("\n\n").removesuffix("\n\n").split("\n")
        self.assertTrue(rest.startswith(b"\n\n") and rest.endswith(b"\n\n"), rest)
        event = json.loads(data.removeprefix("data: "))
        self.assertEqual([] if path == CHAT else ["event: error"], name, rest)
        if path == "/v1/responses":
            self.assertEqual(("error", kind), (event["type"], event["code"]))
            self.assertIn(words, event["message"])
        else:
            self.assertEqual("error" if path == "/v1/messages" else None, event.get("type"))
            self.assertEqual(kind, event["error"]["type"])
            self.assertIn(words, event["error"]["message"])


class Comments(LateTest):
    """Who gets comments, and when."""

    def test_stream(self) -> None:
        """Who waits for a stream is told the place from time to time; then the stream follows, whole and as it is."""
        world = self.occupied()
        first, second = self.ask(world), self.ask(world)
        self.assertEqual((b"", b""), (first.received, second.received))
        world.advance(10)
        world.advance(10)
        places = (b": waiting, 1st of 2\n\n" * 2, b": waiting, 2nd of 2\n\n" * 2)
        self.assertEqual(places, (first.body, second.body))
        self.free(world)
        for call, comments in zip((first, second), places, strict=True):
            self.assertTrue(call.body.startswith(comments + b'data: {"choices":[{"delta":{"content":"f"}}]}\n\n'))
            self.assertTrue(call.body.endswith(b"data: [DONE]\n\n"))
            self.assertEqual((200, True, False), (call.status, call.whole, call.aborted))
        world.advance(100)
        self.assertEqual(2, first.body.count(b"\n\n:") + 1)
        self.assertEqual([], world.clock.getDelayedCalls())

    def test_what_is_known(self) -> None:
        """The head has what was known when it went out; the record has all, and what the slot holds is known."""
        world = self.occupied()
        call = self.ask(world)
        world.advance(10)
        self.free(world)
        names = sorted(name.lower() for name in call.headers if name.lower().startswith("x-bioproxy-"))
        self.assertEqual(["x-bioproxy-request-id", "x-bioproxy-template"], names)
        self.assertEqual("http://page", call.headers["access-control-allow-origin"])
        record = self.record(world, call)
        self.assertEqual((200, "cold", 10_000), (record["status"], record["cache"], record["queue_ms"]))
        self.assertTrue(world.content.has(KEY))

    def test_in_preparation(self) -> None:
        """While llama-server reads a long prompt there are comments, too; none once the answer has begun."""
        world = self.ready_world()
        world.llama_server.pause_at = {CHAT, "stream"}
        call = self.ask(world)
        world.advance(10)
        self.assertEqual(PREPARED, call.body)
        world.llama_server.go_on(CHAT)
        world.settle()
        begun = call.body
        self.assertTrue(begun.startswith(PREPARED + b"data: "))
        world.advance(30)
        self.assertEqual(begun, call.body)
        world.go_on()
        self.assertTrue(call.whole)

    def test_restoring(self) -> None:
        """So too while the slot is being restored."""
        world = self.warm_world()
        world.content.forget()
        world.llama_server.pause_at = {"/slots/0?action=restore"}
        call = self.ask(world)
        world.advance(10)
        self.assertEqual(PREPARED, call.body)
        world.go_on()
        self.assertTrue(call.whole)
        self.assertEqual("restored", self.record(world, call)["cache"])

    def test_none(self) -> None:
        """Who asked for no stream gets no comments, nor does anybody with an interval of 0: just the whole answer."""
        for interval, stream in ((10, False), (0, True)):
            world = self.occupied(ping_interval=interval, state_dir=self.folder / str(interval))
            call = self.ask(world, stream=stream)
            world.advance(100)
            self.assertEqual(b"", call.received)
            self.free(world)
            self.assertEqual((200, True, "100000.0"), (call.status, call.whole, call.headers["x-bioproxy-queue-ms"]))
            self.assertNotIn(b": waiting", call.body)

    def test_only_looks_like_it(self) -> None:
        """Nor does who speaks of streams elsewhere in a request, large or not."""
        for size in (1, SMALL + 1):
            world = self.occupied(state_dir=self.folder / str(size))
            question = {"messages": [{"role": "user", "content": "x" * size}], "metadata": {"stream": True}}
            call = world.send("POST", CHAT, json.dumps(question).encode())
            world.advance(100)
            self.assertEqual(b"", call.received)
            world.llama_server.context = 1 << 30
            self.free(world)
            world.advance(1)  # a large body goes out bit by bit
            self.assertEqual((200, True), (call.status, call.whole))
            self.assertNotIn(b": waiting", call.body)

    def test_interval(self) -> None:
        """The interval is the setting's."""
        world = self.occupied(ping_interval=3)
        call = self.ask(world)
        world.advance(2.9)
        self.assertEqual(b"", call.received)
        world.advance(0.1)
        self.assertEqual(PING, call.body)

    def test_hanging_up(self) -> None:
        """Who hangs up after a comment leaves the queue, and nothing behind."""
        world = self.occupied()
        call = self.ask(world)
        world.advance(10)
        call.hang_up()
        world.settle()
        self.assertEqual((0, 499), (world.gate.waiting, self.record(world, call)["status"]))
        self.free(world)
        self.assertEqual([], world.clock.getDelayedCalls())
        self.assertEqual([], self.flushLoggedErrors())

    def test_slow_reader(self) -> None:
        """Comments wait for a client whose connection is full, and come first when it has room again."""
        world = self.occupied()
        call = self.ask(world)
        world.advance(10)
        producer: Any = call.transport.producer
        producer.pauseProducing()
        world.advance(10)
        self.free(world)
        self.assertEqual(PING, call.body)
        producer.resumeProducing()
        self.assertTrue(call.body.startswith(PING * 2 + b"data: "))
        self.assertTrue(call.whole)


class InTime(LateTest):
    """Who waits for less than the interval."""

    def test_real_status(self) -> None:
        """Whatever llama-server says arrives as it is, with its status, stream or not."""
        world = self.occupied()
        world.llama_server.answers = {path: Refusal(404, "File Not Found") for path in PATHS[1:]}
        missing = [self.ask(world, path) for path in PATHS[1:]]
        too_long = self.ask(world, text="@code " + "x" * 20_000)
        fine = self.ask(world)
        world.advance(9.9)
        self.free(world)
        self.assertEqual([404, 404, 400, 200], [call.status for call in (*missing, too_long, fine)])
        self.assertEqual("exceed_context_size_error", too_long.json()["error"]["type"])
        for call in (*missing, too_long, fine):
            self.assertEqual("9900.0", call.headers["x-bioproxy-queue-ms"])
            self.assertNotIn(b": ", call.body[:2])

    def test_errors_of_ours(self) -> None:
        """The proxy's own errors have their status, and the body of the endpoint's dialect."""
        world = self.occupied(queue_timeout=5)
        calls = [self.ask(world, path) for path in PATHS]
        world.advance(5)
        for path, call in zip(PATHS, calls, strict=True):
            self.assertEqual((503, "1"), (call.status, call.headers["retry-after"]), path)
            self.assertEqual("application/json; charset=utf-8", call.headers["content-type"])
            answer = call.json()
            self.assertEqual("unavailable_error", answer["error"]["type"])
            self.assertEqual("error" if path == "/v1/messages" else None, answer.get("type"), path)


class TooLate(LateTest):
    """What goes wrong after a comment has gone out."""

    def late(self, world: World, path: str) -> Call:
        """Ask, and wait for a comment."""
        call = self.ask(world, path)
        world.advance(10)
        self.assertEqual(ping(path), call.body, path)
        return call

    def check_late(self, world: World, path: str, call: Call, status: int, kind: str, words: str) -> None:
        """Check that a comment and one error event is all that came, that the record says it, and the gate is free."""
        self.assertEqual((200, True, False), (call.status, call.whole, call.aborted))
        self.assertTrue(call.body.startswith(ping(path)))
        self.check_event(path, call.body[len(ping(path)) :], kind, words)
        self.assertEqual(status, self.record(world, call)["status"], path)
        self.assertEqual((None, 0), (world.gate.busy, world.gate.waiting))
        self.assertEqual([], world.clock.getDelayedCalls())
        self.assertEqual([], self.flushLoggedErrors())

    def each(self, **settings: Any) -> Any:
        """Give a world, a path, and a call on it that had a comment, for each dialect."""
        for number, path in enumerate(PATHS):
            world = self.occupied(state_dir=self.folder / str(number), **settings)
            yield world, path, self.late(world, path)

    def test_refused(self) -> None:
        """An error of llama-server's becomes one event in the endpoint's dialect, with its type and message."""
        for world, path, call in self.each():
            world.llama_server.pause_at = set()
            world.llama_server.loading = True
            world.llama_server.go_on()
            world.settle()
            self.check_late(world, path, call, 503, "unavailable_error", "Loading model")
            self.assertFalse(world.content.has(KEY))

    def test_each_status(self) -> None:
        """Its status is in the record, and for OpenAI's clients in the event, as its `code`."""
        world = self.occupied()
        call = self.ask(world, text="@code " + "x" * 20_000)
        world.advance(10)
        self.free(world)
        self.check_late(world, CHAT, call, 400, "exceed_context_size_error", "exceeds")
        self.assertEqual(400, json.loads(call.body[len(PING) :].strip()[6:])["error"]["code"])

    def test_no_stream(self) -> None:
        """So does a whole answer, where a stream was asked for."""
        for world, path, call in self.each():
            world.llama_server.answers = {path: {"choices": []}}
            self.free(world)
            self.check_late(world, path, call, 502, "upstream_error", "without a stream")

    def test_away(self) -> None:
        """So does a llama-server that has gone meanwhile."""
        for world, path, call in self.each():
            world.llama_server.down = True
            world.go_on()
            self.check_late(world, path, call, 502, "upstream_error", "refuses connections")

    def test_waited_too_long(self) -> None:
        """So does a wait that is over."""
        for world, path, call in self.each(queue_timeout=15):
            world.advance(5)
            self.check_event(path, call.body[len(ping(path)) :], "unavailable_error", "waited 15 s")
            self.assertEqual((200, True), (call.status, call.whole))
            self.assertEqual((503, 0), (self.record(world, call)["status"], world.gate.waiting))
            self.free(world)

    def test_breaking_off(self) -> None:
        """So does a stream that breaks off in its middle, after what there was of it."""
        world = self.occupied()
        call = self.late(world, CHAT)
        world.llama_server.pause_at = {"stream"}
        world.llama_server.go_on()
        world.settle()
        before = call.body
        self.assertTrue(before.startswith(PING + b"data: "))
        world.llama_server.break_off()
        world.settle()
        self.assertTrue(call.body.startswith(before))
        self.check_event(CHAT, call.body[len(before) :], "upstream_error", "broke off")
        self.assertEqual((True, None), (call.whole, world.gate.busy))

    def test_slow_reader(self) -> None:
        """After the error event nothing comes any more, however slowly the client reads."""
        world = self.occupied(queue_timeout=15)
        call = self.late(world, CHAT)
        producer: Any = call.transport.producer
        producer.pauseProducing()
        world.advance(5)
        world.advance(30)
        producer.resumeProducing()
        self.check_event(CHAT, call.body[len(PING) :], "unavailable_error", "waited 15 s")
        self.assertTrue(call.whole)

    def test_error_that_breaks_off(self) -> None:
        """An error that does not arrive as a whole, or says nothing, is told all the same."""
        for number, (kind, body, status, words) in enumerate(
            (
                (b"application/json", b'{"error": {"ty', 502, "broke off"),
                (b"text/html", b"<h1>no</h1>", 500, "status 500"),
                (b"text/event-stream", b"data: {}\n\n", 500, "status 500"),
                (b"", b"", 500, "status 500"),
            )
        ):
            wire = Wire()
            world = self.world({}, wire.agents(), state_dir=self.folder / str(number))
            call = self.ask(world, text="hello")
            line = wire.accept()
            # Here llama-server does not say how far it is, which delays the comment for a second.
            world.clock.advance(10)
            self.assertEqual(b"", call.received)
            world.clock.advance(1)
            length = len(body) + (status == 502)
            line.send(b"HTTP/1.1 500 Odd\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, length) + body)
            line.lose()
            self.assertEqual((200, True), (call.status, call.whole))
            self.check_event(CHAT, call.body[len(PREPARED) :], "upstream_error", words)
            self.assertEqual(status, self.record(world, call)["status"])


class Mistakes(SynchronousTestCase):
    """Mistakes of ours that show only when the client has its answer."""

    def call(self, then: Callable[[Exchange, Call], None]) -> Call:
        """Return a request that got a whole answer, after which something happened, and then an error."""
        exchanges: list[Exchange] = []

        async def serve(request: IncomingRequest) -> None:
            exchanges.append(Exchange(request, Clock(), BufferBudget(), 0))

        check_head: Callable[..., None] = lambda *_: None  # noqa: E731
        site = CheckedSite("x", CatchAllResource(serve), Clock(), check_head, ConnectionLimits(1000, 3))
        call = Call(site, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        [exchange] = exchanges
        exchange.record.status = 200
        exchange.output.begin()
        exchange.output.write(b"all of it")
        then(exchange, call)
        exchange.fail(ProxyError("a mistake"))
        self.assertEqual(200, exchange.record.status)
        return call

    def test_whole_answer(self) -> None:
        """The answer stays whole, also if the client has not read it yet."""
        call = self.call(lambda exchange, _: exchange.output.end())
        self.assertEqual((b"all of it", True, False), (call.body, call.whole, call.aborted))

        def slowly(exchange: Exchange, call: Call) -> None:
            full: Any = call.transport.producer
            full.pauseProducing()
            exchange.output.end()

        call = self.call(slowly)
        self.assertFalse(call.whole)
        producer: Any = call.transport.producer
        producer.resumeProducing()
        self.assertEqual((b"all of it", True, False), (call.body, call.whole, call.aborted))

    def test_left_at_the_end(self) -> None:
        """Nobody is told if the client has hung up behind the last event."""

        def leave(exchange: Exchange, call: Call) -> None:
            exchange.left_at_end = True
            call.hang_up()

        self.call(leave)
        self.assertEqual([], self.flushLoggedErrors())
