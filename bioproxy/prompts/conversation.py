"""Which conversation is it?  Told by fingerprints, so that no text of any message is kept.

A chat client sends the whole conversation with each question.  So a request goes on with a conversation that was
answered before if its first messages are just that conversation's.  The fingerprint after each message covers all
messages before it, like a chain: to compare beginnings it is enough to compare one link.

The messages are those that the client wrote.  The prompt also depends on the texts that templates were filled with, so
these belong to a conversation, too.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioproxy.prompts.digests import digest


@dataclass(frozen=True)
class Conversation:
    """The messages of one request: how many, and a fingerprint of all of them."""

    length: int
    digest: str


@dataclass(frozen=True)
class Turns:
    """All beginnings of one request's conversation.

    `chain[n]` is the fingerprint of its first n+1 messages, as they were written.  `fills` has, in the order of the
    conversation, the index of each message in which a template was filled, with the digest of the template's text.
    """

    chain: tuple[str, ...] = ()
    fills: tuple[tuple[int, str], ...] = ()

    def beginning(self, length: int) -> Conversation:
        """Return the conversation of the first `length` messages."""
        if not 0 < length <= len(self.chain):
            return Conversation(0, "")
        texts = (f"{turn}:{text}" for turn, text in self.fills if turn < length)
        return Conversation(length, digest(self.chain[length - 1], *texts))

    def continues(self, earlier: Conversation) -> bool:
        """Tell whether this begins with all messages of an earlier one."""
        return 0 < earlier.length <= len(self.chain) and self.beginning(earlier.length) == earlier

    def goes_beyond(self, earlier: Conversation) -> bool:
        """Tell whether this has more messages than an earlier one, instead of asking the same once more."""
        return len(self.chain) > earlier.length

    @property
    def whole(self) -> Conversation:
        """The conversation that it is."""
        return self.beginning(len(self.chain))
