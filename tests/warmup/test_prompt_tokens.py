"""The tokens of prompts: which ones a warm-up processes, and which are remembered."""

from __future__ import annotations

from dataclasses import replace

from bioproxy.llama.prefix_tokens import DoesNotFit, Prefixes
from bioproxy.prompts.catalogue import Prompt
from bioproxy.prompts.digests import TOKENS_PER_DIGEST, digest, prefix_digests
from bioproxy.prompts.learned_prompts import LearnedPrompt
from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, USER_MESSAGE_ONLY, Shape
from bioproxy.warmup.progress import exact_end
from bioproxy.warmup.prompt_tokens import REMEMBERED, PromptTokens, TooShort, UnusablePrompt
from tests.support.world import SlotTest

BEGINNING = Shape.of([{"role": "system", "content": "Be careful. " * 100}], {}, [], {})


def template(text: str) -> Prompt:
    """Return a template's prompt."""
    return Prompt("code", USER_MESSAGE_ONLY, text, digest(text))


def learned(cut: int | None = None, mark: str = "") -> Prompt:
    """Return a learned prompt."""
    found = LearnedPrompt(BEGINNING, cut, mark)
    return Prompt(found.id, BEGINNING, "", "", found)


class TokensTest(SlotTest):
    """`PromptTokens`, with the fake llama-server."""

    def setUp(self) -> None:
        """Make it."""
        super().setUp()
        self.tokens = PromptTokens(Prefixes(self.built.llama), self.built.watch, 1024)

    def of(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt."""
        return self.run_now(lambda: self.tokens.of(prompt))

    def fails(self, prompt: Prompt, error: type[Exception]) -> None:
        """Check that there are none."""
        self.failureResultOf(self.built.start(lambda: self.tokens.of(prompt)), error)

    def test_exact_end(self) -> None:
        """A warm-up ends a batch before the prompt's end; behind that, one token is remembered that is another one."""
        prompt = template("abcdef " * 100)
        found = self.of(prompt)
        whole = [1, *map(ord, "<user>" + "abcdef " * 100)]
        self.assertEqual(whole[: exact_end(len(whole))], found)
        self.assertEqual({"code": len(found)}, self.tokens.counts)
        remembered = self.tokens.remembered(prompt.key)
        assert remembered is not None
        self.assertEqual((found, True), (remembered[:-1], remembered[-1] != whole[len(found)]))

    def test_remembered(self) -> None:
        """The prompts that were asked for last are remembered, until llama-server is to be asked again."""
        prompts = [template(f"text {number}") for number in range(REMEMBERED + 1)]
        for prompt in (*prompts[:REMEMBERED], prompts[0], prompts[-1]):
            self.of(prompt)
        known = [number for number, prompt in enumerate(prompts) if self.tokens.remembered(prompt.key)]
        self.assertEqual([0, *range(2, REMEMBERED + 1)], known)
        self.tokens.forget()
        self.assertIsNone(self.tokens.remembered(prompts[0].key))

    def test_too_large(self) -> None:
        """A text that does not fit the context has no tokens, and 0 where they were too many to count."""
        process = self.built.watch.process
        self.built.watch.process = replace(process, props=replace(process.props, context=64))
        self.fails(template("x" * 100), DoesNotFit)
        self.assertEqual(["code"], list(self.tokens.counts))

    def test_too_short(self) -> None:
        """A learned prompt of fewer tokens than are worth keeping is no prompt."""
        self.assertGreater(len(self.of(learned())), 1024)
        self.tokens.minimum = 2000
        self.fails(learned(), TooShort)

    def test_no_tokens(self) -> None:
        """A text of which no token is the same whatever follows cannot be warmed up."""
        self.server.tokenizer = lambda text: [ord(text[-1])]
        self.fails(Prompt("code", PLAIN_PROMPT, "#", digest("#")), UnusablePrompt)

    def test_cut(self) -> None:
        """A shared part has just its tokens; with a model that makes others of the same text it is of no use."""
        whole = self.run_now(lambda: Prefixes(self.built.llama).tokens("", BEGINNING, 16384, None))
        cut = 8 * TOKENS_PER_DIGEST
        mark = prefix_digests(whole)[cut // TOKENS_PER_DIGEST - 1]
        self.assertEqual(whole[: exact_end(cut)], self.of(learned(cut, mark)))
        self.fails(learned(cut, "another"), UnusablePrompt)
        self.fails(learned(64 * TOKENS_PER_DIGEST, mark), UnusablePrompt)
