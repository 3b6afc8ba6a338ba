"""What comes of a warm-up that fails, or that finds other tokens than the file has."""

from __future__ import annotations

import itertools

from twisted.logger import capturedLogs

from tests.support.fakes import tokens
from tests.support.world import CODE, PREFIX, WarmTest, logged


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
        self.built.go_on()
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


SAVE = "/slots/0?action=save"


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
        """If they are the same as before, the file is written anew, as only that may be of no use; but not twice."""
        self.use()
        self.rounds()
        self.server.reuses_files = False
        for saves in (["code.new.bin"], []):
            self.built.chat("hello")
            self.assertEqual(("restored", 0), self.ask("@code why?"))
            before = len(self.server.requests)
            self.built.chat("hello")
            self.rounds()
            self.assertIn("/tokenize", self.server.paths()[before:])
            self.assertEqual(saves, self.slot_calls("save", before))
        self.assertIsNotNone(self.built.reuse_check.trouble)
