"""The assistant's message is the same however an answer is told, and wherever it is cut."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts import answer_text
from bioproxy.prompts.answer_text import AnswerText

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"é"}'}}
THOUGHT = {"role": "assistant", "content": "grün 🙂", "reasoning_content": "hm…"}


def sse(*events: Any, named: bool = False) -> bytes:
    """Return a stream of events."""
    lines = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        lines.append(f"{name}data: {event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)}\n\n")
    return "".join(lines).encode()


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return an event of a chat completion."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def block(index: Any, **delta: Any) -> dict[str, Any]:
    """Return a piece of a block of Anthropic's."""
    return {"type": "content_block_delta", "index": index, "delta": delta}


def start(index: Any, **block: Any) -> dict[str, Any]:
    """Return the beginning of such a block."""
    return {"type": "content_block_start", "index": index, "content_block": block}


BLOCKS = [
    {"type": "thinking", "thinking": "hm…", "signature": ""},
    {"type": "text", "text": "grün 🙂"},
    {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "é"}},
]
OUTPUT = [
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm…"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "grün 🙂"}]},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at":"é"}'},
]
FULL = {**THOUGHT, "tool_calls": [CALL]}
IN_PARTS = {**FULL, "content": [{"type": "text", "text": "grün 🙂"}]}

ANSWERS: dict[str, tuple[bytes, Any]] = {
    "chat": (json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": FULL}]}).encode(), FULL),
    "chat, streamed": (
        b": comment\n\n"
        + sse(
            delta(role="assistant", content=None),
            delta(reasoning_content="hm"),
            delta(reasoning_content="…"),
            delta(content="grün "),
            delta(content="🙂"),
            delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "look"}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"at":'}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '"é"}'}}]),
            delta("tool_calls"),
            {"choices": [], "usage": {}},
            "[DONE]",
        ),
        FULL,
    ),
    "messages": (json.dumps({"type": "message", "content": BLOCKS, "stop_reason": "tool_use"}).encode(), IN_PARTS),
    "messages, streamed": (
        sse(
            {"type": "message_start", "message": {"type": "message", "content": []}},
            start(0, type="thinking", thinking=""),
            block(0, type="thinking_delta", thinking="hm…"),
            block(0, type="signature_delta", signature="x"),
            {"type": "content_block_stop", "index": 0},
            start(1, type="text", text=""),
            block(1, type="text_delta", text="grün "),
            block(1, type="text_delta", text="🙂"),
            start(2, type="tool_use", id="c1", name="look", input={}),
            block(2, type="input_json_delta", partial_json='{"at": '),
            block(2, type="input_json_delta", partial_json='"é"}'),
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
            {"type": "message_stop"},
            named=True,
        ),
        IN_PARTS,
    ),
    "responses": (json.dumps({"object": "response", "output": OUTPUT}).encode(), IN_PARTS),
    "responses, streamed": (
        sse(
            {"type": "response.created", "response": {"output": []}},
            {"type": "response.output_text.delta", "delta": "grün 🙂"},
            {"type": "response.completed", "response": {"output": OUTPUT}},
            named=True,
        ),
        IN_PARTS,
    ),
}


def message(body: bytes, cut: int | None = None) -> Any:
    """Return what is made of a body, fed in two pieces."""
    text = AnswerText()
    for piece in (body,) if cut is None else (body[:cut], body[cut:]):
        text.feed(piece)
    return text.message()


class Messages(SynchronousTestCase):
    """What is made of answers."""

    def test_all(self) -> None:
        """Six ways to tell an answer give one message, cut at any byte."""
        for name, (body, expected) in ANSWERS.items():
            for cut in range(len(body)):
                self.assertEqual(expected, message(body, cut), f"{name}, cut at {cut}")

    def test_byte_by_byte(self) -> None:
        """Also in pieces of one byte."""
        for body, expected in ANSWERS.values():
            text = AnswerText()
            for at in range(len(body)):
                text.feed(body[at : at + 1])
            self.assertEqual(expected, text.message())

    def test_broken_off(self) -> None:
        """A stream without its end gives no message, wherever it ends; a plain answer neither."""
        for name, (body, expected) in ANSWERS.items():
            ends = {message(body[:end]) is None or message(body[:end]) == expected for end in range(len(body))}
            self.assertEqual({True}, ends, name)
            self.assertIsNone(message(body[: len(body) // 2]), name)

    def test_odd(self) -> None:
        """Nothing that a server says makes it fail."""
        for body in (
            *(b"", b"\n", b"null", b"[]", b"{}", b'{"choices": 1}', b'{"choices": [1]}', b'{"choices": [{}]}'),
            *(
                b'{"type": "message"',
                b"\xff\xfe",
                b"data: [DONE]\n\n",
                b"data: 1\n\n",
                b"{" * 5000,
                b"data: " + b"[" * 99999,
            ),
            sse({"type": "content_block_start", "index": [], "content_block": 1}),
            sse(block(7, partial_json="1")),
            # Lists and objects as the index of a block or a call.
            sse(start([], type="tool_use"), {"type": "message_stop"}),
            sse(block({}, text="a"), {"type": "message_stop"}),
            sse(delta(tool_calls=[{"index": []}]), delta("stop")),
        ):
            self.assertIsNone(message(body), body[:40])

    def test_several_choices(self) -> None:
        """Of several answers nobody knows which one the client will take."""
        choices = [{"index": index, "message": {"content": "a"}} for index in range(2)]
        self.assertIsNone(message(json.dumps({"choices": choices}).encode()))

    def test_no_content(self) -> None:
        """A completion with tool calls alone has no content, as it was told."""
        body = json.dumps({"choices": [{"message": {"content": None, "tool_calls": [CALL]}}]}).encode()
        self.assertEqual({"role": "assistant", "content": None, "tool_calls": [CALL]}, message(body))

    def test_bounded(self) -> None:
        """An answer that is too long is given up, and nothing of it is kept."""
        self.patch(answer_text, "LONGEST_ANSWER", 1000)
        for body in (
            json.dumps({"choices": [{"message": {"content": "a" * 3000}}]}).encode(),
            sse(*[delta(content="a" * 10)] * 200, delta("stop")),
            b"data: " + b"a" * 3000,
        ):
            text = AnswerText()
            for at in range(0, len(body), 100):
                text.feed(body[at : at + 100])
                kept = vars(text)
                self.assertLessEqual(len(kept["_rest"]) + len("".join(kept["_content"])), 3200)
            self.assertIsNone(text.message())
            self.assertEqual((b"", []), (vars(text)["_rest"], vars(text)["_content"]))
