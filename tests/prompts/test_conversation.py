"""Which conversation is it?"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.conversation import Conversation, ConversationChain


class Continuing(SynchronousTestCase):
    """`ConversationChain` and `Conversation`."""

    def test_continues(self) -> None:
        """A conversation is continued by itself and by what begins with all of it, and by nothing else."""
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

    def test_nobodys(self) -> None:
        """No conversation is continued by nothing, and continues nothing."""
        nobody = ConversationChain().all_messages
        self.assertEqual(Conversation(0, ""), nobody)
        for turns in (ConversationChain(), ConversationChain(("a",))):
            self.assertFalse(turns.continues(nobody))

    def test_longer_than_told(self) -> None:
        """The length counts, not the fingerprint alone."""
        two = ConversationChain(("a", "b")).all_messages
        self.assertFalse(ConversationChain(("a", "b")).continues(Conversation(1, two.digest)))
        self.assertFalse(ConversationChain(("a", "b")).continues(Conversation(3, two.digest)))
        self.assertTrue(ConversationChain(("a", "b")).continues(Conversation(2, two.digest)))

    def test_fills(self) -> None:
        """The templates' texts belong to it: those of its own messages, and not of later ones."""
        earlier = ConversationChain(("a", "b"), ((0, "x"),)).all_messages
        for fills, expected in (
            (((0, "x"),), True),
            (((0, "x"), (2, "y")), True),
            (((0, "y"),), False),
            (((1, "x"),), False),
            (((0, "x"), (1, "x")), False),
            ((), False),
        ):
            self.assertIs(expected, ConversationChain(("a", "b", "c"), fills).continues(earlier), fills)
