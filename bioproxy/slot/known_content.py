"""What can be known of slot 0's content, as values, and what follows from them without any question.

There are two.  `KnownContent` was confirmed by llama-server when the slot was left.  `ProbableContent` is a good guess
after an answer that was broken off; it is never relied on without a comparison that llama-server makes itself.

Both are frozen.  On Twisted's one thread other code runs during each ``await``, and it may replace what is known of the
slot.  It cannot change the value that a coroutine took before.  So a coroutine finds out whether anything happened in
between by comparing the two: what is known now, and what it took.

Pure: not known here is which of them is true at the moment.  `bioproxy.slot.content` keeps that, and asks llama-server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bioproxy.llama.answers import Witness
from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.prompts.prompt_shape import Key

NO_CONVERSATION = ConversationChain()
"""The conversation of a warm-up: none, so it continues no other one."""

NO_KEY = Key("", "")
"""A key that no prompt has, because each prompt's key has the digest of a shape."""


@dataclass(frozen=True)
class KnownContent:
    """What the slot was left with: a prompt and, after a question, a conversation."""

    name: str
    """The prompt's id, empty for a prompt that is not known."""
    key: Key
    """Of which text and shape the prompt is."""
    conversation: Conversation | None
    """What stands behind the prompt, `None` after a warm-up."""
    saved: int
    """How many of the tokens are in a file already."""
    witness: Witness
    """What llama-server said of the slot when it was left."""
    turns: ConversationChain = NO_CONVERSATION
    """All beginnings of the conversation; none where it comes from a file, which does not tell them."""
    ahead: bool = False
    """Whether it is there as its client will send it back (`bioproxy.slot.head_start_use`), not as it was answered."""

    @property
    def unsaved_tokens(self) -> int:
        """By how many tokens the conversation has grown since it was saved; 0 where there is no conversation."""
        # The prompt alone is saved by its warm-up.
        return 0 if self.conversation is None else self.witness.tokens - self.saved

    def with_saved(self, tokens: int) -> KnownContent:
        """Return the same content with so many tokens in a file, or more if it had more before."""
        return replace(self, saved=max(tokens, self.saved))

    def is_continued_by(self, conversation: ConversationChain) -> bool:
        """Tell whether a conversation begins with all messages of this one."""
        if self.turns.message_digests:
            return conversation.begins_with(self.turns)
        # A conversation that was restored from a file and not asked since.
        return self.conversation is not None and conversation.continues(self.conversation)


@dataclass(frozen=True)
class ProbableContent:
    """What the slot probably holds where no witness can confirm it.

    After an answer or a head start that was broken off, llama-server keeps what it has computed until then: some of a
    prompt and the conversation on it, but nobody has said how much.
    """

    key: Key
    """Of which text and shape the prompt is."""
    turns: ConversationChain
    """The conversation on it."""
    name: str = ""
    """The prompt's id, empty for a prompt that is not known."""

    def is_continued_by(self, conversation: ConversationChain) -> bool:
        """Tell whether a conversation begins with all messages of this one."""
        return conversation.begins_with(self.turns)
