"""What an idle slot is used for: saves, restores, and making the tokens of prompts."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError

from bioproxy.slot_files.record import CHAT
from tests.support.fakes import tokens
from tests.support.world import BOTH, KEY, PREFIX, WarmTest

TOKENIZE = "/tokenize"
RESTORE = "/slots/0?action=restore"


LONG = "why? " * 100
"""A question that makes a conversation worth keeping."""


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


class MakingTokens(WarmTest):
    """`IdleWork`, with ``@code`` warm in the slot after a restart of bioproxy, which has made no tokens yet."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        old = self.use()
        self.rounds()
        old.state.close()
        self.use(state_dir=old.settings.state_dir)
        self.server.files = old.llama_server.files
        self.prepared = self.built.start(lambda: self.built.slot.prepare("code", KEY))
        self.assertEqual("restored", self.successResultOf(self.prepared).cache)

    def test_made_once(self) -> None:
        """They are made in an idle moment, once, so that the slot can be cut back before the next question."""
        self.assertIn(TOKENIZE, self.rounds())
        self.assertEqual([], self.rounds(5))

    def test_in_vain(self) -> None:
        """What llama-server refuses to make is not asked for in each round, but again of another process."""
        self.server.answers = {"/apply-template": "nonsense"}
        self.assertIn("/apply-template", self.rounds())
        self.assertEqual([], self.rounds(5))
        self.server.answers = {}
        self.server.restart()
        self.look()
        self.assertIn(TOKENIZE, self.rounds(3))

    def test_cancelled(self) -> None:
        """A stop of the service gives up the question."""
        self.server.pause_at = {TOKENIZE}
        working = self.begin()
        working.cancel()
        self.built.settle()
        self.failureResultOf(working, CancelledError)
        self.assertIn(TOKENIZE, self.server.gone)
