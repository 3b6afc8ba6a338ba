"""Learned prompts that must not be kept: none is computed or written in vain."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tests.support.agents import CHAT, agent
from tests.support.world import WarmTest

AGENT = agent(CHAT)


class KeptOutTest(WarmTest):
    """An agent whose prompt was learned, in a world that sees its slot folder."""

    def begin_world(self, **settings: Any) -> None:
        """Build a world without templates, in the same folders each time, with what was learned before."""
        slots = self.folder / "slots"
        slots.mkdir(mode=0o700, exist_ok=True)
        self.use({}, **{"slot_save_path": slots, "save_conversations": False, **settings})
        self.built.parts.learned.load()

    def ask_agent(self, question: str) -> None:
        """Send the first question of a conversation, and let the warmer work."""
        session = AGENT.session()
        session.ask(question)
        self.built.send("POST", session.path, json.dumps(session.body()).encode())
        self.rounds(6)

    def files(self) -> list[str]:
        """Return the names of all files with prompts, and of their records."""
        folders = (self.folder / "slots", self.folder / "state" / "shelf")
        return sorted(path.name for folder in folders for path in folder.glob("auto-*"))

    def reload(self, **settings: Any) -> None:
        """Have the configuration read again, with these settings changed."""
        self.built.new_settings = replace(self.built.settings, **settings)
        self.built.reload.run()


class LimitTest(KeptOutTest):
    """A prompt whose file is larger than `prompts_limit`."""

    def test_computed_once(self) -> None:
        """It is computed once at most, until the limit allows for it."""
        for limit in (0, 1000):
            with self.subTest(limit=limit):
                self.begin_world(prompts_limit=limit)
                self.ask_agent("What is new?")
                self.ask_agent("And what else?")
                before = len(self.server.requests)
                self.rounds(600)
                self.assertEqual([], self.pieces(before))
                self.assertEqual([], self.slot_calls("save", before))
                (told,) = self.built.operate("GET", "/status").json()["prompts"]
                self.assertIn("more than the limit", told["error"])

                self.reload(prompts_limit=1 << 30)
                self.rounds(2)
                self.assertEqual(1, len(self.slot_calls("save", before)))
                self.reload(prompts_limit=limit)
                self.built.close()


class LearningOffTest(KeptOutTest):
    """What was learned before learning was switched off."""

    def test_nothing_is_written(self) -> None:
        """A prompt without a file gets none, not even if an operator asks for it, before learning is on again."""
        self.begin_world()
        self.ask_agent("What is new?")
        (name, *_) = self.files()
        self.built.close()
        for folder in ("slots", "state/shelf"):
            for path in (self.folder / folder).glob("auto-*"):
                path.unlink()

        self.begin_world(learn=False)
        self.rounds(6)
        self.built.operate("POST", f"/prompts/{name.split('.')[0]}/warm")
        self.rounds(6)
        self.assertEqual([], self.files())
        (told,) = self.built.operate("GET", "/status").json()["prompts"]
        self.assertEqual("learning is switched off", told["warmup"]["reason"])

        self.reload(learn=True)
        self.rounds(6)
        self.assertIn(name, self.files())

    def test_switched_off_meanwhile(self) -> None:
        """A warm-up that runs ends with the request that llama-server works on, and saves nothing."""
        self.begin_world()
        session = AGENT.session()
        session.ask("What is new?")
        self.built.send("POST", session.path, json.dumps(session.body()).encode())
        self.built.clock.advance(2)
        self.server.pause_at.add("/completion")
        self.begin()
        self.assertEqual((1, True), (self.server.paused, self.built.readiness.current is not None))
        self.reload(learn=False)
        self.server.pause_at.clear()
        self.go_on()
        self.rounds(6)
        self.assertEqual([], self.files())
