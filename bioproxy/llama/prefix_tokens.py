"""A template's prefix tokens: what every question on it shares, as llama-server sees it.

llama-server's chat template and its tokenizer turn a message into tokens, beside its slot and without using it, so this
happens outside the gate.  A text that does not fit the model's context is not worth warming up, and should be found out
cheaply: the tokens of a file of 50 MB are ten million numbers.
"""

from __future__ import annotations

from bioproxy.llama.api import LlamaApi
from bioproxy.prompts.prompt_shape import Shape

BYTES_PER_TOKEN = 16
"""Texts with more bytes than this times the context hardly fit, and are counted before they are tokenized."""


class DoesNotFit(Exception):
    """The template is longer than the model's context: `tokens`, or `None` where nobody could count them."""

    def __init__(self, tokens: int | None, context: int) -> None:
        super().__init__(f"{tokens or 'too many'} tokens do not fit the context of {context}")
        self.tokens = tokens


class Prefixes:
    """Finds prefix tokens, and remembers the last ones: a warm-up that had to give way needs them again."""

    def __init__(self, llama: LlamaApi) -> None:
        self._llama = llama
        self._last: tuple[object, list[int]] | None = None

    def forget(self) -> None:
        """Forget them."""
        self._last = None

    async def tokens(self, text: str, shape: Shape, context: int, about: object) -> list[int]:
        """Fire with the tokens of the prefix text `text` in a request of this shape.

        `context` is how many tokens the model takes, `about` everything else that the result depends on.  Fails with
        `DoesNotFit`, or as `LlamaApi`'s calls do.
        """
        if self._last is not None and self._last[0] == about:
            return self._last[1]
        if len(text.encode("utf-8", "surrogatepass")) > BYTES_PER_TOKEN * context:
            count = await self._llama.count_tokens(text)
            if count is None or count >= context:
                raise DoesNotFit(count, context)
        tokens = await self._llama.prefix_tokens(text, shape, context)
        if len(tokens) >= context:
            raise DoesNotFit(len(tokens), context)
        self._last = (about, tokens)
        return tokens
