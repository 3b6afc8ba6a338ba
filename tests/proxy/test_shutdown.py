"""Stopping gently."""

from __future__ import annotations

import json
import shutil
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs

from bioproxy.proxy.shutdown import ANSWERING, FLUSHING, SAVING, Shutdown
from bioproxy.slot_files.record import CHAT as CHAT_FILE
from tests.support.network import Call
from tests.support.world import CODE, World, WorldTest, logged

CHAT = "/v1/chat/completions"
SAVE = "/slots/0?action=save"
LONG = "@code " + "why? " * 100
"""A question that makes a conversation worth keeping."""


class FarewellTest(WorldTest):
    """A world that can be stopped."""

    def build(self, templates: dict[str, str] | None = None, **settings: Any) -> World:
        """Build it; `port` stands for the clients' port, where connections come from."""
        self.built = self.warm_world(templates, **settings)
        self.server = self.built.llama_server
        self.port = Service()
        self.port.startService()
        return self.built

    def say(self, saver: Any = None, share: Any = None) -> Deferred[None]:
        """Begin to stop; `saver` and `share` take the place of the world's."""
        world = self.built
        return world.start(
            Shutdown(
                self.port,
                world.gate,
                world.proxy.running,
                world.upstream,
                saver or world.saver,
                share or world.parts.shared.finish,
                world.clock,
            ).say
        )

    def check_at_rest(self, said: Deferred[None]) -> None:
        """Check that all is over, as soon as the last bytes had time to leave."""
        self.assertNoResult(said)
        self.built.advance(FLUSHING)
        self.successResultOf(said)
        self.assertEqual([], self.built.clock.getDelayedCalls())
        self.assertEqual([], self.flushLoggedErrors())

    def check_turned_away(self, call: Call, again: str) -> None:
        """Check that a request was turned away."""
        self.assertEqual((503, again), (call.status, call.headers["retry-after"]))
        self.assertEqual("unavailable_error", call.json()["error"]["type"])
        self.assertIn("shutting down", call.json()["error"]["message"])

    def go_on(self) -> None:
        """Let everything go on."""
        self.built.go_on()


class Stopping(FarewellTest):
    """What happens to each request."""

    def test_balancer(self) -> None:
        """`/readyz` is 503 before the clients' port closes, so that a balancer sends nobody here any more."""
        world, told = self.build(), []

        class Port(Service):
            def stopService(self) -> None:
                told.append(world.operate("GET", "/readyz").status)

        self.port = Port()
        self.check_at_rest(self.say())
        self.assertEqual([503], told)

    def test_nobody_there(self) -> None:
        """With nobody there it is over at once; nobody can come any more; nothing is said."""
        self.build()
        with capturedLogs() as events:
            said = self.say()
            self.assertFalse(self.port.running)
            self.check_at_rest(said)
        self.assertEqual([], logged(events))

    def test_waiting(self) -> None:
        """Who waits is turned away at once; who is being answered gets the whole answer, and then it is over."""
        for stream in (False, True):
            world = self.build(state_dir=self.folder / str(stream))
            self.server.pause_at = {"stream" if stream else "body"}
            running = world.chat("@code why?", stream=stream)
            waiting = [world.chat(f"@code {number}", stream=stream) for number in range(3)]
            asked = len(self.server.requests)
            said = self.say()
            for call in waiting:
                self.check_turned_away(call, "1")
            self.assertEqual((asked, 0), (len(self.server.requests), world.gate.waiting))
            self.assertFalse(running.whole)
            world.advance(9)
            self.assertNoResult(said)
            self.go_on()
            self.assertEqual((200, True), (running.status, running.whole))
            self.check_at_rest(said)

    def test_begun_stream(self) -> None:
        """Who has had a comment already is told in an event."""
        world = self.build()
        self.server.pause_at = {CHAT}
        world.chat("@code why?")
        call = world.chat("@code and?", stream=True)
        world.advance(10)
        before = call.body
        self.assertTrue(before.startswith(b": waiting"))
        self.say()
        self.assertTrue(call.body.startswith(before + b"\n\ndata: "))
        event = json.loads(call.body[len(before) :].strip()[6:])
        self.assertEqual(("unavailable_error", 503), (event["error"]["type"], event["error"]["code"]))
        self.assertEqual((200, True), (call.status, call.whole))

    def test_kept_connections(self) -> None:
        """Who asks again on a connection that is still there is turned away, also while an answer is running."""
        world = self.build()
        self.server.pause_at = {CHAT}
        running = world.chat("@code why?")
        said = self.say()
        self.check_turned_away(world.chat("@code late"), "1")
        self.go_on()
        self.assertEqual(200, running.status)
        self.check_turned_away(world.chat("@code later"), "1")
        self.check_at_rest(said)

    def test_outside_the_gate(self) -> None:
        """An answer that does not use the slot is waited for, too."""
        world = self.build()
        self.server.pause_at = {"/tokenize"}
        call = world.send("POST", "/tokenize", b'{"content": "x"}')
        said = self.say()
        world.advance(9)
        self.assertNoResult(said)
        self.go_on()
        self.assertEqual((200, True), (call.status, call.whole))
        self.check_at_rest(said)

    def test_too_long(self) -> None:
        """An answer that takes longer than ten seconds is not waited for any more: its client and the log are told."""
        self.assertEqual(10, ANSWERING)
        world = self.build()
        self.server.pause_at = {"stream"}
        call = world.chat(LONG, stream=True)
        with capturedLogs() as events:
            said = self.say()
            world.advance(9.9)
            self.assertEqual([], logged(events))
            world.advance(0.1)
            self.assertEqual("stopping before an answer was finished: it took over 10 s", logged(events)[0])
            self.check_at_rest(said)
        told = {"message": "bioproxy is shutting down", "type": "unavailable_error", "code": 503}
        self.assertEqual({"error": told}, json.loads(call.body.rsplit(b"data: ", 1)[1]))
        self.assertEqual(1, self.server.paths().count(SAVE))  # the warm-up's
        self.go_on()  # its end, after that, does no harm
        self.assertEqual([], self.flushLoggedErrors())

    def test_too_long_and_no_stream(self) -> None:
        """One that is no stream, and has begun, does not look whole then."""
        world = self.build()
        self.server.pause_at = {"body"}
        call = world.chat(LONG)
        said = self.say()
        world.advance(10)
        self.check_at_rest(said)
        self.assertFalse(call.whole)
        self.go_on()
        self.assertFalse(call.whole)
        self.assertEqual([], self.flushLoggedErrors())

    def test_hanging_up_meanwhile(self) -> None:
        """A client that hangs up in the middle is not waited for any more."""
        world = self.build()
        self.server.pause_at = {"stream"}
        call = world.chat("@code why?", stream=True)
        said = self.say()
        call.hang_up()
        world.settle()
        self.check_at_rest(said)

    def test_breaking_off_meanwhile(self) -> None:
        """An answer that breaks off in the middle is over, and its client is told."""
        world = self.build()
        self.server.pause_at = {"stream"}
        call = world.chat("@code why?", stream=True)
        said = self.say()
        self.server.break_off()
        world.settle()
        self.assertTrue(call.whole)
        self.assertIn(b"upstream_error", call.body)
        self.check_at_rest(said)

    def test_warmup(self) -> None:
        """A warm-up is not waited for."""
        world = self.build()
        self.template("code", "Know that: <{message}>")
        self.successResultOf(world.start(world.poller.poll))
        self.server.pause_at = {"/completion"}
        world.start(world.warmer.round)
        self.assertEqual("warmup", world.gate.busy)
        self.check_at_rest(self.say())

    def test_port_in_trouble(self) -> None:
        """Where the port cannot be closed, that is told, and all the rest is done."""

        class Stuck(Service):
            def stopService(self) -> Deferred[None]:
                return fail(ZeroDivisionError())

        world = self.build()
        self.server.pause_at = {"body"}
        running, waiting = world.chat("@code why?"), world.chat("@code 2")
        self.port = Stuck()
        said = self.say()
        self.check_turned_away(waiting, "1")
        self.assertNoResult(said)
        self.go_on()
        self.assertTrue(running.whole)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.check_at_rest(said)


class Saving(FarewellTest):
    """What the slot holds at the end."""

    def converse(self) -> Call:
        """Have a conversation that is worth keeping."""
        call = self.built.chat(LONG)
        self.assertEqual(200, call.status)
        self.assertIsNone(self.built.saved(kind=CHAT_FILE))
        return call

    def test_saved(self) -> None:
        """A conversation that is worth saving is saved."""
        world = self.build()
        self.converse()
        self.check_at_rest(self.say())
        self.assertEqual(self.server.tokens, world.saved(kind=CHAT_FILE))

    def test_after_the_running_one(self) -> None:
        """It is saved after the answer that was running, with that in it."""
        world = self.build()
        self.server.pause_at = {"body"}
        world.chat(LONG)
        said = self.say()
        self.assertIsNone(world.saved(kind=CHAT_FILE))
        self.go_on()
        self.check_at_rest(said)
        self.assertEqual(self.server.tokens, world.saved(kind=CHAT_FILE))

    def test_not_worth_it(self) -> None:
        """A few words are not saved, and nothing is if that is switched off."""
        for question, saving in (("@code why?", True), (LONG, False)):
            world = self.build(state_dir=self.folder / str(saving), save_conversations=saving)
            world.chat(question)
            self.check_at_rest(self.say())
            self.assertIsNone(world.saved(kind=CHAT_FILE))

    def test_slow(self) -> None:
        """A save may take two seconds, and is not waited for after that."""
        self.assertEqual(2, SAVING)
        for seconds, kept in ((1.9, True), (2, False)):
            world = self.build(state_dir=self.folder / str(seconds))
            self.converse()
            self.server.pause_at = {SAVE}
            said = self.say()
            world.advance(seconds)
            if kept:
                self.assertNoResult(said)
                self.go_on()
            self.check_at_rest(said)
            self.assertEqual(kept, world.saved(kind=CHAT_FILE) is not None, seconds)
            self.assertEqual([] if kept else [SAVE], self.server.gone)

    def test_trouble(self) -> None:
        """Whatever llama-server does then, it is over."""

        def away() -> None:
            self.server.down = True

        def nonsense() -> None:
            self.server.answers = {SAVE: b"nonsense"}

        def other_task() -> None:
            self.server.task = 99

        def no_records() -> None:
            shutil.rmtree(self.built.settings.state_dir)

        for trouble in (away, nonsense, other_task, no_records):
            world = self.build(state_dir=self.folder / trouble.__name__)
            self.converse()
            trouble()
            self.check_at_rest(self.say())
            self.assertIsNone(world.saved(kind=CHAT_FILE), trouble.__name__)

    def test_mistake_of_ours(self) -> None:
        """After a mistake of ours in saving, what was saved before is given to others nevertheless."""
        shared = []

        class Saver:
            async def save_if_due(self) -> None:
                raise ZeroDivisionError

        async def share() -> None:
            shared.append(len(self.flushLoggedErrors(ZeroDivisionError)))

        self.build()
        self.check_at_rest(self.say(Saver(), share))
        self.assertEqual([1], shared)

    def test_warmup_inside(self) -> None:
        """Where a warm-up is inside, which has just begun to save it, it is not saved a second time."""
        world = self.build(templates={"code": CODE, "story": "Tell: <{message}>"})
        self.converse()
        self.template("story", "Tell more: <{message}>")
        self.successResultOf(world.start(world.poller.poll))
        self.server.pause_at = {"/slots"}
        world.start(world.warmer.round)
        self.assertEqual(("warmup", 1), (world.gate.busy, self.server.paused))
        asked = len(self.server.requests)
        said = self.say()
        world.advance(SAVING)
        self.check_at_rest(said)
        self.assertEqual(asked, len(self.server.requests))

    def test_going_on_by_itself(self) -> None:
        """While llama-server goes on with a request that nobody listens to, nothing is saved: it is somebody else's."""
        world = self.build()
        self.converse()
        self.server.pause_at = {CHAT}
        body = b'{"messages": [{"role": "user", "content": "@code more"}]}'
        call = world.send("POST", CHAT, body, X_Conversation_Id="1")
        saves = self.server.paths().count(SAVE)
        self.server.busy = True
        call.hang_up()
        world.settle()
        self.assertEqual("user", world.gate.busy)
        said = self.say()
        world.advance(SAVING)
        world.advance(FLUSHING)
        self.successResultOf(said)
        self.assertEqual(saves, self.server.paths().count(SAVE))
