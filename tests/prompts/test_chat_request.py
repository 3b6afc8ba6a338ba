"""Chats that name no template: their beginning, their conversation, and what may be reused for them."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis.strategies import (
    SearchStrategy,
    booleans,
    dictionaries,
    fixed_dictionaries,
    floats,
    integers,
    lists,
    none,
    one_of,
    recursive,
    sampled_from,
    text,
    tuples,
)
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.api_formats import FORMATS, GATED_CHATS
from bioproxy.prompts.chat_request import LONGEST_CONVERSATION, ChatRequest
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.prompts.prompt_shape import LARGEST_SHAPE, USER_MESSAGE_ONLY, Shape
from bioproxy.prompts.request_search import read_request
from tests.prompts.test_api_shapes import ANTHROPIC_TOOL, RESPONSE_TOOL, STRICT, TOOL, system
from tests.prompts.test_filling import TEMPLATES

CHAT, MESSAGES, RESPONSES, PROMPT = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion"
USER = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "because"}
MARK = {"type": "ephemeral"}
MISSING: Any = object()


def read(path: str, request: Any) -> ChatRequest | None:
    """Read a request where no templates are known and everything is learned from."""
    found = read_request(json.dumps(request).encode(), path, (), 0)
    assert not isinstance(found, NamedTemplates)
    return found


def learned(path: str, request: Any) -> ChatRequest:
    """Read a request that is a chat."""
    found = read(path, request)
    assert found is not None, request
    return found


def chat(*before: Any, **fields: Any) -> ChatRequest:
    """Read a request of chat completions that ends with a user message."""
    return learned(CHAT, {"messages": [*before, USER], **fields})


def messages(**fields: Any) -> ChatRequest:
    """Read a request of Anthropic's messages."""
    return learned(MESSAGES, {"messages": [USER], **fields})


def responses(*before: Any, **fields: Any) -> ChatRequest:
    """Read a request of OpenAI's responses that ends with a user message."""
    return learned(RESPONSES, {"input": [*before, USER], **fields})


TEXTS = text(max_size=12)
JSON: SearchStrategy[Any] = recursive(
    one_of(none(), booleans(), integers(), floats(), TEXTS, sampled_from(["user", "system", "text", "function"])),
    lambda inner: one_of(
        lists(inner, max_size=3),
        dictionaries(
            one_of(
                sampled_from(["role", "content", "type", "text", "name", "cache_control", "effort", "function"]), TEXTS
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
MESSAGE = fixed_dictionaries(
    {"role": sampled_from(["user", "user", "assistant", "system", "developer", "tool"])},
    optional={"content": one_of(TEXTS, JSON), "name": JSON},
)
MESSAGE_LIST = lists(one_of(MESSAGE, MESSAGE, JSON), max_size=4)
REQUEST = fixed_dictionaries(
    {},
    optional={
        **{name: one_of(MESSAGE_LIST, MESSAGE_LIST, JSON) for name in ("messages", "input")},
        **{
            name: one_of(JSON, lists(JSON, max_size=2))
            for name in ("tools", "system", "instructions", "reasoning", "tool_choice", "cache_control", "id_slot")
        },
        "chat_template_kwargs": JSON,
    },
)
# The order of the keys matters, and hypothesis would change it.
TOOLS = lists(
    tuples(TEXTS, TEXTS, dictionaries(TEXTS, JSON, max_size=3)).map(
        lambda drawn: {"name": drawn[0], "description": drawn[1], "parameters": drawn[2]}
    ),
    max_size=3,
)


class Beginnings(SynchronousTestCase):
    """`ChatRequest.beginning`, in each API."""

    @given(TEXTS, TOOLS, dictionaries(TEXTS, JSON, max_size=2), sampled_from([None, "auto", "required"]))
    @settings(max_examples=100, derandomize=True, deadline=None)
    def test_equal(self, words: str, functions: list[dict[str, Any]], switches: dict[str, Any], choice: Any) -> None:
        """Equal instructions, tools and switches have equal beginnings in all APIs, and so do those of a template."""
        fields: dict[str, Any] = {"chat_template_kwargs": switches}
        chosen = {} if choice is None else {"tool_choice": choice}
        typed = [{"type": "function", "function": each} for each in functions]
        strict = [{"type": "function", "function": {**each, "strict": True}} for each in functions]
        flat = [{"type": "function", **each} for each in functions]
        named = [
            {"name": each["name"], "description": each["description"], "input_schema": each["parameters"]}
            for each in functions
        ]
        wanted = {} if choice is None else {"tool_choice": {"type": "any" if choice == "required" else "auto"}}
        first = chat(system(words), tools=typed, **fields, **chosen)
        second = messages(system=[{"type": "text", "text": words}], tools=named, **fields, **wanted)
        self.assertEqual(first.beginning, second.beginning)
        self.assertEqual(
            chat(system(words), tools=strict, **fields, **chosen).beginning,
            responses(instructions=words, tools=flat, **fields, **chosen).beginning,
        )
        for found in (first, second):
            self.assertIs(bool(functions), found.has_tools)
        # The shape around a template's text in the first user message is the same, so that both can share a KV cache.
        request = {"messages": [system(words), {"role": "user", "content": "@code x"}], "tools": typed}
        body = json.dumps({**request, **fields, **chosen}).encode()
        template = read_request(body, CHAT, TEMPLATES, 0)
        assert isinstance(template, NamedTemplates)
        self.assertEqual(first.beginning, template.shape)

    def test_user_message(self) -> None:
        """Nothing of the first user message is in the beginning, and nothing that comes later."""
        image = {"type": "image_url", "image_url": {"url": "x"}}
        for content in ("a", "", None, 1, [], [image, {"type": "text", "text": "a"}], {"type": "text"}, MISSING):
            own = {"role": "user", "name": "Eve"} | ({} if content is MISSING else {"content": content})
            for path, name in ((CHAT, "messages"), (MESSAGES, "messages"), (RESPONSES, "input")):
                for rest in ([], [ANSWER, USER], [system("late")]):
                    self.assertEqual(USER_MESSAGE_ONLY, learned(path, {name: [own, *rest]}).beginning, content)
        self.assertEqual(USER_MESSAGE_ONLY, learned(RESPONSES, {"input": "a"}).beginning)

    def test_before(self) -> None:
        """All messages before the first user message are in the beginning; instructions alone may be kept."""
        for before, kept in (
            ([system("a")], True),
            ([system("a"), system("b", "developer")], True),
            ([system("a"), ANSWER], False),
            ([ANSWER], False),
            ([None, 1, {"role": []}], False),
        ):
            for path, name in ((CHAT, "messages"), (MESSAGES, "messages"), (RESPONSES, "input")):
                beginning = learned(path, {name: [*before, USER, ANSWER, USER]}).beginning
                self.assertEqual(before, json.loads(beginning.source)["messages"], path)
                self.assertIs(kept, beginning.may_be_kept, before)
                shape = Shape.of_chat_request({"messages": [*before, USER]}, ("messages", len(before), "content"))
                self.assertEqual(shape, beginning)

    def test_request(self) -> None:
        """The beginning is a shape that a warm-up can make a request of, which has it again."""
        for found in (chat(), chat(system("a"), tools=[TOOL]), responses(tools=[RESPONSE_TOOL], instructions="a")):
            self.assertEqual(found.beginning, learned(CHAT, found.beginning.request("x")).beginning)

    def test_none(self) -> None:
        """Without a user message, and in a plain prompt, there is no beginning."""
        for path, request in (
            (CHAT, {"messages": [system("a")]}),
            (CHAT, {"messages": [{"role": "User", "content": "x"}, "user", ["user"], {}]}),
            (CHAT, {"messages": []}),
            (CHAT, {"messages": "why?"}),
            (CHAT, {"messages": {"role": "user"}}),
            (CHAT, {"prompt": "why?"}),
            (CHAT, [USER]),
            (CHAT, None),
            (MESSAGES, {"system": "a", "messages": [ANSWER]}),
            (RESPONSES, {"instructions": "a"}),
            (RESPONSES, {"input": [{"type": "function_call_output", "output": "x"}]}),
            (RESPONSES, {"input": {"role": "user"}}),
            (PROMPT, {"prompt": "why?", "messages": [USER]}),
            ("/v1/completions", {"prompt": ["why?"]}),
        ):
            self.assertIsNone(read(path, request), request)

    def test_large(self) -> None:
        """A beginning that is too large to be stored is only a digest, and still compared."""
        first, second = (chat(system(word * LARGEST_SHAPE)) for word in "ab")
        self.assertTrue(first.beginning.is_too_large)
        self.assertNotEqual(first.beginning, second.beginning)
        self.assertLess(len(pickle.dumps(first)), 1000)


class Marks(SynchronousTestCase):
    """`ChatRequest.marked` and `has_tools`."""

    def test_marked(self) -> None:
        """A mark on the request, on a tool or on a block of the system prompt counts, and no other one."""
        block, tool = {"type": "text", "text": "a"}, {**ANTHROPIC_TOOL}
        for fields, expected in (
            ({"cache_control": MARK}, True),
            ({"system": [block, {**block, "cache_control": {**MARK, "ttl": "1h"}}, block]}, True),
            ({"tools": [tool, {**tool, "cache_control": MARK}]}, True),
            ({"system": [block], "tools": [tool]}, False),
            ({"system": "cache_control", "tools": "cache_control"}, False),
            ({"system": {"cache_control": MARK}, "tools": {"cache_control": MARK}}, False),
            ({"cache_control": None, "tools": [{**tool, "cache_control": None}]}, False),
            ({"tools": [{**tool, "input_schema": {"cache_control": MARK}}]}, False),
            ({"messages": [{"role": "user", "content": [{**block, "cache_control": MARK}]}]}, False),
        ):
            self.assertIs(expected, messages(**fields).marked, fields)

    def test_no_difference(self) -> None:
        """A mark does not change the beginning: it does not reach the prompt."""
        for mark in ({}, {"cache_control": MARK}):
            block, tool = {"type": "text", "text": "a", **mark}, {**ANTHROPIC_TOOL, **mark}
            found = messages(system=[block], tools=[tool], **mark)
            self.assertEqual(messages(system="a", tools=[ANTHROPIC_TOOL]).beginning, found.beginning)

    def test_other_apis(self) -> None:
        """The other APIs have no marks."""
        self.assertFalse(chat(system("a"), cache_control=MARK, tools=[{**TOOL, "cache_control": MARK}]).marked)
        self.assertFalse(responses(cache_control=MARK).marked)

    def test_tools(self) -> None:
        """Tools are those that llama-server gets."""
        for found, expected in (
            (chat(tools=[STRICT]), True),
            (chat(tools=[]), False),
            (chat(tools=None), False),
            (chat(tools={"a": 1}), False),
            (chat(), False),
            (messages(tools=[ANTHROPIC_TOOL]), True),
            (messages(tools=[1]), False),
            (responses(tools=[{"type": "web_search"}, RESPONSE_TOOL]), True),
            (responses(tools=[{"type": "web_search"}]), False),
            (responses(tools="x"), False),
        ):
            self.assertIs(expected, found.has_tools, found)


class Conversations(SynchronousTestCase):
    """`ChatRequest.conversation`."""

    @given(
        sampled_from(sorted(GATED_CHATS)),
        lists(MESSAGE, max_size=4),
        lists(MESSAGE, max_size=3),
        dictionaries(sampled_from(["system", "instructions", "tools", "reasoning_effort"]), JSON, max_size=2),
    )
    @settings(max_examples=150, derandomize=True, deadline=None)
    def test_continues(self, path: str, begun: list[Any], more: list[Any], fields: dict[str, Any]) -> None:
        """The chain of each turn begins with the chain of the turn before it, whatever the messages are."""
        name = "input" if "responses" in path else "messages"
        first = learned(path, {**fields, name: [USER, *begun]})
        second = learned(path, {**fields, name: [USER, *begun, ANSWER, *more]})
        self.assertEqual(first.message_digests, second.message_digests[: len(first.message_digests)])
        self.assertEqual(len(begun) + len(more) + 2, len(second.message_digests))
        self.assertEqual(ConversationChain(second.message_digests), second.conversation)
        self.assertTrue(second.conversation.continues(first.conversation.all_messages))
        self.assertFalse(first.conversation.continues(second.conversation.all_messages))

    def test_another_beginning(self) -> None:
        """Another system message, other tools or another switch make another conversation."""
        found = (
            *(messages(), messages(system="a"), messages(system="b"), messages(tools=[ANTHROPIC_TOOL])),
            *(chat(reasoning_effort="low"), chat(system("a")), responses(instructions="c")),
        )
        self.assertEqual(len(found), len({each.message_digests[-1] for each in found}))

    def test_apis(self) -> None:
        """The same messages behind equal beginnings are one conversation in two APIs."""
        self.assertEqual(messages().message_digests, chat().message_digests)
        self.assertEqual(responses().message_digests, learned(RESPONSES, {"input": "why?"}).message_digests)

    def test_marks_move(self) -> None:
        """A mark that moves on with each turn, as Claude Code's does, makes no other conversation."""

        def text_block(words: str, **mark: Any) -> list[dict[str, Any]]:
            return [{"type": "text", "text": words, **mark}]

        mark = {"cache_control": MARK}
        result = {"type": "tool_result", "tool_use_id": "1", "content": "x"}
        call = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}
        turns = (
            [{"role": "user", "content": text_block("why?", **mark)}],
            [USER, call, {"role": "user", "content": [{**result, **mark}]}],
            [
                USER,
                call,
                {"role": "user", "content": [result]},
                ANSWER,
                {"role": "user", "content": text_block("b", **mark)},
            ],
        )
        chains = [messages(messages=turn).message_digests for turn in turns]
        for shorter, longer in pairwise(chains):
            self.assertEqual(shorter, longer[: len(shorter)])

    def test_blocks(self) -> None:
        """Everything else in a content block makes another conversation."""
        block = {"type": "text", "text": "why?"}
        contents: tuple[Any, ...] = (
            *("why?", [block, block], [{**block, "type": "x"}], [{**block, "citations": []}], [{"text": "why?"}]),
            *([{**block, "text": 1}], [block, 1], [1], [], None),
        )
        found = [messages(messages=[{"role": "user", "content": content}]).message_digests for content in contents]
        self.assertEqual(len(contents), len(set(found)))
        self.assertEqual(messages(messages=[{"role": "user", "content": [block]}]).message_digests, found[0])

    def test_template_later(self) -> None:
        """A question that names a template continues the conversation without one that precedes it."""
        for path, name in ((CHAT, "messages"), (MESSAGES, "messages"), (RESPONSES, "input")):
            fields = {"instructions": "be brief"} if name == "input" else {"system": "be brief"}
            earlier = learned(path, {**fields, name: [USER, ANSWER]})
            later = {**fields, name: [USER, ANSWER, {"role": "user", "content": "@code how?"}]}
            found = read_request(json.dumps(later).encode(), path, TEMPLATES, None)
            assert isinstance(found, NamedTemplates)
            self.assertEqual(earlier.message_digests, found.message_digests[:2])
            self.assertTrue(
                ConversationChain(found.message_digests, ((2, "x"),)).continues(earlier.conversation.all_messages)
            )

    def test_too_many(self) -> None:
        """A conversation of more messages than can be recognised is not read."""
        self.assertEqual(LONGEST_CONVERSATION, len(chat(*[ANSWER] * (LONGEST_CONVERSATION - 1)).message_digests))
        self.assertIsNone(read(CHAT, {"messages": [USER, *[ANSWER] * LONGEST_CONVERSATION]}))


class Reusable(SynchronousTestCase):
    """`ChatRequest.reusable`."""

    def test_fields(self) -> None:
        """Nothing is reused if a request forbids it, changes the model, asks for another slot, or is not complete."""
        cases: list[tuple[dict[str, Any], bool]] = [
            ({}, True),
            ({"cache_prompt": True}, True),
            ({"cache_prompt": None}, True),
            ({"cache_prompt": False}, False),
            ({"lora": []}, True),
            ({"lora": [{"id": 0, "scale": 0.5}]}, False),
        ]
        slots: list[Any] = [1, 3, -2, 0.5, True, "0", [], [0], {}, 1e300]
        cases += [({"id_slot": slot}, True) for slot in (0, -1, 0.0, None)]
        cases += [({"id_slot": slot}, False) for slot in slots]
        for fields, expected in cases:
            self.assertIs(expected, chat(**fields).reusable, fields)
            self.assertIs(bool(fields.get("lora")), chat(**fields).adapters, fields)
        self.assertFalse(responses(previous_response_id="resp_1").reusable)
        self.assertTrue(responses(previous_response_id=None).reusable)


class Pickled(SynchronousTestCase):
    """What comes back from the second process."""

    def test_small(self) -> None:
        """A chat request comes through `pickle` unchanged, without the texts of its messages, and with its digest."""
        words = "a long question " * 10_000
        found = learned(CHAT, {"messages": [system("be brief"), {"role": "user", "content": words}], "tools": [TOOL]})
        pickled = pickle.dumps(found)
        self.assertEqual(found, pickle.loads(pickled))
        self.assertLess(len(pickled), 2000)
        # Computed where the body is read, not again in the reactor's thread.
        self.assertIn("digest", vars(pickle.loads(pickled).beginning))


class AnyJson(SynchronousTestCase):
    """Whatever a request is, reading it fails in no way."""

    @given(sampled_from(sorted(FORMATS)), one_of(REQUEST, REQUEST, REQUEST, JSON))
    @settings(max_examples=300, derandomize=True, deadline=None)
    def test_each(self, path: str, request: Any) -> None:
        """Any JSON is a chat or nothing; a chat has a beginning and a digest of each message."""
        found = read(path, request)
        if found is None:
            return
        self.assertIn(path, GATED_CHATS)
        given_messages = request["input" if "responses" in path else "messages"]
        self.assertEqual(1 if isinstance(given_messages, str) else len(given_messages), len(found.message_digests))
        shape = json.loads(found.beginning.source)
        self.assertEqual(({}, []), (shape["message"], shape["parts"]))
        self.assertNotIn("user", [each.get("role") for each in shape["messages"] if isinstance(each, dict)])
        self.assertEqual(found, pickle.loads(pickle.dumps(found)))
        self.assertIsInstance(found.beginning.may_be_kept, bool)
