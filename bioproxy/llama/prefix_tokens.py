"""A template's prefix tokens: the tokens that every question on this template begins with.

A warm-up has llama-server evaluate exactly these tokens.  One token more or less matters: models with a sliding window
or with recurrent layers cannot go back inside what a slot holds, they can only continue from its end.  With a warm-up
that ended behind the prefix, such a model reused nothing (b11434); with exactly the prefix, all of it.

The tokens cannot be computed here, because only llama-server knows the model's chat template and tokenizer.  Nor can
the text simply be cut where the message begins and be tokenized alone: a tokenizer may merge letters from both sides of
the cut into one token.  So a few complete prompts are made, each with another stand-in for the message, and what their
token lists have in common is the prefix (`prefix_tokens`).

All of that happens beside the slot, without using it, so it is done before the gate is entered.

A text that does not fit the model's context cannot be warmed up, and that should be found out cheaply: the tokens of a
file of 50 MB are ten million numbers.  So such a text is counted first (`Prefixes.tokens`).

This module does not know when a warm-up is due, nor what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from bioproxy.llama.api import LlamaApi
from bioproxy.prompts.prompt_shape import Shape

STAND_INS = ("a", "7 b", "(c")
"""Messages with different first characters: where prompts made with them differ first, the message begins.

A letter, a digit and a bracket, because tokenizers merge letters with letters.  With fewer, two stand-ins may by
accident be merged with the text before them in the same way; each further one costs two requests.
"""

BYTES_PER_TOKEN = 16
"""Texts with more bytes than this times the context hardly fit, and are counted before they are tokenized.

English text has about 4 bytes a token, source code with long runs of white space more.  Halved, some texts that fit are
counted for nothing; doubled, longer lists of tokens are transferred for texts that do not fit.
"""


class DoesNotFit(Exception):
    """The template is as long as the model's context, or longer, so no answer could follow it.

    `tokens` is how many tokens it has, `None` where llama-server could not count them.
    """

    def __init__(self, tokens: int | None, context: int) -> None:
        super().__init__(f"{tokens or 'too many'} tokens do not fit the context of {context}")
        self.tokens = tokens


class Prefixes:
    """Finds prefix tokens, and remembers the last ones found.

    Invariant: what is remembered belongs to one `about` value and is returned only for an equal one.  One is enough: a
    warm-up that a user's request interrupts goes on soon afterwards and needs the same tokens again.
    """

    def __init__(self, llama: LlamaApi) -> None:
        self._llama = llama
        self._last: tuple[object, list[int]] | None = None

    def forget(self) -> None:
        """Forget the remembered tokens, so that the next call asks llama-server again."""
        self._last = None

    async def tokens(self, text: str, shape: Shape, context: int, about: object) -> list[int]:
        """Fire with the tokens of the prefix text `text` in a request of this shape.

        `context` is how many tokens the model takes, `about` everything else that the result depends on.  Fails with
        `DoesNotFit`, or as `LlamaApi`'s calls do; cancelling closes the connection and changes nothing here.
        """
        if self._last is not None and self._last[0] == about:
            return self._last[1]
        # An include that cannot be read leaves its path in the text, and a path may have bytes that are not UTF-8,
        # which Python holds as halves of surrogate pairs.  Encoding them must not fail here; how many bytes they are
        # counted as does not matter.
        if len(text.encode("utf-8", "surrogatepass")) > BYTES_PER_TOKEN * context:
            count = await self._llama.count_tokens(text)
            if count is None or count >= context:
                raise DoesNotFit(count, context)
        tokens = await prefix_tokens(self._llama, text, shape, context)
        if len(tokens) >= context:
            raise DoesNotFit(len(tokens), context)
        self._last = (about, tokens)
        return tokens


async def prefix_tokens(llama: LlamaApi, text: str, shape: Shape, context: int) -> list[int]:
    """Fire with the tokens that all requests of this shape begin with whose user message begins with `text`.

    `context` is how many tokens the model takes.  If already the first complete prompt is as long, making the others is
    not worth it, and that prompt's tokens are the result.  Fails as `LlamaApi`'s calls do; cancelling closes the
    connection.
    """
    shared: list[int] = []
    for number, message in enumerate(STAND_INS):
        # A plain prompt has no chat template around it.
        whole = text + message
        prompt = whole if shape.is_plain_prompt else await llama.apply_template(shape.request(whole))
        tokens = await llama.tokenize(prompt)
        if len(tokens) >= context:
            return tokens
        shared = common_beginning(shared, tokens) if number else tokens
    return shared


def common_beginning(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Return the longest list that both lists begin with."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return list(first[:length])


def cut_after(tokens: Sequence[int], end: int) -> list[int]:
    """Return the first `end` tokens and one that does not belong behind them.

    Evaluated, they cut the slot back to exactly the first ones.  llama-server always computes at least one token:
    without the extra one, it would compute the last token of the prompt anew, in a batch of its own, and with other
    numbers.  The next request drops the extra one.
    """
    # Where nothing of the prompt follows, a question does, which hardly begins with the prompt's own first token.
    return [*tokens[:end], next((each for each in tokens if end == len(tokens) or each != tokens[end]), 0)]
