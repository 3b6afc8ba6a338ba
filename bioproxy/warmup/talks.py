"""What a head start knows of conversations: the one that was answered last, and what its next turn should reuse.

Three values, each for another time.  A `Talk` names a request from the moment on at which it is sent.  When its answer
has ended, both together are a `Candidate`, whose next turn may be guessed.  When nothing is left to do for that, an
`ExpectedReuse` remains, without any text, until the next request shows whether the guess was right.

Texts of users are private.  So they are in one of the three only, and there for seconds in most cases.

Pure values: nothing here waits or changes.  `bioproxy.warmup.head_start` decides which of them there are.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.parsed_request import Object


@dataclass(frozen=True)
class Talk:
    """A request of a conversation, reduced to what tells it from others.

    Invariant: no text of it is in here.
    """

    path: str
    """The path that it was sent to."""

    kind: str
    """The kind of its client."""

    prompt: str
    """The id of the prompt that it begins with, for metrics; empty if none is known."""

    conversation: ConversationChain
    """Its messages, as digests."""


@dataclass(frozen=True)
class Candidate:
    """A conversation with its answer, whose next turn may be guessed.

    Invariant: there is at most one, that of the last request, and it is the only place where texts of users are kept
    after their request has ended.
    """

    talk: Talk
    """The request that was answered."""

    body: bytes
    """Its body as it was sent, with its templates filled in."""

    answer: Object
    """The message that it was answered with, in the form of chat completions (`bioproxy.prompts.answer_text`)."""


@dataclass(frozen=True)
class ExpectedReuse:
    """What the next answer of a conversation is expected to reuse.

    Invariant: it is about the slot as it was left; any other use of the slot ends it.
    """

    talk: Talk
    """The request after which the slot was left like this."""

    tokens: int
    """How many tokens the slot holds."""

    guessed: bool
    """Whether a head start has put these tokens into the slot.  Otherwise they are what the model wrote."""
