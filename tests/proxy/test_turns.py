"""Whose turn is next, as the proxy tells the gate: conversations, tool calls, and requests that only fill the cache."""

from __future__ import annotations

import json
from typing import Any

from tests.support.network import Call
from tests.support.world import World, WorldTest

CHAT = "/v1/chat/completions"
CALLS = {"choices": [{"finish_reason": "tool_calls", "index": 0, "message": {"content": "fine"}}]}


class Turns(WorldTest):
    """Requests at a gate with the default settings."""

    def busy_world(self, **settings: Any) -> tuple[World, Call]:
        """Return a world where conversation "one" is just being answered."""
        world = self.warm_world(**settings)
        world.llama_server.pause_at = {CHAT}
        return world, world.chat("@code one")

    def asked(self, world: World) -> list[str]:
        """Return the last message of each chat that llama-server got, without its template."""
        chats = [body["messages"][-1]["content"] for path, body in world.llama_server.requests if path == CHAT]
        return [text.split()[-1] for text in chats]

    def test_goes_on(self) -> None:
        """A request that goes on with the slot's conversation passes another one."""
        world, _first = self.busy_world()
        self.addCleanup(world.llama_server.go_on)
        world.chat("@code other")
        world.chat("@code one", "fine", "@code two")
        for expected in (["one"], ["one", "two"], ["one", "two", "other"]):
            self.assertEqual(expected, self.asked(world)[-len(expected) :])
            world.llama_server.go_on()
            world.settle()
        self.assertEqual(2, world.sample("passed_over_seconds_count"))

    def test_patience(self) -> None:
        """With a patience of 0 it does not."""
        world, _first = self.busy_world(patience=0)
        world.chat("@code other")
        world.chat("@code one", "fine", "@code two")
        world.llama_server.go_on()
        world.settle()
        self.assertEqual("other", self.asked(world)[-1])
        world.go_on()

    def test_not_reusable(self) -> None:
        """Nor one that asks for nothing to be reused."""
        world, _first = self.busy_world()
        world.chat("@code other")
        world.chat("@code one", "fine", "@code two", cache_prompt=False)
        world.go_on()
        self.assertEqual(["one", "other", "two"], self.asked(world)[-3:])

    def test_tool_calls(self) -> None:
        """After an answer with tool calls the gate lingers for the conversation's next request, as `/status` says."""
        world, first = self.busy_world()
        other = world.chat("@code other")
        # Bringing the conversation back would take seconds, or the gate would not linger for it.
        world.speed.saved(10, 100, 1.0)
        world.speed.measured(100, 10_000)
        world.llama_server.answers[CHAT] = CALLS
        world.go_on()
        self.assertEqual(200, first.status)
        status = json.loads(world.operate("GET", "/status").body)["gate"]
        self.assertEqual((None, 1, True), (status["busy"], status["waiting"], status["lingering"]))
        world.advance(0.25)
        self.assertEqual(0, other.status)
        del world.llama_server.answers[CHAT]
        self.assertEqual(200, world.chat("@code one", "fine", "@code two").status)
        self.assertEqual(200, other.status)
        self.assertEqual(["one", "two", "other"], self.asked(world)[-3:])
        self.assertEqual(1, world.sample("linger_total", result="came"))

    def test_other_answers(self) -> None:
        """After another answer it does not linger, nor after an error."""
        for answer in (None, {"error": {"code": 500}}):
            world, _first = self.busy_world(state_dir=self.folder / str(answer is None))
            other = world.chat("@code other")
            if answer is not None:
                world.llama_server.answers[CHAT] = answer
            world.go_on()
            self.assertEqual(200, other.status)

    def test_filling(self) -> None:
        """`/infill` for no tokens waits until nobody else does; a newer one of the same client replaces it."""
        world, _first = self.busy_world()
        waiting = [
            world.send("POST", "/infill", b'{"n_predict":0, "n":1}', user_agent="vim"),
            world.send("POST", "/infill", b'{"n_predict": 0}', user_agent="vim"),
            world.send("POST", "/infill", b'{"n_predict": 0 }', user_agent="emacs"),
            world.send("POST", "/infill", b'{"n_predict": 5}', user_agent="vim"),
            world.send("POST", "/infill", b'{"prompt": "\\"n_predict\\": 0}"}', user_agent="vim"),
        ]
        self.assertEqual([503, 0, 0, 0, 0], [call.status for call in waiting])
        self.assertIn(b"replaced by a newer request", waiting[0].body)
        world.go_on()
        asked = [body for path, body in world.llama_server.requests if path == "/infill"]
        self.assertEqual([5, None, 0, 0], [body.get("n_predict") for body in asked])

    def test_not_filling(self) -> None:
        """A number of tokens that Python refuses to read is no zero: llama-server is to judge it."""
        world = self.ready_world()
        body = b'{"n_predict": %s}' % (b"9" * 5000)
        call = world.send("POST", "/infill", body)
        self.assertEqual(("/infill", body), (world.llama_server.paths()[-1], world.llama_server.raw[-1][2]))
        self.assertNotIn(b"internal error", call.body)
