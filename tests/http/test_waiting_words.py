"""What waiting clients are told, in words and in each API's form."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http.error_formats import STREAMING
from bioproxy.http.waiting_words import about, ordinal, reading, rounded, sign_of_life, waiting


class Words(SynchronousTestCase):
    """Places, times and tokens as text."""

    def test_waiting(self) -> None:
        """The place among all, and the time where one is known."""
        self.assertEqual("waiting, 2nd of 3, about 40 s", waiting(2, 3, 41.3))
        self.assertEqual("waiting, 1st of 1", waiting(1, 1, None))
        self.assertEqual("waiting, 3rd of 3", waiting(3, 2, None))

    def test_reading(self) -> None:
        """Tokens of the prompt, and how many it has about, unless that is known to be wrong."""
        self.assertEqual("reading the prompt, 4,096 of about 6,000 tokens", reading(4096, 6010))
        self.assertEqual("reading the prompt, 4,096 tokens", reading(4096, None))
        self.assertEqual("reading the prompt, 4,096 tokens", reading(4096, 4000))

    def test_about(self) -> None:
        """No more exact than an estimate is, and never nothing."""
        for seconds, words in (
            *((0, "about 1 s"), (0.4, "about 1 s"), (5.4, "about 5 s"), (9.9, "about 10 s"), (12, "about 10 s")),
            *((13, "about 15 s"), (97, "about 95 s"), (101, "about 2 min"), (3600, "about 60 min")),
        ):
            self.assertEqual(words, about(seconds), seconds)

    def test_ordinals(self) -> None:
        """As in English."""
        words = "1st 2nd 3rd 4th 10th 11th 12th 13th 21st 22nd 101st 111th"
        self.assertEqual(words.split(), [ordinal(int(word[:-2])) for word in words.split()])

    def test_rounded(self) -> None:
        """Two digits are told."""
        for number, expected in ((0, 0), (7, 7), (97, 97), (123, 120), (6010, 6000), (23_812, 24_000)):
            self.assertEqual(expected, rounded(number))

    def test_form(self) -> None:
        """A comment for all, and a ping behind it for Anthropic's clients; one event at most, and complete."""
        for path in STREAMING:
            ping = b'event: ping\ndata: {"type": "ping"}\n' if path == "/v1/messages" else b""
            self.assertEqual(b": hello\n" + ping + b"\n", sign_of_life(path, "hello"), path)
