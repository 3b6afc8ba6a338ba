"""Finds the tokens that the next prompt of a conversation begins with.

Only llama-server knows the chat template and the tokenizer, so it is asked: once for the prompt that was answered, and
once for each of a few next prompts that differ only in the new message.  The tokens that these have in common are
certain, whatever the user will say.  How a boundary between known and new text is tokenized need not be known for that
(`bioproxy.llama.prefix_tokens` does the same for templates).

None of these calls needs the slot.  So they are made outside the gate and delay nobody, apart from the time that
llama-server takes for them.  A user who comes meanwhile makes the rest of them useless; `wanted` is asked between two
calls.

For example, with one letter a token and a template that drops reasoning (the slot holds the first line)::

    <user>why?</><assistant><think>hm</think>So.
    <user>why?</><assistant>So.</><user>a         what the next prompt begins with: all up to the third ``<user>``
    <user>why?</><assistant>So.</><user>7 b       parts from the slot behind ``<assistant>``: these tokens are shared

On Twisted: each call is awaited in turn, so at each ``await`` a user's request may run in between and change what the
slot holds.  Nothing here relies on the slot, and the caller looks at the slot again before it uses what was found.

Does not know requests and APIs, nor what is done with the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.prefix_tokens import common_beginning
from bioproxy.prompts.next_turn import NextTurn
from bioproxy.prompts.parsed_request import Object
from bioproxy.prompts.parting import Parting, parting


@dataclass(frozen=True)
class NextPrompt:
    """How the next prompt begins.

    Invariant: `tokens` are certain, whatever the next message says, unless the client sends another conversation.
    """

    tokens: list[int]
    """What it begins with, up to the new message."""

    shared: int
    """How many of these the answered prompt had, too.  The slot holds them, whatever was answered."""

    parting: Parting
    """Whether it parts from what the slot holds."""

    @property
    def end(self) -> int:
        """How many of the tokens are evaluated: all, in contrast to a warm-up (`exact_end` in `progress`).

        A warm-up leaves 63 tokens to each question, so that its answer is bit for bit that of a cold run.  The turns of
        a conversation cannot have that promise: llama-server has computed the answers in them token by token
        (docs/same-answer.md).  So the next request has no more to compute than what is new.
        """
        return len(self.tokens)

    def leave_alone(self, certain: bool) -> bool:
        """Tell whether the slot is right as it is; `certain` if what looks right has proved to be so until now."""
        return self.parting is Parting.NONE or (self.parting is Parting.UNSURE and certain)


async def find_next_prompt(
    llama: LlamaApi, turn: NextTurn, answer: Object, context: int, wanted: Callable[[], bool]
) -> NextPrompt | None:
    """Have llama-server render the next prompt; `answer` is the message as the model wrote it.

    Fires with `None` if it does not fit `context` tokens, or is not `wanted` any more.  Fails as `LlamaApi`'s calls do;
    cancelling ends the call in progress and changes nothing.
    """
    prompt = await llama.apply_template(turn.before())
    following: list[str] = []
    for request in turn.after():
        if not wanted():
            return None
        following.append(await llama.apply_template(request))
    how = parting(prompt, common_text(following), answer)
    if how is Parting.NONE:
        # The usual case where nothing is dropped: no need for tokens.
        return NextPrompt([], 0, how)
    # From here on only tokens count.  The same text may become other tokens where a model has written it piece by
    # piece, but that only means that the two prompts part a little earlier.
    lists: list[list[int]] = []
    for text in (prompt, *following):
        if not wanted():
            return None
        lists.append(await llama.tokenize(text))
        # llama-server would refuse such a prompt, or shift its beginning out of the context.
        if len(lists[-1]) >= context:
            return None
    before, tokens, *others = lists
    for other in others:
        tokens = common_beginning(tokens, other)
    return NextPrompt(tokens, len(common_beginning(before, tokens)), how)


def common_text(texts: Sequence[str]) -> str:
    """Return what all of these texts begin with."""
    # The first and the last one in order differ first: all others are between them.
    first, last = min(texts), max(texts)
    length = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:length]
