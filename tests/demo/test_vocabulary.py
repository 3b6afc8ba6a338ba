"""The vocabulary of the generated model."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.demo.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, WORD_MARK, vocabulary


class Vocabulary(SynchronousTestCase):
    """The tokens."""

    def test_lists(self) -> None:
        """Tokens are unique, and each has a score and a type."""
        tokens, scores, types = vocabulary()
        self.assertEqual(len(tokens), len(set(tokens)))
        self.assertEqual((len(tokens), len(tokens)), (len(scores), len(types)))
        self.assertEqual({UNKNOWN, CONTROL, BYTE, NORMAL}, set(types))

    def test_special(self) -> None:
        """What the chat template writes around a message is one token each; so is every byte."""
        tokens, _, types = vocabulary()
        kinds = dict(zip(tokens, types, strict=True))
        for name in ("<s>", "</s>", "<|im_start|>", "<|im_end|>"):
            self.assertEqual(CONTROL, kinds[name], name)
        self.assertEqual({f"<0x{byte:02X}>" for byte in range(256)}, {name for name in kinds if kinds[name] == BYTE})

    def test_merges(self) -> None:
        """Every word can be reached by merges: each of its beginnings is a token, longer ones score higher."""
        tokens, scores, types = vocabulary()
        known = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
        self.assertIn(WORD_MARK + "template", known)
        for token, score in known.items():
            if len(token) > 1:
                self.assertIn(token[-1], known, token)
                self.assertIn(token[:-1], known, token)
                self.assertGreater(score, known[token[:-1]], token)
