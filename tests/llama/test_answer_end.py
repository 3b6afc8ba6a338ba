"""`AnswerEnd`: has the end of an answer passed?"""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from bioproxy.llama.answer_end import AnswerEnd


class AnswerEndTest(TestCase):
    """What is fed piece by piece."""

    def passed(self, *pieces: bytes) -> bool:
        """Return whether the end has passed after these pieces."""
        end = AnswerEnd()
        for piece in pieces:
            end.feed(piece)
        return end.passed

    def test_ends(self) -> None:
        """The last event of each API is the end, also if it was cut in two; other events are not."""
        for last in (
            b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}]}\n\n',
            b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
            b'data: {"type":"response.completed","response":{}}\n\n',
            b'data: {"index":0,"content":"","stop":true}\n\n',
        ):
            self.assertTrue(self.passed(b"data: {}\n\n", last))
            self.assertTrue(self.passed(last, b"data: [DONE]\n\n"))
            for cut in range(len(last)):
                self.assertTrue(self.passed(last[:cut], last[cut:]), cut)

    def test_others(self) -> None:
        """Nothing, an event in the middle, and a text about the end are no end."""
        for pieces in (
            (),
            (b'data: {"choices":[{"finish_reason":null,"delta":{"content":"a"}}]}\n\n',),
            (b'data: {"delta":{"stop_reason":null}}\n\n', b'data: {"content":"a","stop":false}\n\n'),
            (rb'data: {"content":"\"finish_reason\":\"stop\" and \"stop\":true"}', b"\n\n"),
        ):
            self.assertFalse(self.passed(*pieces), pieces)
