"""One try of one prompt: what an operator has asked for, and the shape in which clients ask."""

from __future__ import annotations

import json
from typing import Any

from tests.support.fakes import Refusal, tokens
from tests.support.world import BOTH, PREFIX, STORY_PREFIX, WarmTest


class Asked(WarmTest):
    """After a user's question."""

    def test_no_warmup(self) -> None:
        """With `--no-warmup` nothing happens before anyone asks; then what was computed is saved as it is."""
        self.use(BOTH, warmup=False, warmup_chunk=10)
        self.assertEqual([], self.rounds(5))
        call = self.built.chat("@code why?")
        self.assertEqual(("cold", "first"), (call.headers["x-bioproxy-cache"], call.headers["x-bioproxy-miss"]))
        self.rounds(5)
        # At once and not in pieces: a piece would have cut the slot down.
        self.assertEqual([len(PREFIX)], self.pieces())
        self.assertEqual({"code.bin": PREFIX}, self.server.files)
        self.assertEqual(("warm", "cold"), (self.state("code"), self.state("story")))

    def test_held_first(self) -> None:
        """What a user has just had computed is saved before anything else is warmed up."""
        self.use(BOTH)
        self.built.chat("@story a chair")
        self.rounds()
        self.assertEqual(["story.bin", "code.bin"], list(self.server.files or {}))


SAVE = "/slots/0?action=save"


class Wanted(WarmTest):
    """What an operator asks for."""

    def test_warm_already(self) -> None:
        """A template that is warm is warmed up again, first of all; once."""
        world = self.use(BOTH)
        self.rounds(2)
        before = len(self.server.requests)
        world.schedule.want("story")
        self.assertEqual({"story"}, world.schedule.wanted)
        self.rounds(3)
        self.assertEqual(["story.bin"], self.slot_calls("save", before))
        self.assertEqual([len(STORY_PREFIX)], self.pieces(before))
        self.assertEqual((set(), "warm"), (world.schedule.wanted, self.state("story")))

    def test_first(self) -> None:
        """It comes before all others, even before what the slot holds."""
        world = self.use(BOTH, warmup=False)
        world.chat("@code why?")
        world.schedule.want("story")
        before = len(self.server.requests)
        self.rounds(2)
        self.assertEqual(["story.bin", "code.bin"], self.slot_calls("save", before))

    def test_after_failures(self) -> None:
        """It does not wait, whatever failed before; and when that fails too, it is no more wanted."""
        world = self.use()
        self.server.answers = {SAVE: "nonsense"}
        self.rounds(20)
        tries = self.ended("failed")
        self.assertEqual([], self.rounds())
        world.schedule.want("code")
        self.rounds()
        self.assertEqual((tries + 1, set()), (self.ended("failed"), world.schedule.wanted))
        self.server.answers = {}
        world.schedule.want("code")
        self.rounds()
        self.assertEqual((1, "warm"), (self.ended("done"), self.state()))

    def test_interrupted(self) -> None:
        """A user comes first; then it is tried again."""
        world = self.use(warmup_chunk=10)
        self.rounds()
        world.schedule.want("code")
        self.server.pause_at = {"/completion"}
        self.begin()
        world.send("POST", "/v1/completions", b"{}")
        self.assertEqual({"code"}, world.schedule.wanted)
        self.server.pause_at = set()
        self.go_on()
        self.rounds(2)
        self.assertEqual((set(), "warm"), (world.schedule.wanted, self.state()))

    def test_disk(self) -> None:
        """Saves that were given up after failures are tried again at once."""
        world = self.use(BOTH)
        self.server.answers = {SAVE: Refusal(500, "disk full")}
        self.rounds(3)
        self.assertFalse(world.files.of_use)
        self.server.answers = {}
        world.schedule.want("code")
        self.rounds()
        self.assertEqual(PREFIX, world.saved())

    def test_without_files(self) -> None:
        """Where there are no files the slot gets it, whatever it held, and keeps it until somebody asks."""
        world = self.use(BOTH, files=False)
        self.rounds()
        world.schedule.want("story")
        self.rounds(3)
        self.assertEqual("warm", self.state("story"))
        self.ask("@code why?")
        self.rounds(3)
        self.assertEqual(("warm", "cold"), (self.state("code"), self.state("story")))


class Shapes(WarmTest):
    """In what shape templates are warmed up."""

    def test_as_asked(self) -> None:
        """A template is warmed up in the shape in which it was asked for: with system message and tools."""
        self.use()
        self.rounds()
        more: dict[str, Any] = {"system": "Be brief.", "tools": [{"type": "function", "function": {"name": "f"}}]}
        call = self.built.chat("@code why?", **more)
        self.assertEqual(("cold", "shape-changed"), tuple(call.headers[f"x-bioproxy-{x}"] for x in ("cache", "miss")))
        self.rounds()
        expected = f"<tools>{json.dumps(more['tools'])}</><system>Be brief.</><user>Know this: abc. "
        self.assertEqual(tokens(expected), self.built.saved())
        self.assertEqual("warm", self.state())
        self.built.chat("hello")
        self.assertEqual(("restored", len(tokens(expected))), self.ask("@code when?", **more))

    def test_stranger(self) -> None:
        """One question in another shape does not displace the one that is used, two in a row do."""
        self.use()
        self.rounds()
        self.built.chat("@code why?")
        self.built.chat("@code why?", system="s")
        self.rounds(2)
        self.assertEqual(("warm", PREFIX), (self.state(), self.built.saved()))
        self.built.chat("@code why?", system="s")
        self.rounds()
        self.assertEqual(tokens("<system>s</><user>Know this: abc. "), self.built.saved())

    def test_not_warm_yet(self) -> None:
        """A template that is saved in another shape than the one to warm up in is not warm."""
        self.use()
        self.rounds()
        self.built.chat("@code why?", system="s")
        self.built.chat("hello")
        self.assertEqual("cold", self.state())
        self.rounds()
        self.assertEqual("warm", self.state())

    def test_after_a_restart(self) -> None:
        """After a restart of the proxy the shape is still known: there is nothing to do."""
        old = self.use()
        self.built.chat("@code why?", system="s")
        self.rounds()
        old.state.close()
        self.use()
        self.server.files = old.llama_server.files
        self.rounds(3)
        self.assertEqual(([], "warm"), (self.pieces(), self.state()))

    def test_clock(self) -> None:
        """A client whose system message tells the time does not cause warm-ups for ever, and this is told."""
        self.use()
        self.rounds()
        notes = []
        for minute in range(9):
            self.built.chat("@code why?", system=f"It is {minute} past.")
            notes.append(self.built.readiness.note("code"))
            self.rounds()
        self.assertEqual(2, self.ended("done"))
        self.assertEqual([True, True, *[False] * 7], [note is None for note in notes])
        self.assertIn("does it tell the time?", notes[-1] or "")
        templates = self.built.operate("GET", "/status").json()["templates"]
        self.assertEqual(notes[-1], templates[0]["note"])
