"""The tokens that all questions on a template begin with."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.prefix_tokens import DoesNotFit, Prefixes, common_beginning, cut_after, prefix_tokens
from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, USER_MESSAGE_ONLY, Shape
from tests.llama.test_api import LlamaTest
from tests.support.fakes import tokens


class Finding(LlamaTest):
    """`prefix_tokens`."""

    def test_prefix_tokens(self) -> None:
        """The prefix tokens are those that come before the message, whatever the message is."""
        self.assertEqual(
            tokens("<user>abc "), self.result(lambda: prefix_tokens(self.llama, "abc ", USER_MESSAGE_ONLY, 1000))
        )
        self.assertEqual(3, self.server.paths().count("/apply-template"))
        self.assertTrue(all(body["add_special"] for path, body in self.server.requests if path == "/tokenize"))

    def test_prefix_in_a_shape(self) -> None:
        """What the chat request has before the message is among the prefix tokens."""
        shape = Shape.of([{"role": "system", "content": "s"}], {}, [], {})
        expected = tokens("<system>s</><user>abc ")
        self.assertEqual(expected, self.result(lambda: prefix_tokens(self.llama, "abc ", shape, 1000)))

    def test_prefix_of_a_plain_prompt(self) -> None:
        """Without a chat template the text itself is the prompt."""
        self.assertEqual(tokens("abc "), self.result(lambda: prefix_tokens(self.llama, "abc ", PLAIN_PROMPT, 1000)))
        self.assertEqual(0, self.server.paths().count("/apply-template"))

    def test_prefix_across_the_cut(self) -> None:
        """A token that reaches across the end of the prefix is not one of the prefix tokens."""
        # Another tokenizer: with two of the stand-ins the prefix's last character becomes one token with the message.
        answer = iter([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 7, 7]])
        self.server.tokenizer = lambda text: next(answer)
        self.assertEqual([1, 2, 3], self.result(lambda: prefix_tokens(self.llama, "abc", USER_MESSAGE_ONLY, 1000)))

    def test_prefix_too_long(self) -> None:
        """Where the first list of tokens fills the context already, no others are made."""
        self.assertLess(10, len(self.result(lambda: prefix_tokens(self.llama, "abcdefgh", USER_MESSAGE_ONLY, 10))))
        self.assertEqual(1, self.server.paths().count("/tokenize"))

    def test_common_beginning(self) -> None:
        """The common beginning ends at the first difference, or with the shorter one."""
        for first, second, expected in (
            ([1, 2, 3], [1, 2, 4], [1, 2]),
            ([1, 2], [1, 2, 3], [1, 2]),
            ([1], [2], []),
            ([], [1], []),
        ):
            self.assertEqual(expected, common_beginning(first, second))


class Remembering(LlamaTest):
    """`Prefixes`."""

    def setUp(self) -> None:
        """Build one that remembers nothing."""
        super().setUp()
        self.prefixes = Prefixes(self.llama)

    def asked(self, about: object) -> int:
        """Find the tokens of a text; return how many requests that took."""
        before = len(self.server.requests)
        found = self.result(lambda: self.prefixes.tokens("abc ", USER_MESSAGE_ONLY, 1000, about))
        self.assertEqual(tokens("<user>abc "), found)
        return len(self.server.requests) - before

    def test_once(self) -> None:
        """The last tokens are remembered for an equal `about` only, until `forget` is called."""
        self.assertEqual([6, 0, 6, 6], [self.asked(about) for about in ("x", "x", "y", "x")])
        self.prefixes.forget()
        self.assertEqual(6, self.asked("x"))

    def test_counted_first(self) -> None:
        """A text that hardly fits is counted first, and not tokenized if it is too long; the error has the number."""
        whole = len(tokens("<user>" + "x" * 1000 + "</><assistant>"))
        for counts, count in ((True, whole), (False, None)):
            self.server.counts = counts
            error = self.failureResultOf(
                self.built.start(lambda: self.prefixes.tokens("x" * 1000, USER_MESSAGE_ONLY, 60, "x")), DoesNotFit
            ).value
            self.assertEqual((count, 0), (error.tokens, self.server.paths().count("/tokenize")))

    def test_odd_text(self) -> None:
        """A text that cannot be encoded in UTF-8 is measured nevertheless."""
        result = self.built.start(lambda: self.prefixes.tokens("\udcff" * 1000, USER_MESSAGE_ONLY, 60, "x"))
        self.failureResultOf(result, DoesNotFit)


class Cutting(SynchronousTestCase):
    """`cut_after`."""

    def test_stranger(self) -> None:
        """Behind the first tokens stands one that is not the next one of the list, whatever that is."""
        self.assertEqual([5, 6, 5], cut_after([5, 6, 7], 2))
        self.assertEqual([5, 6, 6], cut_after([5, 6, 5, 7], 2))
        self.assertEqual([5, 6, 5], cut_after([5, 6], 2))
        self.assertEqual([5, 0], cut_after([5, 5], 1))
