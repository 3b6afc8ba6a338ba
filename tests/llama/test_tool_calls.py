"""Finding out that an answer ended with tool calls, while it passes by."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.llama.tool_calls import ToolCalls

# As llama-server b11549 sends them, without what repeats.
CALLS = {
    "chat": b'{"choices":[{"finish_reason":"tool_calls","index":0,"message":{"role":"assistant","content":""}}]}',
    "chat, streamed": b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":null}}]}\n\n'
    b'data: {"choices":[{"finish_reason":"tool_calls","index":0,"delta":{}}]}\n\ndata: [DONE]\n\n',
    "messages": b'{"type":"message","content":[],"model":"m","stop_reason":"tool_use","stop_sequence":null}',
    "messages, streamed": b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use",'
    b'"stop_sequence":null},"usage":{"output_tokens":3}}\n\n',
    "responses": b'{"output":[{"type":"function_call","status":"completed","arguments":"{}","call_id":"fc_1"}]}',
}
OTHERS = {
    "the end": b'{"choices":[{"finish_reason":"stop","index":0}]}',
    "messages": b'{"stop_reason":"end_turn","content":[{"type":"tool_use","id":"x"}]}',
    "the result of a call": b'{"input":[{"type":"function_call_output"}]}',
    "a model that writes about it": json.dumps(
        {"content": CALLS["chat"].decode() + CALLS["messages"].decode()}
    ).encode(),
    "nothing": b"",
}


def found(*pieces: bytes) -> bool:
    """Tell whether tool calls are found in these pieces."""
    calls = ToolCalls()
    for piece in pieces:
        calls.feed(piece)
    return calls.found


class Finding(SynchronousTestCase):
    """`ToolCalls`."""

    def test_every_cut(self) -> None:
        """Wherever the answer is cut in two, it is found; and byte by byte; and in one piece."""
        for name, answer in CALLS.items():
            for cut in range(len(answer) + 1):
                self.assertTrue(found(answer[:cut], answer[cut:]), (name, cut))
            self.assertTrue(found(*(answer[at : at + 1] for at in range(len(answer)))), name)

    def test_others(self) -> None:
        """Other answers have none, also those in which a model writes the same words."""
        for name, answer in OTHERS.items():
            for cut in range(len(answer) + 1):
                self.assertFalse(found(answer[:cut], answer[cut:]), (name, cut))
