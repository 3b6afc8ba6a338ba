"""Recognising a conversation by digests of its messages."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.conversation import Conversation, ConversationChain


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
