"""The shape of a request around a template's text."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.prompt_shape import DEEPEST_SHAPE, LARGEST_SHAPE, USER_MESSAGE_ONLY, Key, Shape

SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
BEFORE = {"type": "text", "text": "before"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def user(content: Any, **fields: Any) -> dict[str, Any]:
    """Return a user message."""
    return {"role": "user", **fields, "content": content}


def shape(*messages: Any, before: int = 0, **fields: Any) -> Shape:
    """Return the shape of a request whose template is in the message with the index `before`."""
    content = messages[before]["content"]
    part = (len(content) - 1, "text") if isinstance(content, list) else ()
    return Shape.of_chat_request({"messages": list(messages), **fields}, ("messages", before, "content", *part))


TEXT = {"type": "text", "text": "@code x"}

SHAPES = {
    "user message only": shape(user("@code x")),
    "system": shape(SYSTEM, user("@code x"), before=1),
    "another text": shape({**SYSTEM, "content": "Be long."}, user("@code x"), before=1),
    "text parts": shape({**SYSTEM, "content": [BEFORE]}, user("@code x"), before=1),
    "developer": shape({**SYSTEM, "role": "developer"}, user("@code x"), before=1),
    "twice": shape(SYSTEM, SYSTEM, user("@code x"), before=2),
    "a user before": shape(user("before"), user("@code x"), before=1),
    "a part before": shape(user([BEFORE, TEXT])),
    "a name": shape(user("@code x", name="eve")),
    "tools": shape(user("@code x"), tools=TOOLS),
    "another tool": shape(user("@code x"), tools=[{**TOOLS[0], "function": {"name": "g"}}]),
    "tool choice": shape(user("@code x"), tool_choice="required"),
    "parallel": shape(user("@code x"), parallel_tool_calls=True),
    "not parallel": shape(user("@code x"), parallel_tool_calls=False),
    "format": shape(user("@code x"), response_format={"type": "json_object"}),
    "schema": shape(user("@code x"), json_schema={"type": "object"}),
    "thinking": shape(user("@code x"), chat_template_kwargs={"enable_thinking": True}),
    "not thinking": shape(user("@code x"), chat_template_kwargs={"enable_thinking": False}),
    "effort": shape(user("@code x"), reasoning_effort="low"),
    "reasoning": shape(user("@code x"), reasoning_format="none"),
    "no answer begun": shape(user("@code x"), add_generation_prompt=False),
    "all of it": shape(SYSTEM, user([BEFORE, TEXT], name="eve"), before=1, tools=TOOLS, reasoning_effort="low"),
}
"""Requests with different shapes."""


class Comparison(SynchronousTestCase):
    """Which requests have the same shape."""

    def test_same(self) -> None:
        """The message, later turns, sampling, empty fields and the form of the content make no difference."""
        later = ({"role": "assistant", "content": "x"}, user("two"))
        for same in (
            shape(user("@code another question")),
            shape(user("@code x"), *later),
            shape(user([TEXT])),
            Shape.of_chat_request({"messages": [user([TEXT, IMAGE, BEFORE])]}, ("messages", 0, "content", 0, "text")),
            shape(user("@code x"), temperature=0.5, stream=True, model="m", id_slot=3, max_tokens=5),
            shape(user("@code x"), tools=[], tool_choice=None, chat_template_kwargs={}, reasoning_effort=""),
        ):
            self.assertEqual(USER_MESSAGE_ONLY, same)
        self.assertEqual(SHAPES["system"], shape(SYSTEM, user("@code other"), *later, before=1))

    def test_different(self) -> None:
        """Everything that a chat template may put before the message makes another shape."""
        self.assertEqual(len(SHAPES), len({each.digest for each in SHAPES.values()}))

    def test_order_of_keys(self) -> None:
        """Another order of keys makes another shape: a chat template writes tool definitions as they came."""
        one, two = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
        self.assertNotEqual(shape(user("x"), tools=[one]).digest, shape(user("x"), tools=[two]).digest)

    def test_message_is_not_kept(self) -> None:
        """A shape contains nothing of the message and of what follows."""
        for content in ("@code SECRET", [BEFORE, {"type": "text", "text": "@code SECRET"}]):
            self.assertNotIn("SECRET", shape(user(content), {"role": "assistant", "content": "SECRET"}).source)

    def test_key(self) -> None:
        """Keys are equal only for the same text and the same shape."""
        self.assertEqual(Key("t", USER_MESSAGE_ONLY.digest), SHAPES["user message only"].key("t"))
        keys = {each.key(text) for each in SHAPES.values() for text in ("t", "u")}
        self.assertEqual(2 * len(SHAPES), len(keys))


class Requests(SynchronousTestCase):
    """`Shape.request`."""

    def test_user_message_only(self) -> None:
        """`USER_MESSAGE_ONLY` gives a request with nothing but a user message."""
        self.assertEqual({"messages": [user("hello")]}, USER_MESSAGE_ONLY.request("hello"))

    def test_all_of_it(self) -> None:
        """The request contains everything that was around the text, in the same order."""
        expected = {
            "messages": [SYSTEM, user([BEFORE, {"type": "text", "text": "hello"}], name="eve")],
            "tools": TOOLS,
            "reasoning_effort": "low",
        }
        self.assertEqual(expected, SHAPES["all of it"].request("hello"))

    def test_same_shape(self) -> None:
        """The request has the same shape again, even if the shape was read from a file."""
        for name, each in SHAPES.items():
            request = Shape(json.loads(json.dumps(each.source))).request("x")
            index = len(request["messages"]) - 1
            content = request["messages"][index]["content"]
            part = (len(content) - 1, "text") if isinstance(content, list) else ()
            self.assertEqual(each, Shape.of_chat_request(request, ("messages", index, "content", *part)), name)


class MayBeKept(SynchronousTestCase):
    """`Shape.may_be_kept`."""

    def test_kept(self) -> None:
        """Instructions, tools and settings are kept; what a user wrote before the template is not."""
        refused = [name for name, each in SHAPES.items() if not each.may_be_kept]
        self.assertEqual(["a user before", "a part before", "all of it"], refused)

    def test_not_kept(self) -> None:
        """Histories, content that is not text, invalid messages and very long shapes are not kept."""
        before: dict[str, Any] = {
            "an answer": {"role": "assistant", "content": "x"},
            "a tool's result": {"role": "tool", "content": "x"},
            "an image": user([BEFORE, IMAGE]),
            "an odd part": user(["text"]),
            "no message": "text",
            "long": {"role": "system", "content": "x" * LARGEST_SHAPE},
        }
        for name, message in before.items():
            self.assertFalse(shape(message, user("@code x"), before=1).may_be_kept, name)
        self.assertFalse(shape(user([IMAGE, TEXT])).may_be_kept)

    def test_nesting(self) -> None:
        """Shapes that nest deeper than any tool description are not kept: a recursive function could fail on them."""
        for depth, expected in ((DEEPEST_SHAPE - 10, True), (DEEPEST_SHAPE + 1, False), (300, False)):
            for inner in (dict[str, Any](), list[Any]()):
                value: Any = inner
                for _ in range(depth):
                    value = {"a": value} if isinstance(value, dict) else [value]
                self.assertEqual(expected, shape(user("@code x"), tools=[value]).may_be_kept, depth)

    def test_no_json(self) -> None:
        """Numbers that JSON cannot express are not kept; texts that only look like them are."""
        for number in (float("inf"), float("-inf"), float("nan")):
            self.assertFalse(shape(user("@code x"), chat_template_kwargs={"x": number}).may_be_kept, number)
        system = {"role": "system", "content": "Never return NaN or Infinity."}
        self.assertTrue(shape(system, user("@code x"), before=1).may_be_kept)
