"""Where each API has the user's texts, and how odd values in a request are read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http.targets import GATED
from bioproxy.prompts.api_formats import FORMATS, UNGATED
from bioproxy.prompts.parsed_request import ParsedRequest
from bioproxy.prompts.templates import Template, TemplateText
from tests.support.bodies import filled_body, named_templates

CHAT, MESSAGES, RESPONSES, PROMPT = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion"
TEMPLATES = [Template.of(prefix, Path("/t")) for prefix in ("@code", "/context")]
TEXTS = {template.name: TemplateText((f"{template.name}[", "]"), (), ()) for template in TEMPLATES}

IMAGE = {"type": "image", "source": {"type": "base64", "data": "@code"}}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "@code"}]}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "@code"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "@code"}

# The user's texts in a request: path, request, expected texts, each with the index of its message.
USER_TEXTS: list[tuple[str, dict[str, Any], list[tuple[str, int]]]] = [
    (MESSAGES, {"messages": [{"role": "user", "content": "a"}]}, [("a", 0)]),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, [("a", 0)]),
    (
        MESSAGES,
        {
            "system": "@code",
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "@code"},
                {"role": "assistant", "content": [{"type": "text", "text": "@code"}]},
                {
                    "role": "user",
                    "content": [RESULT, {"type": "text", "text": "b"}, IMAGE, {"type": "text", "text": "c"}],
                },
                {"role": "system", "content": "@code"},
            ],
        },
        [("a", 0), ("b", 3), ("c", 3)],
    ),
    (MESSAGES, {"messages": [{"role": "user", "content": [RESULT]}], "prompt": "@code", "input": "@code"}, []),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "@code"}]}]}, []),
    (MESSAGES, {"system": [{"type": "text", "text": "@code"}], "messages": []}, []),
    (MESSAGES, {"messages": [{"role": "User", "content": "@code"}, {"content": "@code"}]}, []),
    (RESPONSES, {"input": "a"}, [("a", 0)]),
    (RESPONSES, {"input": ""}, [("", 0)]),
    (
        RESPONSES,
        {"input": "a", "instructions": "@code", "messages": [{"role": "user", "content": "@code"}]},
        [("a", 0)],
    ),
    (RESPONSES, {"input": [{"role": "user", "content": "a"}]}, [("a", 0)]),
    (RESPONSES, {"input": [{"type": "message", "role": "user", "content": "a"}]}, [("a", 0)]),
    (
        RESPONSES,
        {
            "input": [
                {"role": "developer", "content": "@code"},
                {"role": "system", "content": [{"type": "input_text", "text": "@code"}]},
                {
                    "role": "user",
                    "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "text": "@code"}],
                },
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "@code"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "@code"}]},
                CALL,
                OUTPUT,
                {"role": "user", "content": [{"type": "input_file"}, {"type": "input_text", "text": "b"}]},
            ],
        },
        [("a", 2), ("b", 7)],
    ),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "text", "text": "@code"}]}]}, []),
    (RESPONSES, {"input": ["@code"], "prompt": "@code"}, []),
    (RESPONSES, {"input": {"role": "user", "content": "@code"}}, []),
    (PROMPT, {"prompt": "a"}, [("a", 0)]),
    (PROMPT, {"prompt": ""}, [("", 0)]),
    (PROMPT, {"prompt": ["a"]}, [("a", 0)]),
    (PROMPT, {"prompt": ["a", "b"]}, [("a", 0), ("b", 1)]),
    (PROMPT, {"prompt": {"prompt_string": "a", "multimodal_data": ["@code"]}}, [("a", 0)]),
    (PROMPT, {"prompt": [{"prompt_string": "a"}, "b", {"x": 1}]}, [("a", 0), ("b", 1)]),
    (PROMPT, {"prompt": [1, 2, 3]}, []),
    (PROMPT, {"prompt": [[1, 2], [3]]}, []),
    (PROMPT, {"prompt": ["@code", 1, 2]}, []),
    (PROMPT, {"prompt": [1, "@code"]}, []),
    (PROMPT, {"prompt": ["a", [1, 2]]}, [("a", 0)]),
    (PROMPT, {"prompt": [[1, "@code"], "a"]}, [("a", 1)]),
    (PROMPT, {"prompt": [["@code"]]}, []),
    (PROMPT, {"prompt": ["@code", 1.5]}, []),
    (PROMPT, {"prompt": None}, []),
    (PROMPT, {"prompt": []}, []),
    (PROMPT, {"prompt": {}}, []),
    (PROMPT, {"prompt": {"prompt_string": ["@code"]}}, []),
    (PROMPT, {"prompt": {"prompt_string": {"prompt_string": "@code"}}}, []),
    (PROMPT, {"messages": [{"role": "user", "content": "@code"}], "input": "@code", "content": "@code"}, []),
    (PROMPT, {"input_prefix": "@code", "suffix": "@code", "system_prompt": "@code"}, []),
]

# For each API a request that has a value in every place that is read.
FULL: dict[str, dict[str, Any]] = {
    CHAT: {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "@code a"}],
                "name": "n",
            },
            {"role": "assistant", "content": "c", "tool_calls": [{"id": "1"}]},
            {"role": "user", "content": "@code b"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}],
        "tool_choice": "auto",
        "chat_template_kwargs": {"a": 1},
        "lora": [{"id": 0, "scale": 1}],
        "cache_prompt": True,
    },
    MESSAGES: {
        "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=12345;"}, {"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [RESULT, {"type": "text", "text": "@code a", "cache_control": {"type": "x"}}]},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "@code b"},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "f"},
        "chat_template_kwargs": {"a": 1},
    },
    RESPONSES: {
        "instructions": "i",
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "d"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "@code a"}], "status": "completed"},
            CALL,
            OUTPUT,
            {"type": "message", "role": "user", "content": "@code b"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}],
        "tool_choice": "auto",
        "reasoning": {"effort": "low"},
        "previous_response_id": None,
    },
    PROMPT: {"prompt": ["@code a", {"prompt_string": "@code b", "multimodal_data": []}]},
}
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1.5,
    "",
    "@code",
    "x",
    [],
    [[]],
    [None],
    {},
    {"type": []},
    ["@code"],
    {"role": "user"},
)


def parse(path: str, request: dict[str, Any]) -> ParsedRequest:
    """Parse a request to this path."""
    return FORMATS[path](request)


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of all values inside a JSON value."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield (*place, key)
        yield from places(member, (*place, key))


def at(value: Any, place: tuple[str | int, ...]) -> Any:
    """Return the value at a path."""
    for key in place:
        value = value[key]
    return value


def put(value: Any, place: tuple[str | int, ...], new: Any) -> Any:
    """Return a copy of a JSON value with `new` at a path."""
    changed = copy.deepcopy(value)
    at(changed, place[:-1])[place[-1]] = new
    return changed


class UserTexts(SynchronousTestCase):
    """`ParsedRequest.user_texts`."""

    def test_user_texts(self) -> None:
        """The user's texts are found with their paths and in order; tool results and instructions are not."""
        for path, request, expected in USER_TEXTS:
            texts = parse(path, request).user_texts
            self.assertEqual(expected, [(each.text, each.message_index) for each in texts], request)
            self.assertEqual([each.text for each in texts], [at(request, each.path) for each in texts], request)

    def test_paths(self) -> None:
        """Each path is read by the rules of its API; those that use no slot are in `UNGATED`."""
        counting = "/v1/chat/completions/input_tokens", "/chat/completions/input_tokens", "/v1/messages/count_tokens"
        for paths, request in (
            (
                ("/v1/chat/completions", "/chat/completions", "/v1/messages", "/apply-template", *counting),
                {"messages": [{"role": "user", "content": "a"}]},
            ),
            (("/v1/responses", "/responses", "/v1/responses/input_tokens", "/responses/input_tokens"), {"input": "a"}),
            (("/completion", "/completions", "/v1/completions"), {"prompt": "a"}),
        ):
            self.assertEqual([path for path in FORMATS if parse(path, request).user_texts], list(paths))
        self.assertEqual(14, len(FORMATS))
        self.assertEqual({path for path in FORMATS if path not in GATED}, UNGATED)

    def test_odd_values(self) -> None:
        """With an odd value in any place nothing fails, and each text that is found is a string at its path."""
        for path, full in FULL.items():
            self.assertTrue(parse(path, full).user_texts)
            for place in places(full):
                for odd in ODD:
                    request = put(full, place, odd)
                    parsed = parse(path, request)
                    for text in parsed.user_texts:
                        self.assertEqual(text.text, at(request, text.path))
                        self.assertIsInstance(parsed.shape_around(text).source, str)
                    source = json.dumps(request).encode()
                    found = named_templates(path, source, TEMPLATES)
                    if found is not None:
                        json.loads(filled_body(source, found, TEXTS))

    def test_missing_values(self) -> None:
        """With any value missing nothing fails."""
        for path, full in FULL.items():
            for place in places(full):
                request = copy.deepcopy(full)
                del at(request, place[:-1])[place[-1]]
                parsed = parse(path, request)
                for text in parsed.user_texts:
                    self.assertEqual(text.text, at(request, text.path))
                    parsed.shape_around(text)


class SelfContained(SynchronousTestCase):
    """`ParsedRequest.self_contained`, and `reusable`, which depends on it."""

    def test_responses(self) -> None:
        """A request that continues a stored response does not contain its whole prompt."""
        for given, expected in (("resp_1", False), (None, True), ("", True)):
            self.assertEqual(
                expected, parse(RESPONSES, {"input": "@code", "previous_response_id": given}).self_contained
            )
        found = named_templates(RESPONSES, b'{"input": "@code", "previous_response_id": "x"}', TEMPLATES)
        assert found is not None
        self.assertFalse(found.reusable)

    def test_prompts(self) -> None:
        """A single prompt can be reused; several prompts in one request cannot."""
        for prompt, expected in (
            ("@code", True),
            (["@code"], True),
            (["@code", "@code"], False),
            (["@code", "x"], False),
        ):
            found = named_templates(PROMPT, json.dumps({"prompt": prompt}).encode(), TEMPLATES)
            assert found is not None
            self.assertEqual(expected, found.reusable, prompt)

    def test_messages(self) -> None:
        """The conversation consists of all messages or prompts, not only those of the user."""
        self.assertEqual([4, 3, 5, 2], [len(parse(path, request).messages) for path, request in FULL.items()])
        self.assertEqual(1, len(parse(RESPONSES, {"input": "a"}).messages))
