"""What is warmed up, and when."""

from __future__ import annotations

import itertools
import json
import shutil
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs

from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.slot_files.record import CHAT
from tests.support.fakes import Refusal, tokens
from tests.support.world import CODE, PREFIX, WarmTest, logged

SAVE = "/slots/0?action=save"
RESTORE = "/slots/0?action=restore"
STORY = "Once upon a time there was <{message}>"
STORY_PREFIX = tokens("<user>Once upon a time there was ")
BOTH = {"code": CODE, "story": STORY}
LONG = "why? " * 100
"""A question that makes a conversation worth keeping."""


class Ahead(WarmTest):
    """Before anyone asks."""

    def test_all_templates(self) -> None:
        """A round warms all templates, in order; then there is nothing to do."""
        self.use(BOTH)
        self.rounds()
        self.assertEqual([PREFIX, STORY_PREFIX], list((self.server.files or {}).values()))
        self.assertEqual({"code.bin": PREFIX, "story.bin": STORY_PREFIX}, self.server.files)
        self.assertEqual([], self.rounds(5))

    def test_already_saved(self) -> None:
        """After a restart of the proxy, or of llama-server, saved templates are restored and not evaluated again."""
        old = self.use(BOTH)
        self.rounds(2)
        old.state.close()
        self.use(BOTH)
        self.server.files = old.llama_server.files
        for restart in (lambda: None, self.server.restart):
            restart()
            self.look()
            self.rounds(3)
            self.assertEqual([], self.pieces())
            self.assertEqual(("warm", "warm"), (self.state("code"), self.state("story")))
            self.assertEqual(0, self.ended("done"))

    def test_edited(self) -> None:
        """After an edit, of the template or of an include, the new content is warmed up; before that it is cold."""
        part = self.template("part", "one")
        self.use({"code": "<{part.txt}> <{message}>"})
        self.rounds()
        part.write_text("two")
        self.poll()
        self.assertEqual("cold", self.state())
        self.rounds()
        self.assertEqual(tokens("<user>two "), self.built.saved())
        self.assertEqual("warm", self.state())

    def test_edited_meanwhile(self) -> None:
        """An edit in the middle of a warm-up, wherever it is, ends with the last content warm."""
        for number, path in enumerate(("/apply-template", "/tokenize", "/props", "/completion", SAVE)):
            self.use(warmup_chunk=10, state_dir=self.folder / str(number))
            self.server.pause_at = {path}
            warming = self.begin()
            self.assertEqual(1, self.server.paused, path)
            self.edit("New: <{message}>")
            self.server.pause_at = set()
            self.server.go_on()
            self.built.settle()
            self.successResultOf(warming)
            self.assertNotEqual("warm", self.state(), path)
            self.rounds(2)
            self.assertEqual("warm", self.state(), path)
            self.assertEqual(tokens("<user>New: "), self.built.saved(), path)

    def test_never_still(self) -> None:
        """A text that changes during each of its warm-ups, as with a clock in an include, has to wait ever longer."""
        self.use(warmup_chunk=10)
        began = []
        for number in range(240):
            self.server.pause_at = {"/completion"}
            warming = self.begin()
            if self.server.paused:
                began.append(number / 2)
                self.edit(f"It is {number} past. <{{message}}>")
            self.server.pause_at = set()
            self.server.go_on()
            self.built.settle()
            self.successResultOf(warming)
            self.built.clock.advance(0.5)
        # Two changes cost no pause.  Each pause is longer by up to a fifth, at random; a round comes every half second.
        self.assertEqual([0, 0.5, 1], began[:3])
        pauses = [later - earlier for earlier, later in itertools.pairwise(began[2:])]
        self.assertGreaterEqual(len(pauses), 4)
        for pause, least in zip(pauses, [4, 8, 16, 32, 60], strict=False):
            self.assertTrue(least <= pause <= 1.2 * least + 0.5, pauses)
        self.assertEqual(len(began), self.ended("preempted"))
        self.rounds(200)
        self.assertEqual("warm", self.state())
        self.edit("Still. <{message}>")
        self.rounds()
        self.assertEqual("warm", self.state())

    def test_nothing_to_warm(self) -> None:
        """A template that begins with the message, or cannot be read, is left alone; the others are not."""
        self.use({"bare": " \n<{message}>", "bad": "no place", "code": CODE})
        self.rounds(4)
        self.assertEqual({"code.bin": PREFIX}, self.server.files)
        self.assertEqual(
            [("cold", ""), ("error", True)],
            [(self.state("bare"), self.error("bare")), (self.state("bad"), "no <{message}>" in self.error("bad"))],
        )

    def test_not_while_down(self) -> None:
        """Nothing is tried while llama-server is down."""
        self.use()
        self.server.loading = True
        self.look()
        self.assertEqual([], self.rounds(3))

    def test_unreadable_include(self) -> None:
        """A template with a broken include is warm as it is, and says what is wrong."""
        self.use({"code": "<{missing.txt}> <{message}>"})
        self.rounds()
        self.assertEqual("warm", self.state())
        self.assertIn("missing.txt", self.error())

    def test_other_chat_template(self) -> None:
        """A llama-server that comes back with another chat template gets other prefix tokens."""
        self.use()
        self.rounds()
        self.server.restart()
        self.server.chat_template = "[INST]"
        self.look()
        self.rounds(2)
        self.assertEqual(tokens("[INST]<user>Know this: abc. "), self.built.saved())

    def test_numbers(self) -> None:
        """State, progress and gauges tell how far a warm-up is."""
        self.use(warmup_chunk=10)
        self.rounds(0)
        warmer = self.built.warmer
        self.successResultOf(self.built.start(self.built.identity.find_out))
        self.server.pause_at = {"/completion"}
        warming = self.begin()
        seen = []
        for _ in range(3):
            seen.append((self.state(), round(warmer.progress("code") * len(PREFIX)), self.built.gate.busy))
            self.assertEqual(0, self.built.sample("template_warm", template="code"))
            self.server.go_on()
            self.built.settle()
        self.assertEqual([("warming", done, "warmup") for done in (0, 10, 20)], seen)
        self.successResultOf(warming)
        self.assertEqual(len(PREFIX), self.built.sample("template_tokens", template="code"))
        self.assertEqual(1, self.built.sample("template_warm", template="code"))


class GivingWay(WarmTest):
    """When users come."""

    def test_preempted(self) -> None:
        """A user who comes ends the warm-up and is served at once; afterwards it is tried again."""
        self.use(warmup_chunk=10)
        for number, path in enumerate(("/props", "/completion"), 1):
            self.server.pause_at = {path}
            warming = self.begin()
            self.assertEqual("warmup", self.built.gate.busy)
            self.server.pause_at = set()
            call = self.built.chat("hello")
            self.assertEqual(200, call.status)
            self.successResultOf(warming)
            self.assertEqual([path], self.server.gone[number - 1 :])
            self.assertEqual((number, 0), (self.ended("preempted"), self.ended("failed")))
            self.assertEqual(("cold", ""), (self.state(), self.error()))
        self.rounds()
        self.assertEqual({"code.bin": PREFIX}, self.server.files)
        self.assertEqual("warm", self.state())

    def test_user_before_the_gate(self) -> None:
        """A user who comes while the prefix is still being looked for is not disturbed, and nothing has failed."""
        self.use()
        self.server.pause_at = {"/tokenize"}
        warming = self.begin()
        self.server.pause_at = {"/v1/chat/completions"}
        call = self.built.chat("hello")
        self.server.go_on("/tokenize")
        self.built.settle()
        self.successResultOf(warming)
        self.assertEqual([], self.pieces())
        self.assertEqual([], self.rounds(3))
        self.server.go_on()
        self.built.settle()
        self.assertEqual(200, call.status)
        self.assertEqual(0, self.ended("failed"))
        self.rounds()
        self.assertEqual("warm", self.state())

    def test_prefix_is_kept(self) -> None:
        """What was found out about the prefix before a user came is not asked for again."""
        self.use()
        self.server.pause_at = {"/completion"}
        self.begin()
        self.server.pause_at = set()
        self.built.chat("hello")
        self.assertNotIn("/tokenize", self.rounds())
        self.assertEqual("warm", self.state())

    def test_stopped(self) -> None:
        """Stopping in the middle of a warm-up ends it, and counts neither as preempted nor as failed."""
        self.use()
        self.server.pause_at = {"/completion"}
        warming = self.begin()
        warming.cancel()
        self.built.settle()
        self.failureResultOf(warming, CancelledError)
        self.assertEqual(["/completion"], self.server.gone)
        self.assertEqual((0, 0, None), (self.ended("preempted"), self.ended("failed"), self.built.gate.busy))


class Trouble(WarmTest):
    """When it does not work."""

    def test_backs_off(self) -> None:
        """A warm-up that fails is tried again after longer and longer pauses, of a minute at most, and logged once."""
        self.use()
        self.server.answers = {"/apply-template": "nonsense"}
        tries = []
        with capturedLogs() as events:
            for number in range(600):
                if self.rounds():
                    tries.append(number / 2)
        # Each pause is longer by up to a fifth, at random; and a round comes every half second.
        pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
        for pause, least in zip(pauses, [2, 4, 8, 16, 32, 60, 60], strict=False):
            self.assertTrue(least <= pause <= 1.2 * least + 0.5, pauses)
        self.assertGreaterEqual(len(pauses), 7)
        warnings = [line for line in logged(events) if "cannot be warmed up" in line]
        self.assertEqual(1, len(warnings))
        self.assertEqual("error", self.state())
        self.assertIn("not understood", self.error())
        self.assertEqual(len(tries), self.ended("failed"))

    def test_over(self) -> None:
        """Trouble is over when a later try works, or when the template is another."""
        self.use()
        self.server.answers = {SAVE: "nonsense"}
        self.rounds()
        self.assertIn("saving code.bin", self.error())
        self.server.answers = {}
        self.rounds(5)
        self.assertEqual(("warm", ""), (self.state(), self.error()))
        self.edit("Another: <{message}>")
        self.server.answers = {"/tokenize": "nonsense"}
        self.rounds()
        self.assertEqual("error", self.state())
        self.server.answers = {}
        self.edit("A third: <{message}>")
        self.assertEqual(("cold", ""), (self.state(), self.error()))
        self.rounds()
        self.assertEqual(("warm", ""), (self.state(), self.error()))

    def test_over_by_a_file(self) -> None:
        """Trouble is over, too, when a later try finds that the file is there and good."""
        old = self.use()
        self.rounds()
        old.state.close()
        self.use()
        self.server.files = old.llama_server.files
        self.server.answers = {"/apply-template": "nonsense"}
        self.rounds()
        self.assertEqual("error", self.state())
        self.server.answers = {}
        self.rounds(10)
        self.assertEqual(("warm", ""), (self.state(), self.error()))

    def test_does_not_fit(self) -> None:
        """A template that is too long is an error with both numbers, not tried again before something changes."""
        self.use()
        long = "x" * 400
        for text, context, answers, counts, numbers in (
            (CODE, len(PREFIX) + 9, {}, True, f"tokens do not fit the context of {len(PREFIX) + 9}"),
            (f"{long}<{{message}}>", 20, {}, True, "tokens do not fit the context of 20"),
            (f"{long}!<{{message}}>", 20, {"/v1/messages/count_tokens": {"input_tokens": 9}}, True, "423 tokens do"),
            (f"{long}!!<{{message}}>", 20, {}, False, "too many tokens do not fit the context of 20"),
        ):
            self.server.context, self.server.answers, self.server.counts = context, answers, counts
            self.look()
            self.edit(text)
            self.assertNotEqual([], self.rounds())
            self.assertEqual("error", self.state())
            self.assertIn(numbers, self.error())
            self.assertEqual([], self.rounds(500))
        self.assertEqual([], self.pieces())
        # A larger context, or a shorter text, is reason enough for another try.
        self.server.context = 16384
        self.look()
        self.rounds()
        self.assertEqual(("warm", ""), (self.state(), self.error()))

    def test_edited_while_it_does_not_fit(self) -> None:
        """A text that turns out to be too long while it is edited says nothing about the new text, which is tried."""
        self.use({"code": "x" * 400 + "<{message}>"})
        self.server.context = 40
        self.look()
        self.server.pause_at = {"/tokenize", "/v1/messages/count_tokens"}
        warming = self.begin()
        self.assertEqual(1, self.server.paused)
        self.edit("Short. <{message}>")
        self.server.pause_at = set()
        self.server.go_on()
        self.built.settle()
        self.successResultOf(warming)
        self.rounds(2)
        self.assertEqual(("warm", ""), (self.state(), self.error()))

    def test_long_text_is_counted(self) -> None:
        """A text that hardly fits is only counted, not turned into tokens."""
        self.use({"code": "x" * 400 + "<{message}>"})
        self.server.context = 20
        self.look()
        self.assertEqual(["/v1/messages/count_tokens"], self.rounds())

    def test_one_does_not_block(self) -> None:
        """A template in trouble does not keep the others from being warmed up."""
        self.use({"long": "x" * 100 + "<{message}>", "code": CODE})
        self.server.context = 60
        self.look()
        self.rounds(2)
        self.assertEqual(("error", "warm"), (self.state("long"), self.state("code")))


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
            notes.append(self.built.warmer.note("code"))
            self.rounds()
        self.assertEqual(2, self.ended("done"))
        self.assertEqual([True, True, *[False] * 7], [note is None for note in notes])
        self.assertIn("does it tell the time?", notes[-1] or "")
        templates = self.built.operate("GET", "/status").json()["templates"]
        self.assertEqual(notes[-1], templates[0]["note"])


class Order(WarmTest):
    """Which template comes first, and which one the slot is left with."""

    def use_three(self, *asked: str) -> None:
        """Have three templates, of which some were asked for, in this order."""
        self.use({name: f"Template {name} <{{message}}>" for name in "abc"})
        for name in asked:
            self.built.shape_learning.asked(name, USER_MESSAGE_ONLY)

    def test_last_use(self) -> None:
        """The one that was asked for last is warmed up last, so that the slot is left with it."""
        for asked, expected in (((), "abc"), ("a", "bca"), ("ba", "cba"), ("bca", "bca"), ("aba", "cba")):
            self.use_three(*asked)
            self.rounds()
            self.assertEqual([f"{name}.bin" for name in expected], self.slot_calls("save"))
            self.assertEqual(tokens(f"<user>Template {expected[-1]} "), self.server.tokens)
            self.assertEqual([], self.rounds(3))
            self.built.close()
            shutil.rmtree(self.folder / "state")

    def test_held_first(self) -> None:
        """What a user has just had computed is saved before anything else is warmed up, then comes back."""
        self.use_three()
        self.built.chat("@b x")
        self.rounds()
        self.assertEqual(["b.bin", "a.bin", "c.bin"], self.slot_calls("save"))
        self.assertEqual((["b.bin"], "warm"), (self.slot_calls("restore"), self.state("b")))
        self.assertEqual(("hot", len(tokens("<user>Template b "))), self.ask("@b y"))


class BringingBack(WarmTest):
    """The template that was asked for last, after a warm-up of another one."""

    def setUp(self) -> None:
        """Have two templates warm; ``@code`` was asked for last."""
        super().setUp()
        self.use(BOTH, head_start=False)
        self.rounds()
        self.built.chat("@code why?")

    def displace(self) -> None:
        """Have the other template warmed up, and what follows in some rounds."""
        self.edit("Another <{message}>", "story")
        self.before = len(self.server.requests)
        self.rounds(5)
        self.assertEqual([len(tokens("<user>Another "))], self.pieces(self.before))

    def test_brought_back(self) -> None:
        """It is restored, once, and the next question has it hot."""
        self.displace()
        self.assertEqual((["code.bin"], PREFIX), (self.slot_calls("restore", self.before), self.server.tokens))
        self.assertEqual([], self.rounds(10))
        self.assertEqual(("hot", len(PREFIX)), self.ask("@code when?"))

    def test_each_time(self) -> None:
        """It is restored after each warm-up of another one."""
        self.displace()
        self.edit("A third <{message}>", "story")
        self.rounds(5)
        self.assertEqual((["code.bin"] * 2, PREFIX), (self.slot_calls("restore", self.before), self.server.tokens))

    def test_with_its_conversation(self) -> None:
        """If the last conversation on it was saved, it comes back with that."""
        self.built.chat(f"@code {LONG}")
        conversation = list(self.server.tokens)
        self.displace()
        self.assertEqual(
            (["code.chat.bin"], conversation), (self.slot_calls("restore", self.before), self.server.tokens)
        )
        self.assertEqual(("hot", len(conversation)), self.ask(f"@code {LONG}", "fine", "and then?"))

    def test_not_over_a_users_slot(self) -> None:
        """What a user has left in the slot is not replaced, whatever it is."""
        for message in ("@story a chair", "hello"):
            self.built.chat(message)
            held = list(self.server.tokens)
            self.assertEqual(([], held), (self.rounds(10), self.server.tokens))

    def test_after_a_restart(self) -> None:
        """After a start of llama-server it is restored; after a restart of the proxy, too, as the slot is unknown."""
        self.server.restart()
        self.look()
        before = len(self.server.requests)
        self.rounds(5)
        # The first restore is of any template, to find out whether the model is the same.
        self.assertEqual(["story.bin", "code.bin"], self.slot_calls("restore", before))
        self.assertEqual("hot", self.ask("@code x")[0])
        old = self.built
        self.rounds(10)  # until a quiet moment, in which it is written down what was asked for
        old.state.close()
        self.use(BOTH)
        self.server.files = old.llama_server.files
        self.rounds(5)
        self.assertEqual(["story.bin", "code.bin"], self.slot_calls("restore"))
        self.assertEqual("hot", self.ask("@code x")[0])

    def test_in_vain(self) -> None:
        """One that llama-server fails to restore is warmed up, and not restored again and again."""
        self.server.answers = {RESTORE: {"n_restored": 1, "n_read": 10}}
        self.displace_in_vain()
        self.assertEqual(["code.bin"], self.slot_calls("restore", self.before))

    def test_trouble(self) -> None:
        """If it cannot even be tried, that is not tried again and again."""
        self.server.answers = {"/v1/models": "nonsense"}
        self.displace_in_vain()
        # Once for the warm-up of the other one, once to bring this one back.
        self.assertEqual(2, self.server.paths()[self.before :].count("/v1/models"))

    def displace_in_vain(self) -> None:
        """Have the other template warmed up, and many rounds."""
        self.edit("Another <{message}>", "story")
        self.before = len(self.server.requests)
        self.rounds(50)

    def test_no_witness(self) -> None:
        """Where llama-server does not tell what the slot holds nothing is restored: nobody could rely on it."""
        self.server.slots_shown = False
        self.built.chat("@code when?")
        self.displace_in_vain()
        self.assertEqual([], self.slot_calls("restore", self.before))

    def test_asleep(self) -> None:
        """A llama-server that sleeps is not woken up for it; once it is awake the template is restored."""
        self.server.asleep = True
        self.look()
        self.assertEqual([], self.rounds(10))
        self.server.asleep = False
        self.server.tokens, self.server.task = [], None  # its model was loaded anew
        self.look()
        before = len(self.server.requests)
        self.rounds(5)
        self.assertEqual((["code.bin"], PREFIX), (self.slot_calls("restore", before), self.server.tokens))

    def test_nobody_asked(self) -> None:
        """Where nobody has asked for any template, nothing is restored."""
        self.use(BOTH, state_dir=self.folder / "other")
        self.rounds()
        self.edit("Another <{message}>")
        self.rounds(5)
        self.assertEqual([], self.slot_calls("restore"))

    def test_no_warmup(self) -> None:
        """With `--no-warmup` nothing is restored before anybody asks."""
        self.use(BOTH, warmup=False, state_dir=self.folder / "other")
        self.built.chat("@code why?")
        self.built.chat("@story a chair")
        self.rounds(5)
        self.assertEqual(["story.bin", "code.bin"], self.slot_calls("save"))
        self.assertEqual(([], PREFIX), (self.slot_calls("restore"), self.server.tokens))


class Asleep(WarmTest):
    """A llama-server that has unloaded its model."""

    def test_stays_asleep(self) -> None:
        """It is not woken up as long as there is nothing to compute."""
        self.use(BOTH)
        self.rounds()
        self.server.asleep = True
        self.look()
        self.assertEqual([], self.rounds(20))
        self.assertEqual(("warm", "warm"), (self.state("code"), self.state("story")))

    def test_no_files(self) -> None:
        """Where there are no files either, the slot is empty when it sleeps, and it is left to sleep."""
        self.use(BOTH, files=False)
        self.rounds()
        self.server.asleep = True
        self.look()
        self.assertEqual([], self.rounds(20))

    def test_found_asleep(self) -> None:
        """When the proxy is started meanwhile, what is in files is not computed again."""
        old = self.use(BOTH)
        self.rounds()
        old.state.close()
        self.built = self.world(BOTH)
        self.server = self.built.llama_server
        self.server.files, self.server.asleep = old.llama_server.files, True
        self.look()
        self.poll()
        self.rounds(5)
        self.assertEqual([], self.pieces())
        self.server.asleep = False
        self.look()
        self.rounds(5)
        self.assertEqual([], self.pieces())
        self.assertEqual(("warm", "warm"), (self.state("code"), self.state("story")))


class Keeping(WarmTest):
    """Conversations that users leave in the slot."""

    def setUp(self) -> None:
        """Have two templates warm, and a conversation in the slot."""
        super().setUp()
        self.converse()

    def converse(self, **settings: Any) -> None:
        """Have a long question answered."""
        self.use(BOTH, head_start=False, **settings)
        self.rounds()
        self.built.chat(f"@code {LONG}")
        self.conversation = list(self.server.tokens)
        self.before = len(self.server.requests)

    def test_idle(self) -> None:
        """It is saved when nobody came for three seconds, and not again before it has grown."""
        self.assertEqual([], self.rounds(6))  # the last begins after 2.5 s
        self.rounds()
        self.assertEqual(["code.chat.bin"], self.slot_calls("save", self.before))
        self.assertEqual((self.conversation, PREFIX), (self.built.saved(kind=CHAT), self.built.saved()))
        self.assertEqual([], self.rounds(20))
        self.built.chat(f"@code {LONG}", "fine", "and?")
        self.assertEqual([], self.rounds(20))
        self.built.chat(f"@code {LONG}", "fine", "and?", "fine", LONG)
        longer = list(self.server.tokens)
        self.rounds(20)
        self.assertEqual(longer, self.built.saved(kind=CHAT))

    def test_short(self) -> None:
        """A conversation of a few words is not."""
        self.built.chat("@code why?")
        self.rounds(20)
        self.assertEqual(self.conversation, self.built.saved(kind=CHAT))  # the long one, before it was lost

    def test_before_a_warmup(self) -> None:
        """It is saved before the slot is used for a warm-up."""
        self.edit("Another <{message}>", "story")
        self.rounds()
        self.assertEqual(["code.chat.bin", "story.new.bin"], self.slot_calls("save", self.before))
        self.assertEqual(self.conversation, self.built.saved(kind=CHAT))

    def test_of_an_older_text(self) -> None:
        """One on a text that is no more is forgotten once the new text is warm."""
        self.rounds(10)
        self.assertIsNotNone(self.built.saved(kind=CHAT))
        self.edit("New: <{message}>")
        self.rounds()
        self.assertEqual((None, tokens("<user>New: ")), (self.built.saved(kind=CHAT), self.built.saved()))

    def test_template_first(self) -> None:
        """Where the template itself is not saved yet, both are: the conversation, and then the template from it."""
        self.use(BOTH, state_dir=self.folder / "other")
        self.built.chat(f"@code {LONG}")
        conversation = list(self.server.tokens)
        before = len(self.server.requests)
        self.rounds()
        self.assertEqual(["code.chat.bin", "code.bin", "story.bin"], self.slot_calls("save", before))
        self.assertEqual((conversation, PREFIX), (self.built.saved(kind=CHAT), self.built.saved()))

    def test_switched_off(self) -> None:
        """With `--no-save-conversations` none is saved, whatever happens."""
        self.converse(save_conversations=False, state_dir=self.folder / "other")
        self.rounds(20)
        self.built.chat("hello")
        self.edit("Another <{message}>", "story")
        self.rounds(5)
        self.assertEqual(["story.new.bin"], self.slot_calls("save", self.before))


class Doubt(WarmTest):
    """A restore that did not help."""

    def test_another_day(self) -> None:
        """If the chat template makes other tokens since midnight, that is found out, and they are warmed up."""
        self.use()
        self.rounds()
        prompt = self.server.prompt
        self.patch(self.server, "prompt", lambda body: f"Tuesday {prompt(body)}")
        self.built.chat("hello")
        self.assertEqual(("restored", 1), self.ask("@code why?"))
        self.rounds()
        self.assertEqual(tokens("Tuesday <user>Know this: abc. "), self.built.saved())
        self.assertEqual("warm", self.state())
        self.built.chat("hello")
        self.assertEqual(("restored", len(self.built.saved() or ())), self.ask("@code why?"))

    def test_same_tokens(self) -> None:
        """If they are the same as before, nothing is computed or saved again."""
        self.use()
        self.rounds()
        self.server.reuses_files = False
        self.built.chat("hello")
        self.assertEqual(("restored", 0), self.ask("@code why?"))
        before = len(self.server.requests)
        self.built.chat("hello")
        self.rounds()
        self.assertIn("/tokenize", self.server.paths()[before:])
        self.assertEqual(([], []), (self.pieces(before), self.slot_calls("save", before)))
        self.assertEqual("warm", self.state())


class WithoutFiles(WarmTest):
    """Where llama-server keeps no slot files: one template can be warm, in the slot."""

    def test_first_one(self) -> None:
        """The first template is warmed up in the slot, once; a user has it hot."""
        self.use(BOTH, files=False, head_start=False)
        self.rounds()
        self.assertEqual(("warm", "cold"), (self.state("code"), self.state("story")))
        self.assertEqual([], self.rounds(5))
        self.assertEqual("hot", self.built.chat("@code why?").headers["x-bioproxy-cache"])
        self.assertEqual([], self.rounds(5))

    def test_last_asked(self) -> None:
        """The template that was asked for last is brought back when the slot was used for something else."""
        self.use(BOTH, files=False)
        self.rounds()
        self.built.chat("@story a chair")
        self.rounds()  # the tokens of what the slot holds are made once
        self.assertEqual([], self.rounds(3))
        self.assertEqual(("cold", "warm"), (self.state("code"), self.state("story")))
        self.built.chat("hello")
        self.assertEqual(("cold", "cold"), (self.state("code"), self.state("story")))
        self.rounds()
        self.assertEqual(("cold", "warm"), (self.state("code"), self.state("story")))

    def test_no_witness(self) -> None:
        """Where the slot cannot be seen either, nothing is warmed up again and again."""
        self.use(files=False)
        self.server.slots_shown = False
        self.rounds()
        self.assertEqual([], self.rounds(5))
        self.built.chat("@code why?")
        self.assertEqual([], self.rounds(5))

    def test_other_shape(self) -> None:
        """What a user has left there in another shape is not replaced by the usual one."""
        self.use(files=False, head_start=False)
        self.rounds()
        self.built.chat("@code why?")
        self.built.chat("@code why?", system="s")
        self.assertEqual([], self.rounds(5))
        self.assertEqual(("hot", True), (self.ask("@code when?", system="s")[0], self.built.content.left_by_user))

    def test_bare_template_first(self) -> None:
        """A template with nothing to warm does not take the place of one that has something."""
        self.use({"bare": "<{message}>", "code": CODE}, files=False)
        self.rounds(2)
        self.assertEqual("warm", self.state("code"))
