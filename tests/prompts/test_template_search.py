"""Searching and filling in each API, and the quick search that precedes parsing."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts import template_search
from bioproxy.prompts.templates import Template, TemplateText
from tests.support.bodies import filled_body, named_templates

CHAT, MESSAGES, RESPONSES, PROMPT = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion"
TEMPLATES = [Template.of(prefix, Path("/t")) for prefix in ("@code", "/context")]
TEXTS = {template.name: TemplateText((f"{template.name}[", "]"), (), ()) for template in TEMPLATES}
LIMIT = 1_000_000

# For each API a body with two user texts (`%s`), and the second text, where it is not the user's.
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
    """`search_json` and `fill`, for each API."""

    def test_filled(self) -> None:
        """The user's texts are filled, `id_slot` is inserted in front, and all other bytes stay the same."""
        for path, (body, last) in BODIES.items():
            source = (body % ("@code a", last or "/context  b ")).encode()
            found = named_templates(path, source, TEMPLATES)
            assert found is not None, path
            expected = body.replace("{", '{"id_slot": 0, ', 1) % ("code[a]", last or "context[b]")
            self.assertEqual(expected, filled_body(source, found, TEXTS).decode(), path)
            self.assertEqual("code", found.fill(TEXTS, LIMIT).template.name)

    def test_not_filled(self) -> None:
        """A request whose user texts name no template is not filled, even if other texts in it begin with a prefix."""
        for path, (body, _) in BODIES.items():
            self.assertIsNone(named_templates(path, (body % ("a @code", "@codex")).encode(), TEMPLATES), path)

    def test_huge_number(self) -> None:
        """A request with a number that `int` refuses, but llama.cpp accepts, is filled all the same."""
        for path, (body, last) in BODIES.items():
            text = (body % ("@code a", last)).replace("{", '{"huge": %s, ' % ("9" * 5000), 1)
            found = named_templates(path, text.encode(), TEMPLATES)
            assert found is not None, path
            self.assertIn(b"code[a]", filled_body(text.encode(), found, TEXTS))
            self.assertIn(b"9" * 5000, filled_body(text.encode(), found, TEXTS))


class MayNameTemplate(SynchronousTestCase):
    """`may_name_template`."""

    def test_spellings(self) -> None:
        """A body that contains a prefix, in any spelling, may name a template; no other body may."""
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
        """Without templates no body names one."""
        self.assertFalse(template_search.may_name_template(b"@code \\u0040", []))

    def test_odd_prefixes(self) -> None:
        """Prefixes with characters that JSON escapes are found in both spellings."""
        for prefix in ('"code', '@"code', "\\code", "@\\code", "§code", "\U0001f600code"):
            template = Template.of(prefix, Path("/t"))
            for ascii_only in (True, False):
                body = json.dumps({"prompt": f"{prefix} x"}, ensure_ascii=ascii_only).encode()
                self.assertTrue(template_search.may_name_template(body, [template]), prefix)
                self.assertIsNotNone(named_templates(PROMPT, body, [template]), prefix)

    def test_control_characters(self) -> None:
        """A prefix must not contain a control character, for which JSON has several spellings."""
        for number in (*range(32), 127):
            with self.assertRaises(ValueError):
                Template.of(f"{chr(number)}code", Path("/t"))
