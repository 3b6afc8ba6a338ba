"""Which bodies are read, what for, and which are refused."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis.strategies import binary, just, one_of, sampled_from, text
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.api_formats import FORMATS, GATED_CHATS, UNGATED
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.prompts.request_search import may_be_read, read_request
from bioproxy.prompts.template_search import MOST_FILLED
from bioproxy.runtime.errors import BodyTooLarge, ProxyError, TemplateError, TooDeep
from tests.prompts.test_filling import TEMPLATES

CHAT = "/v1/chat/completions"
PROMPTS = {"/completion", "/completions", "/v1/completions"}
FORM = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n%s\r\n--b--'


def body_of(words: str, **fields: Any) -> bytes:
    """Return a body that every API understands, with these words of the user."""
    messages = [{"role": "user", "content": words}]
    return json.dumps({"messages": messages, "input": messages, "prompt": words, **fields}).encode()


def nested(words: str, levels: int = 200_000) -> bytes:
    """Return a body that nests too deep for Python's parser."""
    return body_of(words)[:-1] + b', "x": ' + b"[" * levels + b"]" * levels + b"}"


class Kinds(SynchronousTestCase):
    """`read_request`: which of the three answers."""

    def test_each_path(self) -> None:
        """A request names templates, or is a chat where chats are learned from, on the paths that use the slot."""
        self.assertEqual(set(FORMATS) - UNGATED - PROMPTS, GATED_CHATS)
        for path in FORMATS:
            for least in (None, 0):
                self.assertIsInstance(read_request(body_of("@code x"), path, TEMPLATES, least), NamedTemplates, path)
            for words in ("hello", "x @code", "\u00e9 \ud83d\ude00"):
                for known in (TEMPLATES, []):
                    self.assertIsNone(read_request(body_of(words), path, known, None), path)
                    kind = ChatRequest if path in GATED_CHATS else type(None)
                    self.assertIsInstance(read_request(body_of(words), path, known, 0), kind, path)
        for path in ("/tokenize", "/infill", "/v1/embeddings", "/v1/messages/", ""):
            self.assertIsNone(read_request(body_of("@code x"), path, TEMPLATES, 0), path)

    def test_no_templates(self) -> None:
        """Where no templates are known, a text that looks like a prefix is a text like any other."""
        self.assertIsInstance(read_request(body_of("@code x"), CHAT, [], 0), ChatRequest)

    def test_least(self) -> None:
        """A body with fewer bytes is not read for learning; templates in it are found all the same."""
        body, named = body_of("hello"), body_of("@code x")
        for least, kind in ((len(body), ChatRequest), (len(body) + 1, type(None)), (None, type(None))):
            for known in (TEMPLATES, []):
                self.assertIsInstance(read_request(body, CHAT, known, least), kind)
        self.assertIsInstance(read_request(named, CHAT, TEMPLATES, len(named) + 1), NamedTemplates)

    def test_same_answer(self) -> None:
        """A chat is the same whether its body may name a template, and was searched for it, or not."""
        body = body_of("hello", system="x")
        spelled = body.replace(b"hello", rb"\u0068ello")
        self.assertEqual(read_request(body, CHAT, [], 0), read_request(spelled, CHAT, TEMPLATES, 0))

    def test_may_be_read(self) -> None:
        """What the reactor does not hand to the worker would have given nothing."""
        for path in (*FORMATS, "/tokenize"):
            for words in ("hello", "@code x"):
                for known in (TEMPLATES, []):
                    for least in (None, 0, 10_000):
                        body = body_of(words)
                        if not may_be_read(path, len(body), known, least):
                            self.assertIsNone(read_request(body, path, known, least))
        self.assertFalse(may_be_read(CHAT, 999, [], 1000))
        self.assertTrue(may_be_read(CHAT, 1000, [], 1000))
        self.assertFalse(may_be_read("/completion", 1000, [], 1000))


class Refusals(SynchronousTestCase):
    """`read_request`: a body that may name a template is refused if it cannot be read, and no other."""

    def test_too_deep(self) -> None:
        """What nests too deep is refused if it may name a template."""
        for path in sorted(FORMATS):
            for least in (None, 0):
                with self.assertRaises(TooDeep):
                    read_request(nested("@code x"), path, TEMPLATES, least)
                with self.assertRaises(TooDeep):
                    read_request(nested("\u00e9"), path, TEMPLATES, least)
                self.assertIsNone(read_request(nested("hello"), path, TEMPLATES, least))
                self.assertIsNone(read_request(nested("@code x"), path, [], least))

    def test_depths(self) -> None:
        """Around the depth that Python can parse, a chat is read or not, and never refused."""
        limit = sys.getrecursionlimit()
        for levels in (limit // 2, *range(limit - 200, limit + 50, 10), 20 * limit, 200 * limit):
            for name in ("x", "tools", "system", "messages"):
                inner = "[" * levels + "]" * levels
                values = f'[{{"role":"user","content":{inner}}}]' if name == "messages" else inner
                source = f'{{"messages": [{{"role": "user", "content": "hello"}}], "{name}": {values}}}'
                for path in ("/v1/messages", CHAT):
                    read_request(source.encode(), path, [], 0)
                    read_request(source.encode(), path, TEMPLATES, 0)

    def test_as_before(self) -> None:
        """Learning changes no refusal of a request that names a template."""
        many = json.dumps({"messages": [{"role": "user", "content": "@code"}] * (MOST_FILLED + 1)}).encode()
        for least in (None, 0):
            with self.assertRaises(BodyTooLarge):
                read_request(many, CHAT, TEMPLATES, least)
            with self.assertRaises(TemplateError):
                read_request(FORM % b"@code", CHAT, TEMPLATES, least)
            # JSON ends at a null character, and what is behind it may still be taken for a form.
            with self.assertRaises(TemplateError):
                read_request(body_of("hello") + b"\0" + FORM % b"@code", CHAT, TEMPLATES, least)
            self.assertIsNone(read_request(FORM % b"hello", CHAT, TEMPLATES, least))
            self.assertIsNone(read_request(FORM % b"@code", CHAT, [], least))

    @given(
        sampled_from(sorted(FORMATS)),
        one_of(binary(max_size=40), text(max_size=40).map(str.encode), just(b"\xff"), just(b"\xef\xbb\xbf")),
        sampled_from([b"%s", b"{%s", b'{"messages": [{"role": "user", "content": "%s"}]}', b'{"input": "%s"']),
    )
    @settings(max_examples=150, derandomize=True, deadline=None)
    def test_no_json(self, path: str, noise: bytes, around: bytes) -> None:
        """Any bytes are read without an exception; where a template may be named, with those for the client only."""
        body = around % noise
        read_request(body, path, [], 0)
        with contextlib.suppress(ProxyError):
            read_request(body + b"@code", path, TEMPLATES, 0)

    def test_odd_spellings(self) -> None:
        """A chat in a spelling that llama.cpp accepts is read like any other."""
        body = body_of("hello")
        expected = read_request(body, CHAT, [], 0)
        self.assertIsInstance(expected, ChatRequest)
        for odd in (b"\xef\xbb\xbf" + body, body + b"\0\0x", b" \r\n" + body, b'{"n":' + b"9" * 5000 + b"," + body[1:]):
            self.assertEqual(expected, read_request(odd, CHAT, [], 0))
        twice = b'{"messages": [{"role": "user", "content": "no"}], ' + body[1:]
        self.assertEqual(expected, read_request(twice, CHAT, [], 0))
