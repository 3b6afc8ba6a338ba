"""Which conversation is it?  Told by fingerprints, so that no text of any message is kept.

A chat client sends the whole conversation with each question.  So a request goes on with a conversation that was
answered before if its first messages are just that conversation's.  The fingerprint after each message covers all
messages before it, like a chain: to compare beginnings it is enough to compare one link.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """The messages of one request: how many, and the fingerprint after the last."""

    length: int
    digest: str


@dataclass(frozen=True)
class Turns:
    """All beginnings of one request's conversation: `chain[n]` is the fingerprint of its first n+1 messages."""

    chain: tuple[str, ...] = ()

    def continues(self, earlier: Conversation) -> bool:
        """Tell whether this begins with all messages of an earlier one."""
        return 0 < earlier.length <= len(self.chain) and self.chain[earlier.length - 1] == earlier.digest

    def goes_beyond(self, earlier: Conversation) -> bool:
        """Tell whether this has more messages than an earlier one, instead of asking the same once more."""
        return len(self.chain) > earlier.length

    @property
    def whole(self) -> Conversation:
        """The conversation that it is."""
        return Conversation(len(self.chain), self.chain[-1] if self.chain else "")
