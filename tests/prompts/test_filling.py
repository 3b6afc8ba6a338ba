"""Which templates a request of chat completions names, and the request with them filled in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.digests import digest
from bioproxy.prompts.filling import FilledRequest, NamedTemplates
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Shape
from bioproxy.prompts.templates import Template, TemplateText
from bioproxy.runtime.errors import BodyTooLarge, TooDeep
from tests.support.bodies import filled_body, named_templates

CHAT = "/v1/chat/completions"
NAMES = ("code", "code-review", "context")
TEMPLATES = [Template.of(prefix, Path("/t")) for prefix in ("@code", "@code-review", "/context")]
LIMIT = 1_000_000
TEXTS = {name: TemplateText((f"{name}[", "]"), (), ()) for name in NAMES}

# What a user writes, and what llama-server gets.  `None`: the message names no template.
MESSAGES: list[tuple[str, str | None]] = [
    ("@code", "code[]"),
    ("@code why?", "code[why?]"),
    ("@code \t\r\n why? \n", "code[why?]"),
    ("@code\nwhy?\nwhen?", "code[why?\nwhen?]"),
    ("@code\u00a0why?", "code[why?]"),
    ("@code ", "code[]"),
    ("@code @code why?", "code[@code why?]"),
    ("@code-review why?", "code-review[why?]"),
    ("@code -review", "code[-review]"),
    ("/context é\ud83d\u0000", "context[é\ud83d\u0000]"),
    ("@code <{message}> <{/etc/passwd}>", "code[<{message}> <{/etc/passwd}>]"),
    ("@codex", None),
    ("@code, why?", None),
    ("@code.", None),
    ("@code-reviewer", None),
    ("@Code why?", None),
    (" @code why?", None),
    ("why @code?", None),
    ("@cod", None),
    ("code why?", None),
    ("@", None),
    ("", None),
]

# Requests that are passed on as they are: odd requests, odd messages, odd contents, odd parts.
NO_REQUESTS: list[Any] = [None, 1, "@code", [], ["@code"], {}, {"prompt": "@code"}]
NO_LISTS: list[Any] = [None, 1, "@code", {}, {"0": {"role": "user", "content": "@code"}}, []]
NO_MESSAGES: list[Any] = [None, 1, "@code", ["@code"], {}, {"content": "@code"}, {"role": "user"}]
NO_USERS: list[Any] = ["system", "assistant", "tool", "User", None, 1, []]
NO_CONTENTS: list[Any] = [None, 1, {}, {"type": "text", "text": "@code"}, [], [[]], ["@code"], [None]]
NO_PARTS: list[Any] = [
    *({"type": "text", "text": value} for value in (None, 1, ["@code"])),
    *({"type": kind, "text": "@code"} for kind in ("image_url", "input_text", None)),
    {"type": "text"},
    {"text": "@code"},
    {"type": "image_url", "image_url": {"url": "@code"}},
]
OTHERS: list[Any] = [
    *NO_REQUESTS,
    *({"messages": value} for value in (*NO_LISTS, NO_MESSAGES)),
    {"messages": [{"role": role, "content": "@code"} for role in NO_USERS]},
    {"messages": [{"role": "user", "content": content} for content in (*NO_CONTENTS, NO_PARTS)]},
]


def find(body: str | bytes) -> NamedTemplates:
    """Return the templates that a request names, at least one."""
    found = named_templates(CHAT, body.encode() if isinstance(body, str) else body, TEMPLATES)
    assert found is not None, body
    return found


def fill(body: str | bytes, texts: dict[str, TemplateText] = TEXTS) -> FilledRequest:
    """Return the filled request; it must name a template."""
    return find(body).fill(texts, LIMIT)


def new_body(body: str | bytes) -> bytes:
    """Return the body of the filled request."""
    source = body.encode() if isinstance(body, str) else body
    return filled_body(source, find(source), TEXTS)


def chat(*messages: Any, **fields: Any) -> str:
    """Return a chat request; a string or a list among the messages is the content of a user message."""
    written = [{"role": "user", "content": each} if isinstance(each, str | list) else each for each in messages]
    return json.dumps({"messages": written, **fields})


def text(content: str) -> dict[str, str]:
    """Return a content part with a text."""
    return {"type": "text", "text": content}


IMAGE = {"type": "image_url", "image_url": {"url": "data:,@code"}}


class Filling(SynchronousTestCase):
    """`search_json` and `fill`."""

    def test_messages(self) -> None:
        """A prefix counts at the beginning, before white space or the end; the longest wins; the message is trimmed."""
        for message, expected in MESSAGES:
            for content, place in ((message, ()), ([text(message)], (0, "text"))):
                body = chat(content)
                if expected is None:
                    self.assertIsNone(named_templates(CHAT, body.encode(), TEMPLATES), message)
                    continue
                sent = json.loads(new_body(body))["messages"][0]["content"]
                self.assertEqual(expected, sent[place[0]][place[1]] if place else sent, message)

    def test_order_of_templates(self) -> None:
        """The longest prefix wins, in whatever order the templates are given."""
        for known in (TEMPLATES, TEMPLATES[::-1]):
            found = named_templates(CHAT, chat("@code-review x").encode(), known)
            assert found is not None
            self.assertEqual(["code-review"], [template.name for template in found.templates])

    def test_others(self) -> None:
        """A body that is not a chat request, or that names no template, is left alone."""
        for request in OTHERS:
            self.assertIsNone(named_templates(CHAT, json.dumps(request).encode(), TEMPLATES), request)
        for body in (b"", b"@code", b'{"messages"', b'{"messages":[{"role":"user","content":"@code \xff"}]}'):
            self.assertIsNone(named_templates(CHAT, body, TEMPLATES), body)

    def test_no_templates(self) -> None:
        """Without templates no request names one."""
        self.assertIsNone(named_templates(CHAT, chat("@code").encode(), []))

    def test_every_turn(self) -> None:
        """Each user message is filled, in every turn; messages of other roles are not."""
        body = chat(
            {"role": "system", "content": "@code no"},
            "@code one",
            {"role": "assistant", "content": "@code no"},
            "none",
            "/context two",
            "@code three",
        )
        filled = fill(body)
        self.assertEqual(
            ["@code no", "code[one]", "@code no", "none", "context[two]", "code[three]"],
            [message["content"] for message in json.loads(new_body(body))["messages"]],
        )
        self.assertEqual("code", filled.template.name)

    def test_templates_needed(self) -> None:
        """Each needed template is listed once, in the order of the conversation."""
        found = named_templates(CHAT, chat("/context", "@code", "/context", "@code").encode(), TEMPLATES)
        assert found is not None
        self.assertEqual(["context", "code"], [template.name for template in found.templates])

    def test_content_list(self) -> None:
        """Texts in a content list are filled in place; images and unknown parts stay as they are."""
        other = {"type": "later", "text": "@code", "more": [1.5]}
        sent = json.loads(new_body(chat([IMAGE, text("@code a"), other, text("b"), text("/context c")])))
        expected = [IMAGE, text("code[a]"), other, text("b"), text("context[c]")]
        self.assertEqual(expected, sent["messages"][0]["content"])

    def test_nothing_else_changes(self) -> None:
        """Apart from the texts and the slot, every byte of the request stays the same."""
        body = (
            b' {"temperature":1e400,"seed":1.10,"x":{"y":[]},"x":2, "n" :\t12345678901234567890,\r\n'
            b'"messages":[ {"content":"%s","role":"user","name":"\\u00e9"} ],"stream":true,"s":"\\ud800\\/\xc3\xa9"}\n'
        )
        expected = body.replace(b"{", b'{"id_slot": 0, ', 1) % b"code[a]"
        self.assertEqual(expected, new_body(body % b"@code a"))

    def test_slot(self) -> None:
        """A filled request uses slot 0, whatever slot the client asked for."""
        for slot in ("-1", "3", "null", '"x"'):
            body = f'{{"id_slot" :{slot},"messages":[{{"role":"user","content":"@code"}}]}}'
            expected = '{"id_slot" :0,"messages":[{"role":"user","content":"code[]"}]}'
            self.assertEqual(expected.encode(), new_body(body))

    def test_deep_nesting(self) -> None:
        """A request that nests too deep to be parsed is refused: it must not be sent unfilled."""
        limit = sys.getrecursionlimit()
        refused = set()
        for field in ("tools", "other"):
            for depth in (*range(limit - 200, limit + 20), 100_000):
                body = b'{"%s":%s%s,"messages":[{"role":"user","content":"@code"}]}'
                try:
                    found = named_templates(CHAT, body % (field.encode(), b"[" * depth, b"]" * depth), TEMPLATES)
                    self.assertIsNotNone(found)
                    assert found is not None
                    found.fill(TEXTS, LIMIT)
                except TooDeep:
                    refused.add(depth)
        # How deep Python can parse depends on its version.  No real request nests that deep.
        self.assertIn(100_000, refused)

    def test_too_large(self) -> None:
        """A request that would have more bytes than the limit is refused; one that has exactly the limit is not."""
        body = chat("@code a", "\U0001f600@code", "@code b \U0001f600")
        found = find(body)
        size = len(new_body(body))
        found.fill(TEXTS, size)
        with self.assertRaises(BodyTooLarge):
            found.fill(TEXTS, size - 1)

    def test_byte_order_mark(self) -> None:
        """A request with a byte-order mark in front is filled, because llama-server accepts it."""
        self.assertIn(b"code[a]", new_body(b"\xef\xbb\xbf" + chat("@code a").encode()))

    def test_null_character(self) -> None:
        """A request with a null character behind the JSON is filled: for llama-server that is the end."""
        self.assertIn(b"code[a]", new_body(chat("@code a").encode() + b"\0 and more"))
        self.assertIn(b"code[a]", new_body(chat("@code a").encode() + b"\0\xff"))


SYSTEM = {"role": "system", "content": "a"}
ANSWER = {"role": "assistant", "content": "fine"}


class Keys(SynchronousTestCase):
    """`FilledRequest.key`: equal for prompts with the same beginning, and for no others."""

    def test_text(self) -> None:
        """The key depends on the prefix text of the first template: on which template it is, and on its content."""
        self.assertEqual(USER_MESSAGE_ONLY.key(digest("code[")), fill(chat("@code x")).key)
        self.assertEqual(USER_MESSAGE_ONLY.key(digest("context[")), fill(chat("/context", "@code")).key)
        edited = {**TEXTS, "code": TemplateText(("CODE[", "]"), (), ())}
        self.assertEqual(USER_MESSAGE_ONLY.key(digest("CODE[")), fill(chat("@code x"), edited).key)

    def test_behind_the_message(self) -> None:
        """The key does not depend on what the template has behind the message."""
        edited = {**TEXTS, "code": TemplateText(("code[", "] and more"), (), ())}
        self.assertEqual(fill(chat("@code x")).key, fill(chat("@code x"), edited).key)

    def test_shape(self) -> None:
        """The key contains the shape around the text, wherever the text is in the request."""
        for body, place in (
            (chat(SYSTEM, "@code x", tools=[{"a": 1}]), ("messages", 1, "content")),
            (chat([text("before"), text("@code x")]), ("messages", 0, "content", 1, "text")),
            (chat("@code x", ANSWER, "@code y"), ("messages", 0, "content")),
        ):
            shape = Shape.of_chat_request(json.loads(body), place)
            self.assertEqual(shape.key(digest("code[")), fill(body).key, body)
        self.assertEqual(fill(chat("@code")).key, fill(chat([text("@code one"), IMAGE])).key)
        self.assertNotEqual(fill(chat("@code")).key, fill(chat([IMAGE, text("@code")])).key)

    def test_first(self) -> None:
        """A request has its shape, and tells whether the template is in the last message or in an earlier turn."""
        place = ("messages", 1, "content")
        for body in (chat(SYSTEM, "@code x"), chat(SYSTEM, [text("@code x"), text("@code y")])):
            shape = Shape.of_chat_request(json.loads(chat(SYSTEM, "@code")), place)
            self.assertEqual((shape, True), (fill(body).shape, fill(body).first_question))
        for body in (chat("@code x", ANSWER, "y"), chat("@code x", ANSWER, "@code y"), chat("@code x", "y")):
            self.assertIs(False, fill(body).first_question, body)

    def test_reuse(self) -> None:
        """A KV cache may be reused unless the client sends `"cache_prompt": false`."""
        for fields, expected in (({}, True), ({"cache_prompt": True}, True), ({"cache_prompt": None}, True)):
            self.assertIs(expected, fill(chat("@code", **fields)).reusable)
        self.assertIs(False, fill(chat("@code", cache_prompt=False)).reusable)
        self.assertIs(False, fill(chat("@code")).adapters)
        found = fill(chat("@code", lora=[{"id": 0, "scale": 1}]))
        self.assertEqual((False, True), (found.reusable, found.adapters))
