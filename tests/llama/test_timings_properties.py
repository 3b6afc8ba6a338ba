"""What finding timings promises, held against whatever answers hypothesis thinks of."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis.strategies import DataObject, binary, data, integers, lists, one_of, sampled_from
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.timings import Timings
from tests.llama.test_timings import PLAIN_PROMPT, STREAM, VALUES, found

# As llama-server writes them.
MESSAGES_STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"chatcmpl-1","type":"message",'
    b'"role":"assistant","content":[],"model":"m","stop_reason":null,"stop_sequence":null,'
    b'"usage":{"cache_read_input_tokens":25,"input_tokens":1,"output_tokens":0}}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"x"}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    b'"usage":{"output_tokens":3}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)
MESSAGES_PLAIN = (
    b'{"id":"chatcmpl-1","type":"message","role":"assistant","content":[{"type":"text","text":"x"}],"model":"m",'
    b'"usage":{"cache_read_input_tokens":25,"input_tokens":1,"output_tokens":3}}'
)
RESPONSES_PLAIN = (
    b'{"completed_at":1,"id":"resp_1","object":"response","output":[{"type":"message","content":[]}],"status":"completed",'
    b'"usage":{"input_tokens":26,"output_tokens":3,"total_tokens":29,"input_tokens_details":{"cached_tokens":25}}}'
)
USAGE = {"cache_n": 25, "prompt_n": 1}
ANSWERS = (
    *((STREAM, VALUES), (PLAIN_PROMPT, VALUES)),
    *((MESSAGES_STREAM, USAGE), (MESSAGES_PLAIN, USAGE), (RESPONSES_PLAIN, USAGE)),
)

# What looks like timings, or like a part of them.
PIECES = (
    *(answer for answer, _ in ANSWERS),
    *(
        b'"timings":{',
        b'"timings":{}',
        b'"timings":{"cache_n":7}',
        b'"timings":{"cache_n":8,"prompt_n":true}',
        b"}",
        b"{",
    ),
    *(b'"timings":{"a":1e999,"b":NaN,"c":-1}', b'"timings":{"a":"\xff"}', b'"timings":{"a":' + b"[" * 1500 + b"}"),
    *(b'"timings":{' + b" " * size + b'"cache_n":9}' for size in (1800, 1878, 2000, 2060, 5000)),
    *(b'"cache_read_input_tokens":', b'"cache_read_input_tokens":5,"input_tokens":6', b"7", b"9" * 20, b","),
    *(b'"input_tokens":', b'"input_tokens":3,', b'"input_tokens_details":{"cached_tokens":2', b"x" * 190, b" " * 2040),
)
TEXTS = lists(one_of(sampled_from(PIECES), sampled_from(PIECES), binary(max_size=20)), max_size=8).map(b"".join)


def cut(answer: bytes, places: list[int]) -> dict[str, float]:
    """Return what is found in an answer that comes in pieces cut at these places."""
    ends = sorted({place % (len(answer) + 1) for place in places} | {len(answer)})
    return found(*(answer[begin:end] for begin, end in zip([0, *ends], ends, strict=False)))


class Finding(SynchronousTestCase):
    """`Timings`."""

    def test_each_answer(self) -> None:
        """In each kind of answer the numbers are found, wherever it is cut in two or three, and byte by byte."""
        for answer, values in ANSWERS:
            self.assertEqual(values, cut(answer, list(range(len(answer)))))
            for place in range(len(answer)):
                self.assertEqual(values, cut(answer, [place]), place)
                self.assertEqual(values, cut(answer, [place, place + 30]), place)

    @given(sampled_from(ANSWERS), lists(integers(0, 10_000), max_size=8), binary(max_size=3000), binary(max_size=3000))
    @settings(max_examples=100, derandomize=True, deadline=None)
    def test_among_noise(
        self, answer: tuple[bytes, dict[str, float]], places: list[int], before: bytes, behind: bytes
    ) -> None:
        """They are found among whatever else there is."""
        self.assertEqual(answer[1], cut(before + answer[0] + behind, places))

    @given(TEXTS, data())
    @settings(max_examples=300, derandomize=True, deadline=None)
    def test_any_cuts(self, answer: bytes, drawn: DataObject) -> None:
        """Whatever an answer is, how it is cut makes no difference, and nothing fails."""
        whole = found(answer)
        self.assertEqual(whole, cut(answer, drawn.draw(lists(integers(0, max(1, len(answer))), max_size=10))))
        size = drawn.draw(sampled_from([1, 7, 100, 1024, 2048, 4096]))
        if len(answer) < 5000 or size > 7:
            self.assertEqual(whole, cut(answer, list(range(0, len(answer), size))), size)

    @given(TEXTS)
    @settings(max_examples=100, derandomize=True, deadline=None)
    def test_values(self, answer: bytes) -> None:
        """Whatever is found are numbers that can be counted with."""
        timings = Timings()
        timings.feed(answer)
        for name, value in timings.values.items():
            self.assertIsInstance(name, str)
            self.assertTrue(0 <= value < 1e15 and int(value) >= 0, value)

    def test_last(self) -> None:
        """Of several kinds in one answer the last one counts, however far apart they are."""
        first, second = b'"timings":{"cache_n":7}', b'"cache_read_input_tokens":5,"input_tokens":6'
        for gap in (0, 1, 500, 5000):
            reader = b" " * gap
            for answer, expected in (
                (first + reader + second + reader, {"cache_n": 5, "prompt_n": 6}),
                (second + reader + first + reader, {"cache_n": 7}),
            ):
                for size in (1, 100, 100_000):
                    self.assertEqual(expected, cut(answer, list(range(0, len(answer), size))), (gap, size))
