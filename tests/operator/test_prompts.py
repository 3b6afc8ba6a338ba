"""What an operator sees of prompts and conversations that nobody configured, and does with them."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bioproxy.operator.prompts_status import CONVERSATIONS
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.prompt_ids import is_learned, learned_id
from bioproxy.slot_files.folder import MAGIC
from bioproxy.slot_files.record import CHAT, PART, Snapshot
from tests.support.record_files import block, unblock
from tests.support.world import PREFIX as CODE_TOKENS
from tests.support.world import World, WorldTest

SYSTEM = "You are an agent with a secret plan. " * 20
"""A system message of some hundred tokens: the fake makes one of each character."""

FIELDS = (
    "name kind state progress tokens bytes hits last_used saved_at saved_s cold_s now_s pinned part warmup error note"
).split()
"""The fields of each entry of `prompts`."""


class LearningTest(WorldTest):
    """A world that learns prompts of 64 tokens and more, and sees the slot folder."""

    def learning_world(self, templates: dict[str, str] | None = None, **settings: Any) -> World:
        """Build one, in which nothing is learned yet."""
        slots = self.folder / "slots"
        slots.mkdir(mode=0o700)
        world = self.ready_world(templates, slot_save_path=slots, learn_minimum=64, **settings)
        world.llama_server.folder = slots
        return world

    def learned_world(self, **settings: Any) -> tuple[World, str]:
        """Build one, and let it learn a prompt from two conversations and warm it up; return the prompt's id, too."""
        world = self.learning_world(**settings)
        for question in ("one?", "two?"):
            self.assertEqual(200, world.chat(question, system=SYSTEM).status)
        self.rounds(world)
        return world, next(iter(world.parts.learned))

    def rounds(self, world: World, count: int = 4) -> None:
        """Let so many rounds of the warmer pass."""
        for _ in range(count):
            self.successResultOf(world.start(world.warmer.round))
            world.clock.advance(0.5)

    def prompts(self, world: World) -> dict[tuple[str, str], Any]:
        """Return what `/status` has of all prompts and conversations, by kind and id."""
        entries = world.operate("GET", "/status").json()["prompts"]
        return {(each["kind"], each["name"]): each for each in entries}

    def conversations(self, world: World, count: int, first: int = 0) -> list[str]:
        """Record so many conversations, with files; return their ids, the latest last."""
        entry = world.snapshots.get("code")
        assert entry is not None
        ids = []
        for number in range(first, first + count):
            conversation = Conversation(1, f"{number:012x}{'0' * 52}")
            ids.append(learned_id(conversation.digest))
            filename = f"{ids[-1]}.chat.bin"
            chat = replace(entry, filename=filename, marks=(), conversation=conversation, tokens=500 + number)
            world.snapshots.put(ids[-1], CHAT, on_disk(self.folder / "slots" / filename, chat))
        return ids


def on_disk(file: Path, entry: Snapshot) -> Snapshot:
    """Write a file, and return the entry with what the disk says of it."""
    file.write_bytes(MAGIC.ljust(1000))
    return replace(entry, size=1000, written_at=os.stat(file).st_mtime_ns)


class Listing(LearningTest):
    """`prompts` and `shelf` of `/status`."""

    def test_kinds(self) -> None:
        """Templates come first, then what was learned, then conversations; all with the same fields."""
        world, learned = self.learned_world()
        (chat,) = self.conversations(world, 1)
        status = world.operate("GET", "/status").json()
        kinds = [(each["kind"], each["name"]) for each in status["prompts"]]
        self.assertEqual([("template", "code"), ("learned", learned), ("conversation", chat)], kinds[:3])
        self.assertEqual({"conversation"}, {kind for kind, _ in kinds[3:]}, "the two that were asked")
        for each in status["prompts"]:
            self.assertEqual(FIELDS, list(each))
        template, prompt, conversation = status["prompts"][:3]
        self.assertEqual(("warm", len(CODE_TOKENS), False), (template["state"], template["tokens"], template["part"]))
        self.assertEqual(status["templates"][0]["warmup"], template["warmup"])
        self.assertEqual(
            ("warm", 1.0, False, False), tuple(prompt[key] for key in ("state", "progress", "pinned", "part"))
        )
        self.assertEqual({"due": False, "reason": "warm", "until": None}, prompt["warmup"])
        entry = world.snapshots.get(learned)
        assert entry is not None
        self.assertEqual(
            (entry.tokens, entry.size, entry.saved_at), tuple(prompt[key] for key in ("tokens", "bytes", "saved_at"))
        )
        self.assertEqual(("warm", 1.0, 500, 1000), tuple(conversation[key] for key in FIELDS[2:6]))
        self.assertEqual([None] * 3, [conversation[key] for key in ("warmup", "error", "note")])
        self.assertNotIn("secret plan", world.operate("GET", "/status").body.decode())

    def test_use(self) -> None:
        """Uses are counted, and what they have saved is estimated, as soon as the speed is known."""
        world, learned = self.learned_world()
        before = self.prompts(world)["learned", learned]
        world.speed.seconds_per_token = 0.0
        world.chat("three?", system=SYSTEM)
        world.speed.seconds_per_token = 0.0
        prompt = self.prompts(world)["learned", learned]
        self.assertEqual((before["hits"] + 1, None), (prompt["hits"], prompt["saved_s"]))
        self.assertGreaterEqual(prompt["last_used"], prompt["saved_at"])
        world.speed.seconds_per_token = 0.01
        saved = self.prompts(world)["learned", learned]["saved_s"]
        self.assertEqual(round(prompt["hits"] * prompt["tokens"] * 0.01, 1), saved)

    def test_a_request_is_one_use(self) -> None:
        """A request counts once, whether it finds the prompt in the slot or has it restored from its file."""
        world, learned = self.learned_world()
        for question, cache in (("@code why?", "restored"), ("@code how?", "hot"), ("three?", "restored")):
            id = ("template", "code") if question.startswith("@") else ("learned", learned)
            before = self.prompts(world)[id]["hits"]
            system = None if question.startswith("@") else SYSTEM
            self.assertEqual(cache, world.chat(question, system=system).headers["X-Bioproxy-Cache"])
            self.assertEqual(before + 1, self.prompts(world)[id]["hits"], question)

    def test_worth(self) -> None:
        """What a prompt takes to compute, and what it takes now: nothing in the slot, a restore from its file."""
        world, learned = self.learned_world()
        (chat,) = self.conversations(world, 1)
        world.speed.seconds_per_token = 0.01
        names = ("template", "code"), ("learned", learned), ("conversation", chat)

        def worth() -> list[tuple[float | None, float | None]]:
            prompts = self.prompts(world)
            return [(prompts[name]["cold_s"], prompts[name]["now_s"]) for name in names]

        # As long as no restore was measured: only of what the slot holds is known how long it takes now.
        tokens = [self.prompts(world)[name]["tokens"] for name in names]
        cold = [round(count * 0.01, 1) for count in tokens]
        world.chat("@code why?")
        world.speed.restore_seconds_per_token = None
        self.assertEqual([(cold[0], 0.0), (cold[1], None), (cold[2], None)], worth())
        template = world.operate("GET", "/status").json()["templates"][0]
        self.assertEqual((cold[0], 0.0), (template["cold_s"], template["now_s"]))
        # A millisecond for each token.
        world.speed.restored(1000, 1.0)
        self.assertEqual([0.0, *(round(count * 0.001, 2) for count in tokens[1:])], [now for _, now in worth()])
        # In the slot, or not usable any more: then nothing is known but what computing takes.
        world.chat("three?", system=SYSTEM)
        world.speed.seconds_per_token = 0.01
        self.assertEqual((cold[1], 0.0), worth()[1])
        (self.folder / "slots" / f"{chat}.chat.bin").unlink()
        self.assertEqual((cold[2], None), worth()[2])

    def test_worth_of_the_conversation_in_the_slot(self) -> None:
        """The conversation that the slot holds is worth all of its tokens, since it needs no restore."""
        world, _ = self.learned_world()
        world.chat("four?", system=SYSTEM)
        self.successResultOf(world.start(world.slot.save_conversation))
        world.speed.seconds_per_token = 0.01
        latest = next(each for (kind, _), each in self.prompts(world).items() if kind == "conversation")
        self.assertEqual(0.0, latest["now_s"], "saved a moment ago")

    def test_unused(self) -> None:
        """What was never used says so; a template has the time of its last request, also without a file."""
        world = self.learning_world()
        template = self.prompts(world)["template", "code"]
        self.assertEqual(
            (0, None, None, 0, 0.0),
            tuple(template[key] for key in ("hits", "last_used", "saved_at", "bytes", "saved_s")),
        )
        self.rounds(world)
        self.assertEqual(
            (0, None), tuple(self.prompts(world)["template", "code"][key] for key in ("hits", "last_used"))
        )
        world.chat("@code why?")
        template = self.prompts(world)["template", "code"]
        self.assertGreaterEqual(template["last_used"], world.request_log.last_used["code"])
        self.assertEqual(1, template["hits"])

    def test_shared_part(self) -> None:
        """A part that several beginnings share is told as one, and an interrupted warm-up's bytes count."""
        world = self.learning_world()
        for end in ("first " * 30, "other " * 30):
            for question in ("one?", "two?"):
                world.chat(question, system=SYSTEM + end)
        self.rounds(world, 6)
        parts = [each for (kind, _), each in self.prompts(world).items() if kind == "learned" and each["part"]]
        self.assertEqual(["warm"], [each["state"] for each in parts])
        entry = world.snapshots.get(parts[0]["name"])
        assert entry is not None
        world.snapshots.put(parts[0]["name"], PART, replace(entry, filename=f"{parts[0]['name']}.part.bin", size=7))
        self.assertEqual(parts[0]["bytes"] + 7, self.prompts(world)["learned", parts[0]["name"]]["bytes"])

    def test_other_model(self) -> None:
        """A conversation is cold while another model runs, and as long as its file is missing."""
        world, _ = self.learned_world()
        chat, other = self.conversations(world, 2)
        (self.folder / "slots" / f"{chat}.chat.bin").unlink()
        states = {id: self.prompts(world)["conversation", id]["state"] for id in (chat, other)}
        self.assertEqual({chat: "cold", other: "warm"}, states)
        world.identity.current = None
        self.assertEqual("cold", self.prompts(world)["conversation", other]["state"])

    def test_latest(self) -> None:
        """Only the latest conversations are listed, the most recently used first; the totals have all."""
        world, _ = self.learned_world()
        ids = self.conversations(world, CONVERSATIONS + 5)
        world.snapshots.used(ids[1], CHAT)
        listed = [id for kind, id in self.prompts(world) if kind == "conversation"]
        self.assertEqual([ids[1], *reversed(ids[6:])], listed)
        shelf = world.operate("GET", "/status").json()["shelf"]
        self.assertEqual(["template", "prompt", "conversation"], list(shelf))
        limit = world.settings.conversations_limit
        totals = world.snapshots.totals("conversation")
        self.assertGreaterEqual(totals.files, len(ids))
        self.assertEqual({"files": totals.files, "bytes": totals.bytes, "limit": limit}, shelf["conversation"])
        self.assertIsNone(shelf["template"]["limit"])

    def test_still(self) -> None:
        """While nothing happens, nothing of it changes, so open pages are sent nothing."""
        world, _ = self.learned_world()
        self.conversations(world, 3)
        before = world.status.now()
        world.clock.advance(100)
        self.assertEqual(before, world.status.now())

    def test_many(self) -> None:
        """The cost does not depend on how many conversations there are."""
        world, _ = self.learned_world()
        self.conversations(world, 100)
        few = self.cost(world)
        self.conversations(world, 1900, first=100)
        # With a wide margin, for a machine with other work: each conversation looked at would make it twenty times.
        self.assertLess(self.cost(world), 4 * few)

    def cost(self, world: World) -> float:
        """Return how many seconds of this process the status takes."""
        times = []
        for _ in range(5):
            began = time.process_time()
            world.status.now()
            times.append(time.process_time() - began)
        return min(times)


class Acting(LearningTest):
    """``POST /prompts/ID/...``."""

    def post(self, world: World, id: str, action: str) -> tuple[int, str]:
        """Do it; return status and text."""
        call = world.operate("POST", f"/prompts/{id}/{action}")
        self.assertEqual("text/plain; charset=utf-8", call.headers["content-type"])
        return call.status, call.body.decode()

    def test_forget_learned(self) -> None:
        """A learned prompt is forgotten with its text and its files, and learned anew from later requests."""
        world, learned = self.learned_world()
        file = self.folder / "slots" / f"{learned}.bin"
        texts = world.settings.state_dir / "learned.json"
        self.assertTrue(file.exists())
        self.assertIn("secret plan", texts.read_text())
        self.assertEqual((200, f"{learned} is forgotten\n"), self.post(world, learned, "forget"))
        self.assertFalse(file.exists())
        self.assertNotIn("secret plan", texts.read_text())
        self.assertNotIn(("learned", learned), self.prompts(world))
        self.assertEqual(404, self.post(world, learned, "forget")[0])
        self.rounds(world)
        self.assertNotIn(("learned", learned), self.prompts(world))
        for question in ("three?", "four?"):
            world.chat(question, system=SYSTEM)
        self.rounds(world)
        self.assertIn(("learned", learned), self.prompts(world))

    def test_forget_while_it_is_warmed_up(self) -> None:
        """A prompt that is forgotten in the middle of its warm-up leaves no file behind."""
        self.forget_during("/completion")

    def test_forget_while_it_is_saved(self) -> None:
        """Nor does one that is forgotten in the middle of its save."""
        self.forget_during("/slots/0?action=save")

    def forget_during(self, path: str) -> None:
        """Forget a prompt while its warm-up waits for llama-server's answer there."""
        world, learned = self.learned_world(warmup_chunk=64)
        # What the slot holds would only have to be saved.
        world.chat("@code why?")
        self.post(world, learned, "warm")
        world.llama_server.pause_at = {path}
        world.clock.advance(5)
        world.start(world.warmer.round)
        self.assertEqual(learned, world.readiness.current)
        self.assertEqual(200, self.post(world, learned, "forget")[0])
        world.go_on()
        self.rounds(world)
        self.assertEqual([], [kind for name, kind, _ in world.snapshots.items() if name == learned])

    def test_forget_conversation(self) -> None:
        """A conversation is forgotten with its file; others stay."""
        world, learned = self.learned_world()
        first, second = self.conversations(world, 2)
        self.assertEqual(200, self.post(world, first, "forget")[0])
        self.assertFalse((self.folder / "slots" / f"{first}.chat.bin").exists())
        left = set(self.prompts(world))
        self.assertNotIn(("conversation", first), left)
        self.assertLess({("template", "code"), ("learned", learned), ("conversation", second)}, left)

    def test_forget_template(self) -> None:
        """A template is the configuration's business; its file stays."""
        world, _ = self.learned_world()
        status, text = self.post(world, "code", "forget")
        self.assertEqual(
            (409, "code is a template, and templates are removed from the configuration\n"), (status, text)
        )
        self.assertIsNotNone(world.snapshots.get("code"))

    def test_forget_what_was_a_template(self) -> None:
        """What a template has left that is not configured any more can be removed."""
        world, _ = self.learned_world()
        world.new_settings = replace(world.settings, prefixes={})
        self.assertEqual(200, world.operate("POST", "/reload").status)
        self.assertEqual(200, self.post(world, "code", "forget")[0])
        self.assertFalse((self.folder / "slots" / "code.bin").exists())

    def test_pin(self) -> None:
        """A file that is pinned stays when the limit is lowered, and goes when it is not pinned any more."""
        world, _ = self.learned_world()
        first, second = self.conversations(world, 2)
        self.assertEqual((200, f"{first} is pinned and stays\n"), self.post(world, first, "pin"))
        self.assertTrue(self.prompts(world)["conversation", first]["pinned"])
        world.parts.shelf.conversations_limit = 1000
        world.parts.shelf.within_limits()
        self.assertEqual([first], [id for kind, id in self.prompts(world) if kind == "conversation"])
        self.assertEqual((200, f"{first} is not pinned any more\n"), self.post(world, first, "unpin"))
        self.assertFalse(self.prompts(world)["conversation", first]["pinned"])
        self.assertEqual(404, self.post(world, second, "pin")[0])

    def test_warm(self) -> None:
        """A learned prompt is warmed up once more, as a template is; a conversation is not."""
        world, learned = self.learned_world()
        (chat,) = self.conversations(world, 1)
        self.assertEqual(
            (409, f"{chat} is a conversation, and only prompts are warmed up\n"), self.post(world, chat, "warm")
        )
        before = world.sample("warmups_total", template="auto", result="done")
        self.assertEqual((202, f"{learned} is warmed up next\n"), self.post(world, learned, "warm"))
        self.assertTrue(self.prompts(world)["learned", learned]["warmup"]["due"])
        self.rounds(world)
        self.assertEqual(before + 1, world.sample("warmups_total", template="auto", result="done"))
        self.assertEqual(202, self.post(world, "code", "warm")[0])

    def test_refused(self) -> None:
        """An id that names nothing is not found, a GET changes nothing, and neither does a page of another site."""
        world, learned = self.learned_world()
        for action in ("forget", "pin", "unpin", "warm"):
            for id in ("auto-000000000000", "none", "..%2Fcode", "code.bin", "%ff"):
                self.assertEqual(404, world.operate("POST", f"/prompts/{id}/{action}").status, (id, action))
            self.assertEqual(405, world.operate("GET", f"/prompts/{learned}/{action}").status)
            foreign = world.operate("POST", f"/prompts/{learned}/{action}", Origin="http://evil.example")
            self.assertEqual(403, foreign.status)
        self.assertIn(("learned", learned), self.prompts(world))
        self.assertEqual([], self.flushLoggedErrors())

    def test_record_cannot_be_written(self) -> None:
        """What cannot be recorded is said, and is no success."""
        world, learned = self.learned_world()
        block(world.settings.state_dir)
        self.addCleanup(unblock, world.settings.state_dir)
        for action in ("pin", "forget"):
            status, text = self.post(world, learned, action)
            self.assertEqual((500, "the record of slot files cannot be written"), (status, text.partition(":")[0]))


class Counting(LearningTest):
    """`/metrics`."""

    def test_no_names(self) -> None:
        """Whatever happens to learned prompts and conversations, metrics call all of them ``auto``."""
        world, learned = self.learned_world()
        self.assertTrue(is_learned(learned))
        # Hot, then displaced, then restored, interrupted and failed; a conversation that is saved and restored.
        long = "why is that? " * 40
        answer = world.chat(long, system=SYSTEM).json()["choices"][0]["message"]["content"]
        world.clock.advance(10)
        self.rounds(world)
        world.chat("@code why?")
        world.chat(long, answer, "and now?", system=SYSTEM)
        world.chat("@code why?")
        world.chat("three?", system=SYSTEM)
        world.operate("POST", f"/prompts/{learned}/warm")
        world.llama_server.pause_at = {"/completion"}
        world.start(world.warmer.round)
        call = world.chat("four?", system=SYSTEM)
        world.go_on()
        self.assertEqual(200, call.status)
        (self.folder / "slots" / f"{learned}.bin").unlink()
        world.chat("@code why?")
        world.chat("five?", system=SYSTEM)
        self.rounds(world)
        text = world.operate("GET", "/metrics").body.decode()
        self.assertNotIn("auto-", text)
        self.assertNotIn("secret", text)
        for name, labels in (
            ("requests_total", {"endpoint": "/v1/chat/completions", "template": "auto", "code": "200"}),
            ("warmups_total", {"template": "auto", "result": "done"}),
            ("slot_saves_total", {"template": "auto", "result": "ok"}),
            ("slot_restores_total", {"template": "auto", "result": "ok"}),
            ("prompt_tokens_total", {"template": "auto", "source": "cache"}),
            ("shelf_files", {"kind": "prompt"}),
        ):
            self.assertGreater(world.sample(name, **labels), 0, name)
