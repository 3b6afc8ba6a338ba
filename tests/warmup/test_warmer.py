"""What is warmed up, and when."""

from __future__ import annotations

import itertools

from twisted.internet.defer import CancelledError

from tests.support.fakes import tokens
from tests.support.world import BOTH, CODE, PREFIX, STORY_PREFIX, WarmTest

SAVE = "/slots/0?action=save"


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
            self.built.go_on()
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
            self.built.go_on()
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
        readiness = self.built.readiness
        self.successResultOf(self.built.start(self.built.identity.find_out))
        self.server.pause_at = {"/completion"}
        warming = self.begin()
        seen = []
        for _ in range(3):
            seen.append((self.state(), round(readiness.progress("code") * len(PREFIX)), self.built.gate.busy))
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
