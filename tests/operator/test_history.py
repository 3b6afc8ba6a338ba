"""The last hour, as the plots show it."""

from __future__ import annotations

from typing import Any

from bioproxy.operator.history import INTERVAL, POINTS, History
from tests.support.world import CODE, World, WorldTest


class Points(WorldTest):
    """What is noted, and when."""

    def use(self) -> World:
        """Build a world that is ready."""
        self.built = self.ready_world({"code": CODE}, warmup=False)
        return self.built

    def take(self, seconds: float = 5.0) -> list[tuple[Any, ...]]:
        """Let time pass and look; return all points."""
        self.built.clock.advance(seconds)
        self.successResultOf(self.built.start(self.built.history.take))
        return self.built.history.latest()

    def test_numbers(self) -> None:
        """A point has what happened since the one before, and the seconds saved in all."""
        world = self.use()
        world.speed.measured(1000, 2000.0)  # two milliseconds a token
        self.take()
        first, second = world.chat("@code why?"), world.chat("@code why?")
        reused = [call.json()["timings"]["cache_n"] for call in (first, second)]
        computed = [call.json()["timings"]["prompt_n"] for call in (first, second)]
        _, point = self.take()
        self.assertEqual((10.0, 0, 0.0, sum(reused), sum(computed)), point[:5])
        self.assertGreater(sum(reused), 0)
        saved = world.sample("prefill_seconds_saved_total", template="code")
        self.assertEqual(round(saved, 3), point[5])
        world.chat("hello")
        self.assertEqual((15.0, 0, 0.0), self.take()[-1][:3])
        self.assertGreaterEqual(self.take()[-1][5], point[5])

    def test_queue(self) -> None:
        """The queue's length is its peak, even if it is empty again; the wait for the first token is in seconds."""
        world = self.use()
        world.llama_server.pause_at = {"/v1/chat/completions"}
        for _ in range(3):
            world.chat("hello")
        self.assertEqual((2, None), self.take()[-1][1:3])
        world.clock.advance(1)
        world.go_on()
        self.assertEqual((2, 6.0), self.take(1)[-1][1:3])
        self.assertEqual((0, None), self.take()[-1][1:3])

    def test_removed_template(self) -> None:
        """A template that is gone takes its numbers along; what follows is told as it is, and what was saved stays."""
        world = self.use()
        world.speed.measured(1000, 2000.0)
        world.chat("@code why?")
        world.chat("@code why?")
        before = self.take()[-1]
        world.poller.set_templates([])
        self.assertEqual((0, None, 0, 0, before[5]), self.take()[-1][1:])
        world.chat("hello")
        self.assertEqual((0, 0.0), self.take()[-1][1:3])

    def test_quiet(self) -> None:
        """Of a quiet time there are the first and the last point, and nothing is added while it lasts."""
        world = self.use()
        for _ in range(10):
            self.assertEqual([(5.0, 0, None, 0, 0, 0.0)], self.take())
        self.assertEqual(1, world.history.taken)
        world.chat("hello")
        self.assertEqual([5.0, 50.0, 55.0], [point[0] for point in self.take()])
        self.take()
        self.take()
        self.assertEqual([5.0, 50.0, 55.0, 60.0], [point[0] for point in self.take()])
        self.assertEqual([55.0, 60.0], [point[0] for point in world.history.latest(2)])
        self.assertEqual(4, world.history.taken)

    def test_bounded(self) -> None:
        """It keeps the latest points, an hour of them, and no more."""
        self.assertEqual(3600, POINTS * INTERVAL)
        world = self.use()
        world.history = History(world.metrics, world.gate, world.clock, points=3)
        for _ in range(5):
            world.metrics.prompt_tokens.labels("code", "computed").inc(1)
            self.take()
        self.assertEqual([15.0, 20.0, 25.0], [point[0] for point in world.history.latest()])
        self.assertEqual(5, world.history.taken)
