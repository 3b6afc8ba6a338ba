"""The tokens of a prompt that a warm-up processes, and those of the prompts that were processed last.

A prompt is warmed up to some 60 tokens before its end, and these are left to each request.  Only in this way are
answers, bit for bit, those of a llama-server that has computed the whole prompt at once: a token gets other numbers in
a batch of fewer than 64 tokens than in a larger one, and a short question alone would be such a batch
(`exact_end`; docs/same-answer.md has the measurements).

Some tokens are remembered.  A warm-up that users interrupt again and again needs them each time, and before a question
is asked on a prompt that is in the slot already, the slot is cut back to the same place.

On Twisted: `of` awaits llama-server, outside of the gate, because tokenizing does not need its slot.  Two calls at the
same time for the same prompt would only ask twice.  `remembered` awaits nothing, so it can be asked while a user
waits inside the gate.

Does not know why a prompt is warmed up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from bioproxy.llama.prefix_tokens import DoesNotFit, Prefixes, cut_after
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.catalogue import Prompt
from bioproxy.prompts.digests import TOKENS_PER_DIGEST, prefix_digests
from bioproxy.prompts.prompt_shape import Key
from bioproxy.warmup.progress import exact_end

REMEMBERED = 8
"""Prompts whose tokens are remembered: up to a megabyte for each.

Halved, who uses five prompts in turn has the tokens made anew for some of them; doubled, twice the memory is taken.
"""


class UnusablePrompt(Exception):
    """A prompt cannot be warmed up for the model that runs now.  The text says why, for operators."""


class TooShort(UnusablePrompt):
    """A learned prompt has fewer tokens than is worth keeping."""


class PromptTokens:
    """Turns prompts into tokens.

    Invariant: what is remembered is what llama-server said last, for the key under which it is remembered.
    """

    counts: dict[str, int]
    """How many tokens of each prompt are warmed up, by id, where that is known; 0 if there are too many to count."""

    minimum: int
    """Tokens below which a learned prompt is not worth keeping (``learn_minimum``).  May change at any time."""

    def __init__(self, prefixes: Prefixes, watch: ProcessWatch, minimum: int) -> None:
        """Ask `prefixes`, which asks llama-server; `watch` knows its context.  `minimum` is a first value."""
        self.counts = {}
        self.minimum = minimum
        self._prefixes = prefixes
        self._watch = watch
        self._latest: OrderedDict[Key, Sequence[int]] = OrderedDict()

    def forget(self) -> None:
        """Have llama-server asked again the next time.

        For when its chat template may make other tokens of the same text now, because it tells the date for example.
        """
        self._prefixes.forget()
        self._latest.clear()

    async def of(self, prompt: Prompt) -> list[int]:
        """Fire with the tokens that a warm-up of a prompt has to process.

        Fails with `DoesNotFit`, with `UnusablePrompt`, or as `LlamaApi`'s calls do; cancelling closes the connection.
        """
        # The same text may have other tokens in another process: of another model, or with another chat template.
        process = self._watch.process
        about = (prompt.key, process)
        try:
            tokens = await self._prefixes.tokens(prompt.text, prompt.shape, process.props.context, about)
        except DoesNotFit as error:
            # Shown to the operator, who wants to know by how much.
            self.counts[prompt.id] = error.tokens or 0
            raise
        learned = prompt.learned
        if learned is not None and learned.cut is not None:
            tokens = tokens[: learned.cut]
            # With the model that it was learned with, the text gave these tokens.  With another tokenizer the same
            # number of tokens is another part of the text, in which the requests may differ already.
            if (
                len(tokens) < learned.cut
                or prefix_digests(tokens)[learned.cut // TOKENS_PER_DIGEST - 1] != learned.mark
            ):
                raise UnusablePrompt("it was learned with another model")
        elif learned is not None and len(tokens) < self.minimum:
            raise TooShort("it is too short")
        # A template of one character, for example, which some tokenizers merge with the first one of each message.
        if not tokens:
            raise UnusablePrompt("no token of it is certain before the message is known")
        # Of the whole prompt only so much is warmed up; this is also what its file will have.
        end = exact_end(len(tokens))
        self.counts[prompt.id] = end
        # By the key and not by the id: an edited text is another prompt, whose old tokens must never cut a slot back.
        self._latest[prompt.key] = cut_after(tokens, end)
        self._latest.move_to_end(prompt.key)
        # Tokens of a long prompt are a megabyte, so only the latest few are kept.
        while len(self._latest) > REMEMBERED:
            self._latest.popitem(last=False)
        return tokens[:end]

    def remembered(self, key: Key) -> Sequence[int] | None:
        """Return the tokens of a prompt that its warm-up processes, if they were asked for not long ago.

        Behind them stands one that does not belong to the prompt (`bioproxy.llama.prefix_tokens.cut_after`).
        """
        return self._latest.get(key)
