"""Properties of filling, checked with requests that hypothesis generates."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis.strategies import SearchStrategy, just, lists, one_of, recursive, sampled_from, text, tuples
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts import template_search
from bioproxy.prompts.api_formats import FORMATS
from bioproxy.prompts.templates import Template, TemplateText
from tests.support.bodies import filled_body, named_templates

TEMPLATES = [Template.of(prefix, Path("/t")) for prefix in ("@code", "/context")]
TEXTS = {template.name: TemplateText((f'"{template.name}\\[', "]\n"), (), ()) for template in TEMPLATES}
NAMED = re.compile(r"(@code|/context)(?=\s|\Z)(.*)", re.DOTALL)
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[-+.\w]+|.', re.DOTALL)
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion")


def spellings(word: str) -> list[str]:
    """Return several ways to write a text as a JSON string."""
    units = word.encode("utf-16-be", "surrogatepass")
    escaped = "".join(f"\\u{units[at]:02x}{units[at + 1]:02X}" for at in range(0, len(units), 2))
    ways = [json.dumps(word), f'"{escaped}"', json.dumps(word).replace("/", "\\/")]
    plain = json.dumps(word, ensure_ascii=False)
    return [*ways, plain] if word.isascii() or "\ud83d" not in word else ways


def spelled(*words: str) -> SearchStrategy[str]:
    """Generate one of these texts, written as a JSON string in one of several ways."""
    return sampled_from([spelling for word in words for spelling in spellings(word)])


SPACE = sampled_from(["", "", "", " ", "\r\n\t"])
NUMBERS = sampled_from(["0", "-1", "1.10", "1e400", "-1E-400", "12345678901234567890", "huge", "0.1e+1", "-0"]).map(
    lambda number: number.replace("huge", "9" * 5000)
)
WORDS = spelled(
    "@code", "@code why?", "/context\n é ", "@code\u00a0x", "@codex", "x @code", "", "\ud83d \x00\\", "user"
)
OTHERS = sampled_from(["null", "true", "false", "NaN", "Infinity"])
KEYS = spelled("role", "content", "type", "text", "x", "prompt_string", "messages", "tools", "system", "")


def array(values: SearchStrategy[str]) -> SearchStrategy[str]:
    """Generate a JSON array of these values."""
    return tuples(SPACE, lists(values, max_size=3)).map(lambda drawn: f"[{drawn[0]}{f', {drawn[0]}'.join(drawn[1])}]")


def members(*pairs: SearchStrategy[tuple[str, str]]) -> SearchStrategy[str]:
    """Generate a JSON object with some of these members, in any order, and possibly the same one twice."""
    member = tuples(one_of(*pairs), SPACE).map(lambda drawn: f"{drawn[0][0]}{drawn[1]}:{drawn[1]}{drawn[0][1]}")
    return tuples(SPACE, lists(member, max_size=5)).map(
        lambda drawn: f"{{{drawn[0]}{f'{drawn[0]},'.join(drawn[1])}{drawn[0]}}}"
    )


ANY = recursive(
    one_of(NUMBERS, WORDS, OTHERS), lambda inner: one_of(array(inner), members(tuples(KEYS, inner))), max_leaves=6
)


def member(name: str, *values: SearchStrategy[str]) -> SearchStrategy[tuple[str, str]]:
    """Generate a member of an object; its value is usually valid, and sometimes of any type."""
    return tuples(spelled(name), one_of(*values, *values, ANY))


def message(part: str) -> SearchStrategy[str]:
    """Generate a message with parts of this type, usually a user's; sometimes something is missing or odd."""
    parts = members(member("type", spelled(part, "image")), member("text", WORDS), member("x", ANY))
    valid_part = tuples(spelled(part), WORDS).map(lambda drawn: f'{{"type":{drawn[0]},"text" : {drawn[1]}}}')
    content = one_of(WORDS, array(one_of(valid_part, parts)))
    odd = members(member("role", spelled("user", "assistant")), member("content", content), member("x", ANY))
    valid = tuples(content, SPACE, ANY).map(
        lambda drawn: f'{{"role":"user",{drawn[1]}"content":{drawn[0]},"x":{drawn[2]}}}'
    )
    return one_of(valid, valid, odd)


def texts_of(path: str) -> SearchStrategy[tuple[str, str]]:
    """Generate the member of a request to this path that contains the user's texts."""
    if path == "/completion":
        one = tuples(WORDS, ANY).map(lambda drawn: f'{{"x":{drawn[1]},"prompt_string":{drawn[0]}}}')
        return tuples(spelled("prompt"), one_of(WORDS, one, array(WORDS), array(one_of(WORDS, one)), ANY))
    if path == "/v1/responses":
        return tuples(spelled("input"), one_of(WORDS, array(message("input_text"))))
    return tuples(spelled("messages"), array(message("text")))


def request(path: str) -> SearchStrategy[tuple[str, str]]:
    """Generate a request to this path; the result is the path and the body."""
    slot = tuples(spelled("id_slot"), one_of(NUMBERS, WORDS, OTHERS))
    others = lists(one_of(slot, tuples(KEYS, ANY), texts_of(path)), max_size=3)
    pairs = tuples(others, texts_of(path), others).map(lambda drawn: [*drawn[0], drawn[1], *drawn[2]])
    return tuples(just(path), pairs, SPACE).map(
        lambda drawn: (
            drawn[0],
            f"{drawn[2]}{{{f',{drawn[2]}'.join(f'{key}{drawn[2]}:{value}' for key, value in drawn[1])}}}{drawn[2]}",
        )
    )


REQUESTS = one_of(*map(request, PATHS))


@dataclass(frozen=True)
class Number:
    """A number in the way in which it is written."""

    digits: str


def read(body: str | bytes) -> Any:
    """Parse JSON, with each number as it is written."""
    return json.loads(body, parse_int=Number, parse_float=Number)


def at(value: Any, place: tuple[str | int, ...]) -> Any:
    """Return the value at a path."""
    for key in place:
        value = value[key]
    return value


class Filling(SynchronousTestCase):
    """`search_json`, `fill` and `may_name_template`."""

    found = 0

    def check(self, path: str, source: str) -> None:
        """Check all promised properties for one request."""
        body = source.encode()
        request = read(body)
        matches = [
            (user_text.path, match)
            for user_text in FORMATS[path](request).user_texts
            if (match := NAMED.match(user_text.text))
        ]
        found = named_templates(path, body, TEMPLATES)
        self.assertEqual(bool(matches), found is not None)
        if found is None:
            return
        self.found += 1
        self.assertTrue(template_search.may_name_template(body, TEMPLATES))

        # All values except the filled texts and the slot are the same, in the same order.
        expected = copy.deepcopy(request)
        for place, match in matches:
            name = match[1].strip("@/")
            at(expected, place[:-1])[place[-1]] = TEXTS[name].fill(match[2].strip())
        if "id_slot" in request:
            expected["id_slot"] = Number("0")
        else:
            expected = {"id_slot": Number("0"), **expected}
        filled = filled_body(body, found, TEXTS).decode()
        self.assertEqual(repr(expected), repr(read(filled)))

        # The bytes are the same as well: only the JSON tokens of those values are different.
        if "id_slot" not in request:
            begin = source.index("{") + 1
            self.assertEqual(source[:begin] + '"id_slot": 0, ', filled[: begin + 14])
            filled = filled[:begin] + filled[begin + 14 :]
        before, after = TOKEN.findall(source), TOKEN.findall(filled)
        self.assertEqual(len(before), len(after))
        changed = sorted(new for old, new in zip(before, after, strict=True) if old != new)
        texts = [at(expected, place) for place, _ in matches]
        self.assertEqual(sorted(texts), sorted(json.loads(new) for new in changed if new != "0"))
        self.assertLessEqual(len(changed), len(texts) + 1)

    @given(REQUESTS)
    @settings(max_examples=150, derandomize=True, deadline=None)
    @example(("/completion", '{"prompt":"x","prompt":"@code","id_slot":"@code","id_slot" : -1,"n":1e400}'))
    @example(
        (
            "/v1/messages",
            '{"messages":[{"role":"x","role":"user","content":"","content":[{"text":"@code","type":"text"}]}]}',
        )
    )
    def test_each_request(self, asked: tuple[str, str]) -> None:
        """In any request exactly the texts that name a template are filled, and nothing else changes."""
        self.check(*asked)

    @given(sampled_from(PATHS), lists(WORDS, min_size=1, max_size=4), ANY, SPACE)
    @settings(max_examples=100, derandomize=True, deadline=None)
    def test_each_naming_request(self, path: str, words: list[str], other: str, space: str) -> None:
        """The same for complete requests that certainly name a template."""
        kind = "input_text" if path == "/v1/responses" else "text"
        parts = f",{space}".join(f'{{"type":"{kind}","text":{word}}}' for word in ['"@code a"', *words])
        messages = f'[{{"role":"assistant","content":{other}}},{{"content":[{parts}]{space},"role":"user"}}]'
        prompts = f",{space}".join([f'{{"prompt_string":{word}}}' for word in ['"@code a"', *words]])
        source = f'{space}{{"x":{other},"messages":{messages},"input":{messages},{space}"prompt":[{prompts}]}}{space}'
        self.check(path, source)
        self.assertGreater(self.found, 0)

    @given(one_of(text(max_size=40), just('{"prompt": "@code')), sampled_from(PATHS))
    @settings(max_examples=50, derandomize=True, deadline=None)
    def test_no_json(self, noise: str, path: str) -> None:
        """A body that is not JSON names no template and causes no exception."""
        for body in (noise.encode("utf-8", "surrogatepass"), noise.encode("utf-16", "surrogatepass"), b"\xff@code"):
            self.assertIsNone(named_templates(path, b"{" + body, TEMPLATES))
            template_search.may_name_template(body, TEMPLATES)
