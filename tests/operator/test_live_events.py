"""What open pages are told."""

from __future__ import annotations

import json
from typing import Any

from bioproxy.operator.live_events import BEAT, LIMIT, PATIENCE
from tests.support.network import Call
from tests.support.world import CODE, World, WorldTest


def events(call: Call) -> list[tuple[str, dict[str, Any]]]:
    """Return the events that a page got: kinds and data."""
    texts = call.body.decode().split("\n\n")[:-1]
    blocks = [dict(line.split(": ", 1) for line in text.split("\n")) for text in texts]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


def kinds(call: Call) -> list[str]:
    """Return the kinds of events that a page got."""
    return [kind for kind, _ in events(call)]


def full(call: Call, is_full: bool = True) -> None:
    """Let a connection's buffer be full, or empty again, as a transport does."""
    producer = call.transport.producer
    assert producer is not None
    producer.pauseProducing() if is_full else producer.resumeProducing()


class Telling(WorldTest):
    """Pages that are open."""

    def use(self, **settings: Any) -> World:
        """Build a world that is warm."""
        self.built = self.warm_world({"code": CODE}, **settings)
        return self.built

    def open(self) -> Call:
        """Open a page."""
        return self.built.operate("GET", "/events")

    def pass_time(self, seconds: int = 1) -> None:
        """Let so many seconds pass, one after the other."""
        for _ in range(seconds):
            self.built.advance(1)

    def test_first(self) -> None:
        """At first a page is told everything: what `/status` says, and the history."""
        world = self.use()
        world.chat("@code why?")
        self.successResultOf(world.start(world.history.take))
        call = self.open()
        self.assertEqual(200, call.status)
        self.assertEqual("text/event-stream; charset=utf-8", call.headers["content-type"])
        self.assertEqual("no-store", call.headers["cache-control"])
        ((kind, data),) = events(call)
        self.assertEqual("status", kind)
        told_at, clock, history = (data.pop(key) for key in ("told_at", "clock", "history"))
        self.assertIn("T", told_at)
        self.assertEqual(world.clock.seconds(), clock)
        self.assertEqual([clock], [point[0] for point in history], "points are dated by this clock")
        self.assertEqual(world.operate("GET", "/status").json(), data)

    def test_changes(self) -> None:
        """What changed is told within a second, and only that; requests and points only once."""
        world = self.use()
        call = self.open()
        world.llama_server.pause_at = {"/v1/chat/completions"}
        world.chat("@code why?")
        self.pass_time()
        # The template, too: while a request runs nobody knows what the slot holds, so it is not worth 0 s any more.
        self.assertEqual({"told_at", "clock", "gate", "templates", "prompts"}, set(events(call)[-1][1]))
        self.assertEqual("code", events(call)[-1][1]["gate"]["inside"]["template"])
        world.llama_server.go_on()
        world.settle()
        self.successResultOf(world.start(world.history.take))
        self.pass_time()
        kind, data = events(call)[-1]
        self.assertEqual(
            ("change", {"told_at", "clock", "gate", "templates", "prompts", "requests", "history"}), (kind, set(data))
        )
        self.assertEqual((1, 1), (len(data["requests"]), len(data["history"])))
        world.settle()
        self.pass_time(int(BEAT) - 1)
        self.assertEqual(["status", "change", "change"], kinds(call))

    def test_nothing_happens(self) -> None:
        """Where nothing happens there is a sign of life now and then, and nothing else."""
        self.use()
        call = self.open()
        self.pass_time(int(2 * BEAT))
        self.assertEqual(["status", "beat", "beat"], kinds(call))
        self.assertLess(len(call.received), 4000)

    def test_only_while_open(self) -> None:
        """Without an open page nobody looks; and a page that comes later is not told old news twice."""
        world = self.use()
        timers = list(world.clock.getDelayedCalls())
        first, second = self.open(), self.open()
        self.assertEqual(len(timers) + 1, len(world.clock.getDelayedCalls()))
        first.hang_up()
        self.pass_time(3)
        self.assertEqual(["status"], kinds(second))
        second.hang_up()
        self.assertEqual(timers, world.clock.getDelayedCalls())
        world.chat("@code why?")
        third = self.open()
        self.pass_time(3)
        self.assertEqual(["status"], kinds(third))
        self.assertEqual(1, len(events(third)[0][1]["requests"]))
        self.assertEqual([], self.flushLoggedErrors())

    def test_slow(self) -> None:
        """A page that does not read is told nothing meanwhile, then everything; the others do not notice."""
        world = self.use()
        slow, other = self.open(), self.open()
        full(slow)
        for _ in range(3):
            world.chat("@code why?")
            self.pass_time()
        self.assertEqual((["status"], 4), (kinds(slow), len(kinds(other))))
        full(slow, False)
        self.pass_time()
        self.assertEqual((["status", "status"], 4), (kinds(slow), len(kinds(other))))
        self.assertEqual(3, len(events(slow)[1][1]["requests"]))
        # One that missed nothing is told nothing.
        full(slow)
        self.pass_time()
        full(slow, False)
        self.pass_time()
        self.assertEqual(2, len(kinds(slow)))

    def test_never_reads(self) -> None:
        """A page that does not read for a minute is dropped."""
        self.use()
        lost, other = self.open(), self.open()
        full(lost)
        self.pass_time(int(PATIENCE) - 1)
        self.assertFalse(lost.aborted)
        self.pass_time()
        self.assertTrue(lost.aborted)
        lost.hang_up()
        self.assertFalse(other.aborted)
        self.assertEqual([], self.flushLoggedErrors())

    def test_many(self) -> None:
        """There is a limit, and whoever goes makes room."""
        self.use()
        calls = [self.open() for _ in range(LIMIT)]
        self.assertEqual(503, self.open().status)
        calls[0].hang_up()
        self.assertEqual(200, self.open().status)

    def test_head(self) -> None:
        """HEAD is answered, at its end."""
        self.use()
        call = self.built.operate("HEAD", "/events")
        self.assertEqual((200, []), (call.status, self.built.clock.getDelayedCalls()))

    def test_stop(self) -> None:
        """When the service stops all pages are let go, whole."""
        world = self.use()
        calls = [self.open() for _ in range(3)]
        world.events.startService()
        world.events.stopService()
        for call in calls:
            self.assertTrue(call.received.endswith(b"0\r\n\r\n"))
        self.assertEqual([], world.clock.getDelayedCalls())
        self.assertEqual([], self.flushLoggedErrors())
