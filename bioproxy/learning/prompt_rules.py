"""Decides which beginnings of requests are worth learning.  Pure: values in, values out.

Agents and assistants send thousands of tokens of tools and system message with each request, and nobody configures
them.  Each such beginning that is *learned* costs a warm-up and a file.  So it must be likely that it is used again:

1. A beginning is learned whole when two different conversations began with it.
2. A beginning with tools, or one that the client marks as worth keeping (``cache_control``), is learned whole at once:
   programs send these, and programs repeat themselves.  But only as long as fewer than `UNPROVEN` prompts were learned
   in that way and have not been used by a second conversation yet.  A client that sends its tools in another order each
   time, or tells the time, would otherwise cost a warm-up for each of its requests.
3. What two beginnings share before they part is learned as soon as it is known, since two conversations began with
   that: all of a client's requests that differ in a date, or in one more tool.  Only if it is `GAIN` tokens more than
   what another learned part gives already.

Nothing is learned that is shorter than ``learn_minimum``, and nothing with words of a user in it
(`bioproxy.prompts.prompt_shape.Shape.may_be_kept`).

Which tokens two beginnings share is told by digests of their first 64, 128, ... tokens.  So up to 63 tokens that both
have, too, are not in the shared part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.digests import TOKENS_PER_DIGEST
from bioproxy.prompts.learned_prompts import LearnedPrompt
from bioproxy.prompts.prompt_shape import Shape

UNPROVEN = 4
"""Prompts learned at first sight that may wait for a second conversation, at most.

A machine with one agent has about three: the agent, its sub-agent, its title.  Halved, the third must be seen twice;
doubled, a client whose tools change each time costs eight useless warm-ups an hour instead of four.
"""

GAIN = 256
"""Tokens that a shared part must have more than the best one that is learned already.

Fewer are computed in about a second on a slow machine.  Halved or doubled: a client that sends its tools in random
order has about one shared part more or less.
"""


@dataclass(frozen=True)
class Tokens:
    """What is known of a beginning's tokens: how many they are, and the digests of its first 64, 128, ... tokens."""

    count: int
    marks: tuple[str, ...]

    def shared(self, other: Tokens) -> int:
        """Return with how many tokens both begin, as a multiple of 64."""
        return sum(1 for _ in equal_marks(self.whole_blocks, other.whole_blocks)) * TOKENS_PER_DIGEST

    def begins_with(self, prompt: LearnedPrompt) -> bool:
        """Tell whether these tokens begin with those of a learned part."""
        blocks = (prompt.cut or 0) // TOKENS_PER_DIGEST
        return 0 < blocks <= len(self.whole_blocks) and self.marks[blocks - 1] == prompt.mark

    @property
    def whole_blocks(self) -> tuple[str, ...]:
        """The digests at multiples of 64 tokens, without the last one if that is of fewer."""
        return self.marks[: self.count // TOKENS_PER_DIGEST]


@dataclass(frozen=True)
class Seen:
    """A beginning as clients have sent it so far."""

    shape: Shape
    """The beginning itself."""

    tokens: Tokens
    """Its tokens with the present model."""

    at_once: bool
    """Whether it has tools, or a client marked it."""

    repeated: bool
    """Whether two different conversations began with it."""


def longest_part(tokens: Tokens, learned: Iterable[LearnedPrompt]) -> LearnedPrompt | None:
    """Return the longest learned part with which these tokens begin."""
    fitting = [each for each in learned if each.cut is not None and tokens.begins_with(each)]
    return max(fitting, default=None, key=lambda each: each.cut or 0)


def to_learn(
    seen: Seen, others: Sequence[Seen], learned: Sequence[LearnedPrompt], minimum: int, unproven: int
) -> list[LearnedPrompt]:
    """Return the prompts to learn from a beginning, after a request that had it.

    `others` are the beginnings that were seen before; `learned` the prompts that there are; `minimum` is in tokens;
    `unproven` is how many prompts wait for a second conversation.
    """
    shape, tokens = seen.shape, seen.tokens
    if tokens.count < minimum or not shape.may_be_kept or shape.is_plain_prompt:
        return []
    found: list[LearnedPrompt] = []
    others = [other for other in others if other.shape != shape]
    # Two APIs may write the same beginning in two shapes (``strict`` in tools).  Equal tokens are one beginning that
    # came twice, and no part of two: a part would be a file for the tokens that the whole has already.
    again = any(other.tokens == tokens for other in others)
    if seen.repeated or again or (seen.at_once and unproven < UNPROVEN):
        found.append(LearnedPrompt(shape))
    shared = max((tokens.shared(other.tokens) for other in others if other.tokens != tokens), default=0)
    best = longest_part(tokens, learned)
    known = 0 if best is None else best.cut or 0
    if shared >= max(minimum, known + GAIN):
        found.append(LearnedPrompt(shape, shared, tokens.marks[shared // TOKENS_PER_DIGEST - 1]))
    # What is known already is not learned again: `LearnedPrompt` is a value.
    return [each for each in found if each not in learned]


def may_have(shape: Shape, tokens: int) -> bool:
    """Tell whether a beginning may have so many tokens: each has at least one character."""
    return len(shape.source) >= tokens


def why_not(chat: ChatRequest, difference: Callable[[Shape], str | None]) -> str:
    """Say why the beginning of a request is not learned, for operators.

    `difference` says how a beginning differs from the most similar one that was seen before, `None` without one.
    """
    # Lasting reasons first: the client has to change before anything can be learned.
    shape = chat.beginning
    if shape.is_too_large:
        return "what stands before the first message is too long to be learned"
    if not shape.may_be_kept:
        return "what stands before the first message has more in it than instructions and tools"
    differs = difference(shape)
    # What has tools or a mark does not wait for a second conversation: this answer is enough.
    if chat.has_tools or chat.marked:
        told = "not seen like this before"
        return f"{told}, and learned now" if differs is None else f"{told}: {differs}"
    # The difference is told in any case: a second conversation never comes where a clock is in it.
    told = "learned when a second conversation begins with it"
    return told if differs is None else f"{told}; the most similar one so far: {differs}"


def equal_marks(first: Sequence[str], second: Sequence[str]) -> Iterable[str]:
    """Yield the digests with which both begin."""
    for one, other in zip(first, second, strict=False):
        if one != other:
            return
        yield one
