"""Finding llama-server's timings in an answer that passes by."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.timings import Timings

TIMINGS = (
    b'"timings":{"cache_n":4,"prompt_n":28,"prompt_ms":1.683,"prompt_per_token_ms":0.06010714285714286,'
    b'"prompt_per_second":16636.957813428402,"predicted_n":3,"predicted_ms":0.919,'
    b'"predicted_per_token_ms":0.4595,"predicted_per_second":2176.278563656148}'
)
VALUES = json.loads(b"{" + TIMINGS + b"}")["timings"]

# As llama-server b11549 sent it, without what repeats.
STREAM = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],'
    b'"created":1795361662,"object":"chat.completion.chunk"}\n\n'
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" sen"}}],"created":1795361662}\n\n'
    b'data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}],"created":1795361662,'
    b'"id":"chatcmpl-WyitsrDss3gIs8OpUJC7IM9czLojtchA",' + TIMINGS + b"}\n\ndata: [DONE]\n\n"
)
PLAIN_PROMPT = (
    b'{"choices":[{"index":0,"message":{"role":"assistant","content":"x"}}],"usage":{"total_tokens":13},'
    + TIMINGS
    + b"}"
)


def found(*pieces: bytes) -> dict[str, float]:
    """Return what is found in these pieces."""
    timings = Timings()
    for piece in pieces:
        timings.feed(piece)
    return timings.values


class Finding(SynchronousTestCase):
    """`Timings`."""

    def test_every_cut(self) -> None:
        """Wherever the answer is cut in two, the timings are found; and byte by byte; and in one piece."""
        for answer in (STREAM, PLAIN_PROMPT):
            for cut in range(len(answer) + 1):
                self.assertEqual(VALUES, found(answer[:cut], answer[cut:]), cut)
            self.assertEqual(VALUES, found(*(answer[at : at + 1] for at in range(len(answer)))))

    def test_long_answer(self) -> None:
        """They are found behind any amount of text, in large pieces and in small ones."""
        answer = b'data: {"content":"' + b"x" * 100_000 + b'"}\n\n' + STREAM
        for size in (1, 700, 4096, 65536, len(answer)):
            self.assertEqual(VALUES, found(*(answer[at : at + size] for at in range(0, len(answer), size))), size)

    def test_longest_beginning(self) -> None:
        """The numbers are found behind as many digits as there may be, wherever the network cuts them."""
        usage = b'{"usage":{"cache_read_input_tokens":123456789012345,"input_tokens":6}}'
        for at in range(len(usage)):
            self.assertEqual({"cache_n": 123456789012345, "prompt_n": 6}, found(b"x" * 300 + usage[:at], usage[at:]))

    def test_latest(self) -> None:
        """Where each event has them, the latest ones count."""
        early = b'data: {"timings":{"cache_n":1,"prompt_n":2}}\n\n'
        self.assertEqual({"cache_n": 1, "prompt_n": 2}, found(early))
        self.assertEqual(VALUES, found(early, STREAM))
        self.assertEqual(VALUES, found(early + STREAM))

    def test_inside_a_text(self) -> None:
        """What a model *says* about timings is not taken, before the real ones or without them."""
        said = b'data: {"content":' + json.dumps('"timings":{"cache_n":7,"prompt_n":8}').encode() + b"}\n\n"
        nested = b'data: {"content":' + json.dumps(said.decode()).encode() + b"}\n\n"
        for text in (said, nested):
            for cut in range(len(text)):
                self.assertEqual({}, found(text[:cut], text[cut:]), cut)
            self.assertEqual(VALUES, found(text, STREAM))
            self.assertEqual(VALUES, found(STREAM, text))

    def test_none(self) -> None:
        """An answer without timings, with broken ones, or cut off in them, has none."""
        for answer in (
            b"",
            b"{}",
            b'data: {"content":"x"}\n\n',
            b'{"timings":null}',
            b'{"timings":{}}',
            b'{"timings":{"cache_n":}',
            b'{"timings":{"cache_n":"\xff"}}',
            STREAM[: STREAM.index(TIMINGS) + len(TIMINGS) - 1],
            b"\x00\xff" * 5000,
        ):
            self.assertEqual({}, found(answer), answer[:40])

    def test_numbers_only(self) -> None:
        """Whatever is no number is left out."""
        self.assertEqual({"prompt_n": 2}, found(b'{"timings":{"cache_n":null,"prompt_n":2,"x":"y","z":[1]}}'))
