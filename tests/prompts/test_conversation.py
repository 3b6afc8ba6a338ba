"""Recognising a conversation by digests of its messages."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.prompts.templates import TemplateText
from tests.prompts.test_filling import ANSWER, SYSTEM, TEXTS, chat, fill


class Continuing(SynchronousTestCase):
    """`ConversationChain` and `Conversation`."""

    def test_continues(self) -> None:
        """A conversation is continued by itself and by those that begin with all of its messages, and by no other."""
        earlier = ConversationChain(("a", "b")).all_messages
        for chain, expected in (
            (("a", "b"), True),
            (("a", "b", "c", "d"), True),
            (("a",), False),
            ((), False),
            (("a", "x"), False),
            (("a", "x", "b"), False),
            (("b", "a"), False),
        ):
            self.assertIs(expected, ConversationChain(chain).continues(earlier), chain)

    def test_begins_with(self) -> None:
        """As clients wrote them, a conversation begins with another one whatever text the templates had."""
        earlier = ConversationChain(("a", "b"), ((0, "x"),))
        for chain, expected in (
            (("a", "b"), True),
            (("a", "b", "c", "d"), True),
            (("a",), False),
            ((), False),
            (("a", "x", "c"), False),
        ):
            self.assertIs(expected, ConversationChain(chain).begins_with(earlier), chain)
            self.assertFalse(ConversationChain(chain).begins_with(ConversationChain()))

    def test_empty(self) -> None:
        """The empty conversation continues no other and is continued by none."""
        empty = ConversationChain().all_messages
        self.assertEqual(Conversation(0, ""), empty)
        for chain in (ConversationChain(), ConversationChain(("a",))):
            self.assertFalse(chain.continues(empty))

    def test_length(self) -> None:
        """Two conversations with the same digest but another length are different."""
        two = ConversationChain(("a", "b")).all_messages
        self.assertFalse(ConversationChain(("a", "b")).continues(Conversation(1, two.digest)))
        self.assertFalse(ConversationChain(("a", "b")).continues(Conversation(3, two.digest)))
        self.assertTrue(ConversationChain(("a", "b")).continues(Conversation(2, two.digest)))

    def test_filled_templates(self) -> None:
        """The templates' texts belong to a conversation: those in its own messages, but not those in later ones."""
        earlier = ConversationChain(("a", "b"), ((0, "x"),)).all_messages
        for filled, expected in (
            (((0, "x"),), True),
            (((0, "x"), (2, "y")), True),
            (((0, "y"),), False),
            (((1, "x"),), False),
            (((0, "x"), (1, "x")), False),
            ((), False),
        ):
            self.assertIs(expected, ConversationChain(("a", "b", "c"), filled).continues(earlier), filled)


class Conversations(SynchronousTestCase):
    """Which conversations a request continues."""

    def assert_continues(
        self, expected: bool, earlier: str, later: str, texts: dict[str, TemplateText] = TEXTS
    ) -> None:
        """Check whether `later` continues `earlier`; `texts` are the templates' texts when `later` arrives."""
        conversation = fill(earlier).conversation.all_messages
        self.assertIs(expected, fill(later, texts).conversation.continues(conversation), (earlier, later))

    def test_continues(self) -> None:
        """A request continues another one if it begins with all of its messages, or is the same."""
        first = chat(SYSTEM, "@code one")
        self.assert_continues(True, first, first)
        self.assert_continues(True, first, chat(SYSTEM, "@code one", ANSWER, "two"))
        self.assert_continues(True, first, chat(SYSTEM, "@code one", ANSWER, "/context two", temperature=1))
        self.assert_continues(True, chat("@code one", ANSWER, "two"), chat("@code one", ANSWER, "two", ANSWER, "x"))

    def test_another(self) -> None:
        """With any difference in the earlier messages it is another conversation."""
        first = chat("@code one", ANSWER, "/context two")
        for other in (
            chat("@code one", ANSWER),
            chat("@code ONE", ANSWER, "/context two", ANSWER, "three"),
            chat("@code one", {**ANSWER, "content": "bad"}, "/context two", ANSWER, "three"),
            chat("@code one", ANSWER, "/context TWO", ANSWER, "three"),
            chat("@code one", ANSWER, "@code two", ANSWER, "three"),
            chat("@code-review one", ANSWER, "/context two", ANSWER, "three"),
            chat(SYSTEM, "@code one", ANSWER, "/context two", ANSWER, "three"),
            chat("@code one", ANSWER, "/context two", ANSWER, "three", tools=[{"a": 1}]),
        ):
            self.assert_continues(False, first, other)

    def test_edited(self) -> None:
        """Once a template in it was edited, anywhere, it is another conversation, because the prompt is another."""
        first, later = chat("@code one", ANSWER, "/context two"), chat("@code one", ANSWER, "/context two", ANSWER, "x")
        self.assert_continues(True, first, later)
        for name in ("code", "context"):
            for parts in ((f"{name}(", "]"), (f"{name}[", ")")):
                self.assert_continues(False, first, later, {**TEXTS, name: TemplateText(parts, (), ())})
        # A template that the conversation does not name does not matter.
        self.assert_continues(True, first, later, {**TEXTS, "code-review": TemplateText(("x", "y"), (), ())})

    def test_length(self) -> None:
        """The length of a conversation is the number of its messages."""
        self.assertEqual(3, fill(chat("@code one", ANSWER, "two")).conversation.all_messages.length)
