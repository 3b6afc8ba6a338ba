"""What follows from what is known of the slot, without any question."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.answers import Witness
from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.slot.known_content import NO_CONVERSATION, KnownContent, ProbableContent
from tests.support.world import KEY

CHAIN = ConversationChain(("a", "b"), ((0, "text"),))


def known(
    conversation: Conversation | None = None, turns: ConversationChain = NO_CONVERSATION, saved: int = 0
) -> KnownContent:
    """Return a slot with 100 tokens."""
    return KnownContent("code", KEY, conversation, saved, Witness(1, 100, False), turns)


class KnownContentTest(SynchronousTestCase):
    """`KnownContent` and `ProbableContent`."""

    def test_continued(self) -> None:
        """A conversation goes on with the slot's if it begins with all of its messages, however these are known."""
        longer, other = ConversationChain(("a", "b", "c"), ((0, "text"),)), ConversationChain(("a", "x", "c"))
        edited = ConversationChain(("a", "b", "c"), ((0, "another text"),))
        # From a request: its messages.  From a file: the digest of all messages, templates' texts included.
        for left, expected in (
            (known(CHAIN.all_messages, CHAIN), [True, True, True, False, False]),
            (known(CHAIN.all_messages), [True, True, False, False, False]),
            (known(), [False] * 5),
            (ProbableContent(KEY, CHAIN), [True, True, True, False, False]),
            (ProbableContent(KEY, NO_CONVERSATION), [False] * 5),
        ):
            chains = (CHAIN, longer, edited, other, NO_CONVERSATION)
            self.assertEqual(expected, [left.is_continued_by(each) for each in chains], left)

    def test_saved(self) -> None:
        """Unsaved is what a conversation has grown; of two files, the one that has more tokens counts."""
        talk = known(CHAIN.all_messages, saved=40)
        self.assertEqual((60, 0), (talk.unsaved_tokens, known().unsaved_tokens))
        self.assertEqual([10, 60], [talk.with_saved(tokens).unsaved_tokens for tokens in (90, 30)])
