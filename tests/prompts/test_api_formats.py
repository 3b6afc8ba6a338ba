"""Where each API has what its user wrote, and what stands before it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http.targets import GATED
from bioproxy.prompts import template_search
from bioproxy.prompts.api_formats import FORMATS, UNGATED
from bioproxy.prompts.parsed_request import ParsedRequest
from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, USER_MESSAGE_ONLY, Shape
from bioproxy.prompts.templates import Template, TemplateText
from tests.support.bodies import filled_body

CHAT, MESSAGES, RESPONSES, PROMPT = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion"
TEMPLATES = [Template.of(prefix, Path("/t")) for prefix in ("@code", "/context")]
TEXTS = {template.name: TemplateText((f"{template.name}[", "]"), (), ()) for template in TEMPLATES}
LIMIT = 1_000_000

IMAGE = {"type": "image", "source": {"type": "base64", "data": "@code"}}
RESULT = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "@code"}]}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "@code"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "@code"}

# Which texts in a request its user wrote: path, request, texts, and the message that each is in.
SAID: list[tuple[str, dict[str, Any], list[tuple[str, int]]]] = [
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
    (PROMPT, {"prompt": ["@code", [1, 2]]}, []),
    (PROMPT, {"prompt": [["@code"]]}, []),
    (PROMPT, {"prompt": ["@code", None]}, []),
    (PROMPT, {"prompt": []}, []),
    (PROMPT, {"prompt": {}}, []),
    (PROMPT, {"prompt": {"prompt_string": ["@code"]}}, []),
    (PROMPT, {"prompt": {"prompt_string": {"prompt_string": "@code"}}}, []),
    (PROMPT, {"messages": [{"role": "user", "content": "@code"}], "input": "@code", "content": "@code"}, []),
    (PROMPT, {"input_prefix": "@code", "suffix": "@code", "system_prompt": "@code"}, []),
]

# A request with something at every place that is read, for each API.
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


def form(path: str, request: dict[str, Any]) -> ParsedRequest:
    """Read a request."""
    return FORMATS[path](request)


def shape(path: str, request: dict[str, Any], which: int = 0) -> Shape:
    """Return the shape around one of its texts, the first one."""
    read = form(path, request)
    return read.shape_around(read.user_texts[which])


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the places of all values in a value."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield (*place, key)
        yield from places(member, (*place, key))


def at(value: Any, place: tuple[str | int, ...]) -> Any:
    """Return the value at a place."""
    for key in place:
        value = value[key]
    return value


def put(value: Any, place: tuple[str | int, ...], new: Any) -> Any:
    """Return a copy with another value at a place."""
    changed = copy.deepcopy(value)
    at(changed, place[:-1])[place[-1]] = new
    return changed


class Saying(SynchronousTestCase):
    """What counts as the user's."""

    def test_said(self) -> None:
        """The user's texts are found where they are, in their order, and nothing else: no results, no instructions."""
        for path, request, expected in SAID:
            said = form(path, request).user_texts
            self.assertEqual(expected, [(each.text, each.message_index) for each in said], request)
            self.assertEqual([each.text for each in said], [at(request, each.path) for each in said], request)

    def test_paths(self) -> None:
        """Each path has the form of its API; others have none."""
        counting = "/v1/chat/completions/input_tokens", "/chat/completions/input_tokens", "/v1/messages/count_tokens"
        for paths, request in (
            (
                ("/v1/chat/completions", "/chat/completions", "/v1/messages", "/apply-template", *counting),
                {"messages": [{"role": "user", "content": "a"}]},
            ),
            (("/v1/responses", "/responses", "/v1/responses/input_tokens", "/responses/input_tokens"), {"input": "a"}),
            (("/completion", "/completions", "/v1/completions"), {"prompt": "a"}),
        ):
            self.assertEqual([path for path in FORMATS if form(path, request).user_texts], list(paths))
        self.assertEqual(14, len(FORMATS))
        self.assertEqual({path for path in FORMATS if path not in GATED}, UNGATED)

    def test_odd_values(self) -> None:
        """Whatever stands anywhere, nothing fails, and each text found is a text, at its place."""
        for path, full in FULL.items():
            self.assertTrue(form(path, full).user_texts)
            for place in places(full):
                for odd in ODD:
                    request = put(full, place, odd)
                    read = form(path, request)
                    for said in read.user_texts:
                        self.assertEqual(said.text, at(request, said.path))
                        self.assertIsInstance(read.shape_around(said).source, str)
                    source = json.dumps(request).encode()
                    found = template_search.search_json(path, source, TEMPLATES)
                    if found is not None:
                        json.loads(filled_body(source, found, TEXTS))

    def test_missing_values(self) -> None:
        """Whatever is missing, nothing fails."""
        for path, full in FULL.items():
            for place in places(full):
                request = copy.deepcopy(full)
                del at(request, place[:-1])[place[-1]]
                read = form(path, request)
                for said in read.user_texts:
                    self.assertEqual(said.text, at(request, said.path))
                    read.shape_around(said)


class Whole(SynchronousTestCase):
    """Whether what was computed before may fit."""

    def test_responses(self) -> None:
        """A request that goes on with one that is kept elsewhere does not tell what stands before it."""
        for given, whole in (("resp_1", False), (None, True), ("", True)):
            self.assertEqual(whole, form(RESPONSES, {"input": "@code", "previous_response_id": given}).self_contained)
        found = template_search.search_json(RESPONSES, b'{"input": "@code", "previous_response_id": "x"}', TEMPLATES)
        assert found is not None
        self.assertFalse(found.reusable)

    def test_prompts(self) -> None:
        """One prompt is whole; several in one request are not."""
        for prompt, whole in (("@code", True), (["@code"], True), (["@code", "@code"], False), (["@code", "x"], False)):
            found = template_search.search_json(PROMPT, json.dumps({"prompt": prompt}).encode(), TEMPLATES)
            assert found is not None
            self.assertEqual(whole, found.reusable, prompt)

    def test_turns(self) -> None:
        """The conversation has each message or prompt, whoever's it is."""
        self.assertEqual([4, 3, 5, 2], [len(form(path, request).messages) for path, request in FULL.items()])
        self.assertEqual(1, len(form(RESPONSES, {"input": "a"}).messages))


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "b": 1, "a": 2}}
TOOL = {"type": "function", "function": FUNCTION}
STRICT = {"type": "function", "function": {**FUNCTION, "strict": True}}
ANTHROPIC_TOOL = {"name": "f", "description": "d", "input_schema": FUNCTION["parameters"]}
RESPONSE_TOOL = {"type": "function", **FUNCTION}
STAMP = "x-anthropic-billing-header: cc_version=2.0; cch=%s; rest"


def chat(*before: dict[str, Any], text: str = "@code", **fields: Any) -> Shape:
    """Return the shape of a chat."""
    return shape(CHAT, {"messages": [*before, {"role": "user", "content": text}], **fields})


def messages(**fields: Any) -> Shape:
    """Return the shape of a request of Anthropic's."""
    return shape(MESSAGES, {"messages": [{"role": "user", "content": "@code"}], **fields})


def responses(*before: dict[str, Any], **fields: Any) -> Shape:
    """Return the shape of a request of OpenAI's responses."""
    return shape(RESPONSES, {"input": [*before, {"role": "user", "content": "@code"}], **fields})


def system(text: str, role: str = "system") -> dict[str, Any]:
    """Return a system message."""
    return {"role": role, "content": text}


class Around(SynchronousTestCase):
    """What stands before the user's text."""

    def test_nothing(self) -> None:
        """Where nothing stands before it, all APIs look the same, however the text is wrapped."""
        part = {"type": "text", "text": "@code"}
        for each in (
            chat(),
            messages(),
            responses(),
            shape(RESPONSES, {"input": "@code"}),
            shape(MESSAGES, {"messages": [{"role": "user", "content": [part]}], "max_tokens": 5, "model": "x"}),
            shape(RESPONSES, {"input": [{"role": "user", "content": [{**part, "type": "input_text"}]}]}),
            shape(
                RESPONSES, {"input": [{"type": "message", "status": "completed", "role": "user", "content": "@code"}]}
            ),
            shape(CHAT, {"messages": [{"role": "user", "content": [part]}], "temperature": 0, "tools": []}),
        ):
            self.assertEqual(USER_MESSAGE_ONLY, each)

    def test_system(self) -> None:
        """The same system prompt is the same in all of them, as a text or in blocks."""
        expected = chat(system("ab"))
        self.assertNotEqual(USER_MESSAGE_ONLY, expected)
        blocks = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
        for each in (
            messages(system="ab"),
            messages(system=blocks),
            responses(instructions="ab"),
            responses(system("ab")),
        ):
            self.assertEqual(expected, each)
        self.assertNotEqual(expected, messages(system="ba"))
        self.assertNotEqual(expected, responses(instructions="ba"))

    def test_other_blocks(self) -> None:
        """Blocks that are no text say nothing."""
        odd = [None, "x", 1, {"type": "image", "text": "x"}, {"type": "text", "text": "a"}, {"type": "text"}]
        self.assertEqual(messages(system="a"), messages(system=odd))

    def test_stamp(self) -> None:
        """Claude Code's stamp, another one each time, makes no difference; everything else in that prompt does."""
        for wrap in (
            lambda text: text,
            lambda text: [{"type": "text", "text": text}, {"type": "text", "text": "more"}],
        ):
            first, second = (messages(system=wrap(STAMP % stamp)) for stamp in ("abcde", "12345"))
            self.assertEqual(first, second)
            self.assertNotEqual(first, messages(system=wrap(STAMP % "abcde" + "!")))
            self.assertNotEqual(first, messages(system=wrap(STAMP % "abcdef")))
        self.assertNotEqual(*(messages(system=f"I say: {STAMP % stamp}") for stamp in ("abcde", "12345")))

    def test_tools(self) -> None:
        """The same tools are the same, in the words of each API."""
        self.assertEqual(chat(tools=[TOOL]), messages(tools=[ANTHROPIC_TOOL]))
        self.assertEqual(chat(tools=[STRICT]), responses(tools=[RESPONSE_TOOL]))
        self.assertEqual(chat(tools=[STRICT]), responses(tools=[{**RESPONSE_TOOL, "strict": True}]))
        self.assertNotEqual(chat(tools=[STRICT]), responses(tools=[{**RESPONSE_TOOL, "strict": False}]))
        for each in (
            chat(tools=[TOOL]),
            chat(tools=[STRICT]),
            messages(tools=[{"name": "g"}]),
            chat(tools=[TOOL, TOOL]),
        ):
            self.assertNotEqual(USER_MESSAGE_ONLY, each)
        self.assertNotEqual(chat(tools=[TOOL]), messages(tools=[ANTHROPIC_TOOL] * 2))

    def test_tools_of_other_kinds(self) -> None:
        """Tools that llama-server leaves out make no difference."""
        self.assertEqual(responses(tools=[RESPONSE_TOOL]), responses(tools=[{"type": "web_search"}, RESPONSE_TOOL, 1]))
        self.assertEqual(USER_MESSAGE_ONLY, responses(tools=[{"type": "web_search"}]))

    def test_tool_without_name(self) -> None:
        """An object without a name is not converted: it is not a tool, and a list of many would need much memory."""
        self.assertEqual(chat(tools=[{}, {"description": "x"}]), messages(tools=[{}, {"description": "x"}]))

    def test_order_of_keys(self) -> None:
        """The order of keys in a tool stays: chat templates write tools as they came."""
        turned = dict(reversed(FUNCTION["parameters"].items()))  # type: ignore[attr-defined]
        self.assertNotEqual(
            messages(tools=[ANTHROPIC_TOOL]), messages(tools=[{**ANTHROPIC_TOOL, "input_schema": turned}])
        )

    def test_tool_choice(self) -> None:
        """So is the choice between them."""
        for kind, word in (("auto", "auto"), ("any", "required"), ("tool", "required")):
            choice = {"type": kind, "name": "f"}
            self.assertEqual(chat(tools=[TOOL], tool_choice=word), messages(tools=[ANTHROPIC_TOOL], tool_choice=choice))
        self.assertEqual(messages(), messages(tool_choice={"type": "later"}))
        self.assertEqual(chat(tool_choice="required"), responses(tool_choice="required"))

    def test_switches(self) -> None:
        """What chat templates are told besides makes a difference, in each API that has it."""
        given: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
        self.assertEqual(chat(**given), messages(**given))
        self.assertEqual(chat(**given), responses(**given))
        self.assertEqual(chat(reasoning_effort="low"), responses(reasoning={"effort": "low", "summary": "auto"}))
        for each in (chat(**given), chat(reasoning_effort="low")):
            self.assertNotEqual(USER_MESSAGE_ONLY, each)

    def test_developer(self) -> None:
        """Instructions among the items of responses are those of a chat, as a text or in one part."""
        for role in ("system", "developer"):
            part = {"role": role, "content": [{"type": "input_text", "text": "a"}], "type": "message"}
            for each in (responses(system("a", role)), responses(part)):
                self.assertEqual(chat(system("a", role)), each)
        self.assertNotEqual(chat(system("a")), responses(system("a", "developer")))

    def test_earlier_turns(self) -> None:
        """What was said before makes a difference, down to the parts before the text in its own message."""
        for path, name, kind in (
            (CHAT, "messages", "text"),
            (MESSAGES, "messages", "text"),
            (RESPONSES, "input", "input_text"),
        ):
            own = {"role": "user", "content": "@code"}
            earlier = {name: [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, own]}
            parts = {name: [{"role": "user", "content": [{"type": kind, "text": word} for word in ("hi", "@code")]}]}
            shapes = {USER_MESSAGE_ONLY, shape(path, earlier, 1), shape(path, parts, 1)}
            self.assertEqual(3, len(shapes), path)
            self.assertEqual(USER_MESSAGE_ONLY, shape(path, parts), path)

    def test_prompts(self) -> None:
        """Before a plain prompt stands nothing, not even a chat template."""
        for prompt in ("@code", ["@code"], {"prompt_string": "@code"}):
            self.assertEqual(PLAIN_PROMPT, shape(PROMPT, {"prompt": prompt, "tools": [TOOL]}))


# Bodies with places for texts.
BODIES: dict[str, tuple[str, str]] = {
    CHAT: (
        '{"x": 1e400, "messages" :[{"role":"system","content":"@code"},{"role":"user","content":"%s"},'
        '{"content":[{"type":"image_url"},{"text":"%s","type":"text"}],"role":"user"}], "y":1.10}',
        "",
    ),
    MESSAGES: (
        ' {"max_tokens":5,"system":"@code","messages":[{"role":"user","content":"%s"},{"role":"user","content":['
        '{"type":"tool_result","content":"@code"},{"type":"text","text":"%s","cache_control":{"type":"ephemeral"}}]}]}\n',
        "",
    ),
    RESPONSES: (
        '{"input":[{"role":"user","content":"%s"},{"type":"function_call_output","output":"@code"},{"role":"user",'
        '"content":[{"type":"input_text" , "text":"%s"}]}],"instructions":"@code","n":12345678901234567890}',
        "",
    ),
    "/responses": ('{"input":"%s","store":false,"x":"%s"}', "x"),
    PROMPT: (
        '{"n_predict":-1,"prompt":["%s",{"prompt_string":"%s","multimodal_data":["@code"]}],"stop":["@code"]}',
        "",
    ),
    "/v1/completions": ('{"prompt" : {"a":"@code","prompt_string":"%s"},"suffix":"%s"}', "x"),
}


class Filling(SynchronousTestCase):
    """`template_search.search_json` and `fill` through each form."""

    def test_filled(self) -> None:
        """The user's texts are filled; all else stays byte for byte; the slot is set in front."""
        for path, (body, last) in BODIES.items():
            source = (body % ("@code a", last or "/context  b ")).encode()
            found = template_search.search_json(path, source, TEMPLATES)
            assert found is not None, path
            expected = body.replace("{", '{"id_slot": 0, ', 1) % ("code[a]", last or "context[b]")
            self.assertEqual(expected, filled_body(source, found, TEXTS).decode(), path)
            self.assertEqual("code", found.fill(TEXTS, LIMIT).template.name)

    def test_not_filled(self) -> None:
        """Where the user names none, nothing is, whatever else does."""
        for path, (body, _) in BODIES.items():
            self.assertIsNone(
                template_search.search_json(path, (body % ("a @code", "@codex")).encode(), TEMPLATES), path
            )

    def test_huge_number(self) -> None:
        """A number that Python will not read, but llama.cpp does, does not send a prefix out unfilled."""
        for path, (body, last) in BODIES.items():
            text = (body % ("@code a", last)).replace("{", '{"huge": %s, ' % ("9" * 5000), 1)
            found = template_search.search_json(path, text.encode(), TEMPLATES)
            assert found is not None, path
            self.assertIn(b"code[a]", filled_body(text.encode(), found, TEXTS))
            self.assertIn(b"9" * 5000, filled_body(text.encode(), found, TEXTS))


class Mentioning(SynchronousTestCase):
    """`mentions`."""

    def test_mentions(self) -> None:
        """A body with a prefix in it, in whatever spelling, may name a template; no other does."""
        for body, may in (
            (b'{"prompt": "@code"}', True),
            (b'{"prompt": "x"}', False),
            (b'{"prompt": "@cod"}', False),
            (b'{"prompt": "\\u0040code"}', True),
            (b'{"prompt": "@c\\u006fde"}', True),
            (b'{"prompt": "/context"}', True),
            (b'{"prompt": "\\/context"}', True),
            (b'{"prompt": "\\n \\" \\\\ "}', False),
            (b"", False),
            (b"@code", True),
        ):
            self.assertEqual(may, template_search.may_name_template(body, TEMPLATES), body)

    def test_none(self) -> None:
        """Without templates none can be named."""
        self.assertFalse(template_search.may_name_template(b"@code \\u0040", []))

    def test_odd_prefixes(self) -> None:
        """Prefixes with characters that JSON escapes are seen in both spellings."""
        for prefix in ('"code', '@"code', "\\code", "@\\code", "§code", "\U0001f600code"):
            template = Template.of(prefix, Path("/t"))
            for ascii_only in (True, False):
                body = json.dumps({"prompt": f"{prefix} x"}, ensure_ascii=ascii_only).encode()
                self.assertTrue(template_search.may_name_template(body, [template]), prefix)
                self.assertIsNotNone(template_search.search_json(PROMPT, body, [template]), prefix)

    def test_control_characters(self) -> None:
        """A prefix with a control character, for which JSON has many spellings, is none."""
        for number in (*range(32), 127):
            with self.assertRaises(ValueError):
                Template.of(f"{chr(number)}code", Path("/t"))
