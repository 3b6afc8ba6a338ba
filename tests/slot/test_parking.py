"""What no file has is put into llama-server's memory before a file is restored over it."""

from __future__ import annotations

import json
from typing import Any

from bioproxy.slot.parking import LEAST, STRANGER
from tests.support.fakes import Refusal
from tests.support.network import Call
from tests.support.world import CODE, WorldTest

AGENT = "You are an agent. " * 15
"""A system message of fewer tokens than bioproxy learns."""

RESTORE = "/slots/0?action=restore"
PARK = list(STRANGER)


class ParkingTest(WorldTest):
    """A world that is warm for ``@code``, and a llama-server that keeps prompts in memory."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        self.use({"code": CODE})

    def use(self, templates: dict[str, str]) -> None:
        """Build it, with these templates."""
        slots = self.folder / "slots"
        slots.mkdir(mode=0o700, exist_ok=True)
        # A token of the fake is a byte.  So a chat is read from this number of bytes on, and kept in a file from this
        # number of tokens on.
        self.built = self.warm_world(templates, slot_save_path=slots, learn_minimum=len(AGENT) + 70)
        self.server = self.built.llama_server
        self.server.memory = []

    def session(self, *messages: str, **more: Any) -> int:
        """Have the agent ask; return how many tokens llama-server computed."""
        call = self.built.chat(*messages, system=AGENT, **more)
        self.assertEqual(200, call.status)
        return int(call.json()["timings"]["prompt_n"])

    def ask(self, message: str = "@code why?") -> str | None:
        """Ask on a template; return how the slot came to hold it."""
        call = self.built.chat(message)
        self.assertEqual(200, call.status)
        return call.headers["x-bioproxy-cache"]

    def parked(self, before: int = 0) -> int:
        """Return how often something was parked since that number of requests."""
        asked = self.server.requests[before:]
        return sum(path == "/completion" and body["prompt"] == PARK for path, body in asked)

    def count(self, result: str) -> float:
        """Return what was counted."""
        return self.built.sample("slot_parked_total", result=result)


class Deciding(ParkingTest):
    """What is parked, and what is not."""

    def test_many_switches(self) -> None:
        """An agent without a file computes its own words only, however often a file took the slot."""
        self.assertGreater(self.session("first?"), len(AGENT))
        for number in range(5):
            self.assertEqual("restored", self.ask())
            self.assertLess(self.session(f"{number}?"), 30)
        self.assertEqual((5, 5, 5), (self.parked(), self.count("parked"), self.count("reused")))

    def test_short(self) -> None:
        """A short chat is not worth it."""
        self.built.chat("a" * (LEAST // 2))
        self.assertEqual(("restored", 0), (self.ask(), self.parked()))

    def test_has_a_file(self) -> None:
        """What a file has is not parked: the file would be restored for it, and hide the copy."""
        self.built.close()
        self.use({"code": f"{'abc ' * 30}<{{message}}>", "story": "Tell. <{message}>"})
        self.ask("@code why?")
        before = len(self.server.requests)
        self.assertEqual(("restored", 0), (self.ask("@story why?"), self.parked(before)))

    def test_conversation_has_a_file(self) -> None:
        """A conversation that was saved is parked all the same: another one with its system message has no file."""
        self.session("one " * 20, "fine", "two " * 20)
        before = len(self.server.requests)
        self.assertEqual(("restored", 1), (self.ask(), self.parked(before)))
        self.assertIn("/slots/0?action=save", self.server.paths()[before:])
        self.assertLess(self.session("another?"), 30)

    def test_unread(self) -> None:
        """What a request left that bioproxy does not read is parked, too."""
        prompt = "b" * 100
        self.built.send("POST", "/completion", json.dumps({"prompt": prompt}).encode())
        self.assertEqual(("restored", 1), (self.ask(), self.parked()))
        again = self.built.send("POST", "/completion", json.dumps({"prompt": prompt + "c"}).encode())
        self.assertEqual(101, again.json()["timings"]["cache_n"])

    def test_broken_off(self) -> None:
        """What an answer left that was broken off is parked, unless a file has its prompt."""
        self.built.close()
        self.use({"code": CODE, "story": "Tell. <{message}>"})
        for system, message, parked in ((AGENT, "why?", 1), (None, f"@code {'why? ' * 30}", 0)):
            self.server.pause_at = {"stream"}
            call = self.built.chat(message, system=system, stream=True)
            self.assertEqual(1, self.server.paused)
            call.hang_up()
            self.built.settle()
            self.server.pause_at = set()
            before = len(self.server.requests)
            self.assertEqual(("restored", parked), (self.ask("@story a chair"), self.parked(before)), message)

    def test_warmups(self) -> None:
        """What a warm-up left is not parked, also where nobody knows what that is."""
        self.built.close()
        self.use({"code": f"{'abc ' * 30}<{{message}}>", "story": "Tell. <{message}>"})
        self.evaluate_code()
        before = len(self.server.requests)
        self.assertEqual(("restored", 0), (self.ask("@story a chair"), self.parked(before)))

    def test_edited(self) -> None:
        """A warm-up that begins with a file does not park what the slot holds, if a file has that."""
        self.built.close()
        self.use({"code": f"{'abc ' * 200}<{{message}}>", "story": f"{'tell ' * 30}<{{message}}>"})
        self.ask("@story a chair")
        self.template("code", f"{'abc ' * 199}{'d' * 300}<{{message}}>")
        self.successResultOf(self.built.start(self.built.poller.poll))
        before = len(self.server.requests)
        self.successResultOf(self.built.start(self.built.warmer.round))
        self.assertIn(RESTORE, self.server.paths()[before:])
        self.assertEqual(0, self.parked(before))

    def test_restored_for_nobody(self) -> None:
        """What was restored for a client that hung up before its request was sent is not parked."""
        self.built.close()
        self.use({"code": f"{'abc ' * 30}<{{message}}>", "story": "Tell. <{message}>"})
        self.session("one")
        self.server.pause_at = {RESTORE}
        call = self.built.chat("@code why?")
        self.assertEqual(1, self.server.paused)
        self.server.pause_at = {"/slots"}
        self.server.go_on()
        self.built.settle()
        self.assertEqual(1, self.server.paused)
        call.hang_up()
        self.built.settle()
        self.server.pause_at = set()
        before = len(self.server.requests)
        self.assertEqual(("restored", 0), (self.ask("@story a table"), self.parked(before)))

    def evaluate_code(self) -> None:
        """Have a piece of the template evaluated, as a warm-up does that is broken off then."""
        piece = [1, *map(ord, f"<user>{'abc ' * 25}")]
        self.successResultOf(self.built.start(lambda: self.built.content.evaluate_for_warmup(piece)))
        self.assertGreater(len(self.server.tokens), LEAST)

    def test_cold(self) -> None:
        """A request for which nothing is restored makes llama-server keep what the slot held, without bioproxy."""
        self.session("first?")
        self.built.chat("d" * 100)
        self.assertEqual(0, self.parked())
        self.assertLess(self.session("second?"), 30)

    def test_another_process(self) -> None:
        """After a restart, finding out the model is a request, too, for which llama-server keeps what the slot held."""
        self.server.restart()
        self.successResultOf(self.built.start(self.built.watch.look))
        # Not read, so the model is not found out for this one.
        self.built.chat("e" * 100)
        self.assertEqual(("restored", 0), (self.ask(), self.parked()))
        self.assertIn([1, *map(ord, f"<user>{'e' * 100}</><assistant>fine")], self.server.memory or [])


class Failing(ParkingTest):
    """A llama-server that keeps nothing, or that does not do what it is asked for."""

    def test_no_memory(self) -> None:
        """Where llama-server keeps nothing (``--cache-ram 0``), nothing more is parked until it is started again."""
        self.server.memory = None
        talk = ["one", "fine"]
        self.session("one")
        for number in range(3):
            self.ask()
            talk.append(f"{number}")
            self.session(*talk)
            talk.append("fine")
        self.assertEqual((2, 2), (self.parked(), self.count("lost")))
        self.server.restart()
        self.successResultOf(self.built.start(self.built.watch.look))
        self.ask()
        self.session("one")
        self.ask()
        self.assertEqual(3, self.parked())

    def test_not_judged(self) -> None:
        """Other conversations, and requests that must not reuse anything, say nothing about llama-server's memory."""
        self.server.memory = None
        self.session("one")
        for _ in range(3):
            self.ask()
            self.session("one", cache_prompt=False)
        for number in range(3):
            self.ask()
            self.session(f"another {number}")
        self.assertEqual((6, 0), (self.parked(), self.count("lost")))

    def test_thoughts(self) -> None:
        """That a long answer to a short prompt is not reused says nothing: chat templates drop a model's thoughts."""
        # The fields that are no tokens make the body long enough to be read.
        fields = {"user": "x" * 500}
        for number in range(3):
            self.server.says = "hmm " * 40
            self.assertEqual(200, self.built.chat(f"hi {number}", **fields).status)
            self.server.says = "fine"
            self.ask()
            call = self.built.chat(f"hi {number}", "well", "more", **fields)
            self.assertLess(call.json()["timings"]["cache_n"], LEAST)
        self.assertEqual((3, 0), (self.count("parked"), self.count("lost")))

    def test_refused(self) -> None:
        """A refusal does not keep the file from being restored, and parking is not tried again."""
        self.session("one")
        self.server.answers = {"/completion": Refusal(500, "no")}
        self.assertEqual("restored", self.ask())
        self.session("two")
        self.assertEqual("restored", self.ask())
        self.assertEqual((1, 1), (self.parked(), self.count("failed")))

    def test_nonsense(self) -> None:
        """After an answer that is none, the request is answered all the same, and parking is not tried again."""
        self.session("one")
        self.server.answers = {"/completion": "nonsense"}
        self.assertEqual("cold", self.ask())
        self.session("two")
        self.assertEqual(("restored", 1), (self.ask(), self.parked()))

    def test_unresponsive(self) -> None:
        """A llama-server that hangs is given up, as in every other call."""
        self.session("one")
        self.server.pause_at = {"/completion"}
        call = self.built.chat("@code why?")
        self.assertEqual(1, self.server.paused)
        self.built.upstream.pending.give_up()
        self.built.settle()
        self.assertEqual((200, "cold"), (call.status, call.headers["x-bioproxy-cache"]))
        self.assertEqual(1, self.count("failed"))


class Interrupting(ParkingTest):
    """Clients that hang up, and users that come, while something is parked."""

    def test_hung_up(self) -> None:
        """A client that hangs up frees the gate and leaves the slot unknown; the agent goes on as if nothing was."""
        self.session("one")
        call = self.parking()
        call.hang_up()
        self.built.settle()
        self.assertEqual(
            (["/completion"], None, None), (self.server.gone, self.built.gate.busy, self.built.content.known)
        )
        self.server.pause_at = set()
        self.assertLess(self.session("two"), 30)
        self.assertEqual("restored", self.ask())
        self.assertLess(self.session("three"), 30)

    def parking(self) -> Call:
        """Ask on a template, and stop where the slot's content is parked."""
        self.server.pause_at = {"/completion"}
        call = self.built.chat("@code why?")
        self.assertEqual((1, "user"), (self.server.paused, self.built.gate.busy))
        return call

    def test_user_comes(self) -> None:
        """A user who comes while a warm-up parks what the slot holds is served at once."""
        self.session("one")
        self.template("code", f"Know this: abc. {'d' * 300}<{{message}}>")
        self.successResultOf(self.built.start(self.built.poller.poll))
        self.server.pause_at = {"/completion"}
        before = len(self.server.requests)
        self.built.start(self.built.warmer.round)
        self.assertEqual((1, "warmup"), (self.parked(before), self.built.gate.busy))
        self.assertNotIn(RESTORE, self.server.paths()[before:])
        self.assertLess(self.session("two"), 30)
        self.assertEqual(["/completion"], self.server.gone)

    def test_warmup_goes_on(self) -> None:
        """A warm-up that begins with a file parks what a user left, once, and the user finds it again."""
        self.session("one")
        self.template("code", f"Know this: abc. {'d' * 300}<{{message}}>")
        self.successResultOf(self.built.start(self.built.poller.poll))
        self.successResultOf(self.built.start(self.built.warmer.round))
        self.assertEqual(1, self.parked())
        self.assertLess(self.session("two"), 30)
