"""Warming templates up."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from tests.fakes import tokens
from tests.world import CODE, PREFIX, World, WorldTest, logged

SAVE = "/slots/0?action=save"
STORY = "Once upon a time there was <{message}>"
STORY_PREFIX = tokens("<user>Once upon a time there was ")


class WarmTest(WorldTest):
    """One or two templates, and a warmer whose rounds the test starts."""

    def use(self, templates: dict[str, str] | None = None, *, files: bool = True, **settings: Any) -> World:
        """Build a world that is ready, but cold."""
        self.built = self.world({"code": CODE} if templates is None else templates, **settings)
        self.server = self.built.llama_server
        if not files:
            self.server.files = None
        self.look()
        self.poll()
        return self.built

    def look(self) -> None:
        """Look at llama-server."""
        self.successResultOf(self.built.start(self.built.watch.look))

    def poll(self) -> None:
        """Look at the files."""
        self.successResultOf(self.built.start(self.built.poller.poll))

    def begin(self) -> Deferred[None]:
        """Begin a round."""
        return self.built.start(self.built.warmer.round)

    def rounds(self, count: int = 1) -> list[str]:
        """Let so many rounds pass, half a second apart; return what llama-server was asked for in them."""
        before = len(self.server.requests)
        for _ in range(count):
            self.successResultOf(self.begin())
            self.built.clock.advance(0.5)
        return self.server.paths()[before:]

    def pieces(self) -> list[int]:
        """Return how many tokens each evaluation asked for, fingerprints left out."""
        return [
            len(body["prompt"])
            for path, body in self.server.requests
            if path == "/completion" and not body["n_predict"]
        ]

    def state(self, name: str = "code") -> str:
        """Return a template's state."""
        return self.built.warmer.state(name)[0]

    def error(self, name: str = "code") -> str:
        """Return what is wrong with a template."""
        return self.built.warmer.state(name)[1] or ""

    def ended(self, result: str) -> float:
        """Return how many warm-ups ended so."""
        return self.built.sample("warmups_total", template="code", result=result)


class Ahead(WarmTest):
    """Before anyone asks."""

    def test_exact_prefix(self) -> None:
        """A template is warmed up at the start: exactly its prefix tokens are evaluated, and saved under its name."""
        self.use()
        self.assertEqual("cold", self.state())
        self.rounds()
        self.assertEqual({"code.bin": PREFIX}, self.server.files)
        self.assertEqual(PREFIX, self.server.tokens)
        self.assertEqual("warm", self.state())
        self.assertEqual(1, self.ended("done"))
        self.assertEqual(1, self.built.sample("warmup_seconds_count", template="code"))

    def test_in_pieces(self) -> None:
        """No piece has more tokens than `warmup_chunk`, and together they cost no more than one."""
        self.use(warmup_chunk=10)
        self.rounds()
        self.assertEqual([10, 20, len(PREFIX)], self.pieces())
        self.assertEqual({"code.bin": PREFIX}, self.server.files)

    def test_speed(self) -> None:
        """Once the speed is known a piece takes about a second, but never fewer than 64 tokens."""
        for ms, expected in ((1.0, [256, 1256, 2256, 3007]), (50.0, [256, 320, 384])):
            self.use({"code": "x" * 3000 + "<{message}>"}, warmup_chunk=2048, state_dir=self.folder / str(ms))
            self.server.ms_per_token = ms
            self.rounds()
            self.assertEqual(expected, self.pieces()[: len(expected)])

    def test_all_templates(self) -> None:
        """A round warms all templates, in order; then there is nothing to do."""
        self.use({"code": CODE, "story": STORY})
        self.rounds()
        self.assertEqual([PREFIX, STORY_PREFIX], list((self.server.files or {}).values()))
        self.assertEqual({"code.bin": PREFIX, "story.bin": STORY_PREFIX}, self.server.files)
        self.assertEqual([], self.rounds(5))

    def test_already_saved(self) -> None:
        """After a restart of the proxy, or of llama-server, saved templates are restored and not evaluated again."""
        old = self.use({"code": CODE, "story": STORY})
        self.rounds(2)
        old.snapshots.close()
        self.use({"code": CODE, "story": STORY})
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
        self.assertEqual({"code.bin": tokens("<user>two ")}, self.server.files)
        self.assertEqual("warm", self.state())

    def test_edited_meanwhile(self) -> None:
        """An edit in the middle of a warm-up, wherever it is, ends with the last content warm."""
        for number, path in enumerate(("/apply-template", "/tokenize", "/props", "/completion", SAVE)):
            self.use(warmup_chunk=10, state_dir=self.folder / str(number))
            self.server.pause_at = {path}
            warming = self.begin()
            self.assertEqual(1, self.server.paused, path)
            self.template("code", "New: <{message}>")
            self.poll()
            self.server.pause_at = set()
            self.server.go_on()
            self.built.settle()
            self.successResultOf(warming)
            self.assertNotEqual("warm", self.state(), path)
            self.rounds(2)
            self.assertEqual("warm", self.state(), path)
            self.assertEqual({"code.bin": tokens("<user>New: ")}, self.server.files, path)

    def test_old_text_is_dropped(self) -> None:
        """Once the text has changed, no further piece of the old one is evaluated, and none of it is saved."""
        self.use({"code": "x" * 300 + "<{message}>"}, warmup_chunk=64)
        self.server.pause_at = {"/completion"}
        going_on = self.begin()
        self.server.go_on()  # first comes the fingerprint
        self.built.settle()
        self.assertEqual([64], self.pieces())
        self.template("code", CODE)
        self.poll()
        self.server.pause_at = set()
        self.server.go_on()
        self.built.settle()
        self.successResultOf(going_on)
        self.assertEqual(([64], {}), (self.pieces(), self.server.files))

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
        self.assertEqual({"code.bin": tokens("[INST]<user>Know this: abc. ")}, self.server.files)

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
            seen.append((self.state(), round(warmer.progress * len(PREFIX)), self.built.gate.busy))
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

    def test_saving_is_finished(self) -> None:
        """A user who comes while a warm-up is being saved waits for that, and has it hot."""
        self.use()
        self.server.pause_at = {SAVE}
        warming = self.begin()
        call = self.built.chat("@code why?")
        self.assertEqual((0, 1), (call.status, self.built.gate.waiting))
        self.server.go_on()
        self.built.settle()
        self.successResultOf(warming)
        self.assertEqual((200, "hot"), (call.status, call.headers["x-bioproxy-cache"]))
        self.assertEqual(1, self.ended("done"))

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
        self.assertEqual([0, 2, 6, 14, 30, 62, 122, 182, 242], tries)
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
        self.template("code", "Another: <{message}>")
        self.poll()
        self.server.answers = {"/tokenize": "nonsense"}
        self.rounds()
        self.assertEqual("error", self.state())
        self.server.answers = {}
        self.template("code", "A third: <{message}>")
        self.poll()
        self.assertEqual(("cold", ""), (self.state(), self.error()))
        self.rounds()
        self.assertEqual(("warm", ""), (self.state(), self.error()))

    def test_over_by_a_file(self) -> None:
        """Trouble is over, too, when a later try finds that the file is there and good."""
        old = self.use()
        self.rounds()
        old.snapshots.close()
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
            self.template("code", text)
            self.poll()
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
        self.use({"code": CODE, "story": STORY}, warmup=False, warmup_chunk=10)
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
        self.use({"code": CODE, "story": STORY})
        self.built.chat("@story a chair")
        self.rounds()
        self.assertEqual(["story.bin", "code.bin"], list(self.server.files or {}))

    def test_other_shape(self) -> None:
        """A question with a system message does not make the bare template warm."""
        self.use()
        body = b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "@code x"}]}'
        self.built.send("POST", "/v1/chat/completions", body)
        self.assertEqual("cold", self.state())


class WithoutFiles(WarmTest):
    """Where llama-server keeps no slot files: one template can be warm, in the slot."""

    def test_first_one(self) -> None:
        """The first template is warmed up in the slot, once; a user has it hot."""
        self.use({"code": CODE, "story": STORY}, files=False)
        self.rounds()
        self.assertEqual(("warm", "cold"), (self.state("code"), self.state("story")))
        self.assertEqual([], self.rounds(5))
        self.assertEqual("hot", self.built.chat("@code why?").headers["x-bioproxy-cache"])
        self.assertEqual([], self.rounds(5))

    def test_last_asked(self) -> None:
        """The template that was asked for last is brought back when the slot was used for something else."""
        self.use({"code": CODE, "story": STORY}, files=False)
        self.rounds()
        self.built.chat("@story a chair")
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

    def test_bare_template_first(self) -> None:
        """A template with nothing to warm does not take the place of one that has something."""
        self.use({"bare": "<{message}>", "code": CODE}, files=False)
        self.rounds(2)
        self.assertEqual("warm", self.state("code"))
