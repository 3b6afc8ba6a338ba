"""A conversation as its client will send it back, in the form of chat completions."""

from __future__ import annotations

import json
import pickle
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.next_turn import STAND_INS, NextTurn, next_turn
from bioproxy.prompts.parting import Parting, parting

USER: dict[str, Any] = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "so", "reasoning_content": "hm"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"é"}'}}
TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}


def turn(path: str, request: Any, answer: dict[str, Any] = ANSWER) -> NextTurn | None:
    """Return the next turn."""
    return next_turn(json.dumps(request).encode(), path, answer)


class NextTurns(SynchronousTestCase):
    """What is made of requests and answers."""

    def turn(self, path: str, request: Any, answer: dict[str, Any] = ANSWER) -> NextTurn:
        """Return the next turn, which can be made."""
        made = turn(path, request, answer)
        assert made is not None
        self.assertEqual(made, pickle.loads(pickle.dumps(made)))
        return made

    def test_chat(self) -> None:
        """Messages and the fields that matter are as they came; the user says something."""
        made = self.turn("/v1/chat/completions", {"messages": [USER], "tools": [TOOL], "temperature": 1})
        self.assertEqual({"tools": [TOOL], "messages": [USER]}, made.before())
        plain = {"role": "assistant", "content": "so"}
        expected = [
            {"tools": [TOOL], "messages": [USER, plain, {"role": "user", "content": text}]} for text in STAND_INS
        ]
        self.assertEqual(expected, made.after())

    def test_tool_calls(self) -> None:
        """After calls of tools their results come, one for each."""
        calls = [CALL, {**CALL, "id": "c2"}]
        made = self.turn("/v1/chat/completions", {"messages": [USER]}, {**ANSWER, "tool_calls": calls})
        results = [{"role": "tool", "tool_call_id": id, "content": STAND_INS[0]} for id in ("c1", "c2")]
        self.assertEqual(results, made.after()[0]["messages"][2:])

    def test_reasoning(self) -> None:
        """Whether the reasoning comes back is what the client did before, or else what most clients do."""
        thought = {"role": "assistant", "content": "a", "reasoning_content": "b"}
        silent = {"role": "assistant", "content": "a"}
        for path, earlier, back in (
            ("/v1/chat/completions", [], False),
            ("/v1/chat/completions", [USER, thought], True),
            ("/v1/chat/completions", [USER, silent], False),
            ("/v1/messages", [], True),
            ("/v1/messages", [USER, silent], False),
        ):
            made = self.turn(path, {"messages": [*earlier, USER]})
            self.assertEqual(back, "reasoning_content" in made.answer, (path, earlier))
        self.assertIn("reasoning_content", self.turn("/v1/responses", {"input": "why?"}).answer)

    def test_messages(self) -> None:
        """Anthropic's blocks become messages as llama-server makes them."""
        request = {
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "tools": [{"name": "look", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "any"},
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "x"},
                        {"type": "text", "text": "a"},
                        {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "é"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "r"}]},
                        {"type": "tool_result", "tool_use_id": "c2", "content": "q"},
                        {"type": "text", "text": "go on"},
                    ],
                },
            ],
        }
        made = self.turn("/v1/messages", request)
        self.assertEqual({"tools": [TOOL], "tool_choice": "required"}, made.fields)
        self.assertEqual(
            [
                {"role": "system", "content": "s"},
                USER,
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "a"}],
                    "tool_calls": [CALL],
                    "reasoning_content": "hm",
                },
                {"role": "user", "content": [{"type": "text", "text": "go on"}]},
                {"role": "tool", "tool_call_id": "c1", "content": "r"},
                {"role": "tool", "tool_call_id": "c2", "content": "q"},
            ],
            made.history,
        )

    def test_responses(self) -> None:
        """Items of one answer become one message."""
        request = {
            "instructions": "s",
            "reasoning": {"effort": "low"},
            "tools": [{"type": "function", "name": "look"}, {"type": "web_search"}],
            "input": [
                {"role": "user", "content": "why?"},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
                {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at":"é"}'},
                {"type": "function_call_output", "call_id": "c1", "output": "r"},
                {"role": "user", "content": [{"type": "input_text", "text": "b"}]},
            ],
        }
        made = self.turn("/v1/responses", request)
        self.assertEqual(["look"], [tool["function"]["name"] for tool in made.fields["tools"]])
        self.assertEqual("low", made.fields["reasoning_effort"])
        self.assertEqual(
            [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"text": "why?", "type": "text"}]},
                {
                    "role": "assistant",
                    "content": [{"text": "a", "type": "text"}],
                    "reasoning_content": "hm",
                    "tool_calls": [CALL],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "r"},
                {"role": "user", "content": [{"text": "b", "type": "text"}]},
            ],
            made.history,
        )

    def test_no_guess(self) -> None:
        """Images, sounds, an answer that goes on with a message, and what is no conversation give no guess."""
        image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
        foreign = {"role": "user", "content": [{"type": "image", "source": {}}]}
        shown = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}]}
        for path, request in (
            ("/v1/chat/completions", {"messages": [image]}),
            ("/v1/chat/completions", {"messages": [USER, {"role": "assistant", "content": "It is"}]}),
            ("/v1/chat/completions", {"messages": []}),
            ("/v1/chat/completions", {"messages": ["why?"]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": 1}]}),
            ("/v1/chat/completions", []),
            ("/v1/messages", {"messages": [foreign]}),
            ("/v1/messages", {"messages": [{"role": "user", "content": [shown]}]}),
            ("/v1/messages", {"messages": [{"role": "user", "content": [1]}]}),
            ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}),
            ("/v1/responses", {"input": 1}),
            ("/completion", {"prompt": "why?"}),
        ):
            self.assertIsNone(turn(path, request), request)
        self.assertIsNone(next_turn(b"{", "/v1/messages", ANSWER))


class Partings(SynchronousTestCase):
    """Whether the slot is right as it is."""

    def test_table(self) -> None:
        """Texts decide where they are known, and are unsure where llama-server has taken the answer apart."""
        plain, thought = {"content": "so"}, {"content": "so", "reasoning_content": "hm"}
        called = {"content": [{"type": "text", "text": "so"}], "tool_calls": [CALL]}
        for following, answer, expected in (
            ("P>so<", plain, Parting.NONE),
            ("P> so<", plain, Parting.PARTS),
            ("Q>so<", plain, Parting.PARTS),
            ("P>so<", thought, Parting.PARTS),
            ("P>[hm]so<", thought, Parting.UNSURE),
            ("P>[hm]no<", thought, Parting.PARTS),
            ("P>so[hm]<", thought, Parting.PARTS),
            ("P>hm<", {"content": "hm", "reasoning_content": "hm"}, Parting.PARTS),
            ("P>so[look]<", called, Parting.UNSURE),
            ("P>[look]<", called, Parting.PARTS),
        ):
            self.assertEqual(expected, parting("P>", following, answer), (following, answer))
