"""Two bioproxies in memory that share a folder."""

from __future__ import annotations

import os
from typing import Any

from tests.shared.support import Threads
from tests.support.world import CODE, World, WorldTest

LONG = "@code " + "why? " * 100
"""A question that makes a conversation worth keeping."""


class SharingTest(WorldTest):
    """Two worlds, and one folder."""

    def setUp(self) -> None:
        """Make them."""
        super().setUp()
        self.path = self.folder / "shelf"
        self.worlds: list[World] = []
        self.threads: list[Threads] = []
        self.a, self.b = self.one("a"), self.one("b", 60)

    def one(self, name: str, offset: float = 0.0, **settings: Any) -> World:
        """Make a bioproxy that has found its llama-server and its templates."""
        slots = self.folder / name / "slots"
        slots.mkdir(parents=True, mode=0o700)
        template = self.template("code", CODE)
        more = {"state_dir": self.folder / name / "state", "slot_save_path": slots, "shared_shelf": self.path}
        world = World(self.folder, prefixes={"@code": template}, **{**more, **settings})
        self.addCleanup(world.close)
        world.clock.advance(offset)
        threads = Threads()
        world.on_shared_disk = threads
        self.threads.append(threads)
        self.worlds.append(world)
        self.do(world, world.watch.look)
        self.do(world, world.poller.poll)
        return world

    def do(self, world: World, work: Any) -> Any:
        """Do something in a world."""
        return self.successResultOf(world.start(work))

    def round(self, world: World, publish: bool = True) -> None:
        """Let a world look at the folder, and publish."""
        self.do(world, world.parts.shared.round)
        if publish:
            self.do(world, world.parts.shared.publish)

    def warm(self, world: World) -> None:
        """Let a world look, warm up what is due, and publish."""
        self.round(world)
        self.do(world, world.warmer.round)
        self.round(world)

    def advance(self, seconds: float) -> None:
        """Let time pass for all."""
        for world in self.worlds:
            world.clock.advance(seconds)

    def told(self, world: World) -> Any:
        """Return what `/status` says."""
        return world.parts.shared.tell()

    def computed(self, world: World) -> int:
        """Return how many pieces a llama-server has computed for warm-ups, fingerprints left out."""
        asked = world.llama_server.requests
        return len([1 for path, body in asked if path == "/completion" and not body["n_predict"]])

    def age(self, seconds: float) -> None:
        """Have all entries used so many seconds ago."""
        for each in (self.path / "entries").iterdir():
            found = each.stat().st_mtime - seconds
            os.utime(each, (found, found))
