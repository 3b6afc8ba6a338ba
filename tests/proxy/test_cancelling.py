"""Clients that hang up, at every point of a request's life."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from bioproxy.slot.content import IDLE_POLL
from tests.support.network import Call, Wire
from tests.support.world import KEY, World, WorldTest, logged

CHAT = "/v1/chat/completions"
RESTORE = "/slots/0?action=restore"


class CancellingTest(WorldTest):
    """Hanging up must be noticed by those whom it concerns, and by nobody else."""

    @contextmanager
    def nothing_wrong(self, name: str) -> Iterator[None]:
        """Check that nothing was logged but what is to be expected every day."""
        with capturedLogs() as events:
            yield
        self.assertEqual([], logged(event for event in events if event["log_level"] > LogLevel.info), name)
        self.assertEqual([], self.flushLoggedErrors(), name)

    def hang_up(self, world: World, call: Call) -> None:
        """Hang up; check what is kept of the request."""
        call.hang_up()
        world.settle()
        self.assertEqual(499, world.request_log.latest()[0]["status"])


class HangingUp(CancellingTest):
    """Clients that do not wait for the answer."""

    def test_in_each_phase(self) -> None:
        """Whenever a client hangs up: llama-server is told, the gate is free, nothing is wrong, the slot unknown."""
        table: list[tuple[str, str, tuple[bool, ...], bool]] = [
            # what, the path where the request is then, streaming or not, whether the slot is still known
            ("asking the witness", "/slots", (False, True), True),
            ("asking for the model", "/props", (False, True), False),
            ("restoring", RESTORE, (False, True), False),
            ("before the first byte", CHAT, (False, True), False),
            ("in a plain answer", "body", (False,), False),
            ("in a stream", "stream", (True,), False),
        ]
        for phase, place, kinds, known in table:
            # Who asks for a stream may have had a comment before it hangs up.
            for stream, seconds in product(kinds, (0, 15)):
                name = f"{phase}, {stream}, {seconds}"
                world = self.warm_world(state_dir=self.folder / name)
                if place in ("/props", RESTORE):
                    world.content.forget()
                world.llama_server.pause_at = {place}
                call = world.chat("@code why?", stream=stream)
                world.advance(seconds)
                self.assertEqual(("user", 1), (world.gate.busy, world.llama_server.paused), name)
                self.assertEqual((stream and seconds > 0) or place in ("body", "stream"), call.status == 200, name)
                with self.nothing_wrong(name):
                    self.hang_up(world, call)
                self.assertEqual([place], world.llama_server.gone, name)
                self.assertIsNone(world.gate.busy, name)
                self.assertEqual([], world.clock.getDelayedCalls(), name)
                self.assertEqual(known, world.content.has(KEY), name)
                self.assertEqual(1, world.sample("requests_total", endpoint=CHAT, template="code", code="499"), name)
                world.llama_server.pause_at = set()
                self.assertEqual(200, world.chat("@code why?").status, name)

    def test_at_the_last_event(self) -> None:
        """A client that hangs up when it has the last event was answered: so the log says, and so the slot is known."""
        world = self.warm_world()
        world.llama_server.pause_at = {"last"}
        call = world.chat("@code why?", stream=True)
        self.assertEqual(("user", 1), (world.gate.busy, world.llama_server.paused))
        with self.nothing_wrong("at the last event"):
            call.hang_up()
            world.settle()
        self.assertEqual(["last"], world.llama_server.gone)
        self.assertEqual((None, 200), (world.gate.busy, world.request_log.latest()[0]["status"]))
        self.assertEqual([], world.clock.getDelayedCalls())
        self.assertTrue(world.content.known is not None and world.content.known.conversation is not None)
        world.llama_server.pause_at = set()
        self.assertEqual("hot", world.chat("@code why?", world.llama_server.says, "and?").headers["x-bioproxy-cache"])

    def test_after_the_restore(self) -> None:
        """So too while the slot is looked at that was just restored: it counts as unknown, and is restored again."""
        world = self.warm_world()
        world.content.forget()
        world.llama_server.pause_at = {RESTORE}
        call = world.chat("@code why?")
        world.llama_server.pause_at = {"/slots"}
        world.llama_server.go_on()
        world.settle()
        self.assertEqual(("user", 1), (world.gate.busy, world.llama_server.paused))
        with self.nothing_wrong("after the restore"):
            self.hang_up(world, call)
        self.assertEqual(["/slots"], world.llama_server.gone)
        self.assertEqual((None, False), (world.gate.busy, world.content.has(KEY)))
        world.llama_server.pause_at = set()
        self.assertEqual("restored", world.chat("@code why?").headers["x-bioproxy-cache"])

    def test_connecting(self) -> None:
        """So too while the connection to llama-server is being made: it is given up."""
        for stream in (False, True):
            wire = Wire()
            world = self.world({}, wire.agents(), state_dir=self.folder / str(stream))
            call = world.chat("hello", stream=stream)
            self.assertEqual(("user", 1), (world.gate.busy, len(wire.asked)))
            with self.nothing_wrong("connecting"):
                self.hang_up(world, call)
            self.assertEqual((None, []), (world.gate.busy, wire.asked))
            self.assertEqual([], world.clock.getDelayedCalls())

    def test_sent(self) -> None:
        """So too when the request was just sent, and when only the answer's head is here: the connection is closed."""
        for head in (b"", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"):
            wire = Wire()
            world = self.world({}, wire.agents(), state_dir=self.folder / str(len(head)))
            call = world.chat("hello", stream=True)
            line = wire.accept()
            line.send(head)
            with self.nothing_wrong("sent"):
                self.hang_up(world, call)
                self.assertTrue(line.closed)
                line.lose()
            self.assertIsNone(world.gate.busy)

    def test_waiting(self) -> None:
        """A client that hangs up in the queue leaves it; the others go on, in order."""
        for stream in (False, True):
            world = self.warm_world(state_dir=self.folder / str(stream))
            world.llama_server.pause_at = {CHAT}
            first, second, third = (world.chat(f"@code {number}", stream=stream) for number in range(3))
            world.advance(15)
            asked = len(world.llama_server.requests)
            with self.nothing_wrong("waiting"):
                self.hang_up(world, second)
            self.assertEqual((1, asked), (world.gate.waiting, len(world.llama_server.requests)))
            self.assertIsNone(world.request_log.latest()[0]["cache"])
            for call in (first, third):
                self.assertFalse(call.whole)
                world.llama_server.go_on()
                world.settle()
                self.assertEqual((200, True), (call.status, call.whole))
            self.assertEqual([], world.clock.getDelayedCalls())

    def test_filling(self) -> None:
        """Who hangs up while the template files are being looked at never comes to the gate."""
        world = self.warm_world()
        looking: Deferred[None] = Deferred()
        world.in_thread = lambda work: looking
        call = world.chat("@code why?")
        asked = len(world.llama_server.requests)
        with self.nothing_wrong("filling"):
            self.hang_up(world, call)
        self.assertEqual((asked, None), (len(world.llama_server.requests), world.gate.busy))

    def test_not_gated(self) -> None:
        """Requests that do not use the slot are ended too."""
        world = self.ready_world()
        world.llama_server.pause_at = {"/tokenize"}
        call = world.send("POST", "/tokenize", b'{"content": "x"}')
        with self.nothing_wrong("not gated"):
            call.hang_up()
            world.settle()
        self.assertEqual(["/tokenize"], world.llama_server.gone)

    def test_after_the_end(self) -> None:
        """The client has its whole answer before the slot is looked at; the slot is noted even if it hangs up then."""
        world = self.ready_world()
        world.llama_server.pause_at = {CHAT}
        call = world.chat("@code why?")
        world.llama_server.pause_at = {"/slots"}
        world.llama_server.go_on()
        world.settle()
        self.assertEqual((True, "user"), (call.whole, world.gate.busy))
        with self.nothing_wrong("after the end"):
            call.hang_up()
            world.llama_server.go_on()
            world.settle()
        self.assertTrue(world.content.has(KEY))
        self.assertEqual((None, 200), (world.gate.busy, world.request_log.latest()[0]["status"]))

    def test_all_at_once(self) -> None:
        """When everybody hangs up nobody is left, in whatever order it happens."""
        world = self.warm_world(queue_limit=40)
        for order in (1, -1):
            world.llama_server.pause_at = {CHAT}
            calls = [world.chat(f"@code {number}", stream=number % 2 == 0) for number in range(40)]
            world.advance(10)
            with self.nothing_wrong("all"):
                for call in calls[::order]:
                    self.hang_up(world, call)
            self.assertEqual((None, 0, []), (world.gate.busy, world.gate.waiting, world.clock.getDelayedCalls()))
            world.llama_server.pause_at = set()
            self.assertEqual(200, world.chat("@code why?").status)


class GoingOn(CancellingTest):
    """Requests with `X-Conversation-Id`, with which llama-server goes on although the client is gone."""

    def ask(self, world: World, stream: bool = True, **headers: str) -> Call:
        """Ask so."""
        body = {"messages": [{"role": "user", "content": "@code why?"}], "stream": stream}
        headers = headers or {"X_Conversation_Id": "1"}
        return world.send("POST", CHAT, json.dumps(body).encode(), **headers)

    def gone(self, place: str = CHAT, **settings: Any) -> World:
        """Build a world where such a client has hung up there, and llama-server goes on."""
        world = self.warm_world(**settings)
        if place == RESTORE:
            world.content.forget()
        world.llama_server.pause_at = {place}
        call = self.ask(world, stream=place != "body")
        self.assertEqual(("user", 1), (world.gate.busy, world.llama_server.paused))
        world.llama_server.pause_at = set()
        world.llama_server.busy = True
        self.hang_up(world, call)
        self.assertEqual([place], world.llama_server.gone)
        return world

    def test_kept(self) -> None:
        """The gate is kept until the slot is idle, wherever the request was; then it is the next one's turn."""
        for place in (CHAT, "body", "stream"):
            with self.nothing_wrong(place):
                world = self.gone(place, state_dir=self.folder / place[-4:])
                waiting = world.chat("hello")
                for _ in range(20):
                    world.advance(IDLE_POLL)
                self.assertEqual(("user", 1, 0), (world.gate.busy, world.gate.waiting, waiting.status), place)
                world.llama_server.busy = False
                world.advance(IDLE_POLL)
                self.assertEqual((None, 200), (world.gate.busy, waiting.status), place)
                self.assertEqual([], world.clock.getDelayedCalls(), place)
            self.assertFalse(world.content.has(KEY), place)
            self.assertEqual(f"{21 * IDLE_POLL * 1000:.1f}", waiting.headers["x-bioproxy-queue-ms"])

    def test_nothing_sent_yet(self) -> None:
        """Where llama-server has not got the request yet the gate is free at once, as ever."""
        with self.nothing_wrong("restoring"):
            world = self.gone(RESTORE)
            self.assertIsNone(world.gate.busy)

    def test_idle_already(self) -> None:
        """Where llama-server did not go on, the gate is free at once."""
        world = self.warm_world()
        world.llama_server.pause_at = {CHAT}
        self.hang_up(world, self.ask(world))
        self.assertIsNone(world.gate.busy)

    def test_not_shown(self) -> None:
        """Where llama-server does not tell whether it is busy, nobody waits for it."""
        world = self.warm_world()
        world.llama_server.slots_shown = False
        world.llama_server.pause_at = {CHAT}
        call = self.ask(world)
        with self.nothing_wrong("not shown"):
            self.hang_up(world, call)
        self.assertIsNone(world.gate.busy)

    def test_dying(self) -> None:
        """Where llama-server ends before that, or is another process now, the gate is free."""

        def away(world: World) -> None:
            world.llama_server.down = True

        def nonsense(world: World) -> None:
            world.llama_server.answers = {"/slots": "nonsense"}

        def loading(world: World) -> None:
            world.llama_server.loading = True

        def restarted(world: World) -> None:
            world.llama_server.restart()

        for trouble in (away, nonsense, loading, restarted):
            with self.nothing_wrong(trouble.__name__):
                world = self.gone(state_dir=self.folder / trouble.__name__)
                self.assertEqual("user", world.gate.busy)
                trouble(world)
                world.advance(IDLE_POLL)
                self.assertIsNone(world.gate.busy, trouble.__name__)

    def test_without(self) -> None:
        """Nobody else's hang-up keeps the gate, however busy the slot still looks."""
        world = self.warm_world()
        world.llama_server.pause_at = {CHAT}
        call = self.ask(world, X_Other="1")
        world.llama_server.busy = True
        self.hang_up(world, call)
        self.assertIsNone(world.gate.busy)

    def test_answered(self) -> None:
        """Such a request that is answered leaves as any other."""
        world = self.warm_world()
        self.assertTrue(self.ask(world).whole)
        self.assertIsNone(world.gate.busy)
        self.assertTrue(world.content.has(KEY))
