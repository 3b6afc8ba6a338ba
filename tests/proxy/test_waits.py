"""What waiting clients are told of their place, their time and their prompt."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionLost

from bioproxy.proxy.waits import LOOK_PAUSE, request_kind
from tests.support.fakes import Refusal
from tests.support.network import Call, Wire
from tests.support.world import World, WorldTest

CHAT = "/v1/chat/completions"


class WaitsTest(WorldTest):
    """A world in which answers take as long as the test says."""

    def setUp(self) -> None:
        """Build it, with some requests in the past that took four seconds each."""
        super().setUp()
        self.built = self.ready_world()
        self.server = self.built.llama_server
        for _ in range(3):
            self.served(self.ask("hello"), 4.0)

    def ask(self, text: str, stream: bool = True, path: str = CHAT) -> Call:
        """Ask; the answer does not come before `served`."""
        self.server.pause_at = {CHAT}
        body = {"messages": [{"role": "user", "content": text}], "stream": stream}
        return self.built.send("POST", path, json.dumps(body).encode())

    def served(self, call: Call, seconds: float) -> None:
        """Let an answer come after some seconds."""
        self.built.advance(seconds)
        self.server.go_on()
        self.built.settle()
        self.assertEqual((200, True), (call.status, call.whole))

    def reading(self, reused: int, computed: int) -> None:
        """Have llama-server say that it reads a prompt."""
        told = {"n_prompt_tokens_cache": reused, "n_prompt_tokens_processed": computed}
        self.server.answers["/slots"] = [{"id": 0, "is_processing": True, **told}]

    def asked_for_slots(self) -> int:
        """Return how often llama-server was asked for its slots."""
        return self.server.paths().count("/slots")

    def gate(self) -> Any:
        """Return the gate in `/status`."""
        return self.built.operate("GET", "/status").json()["gate"]


class Estimates(WaitsTest):
    """How long it will take."""

    def test_comment(self) -> None:
        """A client that waits is told its place and about how long, by what is inside and ahead at that moment."""
        self.ask("hello")
        first, second = self.ask("hello"), self.ask("hello")
        self.built.advance(10)
        # The one inside should have ended after four seconds: it will probably go on for a while.
        self.assertEqual(b": waiting, 1st of 2, about 2 s\n\n", first.body)
        self.assertEqual(b": waiting, 2nd of 2, about 6 s\n\n", second.body)
        first.hang_up()
        self.built.settle()
        self.built.advance(10)
        self.assertTrue(second.body.endswith(b": waiting, 1st of 1, about 4 s\n\n"), second.body)

    def test_record(self) -> None:
        """The record and the queue have the estimate of the arrival; who need not wait has none."""
        inside = self.ask("hello")
        self.built.advance(1)
        waiting = self.ask("hello")
        [entry] = self.gate()["queue"]
        self.assertLess(abs(3.0 - entry["estimate_s"]), 0.1)
        self.built.advance(2)
        self.assertEqual(entry, self.gate()["queue"][0], "it stays as it is")
        self.served(inside, 1)
        self.served(waiting, 1)
        latest, before = self.built.request_log.latest(2)
        self.assertLess(abs(3000 - latest["estimate_ms"]), 100)
        self.assertEqual((3000, None), (latest["queue_ms"], before["estimate_ms"]))
        self.assertEqual(1, self.built.sample("estimate_ratio_count"))
        self.assertLess(abs(1.0 - self.built.sample("estimate_ratio_sum")), 0.03)

    def test_who_lets_pass(self) -> None:
        """Requests that only fill the cache are behind those that come later, in place, estimate and `/status`."""
        self.ask("hello")
        filling = self.built.send("POST", "/infill", b'{"n_predict": 0}')
        waiting = self.ask("hello")
        paths = [each["path"] for each in self.gate()["queue"]]
        self.assertEqual([CHAT, "/infill"], paths)
        self.assertLess(abs(4.0 - self.gate()["queue"][0]["estimate_s"]), 0.1)
        self.built.advance(10)
        self.assertEqual(b": waiting, 1st of 2, about 2 s\n\n", waiting.body)
        filling.hang_up()

    def test_nothing_known(self) -> None:
        """Before any request has ended, the place is all that is told."""
        self.built = world = self.ready_world(state_dir=self.folder / "other")
        self.server = world.llama_server
        self.ask("hello")
        waiting = self.ask("hello")
        world.advance(10)
        self.assertEqual(b": waiting, 1st of 1\n\n", waiting.body)
        self.assertIsNone(self.gate()["queue"][0]["estimate_s"])

    def test_failures_teach_nothing(self) -> None:
        """An error after a moment does not make anybody hope."""
        for _ in range(30):
            self.server.answers = {CHAT: Refusal(500, "no")}
            self.ask("hello")
            self.server.go_on()
            self.built.settle()
        self.server.answers = {}
        self.ask("hello")
        self.ask("hello")
        self.assertLess(abs(4.0 - self.gate()["queue"][0]["estimate_s"]), 0.1)

    def test_forgotten(self) -> None:
        """Nothing is kept of requests that have ended, in whatever way."""
        self.ask("hello")
        self.ask("hello").hang_up()
        self.built.settle()
        self.server.go_on()
        self.built.settle()
        self.built.send("POST", CHAT, b"no json")
        self.server.go_on()
        self.built.settle()
        self.assertEqual({}, self.built.parts.proxy._waits._visits)


class Prompts(WaitsTest):
    """How far the prompt is."""

    def test_progress(self) -> None:
        """A stream that waits for its first token is told, in each interval, how far its prompt is; so is the page."""
        call = self.ask("hello " * 100)
        self.assertIsNone(self.gate()["inside"]["progress"])
        before = self.asked_for_slots()
        for reused, computed in ((4, 0), (4, 90), (4, 9000)):
            self.reading(reused, computed)
            self.built.advance(10)
        first, second, third = call.body.removesuffix(b"\n\n").split(b"\n\n")
        self.assertRegex(first, rb"^: reading the prompt, 4 of about 250 tokens$")
        self.assertRegex(second, rb"^: reading the prompt, 94 of about 250 tokens$")
        self.assertEqual(b": reading the prompt, 9,004 tokens", third)
        self.assertEqual(3, self.asked_for_slots() - before)
        self.assertEqual({"reused": 4, "computed": 9000}, self.gate()["inside"]["progress"])
        self.server.answers = {}
        self.server.pause_at = {"stream"}
        self.server.go_on()
        self.built.settle()
        self.assertIsNone(self.gate()["inside"]["progress"])
        self.built.advance(30)
        self.assertEqual(3, self.asked_for_slots() - before, "nobody asks once the answer has begun")
        self.server.go_on()

    def test_not_before_it_is_needed(self) -> None:
        """A stream that is answered within the first interval costs llama-server no question."""
        call = self.ask("hello")
        before = self.asked_for_slots()
        self.built.advance(9.9)
        self.assertEqual(before, self.asked_for_slots())
        self.built.advance(0.1)
        self.assertEqual(before + 1, self.asked_for_slots())
        self.served(call, 1)

    def test_nobody_asks(self) -> None:
        """Without a stream, in the queue and within the first interval, llama-server is not asked."""
        inside = self.ask("hello", stream=False)
        before = self.asked_for_slots()
        self.ask("hello")
        self.built.advance(30)
        self.assertEqual(before, self.asked_for_slots())
        self.served(inside, 1)

    def test_seldom(self) -> None:
        """With a short interval it is asked less often than comments come, so that it can notice hang-ups."""
        self.built.proxy.ping_interval = 0.1
        call = self.ask("hello")
        self.reading(0, 7)
        before = self.asked_for_slots()
        for _ in range(50):
            self.built.advance(0.1)
        self.assertEqual(50, call.body.count(b": reading the prompt, 7"))
        self.assertLessEqual(self.asked_for_slots() - before, 1 + 5 / LOOK_PAUSE)

    def test_not_told(self) -> None:
        """Where it does not tell, or fails, the comment comes all the same."""
        for answer in (Refusal(501, "no"), [], [{"id": 0, "is_processing": False}], {"what": 1}):
            self.server.answers["/slots"] = answer
            call = self.ask("hello")
            self.built.advance(10)
            self.assertEqual(b": being prepared\n\n", call.body, answer)
            self.server.answers = {}
            self.served(call, 1)

    def test_hangs(self) -> None:
        """A llama-server that does not answer delays the comment by a second, and no more."""
        call = self.ask("hello")
        self.server.pause_at = {CHAT, "/slots"}
        self.built.advance(10)
        self.assertEqual(b"", call.received)
        self.built.advance(1)
        self.assertEqual(b": being prepared\n\n", call.body)
        call.hang_up()
        self.built.settle()
        self.assertEqual([], self.flushLoggedErrors())

    def test_answer_comes_meanwhile(self) -> None:
        """An answer that begins while llama-server is asked arrives as if nobody had asked, with its head."""
        call = self.ask("hello")
        self.server.pause_at = {CHAT, "/slots"}
        self.built.advance(10)
        self.server.pause_at = {"/slots"}
        self.server.go_on(CHAT)
        self.built.settle()
        self.assertTrue(call.body.startswith(b"data: "))
        self.assertIn("x-bioproxy-queue-ms", call.headers)
        self.server.go_on()
        self.built.settle()
        self.assertTrue(call.whole)
        self.assertNotIn(b": ", call.body[:2])
        self.assertEqual([], self.built.clock.getDelayedCalls())


class Kinds(WaitsTest):
    """What requests have in common."""

    def test_kinds(self) -> None:
        """Paths, prompts and turns tell them apart; of slot actions only that they are some."""
        self.assertEqual((CHAT, "code", "first"), request_kind(CHAT, "code", None))
        self.assertEqual(("/slots/",), request_kind("/slots/7", "", None))
        world: World = self.built
        seen: set[Any] = set()
        self.patch(world.proxy._waits._experience, "learn", lambda kind, _: seen.add(kind))
        self.server.pause_at = set()
        world.chat("@code why?")
        world.chat("@code why?", "so", "what?")
        self.assertEqual({(CHAT, "code", "first"), (CHAT, "code", "later")}, seen)


STREAM = (
    b'data: {"choices":[{"delta":{"content":null}}],"prompt_progress":{"total":9,"cache":4,"processed":9}}\n\n'
    b": a comment of llama-server's own\n\n"
    b'event: ping\ndata: {"type": "ping"}\n\n'
    b'data: {"choices":[{"delta":{"content":"' + "é".encode() + b'\\n\\n: x"}}]}\r\n\r\n'
    b"data: [DONE]\n\n"
)
"""What a stream may have in it, things that look like ours included."""


class Untouched(WorldTest):
    """Whatever llama-server sends arrives as it is, and it is sent what the client has sent."""

    def relay(self, pieces: list[bytes], path: str, body: bytes, wait: float) -> tuple[bytes, bytes]:
        """Send a request, and such an answer; return what llama-server got, and the answer's body."""
        wire = Wire()
        world = self.world({}, wire.agents(), state_dir=self.folder / str(self.number))
        self.number += 1
        call = world.send("POST", path, body)
        line = wire.accept()
        world.clock.advance(wait)
        # llama-server does not say how far it is.
        world.clock.advance(1)
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            line.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        line.send(b"0\r\n\r\n")
        self.assertEqual((200, True), (call.status, call.whole))
        result = line.received.partition(b"\r\n\r\n")[2], call.body
        call.hang_up()
        world.close()
        return result

    number = 0

    def test_cut_anywhere(self) -> None:
        """However the network cuts a stream, with comments before it or without, and whoever asked for progress."""
        cuts = [[STREAM[:cut], STREAM[cut:]] for cut in range(1, len(STREAM), 3)]
        cuts += [[STREAM[n : n + 1] for n in range(len(STREAM))], [STREAM], [STREAM * 2000]]
        for number, pieces in enumerate(cuts):
            path = (CHAT, "/v1/messages")[number % 2]
            wait, asks = (10, 1)[number // 2 % 2], (b"", b', "return_progress" : true')[number // 4 % 2]
            body = b'{"messages":[{"role":"user","content":"hello"}] , "stream":true%b}' % asks
            sent, answer = self.relay(pieces, path, body, wait)
            ping = b'event: ping\ndata: {"type": "ping"}\n' if path == "/v1/messages" else b""
            before = b": being prepared\n" + ping + b"\n" if wait == 10 else b""
            self.assertEqual((body, before + b"".join(pieces)), (sent, answer), number)

    def test_silence_behind_the_head(self) -> None:
        """llama-server sends the head at once and the first event much later: comments fill the silence, no longer."""
        for wait, comments in ((0, 2), (10, 3)):
            wire = Wire()
            world = self.world({}, wire.agents(), state_dir=self.folder / f"silent {wait}")
            call = world.send("POST", CHAT, b'{"messages":[{"role":"user","content":"hello"}],"stream":true}')
            line = wire.accept()
            world.clock.advance(wait)
            world.clock.advance(1)
            line.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nServer: x\r\n\r\n")
            for _ in range(2):
                world.clock.advance(9)
                world.clock.advance(1)
                world.clock.advance(1)
            self.assertEqual(b": being prepared\n\n" * comments, call.body)
            # The head is llama-server's, unless a comment went out before.
            self.assertEqual(("x" if not wait else None), call.headers["server"])
            line.send(STREAM)
            world.clock.advance(100)
            line.lose()
            self.assertEqual((b": being prepared\n\n" * comments + STREAM, True), (call.body, call.whole))
            self.assertEqual([], world.clock.getDelayedCalls())

    def test_bodies_without_room(self) -> None:
        """Where a comment would be wrong bytes, none comes behind the head, and none behind an empty stream."""
        plain = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        for number, (head, body) in enumerate(
            (
                (plain + b"Content-Length: 3\r\n\r\n", b"abc"),
                (plain + b"Content-Encoding: gzip\r\n\r\n", b"abc"),
                (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"abc"),
                (b"HTTP/1.1 500 No\r\nContent-Type: text/event-stream\r\n\r\n", b"abc"),
                (plain + b"\r\n", b""),
            )
        ):
            wire = Wire()
            world = self.world({}, wire.agents(), state_dir=self.folder / f"no room {number}")
            call = world.send("POST", CHAT, b'{"messages":[{"role":"user","content":"hello"}],"stream":true}')
            line = wire.accept()
            line.send(head)
            if body:
                world.clock.advance(30)
            line.send(body)
            line.lose()
            world.clock.advance(30)
            self.assertEqual((body, True), (call.body, call.whole), head)

    def test_breaks_off_behind_comments(self) -> None:
        """A stream that breaks off before its first event, behind a comment, ends with one error event."""
        wire = Wire()
        world = self.world({}, wire.agents())
        call = world.send("POST", CHAT, b'{"messages":[{"role":"user","content":"hello"}],"stream":true}')
        line = wire.accept()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        world.clock.advance(10)
        world.clock.advance(1)
        line.lose(ConnectionLost())
        comment, _, rest = call.body.partition(b"\n\n\n\n")
        self.assertEqual((b": being prepared", True), (comment, call.whole))
        self.assertIn("broke off", json.loads(rest.strip().removeprefix(b"data: "))["error"]["message"])
        self.assertEqual([], world.clock.getDelayedCalls())

    def test_no_interval(self) -> None:
        """With an interval of 0 nothing is sent but the answer, and llama-server is asked nothing."""
        wire = Wire()
        world = self.world({}, wire.agents(), ping_interval=0)
        call = world.send("POST", "/v1/messages", b'{"messages":[{"role":"user","content":"hello"}],"stream":true}')
        line = wire.accept()
        world.clock.advance(100)
        self.assertEqual((b"", []), (call.received, wire.asked))
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + STREAM)
        line.lose()
        self.assertEqual(STREAM, call.body)
