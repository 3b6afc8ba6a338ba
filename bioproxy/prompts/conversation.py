"""Recognises a conversation by digests of its messages, so that no text of any message has to be kept.

A chat client is stateless towards the server: it sends the whole conversation with each question.  So a request
continues an earlier conversation if its first messages are exactly that conversation.  Then its prompt begins with the
earlier prompt, and the KV cache of the earlier answer can be reused.

To compare beginnings cheaply, the digests form a chain: each one covers its message and the digest before.  One digest
stands for all messages up to its own, and one comparison decides, whatever the length.

The messages are those that the client wrote (``@code why?``).  The prompt also depends on the texts of the templates
filled into them.  When a template file is edited, the same messages make another prompt.  Therefore the digests of
those texts are part of a conversation's identity, too.

This module is pure.  It does not know what a message looks like, or where conversations are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bioproxy.prompts.digests import digest


@dataclass(frozen=True)
class Conversation:
    """The identity of a conversation.  Small enough to be written into the record of slot files.

    Invariant: two conversations are equal only if they have the same messages and the same template texts.
    """

    length: int
    """Number of messages; 0 for no conversation at all."""
    digest: str
    """A digest of all messages and of the template texts filled into them."""


@dataclass(frozen=True)
class ConversationChain:
    """All beginnings of one request's conversation.

    Invariant: `message_digests[n]` covers the first n+1 messages.  Empty if the request belongs to no conversation.
    """

    message_digests: tuple[str, ...] = ()
    """A digest of each beginning: of the first message, of the first two, and so on, as the client wrote them."""
    filled_templates: tuple[tuple[int, str], ...] = ()
    """The index of each message in which a template was filled, and the digest of the template's text, in order."""
    instructions: int = 0
    """How many of the messages stand before the first one of a user."""

    def first_messages(self, length: int) -> Conversation:
        """Return the conversation of the first `length` messages."""
        if not 0 < length <= len(self.message_digests):
            return Conversation(0, "")
        texts = (f"{index}:{text}" for index, text in self.filled_templates if index < length)
        return Conversation(length, digest(self.message_digests[length - 1], *texts))

    def continues(self, earlier: Conversation) -> bool:
        """Tell whether this conversation begins with all messages of an earlier one, or is the same."""
        return 0 < earlier.length <= len(self.message_digests) and self.first_messages(earlier.length) == earlier

    def begins_with(self, earlier: ConversationChain) -> bool:
        """Tell whether this begins with all messages of an earlier one, as the client wrote them, or is the same.

        The texts of templates are not compared.  An empty one is no conversation's beginning.
        """
        # The last digest stands for all messages before it.
        length = len(earlier.message_digests)
        return length > 0 and self.message_digests[length - 1 : length] == earlier.message_digests[-1:]

    def shared_messages(self, other: ConversationChain) -> int:
        """Return with how many messages both conversations begin; 0 if that is not more than instructions."""
        # Each digest covers all messages before it, so where one differs, all later ones do.
        for length in range(min(len(self.message_digests), len(other.message_digests)), self.instructions, -1):
            if self.first_messages(length) == other.first_messages(length):
                return length
        return 0

    def beginnings(self, most: int) -> tuple[Conversation, ...]:
        """Return the conversations without the last message, the last two and so on, at most so many."""
        lengths = range(len(self.message_digests) - 1, self.instructions, -1)
        return tuple(self.first_messages(length) for length in lengths[:most])

    def is_longer_than(self, earlier: Conversation) -> bool:
        """Tell whether there are messages beyond those of an earlier conversation.

        If not, the same question is asked once more.
        """
        return len(self.message_digests) > earlier.length

    @property
    def without_last(self) -> ConversationChain:
        """All beginnings but the whole."""
        return replace(self, message_digests=self.message_digests[:-1])

    @property
    def all_messages(self) -> Conversation:
        """The conversation of all messages."""
        return self.first_messages(len(self.message_digests))
