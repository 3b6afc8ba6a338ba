"""llama-server's troubles: what users learn of them, how soon, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.error import ConnectionLost, ConnectionRefusedError, TimeoutError

from bioproxy.llama.process_watch import INTERVAL, PATIENCE
from tests.support.network import Call, Line, Wire
from tests.support.world import KEY, WarmTest, World, WorldTest

CHAT = "/v1/chat/completions"
OK = b"HTTP/1.1 200 OK\r\n"
EVERYTHING = {CHAT, "/health", "/props", "/slots", "/completion", "/v1/models", "/lora-adapters"}
ANSWER = OK + b"Content-Length: 4\r\n\r\nfine"


class Connections(WorldTest):
    """Troubles with one connection.  The next request has another, and nothing of it is left."""

    def ask(self, happens: Callable[[Wire], None], name: str, stream: bool) -> Call:
        """Ask, let something happen, and check that all is well for those who were waiting."""
        wire = Wire()
        world = self.world({}, wire.agents(), state_dir=self.folder / f"{name} {stream}")
        call, waiting = (world.chat("hello", stream=stream) for _ in range(2))
        self.assertEqual((1, 1), (len(wire.asked), world.gate.waiting))
        happens(wire)
        # It was not sent a second time: the connection that is asked for now is that of the one who waited.
        self.assertEqual((1, 0), (len(wire.asked), world.gate.waiting), name)
        wire.accept().send(ANSWER)
        self.assertEqual((200, b"fine", True), (waiting.status, waiting.body, waiting.whole), name)
        self.assertEqual(([], None), (wire.asked, world.gate.busy), name)
        self.assertEqual([], world.clock.getDelayedCalls(), name)
        self.assertEqual([], self.flushLoggedErrors(), name)
        return call

    def test_before_an_answer(self) -> None:
        """Whatever goes wrong before there is an answer is a 502 that says what, at once."""

        def line_that(act: Callable[[Line], None]) -> Callable[[Wire], None]:
            return lambda wire: act(wire.accept())

        def sends(data: bytes) -> Callable[[Wire], None]:
            return line_that(lambda line: line.send(data))

        def sends_and_ends(data: bytes) -> Callable[[Wire], None]:
            def happens(wire: Wire) -> None:
                line = wire.accept()
                line.send(data)
                line.lose()

            return happens

        for stream in (False, True):
            for name, happens, words in (
                ("refused", lambda wire: wire.refuse(ConnectionRefusedError()), "refuses connections"),
                ("not accepted", lambda wire: wire.refuse(TimeoutError()), "did not accept a connection"),
                ("closed when it was sent", line_that(lambda line: line.lose()), "broke off before"),
                ("reset when it was sent", line_that(lambda line: line.lose(ConnectionLost())), "broke off before"),
                ("half a head", sends_and_ends(OK + b"Content-"), "broke off before"),
                ("another protocol", sends(b"SSH-2.0-OpenSSH_9.2\r\n"), "broke off before"),
                ("noise", sends(b"\x16\x03\x01\0\xff\r\n\r\n"), "broke off before"),
                ("no number", sends(b"HTTP/1.1 OK\r\n\r\n"), "broke off before"),
                ("an odd length", sends(OK + b"Content-Length: 4x\r\n\r\nfine"), "broke off before"),
                ("two lengths", sends(OK + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nfine"), "broke off before"),
                ("no body", sends_and_ends(OK + b"Content-Length: 4\r\n\r\n"), "in the middle"),
                ("odd chunks", sends(OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"), "in the middle"),
            ):
                call = self.ask(happens, name, stream)
                self.assertEqual((502, True), (call.status, call.whole), name)
                error = call.json()["error"]
                self.assertEqual(("upstream_error", 502), (error["type"], error["code"]), name)
                self.assertIn(words, error["message"], name)

    def test_in_an_answer(self) -> None:
        """What goes wrong in an answer's middle ends it so that it does not look whole, or with an error event."""
        events = b"Content-Type: text/event-stream\r\n"

        for name, head, last in (
            ("a length", OK + b"Content-Length: 9\r\n\r\nabc", b""),
            ("chunks", OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b""),
            ("odd chunks", OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"xyz\r\n"),
            ("a stream", OK + events + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b""),
            ("an odd stream", OK + events + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"xyz\r\n"),
        ):

            def happens(wire: Wire, head: bytes = head, last: bytes = last) -> None:
                line = wire.accept()
                line.send(head)
                if last:
                    line.send(last)
                else:
                    line.lose()

            call = self.ask(happens, name, stream=True)
            self.assertEqual(200, call.status, name)
            if events in head:
                self.assertRegex(call.body, rb'\Aabc\n\ndata: \{"error": \{.*"upstream_error".*\}\}\n\n\Z', name)
                self.assertEqual((True, False), (call.whole, call.aborted), name)
            else:
                self.assertEqual((b"abc", False, True), (call.body, call.whole, call.aborted), name)


class Dumb(WorldTest):
    """A llama-server that accepts everything and says nothing."""

    def pass_time(self, world: World, seconds: float) -> None:
        """Let time pass, in which llama-server is looked at as often as ever."""
        end = world.clock.seconds() + seconds
        while world.clock.seconds() < end:
            look = world.start(world.watch.look)
            for _ in range(int(PATIENCE)):
                world.advance(1)
            self.successResultOf(look)

    def test_dumb(self) -> None:
        """Users who ask, wait, or come then are told so, none of them after much more than the timeout."""
        world = self.ready_world(upstream_timeout=10)
        world.llama_server.pause_at = EVERYTHING
        calls = [world.chat("@code why?", stream=stream) for stream in (False, True, False)]
        self.pass_time(world, 30)
        late = world.chat("hello")
        self.pass_time(world, 10)
        for call in (calls[0], calls[2], late):
            self.assertEqual((504, "timeout_error"), (call.status, call.json()["error"]["type"]))
        self.assertIn(b'"timeout_error"', calls[1].body)
        self.assertTrue(calls[1].whole)
        self.assertEqual((None, 0), (world.gate.busy, world.gate.waiting))
        self.assertEqual([], self.flushLoggedErrors())
        self.recover(world)

    def test_queue(self) -> None:
        """Once it is known that llama-server is dumb, all who wait are told, not one after the other."""
        world = self.ready_world(upstream_timeout=10)
        world.llama_server.pause_at = EVERYTHING
        calls = [world.chat("@code why?") for _ in range(10)]
        self.pass_time(world, 20)
        self.assertEqual([504] * 10, [call.status for call in calls])
        self.recover(world)

    def test_after_the_head(self) -> None:
        """An answer that stops in its middle ends: a stream with an event that says why."""
        world = self.ready_world(upstream_timeout=10)
        world.llama_server.pause_at = {"stream", "/health"}
        call = world.chat("@code why?", stream=True)
        before = call.body
        self.pass_time(world, 20)
        self.assertTrue(call.body.startswith(before))
        self.assertIn(b'"timeout_error"', call.body[len(before) :])
        self.assertEqual((True, None), (call.whole, world.gate.busy))
        self.recover(world)

    def recover(self, world: World) -> None:
        """Let llama-server speak again, and check that everything is as ever."""
        world.llama_server.pause_at = set()
        world.llama_server.go_on()
        self.pass_time(world, INTERVAL)
        self.assertTrue(world.watch.up)
        self.assertEqual(200, world.chat("@code why?").status)
        self.assertTrue(world.content.has(KEY))


class Loading(WarmTest):
    """A llama-server that loads its model, for minutes perhaps."""

    def test_loading(self) -> None:
        """Its own answer passes through; no warm-up is tried; when it is ready everything goes on by itself."""
        world = self.use()
        self.server.loading = True
        for _ in range(3):
            call = world.chat("@code why?")
            self.assertEqual((503, "llama.cpp"), (call.status, call.headers["server"]))
            expected = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
            self.assertEqual(expected, call.json()["error"])
            self.look()
            self.assertEqual([], self.rounds(10))
        self.assertEqual("Loading model", str(world.watch.trouble).removeprefix("503: "))
        self.server.loading = False
        self.look()
        self.rounds(2)
        self.assertEqual(("warm", ("hot", True)), (self.state(), (self.ask("@code why?")[0], world.watch.up)))


class ComingBack(WarmTest):
    """A llama-server that goes and comes back."""

    def test_another_process(self) -> None:
        """While it is away: 502 at once.  When it is back its slot is known to be empty, and the file is restored."""
        world = self.use()
        self.rounds()
        self.assertEqual("hot", self.ask("@code why?")[0])
        self.server.down = True
        for _ in range(2):
            call = world.chat("@code why?")
            self.assertEqual((502, "upstream_error"), (call.status, call.json()["error"]["type"]))
            self.look()
        self.assertIsNone(world.content.known)
        self.server.down = False
        self.server.restart()
        self.look()
        cache, reused = self.ask("@code why?")
        self.assertEqual(("restored", len(world.saved() or [])), (cache, reused))

    def test_away_for_long(self) -> None:
        """So too after `upstream_timeout`; and the first request after its return is answered, before any look."""
        world = self.use(upstream_timeout=10)
        self.server.down = True
        for _ in range(10):
            self.look()
            world.advance(INTERVAL)
        call = world.chat("@code why?")
        self.assertEqual((502, "upstream_error"), (call.status, call.json()["error"]["type"]))
        self.server.down = False
        self.assertEqual(200, world.chat("@code why?").status)

    def test_unnoticed(self) -> None:
        """So too if it was away between two looks."""
        world = self.use()
        self.rounds()
        self.server.restart()
        cache, reused = self.ask("@code why?")
        self.assertIn((cache, reused > 0), (("restored", True), ("cold", False)))
        self.assertNotEqual("hot", cache)
        self.look()
        world.content.forget()
        self.assertEqual("restored", self.ask("@code why?")[0])

    def test_another_model(self) -> None:
        """A file of the old model is not restored for a new one; a warm-up makes a new file."""
        world = self.use()
        self.rounds()
        self.server.down = True
        self.look()
        self.server.down = False
        self.server.restart()
        self.server.model_path, self.server.odds = "/models/other.gguf", [(1, -0.1), (2, -2.0), (3, -3.0), (4, -4.0)]
        self.look()
        call = world.chat("@code why?")
        self.assertEqual(("cold", "other-model"), (call.headers["x-bioproxy-cache"], call.headers["x-bioproxy-miss"]))
        self.assertEqual([], self.slot_calls("restore"))
        self.rounds(2)
        world.chat("hello")
        self.assertEqual("restored", self.ask("@code why?")[0])

    def test_killed_inside(self) -> None:
        """One that dies in an answer leaves an answer that is visibly broken, and a slot that is unknown."""
        for place, stream in ((CHAT, False), ("body", False), ("stream", True)):
            self.folder.joinpath(place[-4:]).mkdir()
            world = self.use(state_dir=self.folder / place[-4:])
            self.rounds()
            self.server.pause_at = {place}
            broken, waiting = (world.chat("@code why?", stream=stream) for _ in range(2))
            self.server.pause_at = set()
            self.server.break_off()
            self.server.restart()
            world.settle()
            if place == CHAT:
                self.assertEqual((502, True), (broken.status, broken.whole))
            else:
                self.assertEqual((200, stream, not stream), (broken.status, broken.whole, broken.aborted))
                self.assertEqual(stream, b"upstream_error" in broken.body)
            self.assertEqual((200, True), (waiting.status, waiting.whole), place)
            self.assertNotEqual("hot", waiting.headers["x-bioproxy-cache"], place)
            self.assertIsNone(world.gate.busy)
            self.assertEqual([], self.flushLoggedErrors())
