"""Whatever is in a body: reading it takes memory and work in proportion to its size, and it is served or refused.

Memory is what `tracemalloc` counts, and work how many functions are called: both are the same on every machine.  How
long somebody else has to wait is measured by a benchmark.
"""

from __future__ import annotations

import json
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import example, given, settings
from hypothesis.strategies import integers, sampled_from
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts import request_search
from bioproxy.prompts.api_formats import FORMATS, GATED_CHATS
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.prompts.templates import Template, TemplateText
from bioproxy.runtime.errors import ProxyError
from tests.support.world import WorldTest

TEMPLATES = [Template.of(prefix, Path("/t")) for prefix in ("@s", "@other", "/c")]
TEXTS = {template.name: TemplateText(("[", "]"), (), ()) for template in TEMPLATES}

UNITS = {
    "user": '{"role":"user","content":"@s"}',
    "parts": '{"role":"user","content":[{"type":"text","text":"@s"},{"type":"input_text","text":"@s"}]}',
    "other": '{"role":"assistant","content":"@s"}',
    "prompt": '{"prompt_string":"@s"}',
    "word": '"@s"',
    "escaped": r'"\u0040s\n\ud83d\ude00"',
    "spaces": '"@s' + " \\n" * 50 + '"',
    "long": '"@s ' + "x" * 5000 + '"',
    "list": "[]",
    "object": "{}",
    "nested": '[{"a":[{}]}]',
    "number": "1e400",
    "huge": "9" * 5000,
}
"""What a body consists of, again and again."""

LISTS = ("messages", "input", "prompt", "tools", "x")
"""Where it does."""

BYTES_FOR_EACH = 80
"""Bytes of memory for each byte of a body, at most: a body of ``{}`` takes the most, with a fingerprint for each."""

CALLS_FOR_EACH = 12
"""Calls of functions for each byte of a body, at most."""


def body_of(unit: str, name: str, size: int) -> bytes:
    """Return a body of about this size."""
    one = UNITS[unit]
    values = ",".join([one] * max(1, size // (len(one) + 1)))
    first = '"messages":[{"role":"user","content":"@s"}],"prompt":"@s","input":"@s"'
    return f'{{{first},"{name}":[{values}]}}'.encode()


def read(path: str, body: bytes) -> NamedTemplates | None:
    """Read a body and fill it, or refuse it; a chat that names no template is learned from."""
    try:
        found = request_search.read_request(body, path, TEMPLATES, 0)
        if isinstance(found, NamedTemplates):
            found.fill(TEXTS, 1 << 30)
            return found
    except ProxyError:
        pass
    return None


def learn(path: str, body: bytes) -> ChatRequest | None:
    """Read a body where no templates are known."""
    found = request_search.read_request(body, path, (), 0)
    assert not isinstance(found, NamedTemplates)
    return found


def memory(work: Callable[[], Any]) -> int:
    """Return how many bytes of memory some work takes at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def calls(work: Callable[[], Any]) -> int:
    """Return how many functions some work calls, those of Python's own included."""
    count = 0

    def note(_frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


class Reading(SynchronousTestCase):
    """`request_search.read_request` and `NamedTemplates.fill`."""

    @given(sampled_from(sorted(FORMATS)), sampled_from(sorted(UNITS)), sampled_from(LISTS), integers(1000, 60_000))
    @example("/v1/messages", "object", "tools", 1000)  # each tool is converted
    @settings(max_examples=120, derandomize=True, deadline=None)
    def test_in_proportion(self, path: str, unit: str, name: str, size: int) -> None:
        """Memory and work are bounded by the size, for every path and everything that a body may consist of."""
        body = body_of(unit, name, size)
        read(path, body)  # whatever is made once and kept is made now
        self.assertLess(memory(lambda: read(path, body)), BYTES_FOR_EACH * len(body) + 50_000)
        self.assertLess(calls(lambda: read(path, body)), CALLS_FOR_EACH * len(body) + 2000)

    def test_twice_the_size(self) -> None:
        """A body of twice the size takes twice the work, and not four times."""
        for path, name in (("/v1/chat/completions", "messages"), ("/completion", "prompt"), ("/v1/responses", "input")):
            for unit in sorted(UNITS):
                once, twice = (calls(partial(read, path, body_of(unit, name, size))) for size in (4000, 8000))
                self.assertLess(twice, 2.3 * once + 500, (path, unit))

    @given(sampled_from(sorted(GATED_CHATS)), sampled_from(sorted(UNITS)), sampled_from(LISTS), integers(1000, 60_000))
    @settings(max_examples=60, derandomize=True, deadline=None)
    def test_learned_in_proportion(self, path: str, unit: str, name: str, size: int) -> None:
        """The same bounds hold for a chat that is only learned from, and its result is small enough to be handed on."""
        body = body_of(unit, name, size)
        work = partial(learn, path, body)
        found = work()
        self.assertLess(memory(work), BYTES_FOR_EACH * len(body) + 50_000)
        self.assertLess(calls(work), CALLS_FOR_EACH * len(body) + 2000)
        # One digest for each message, a body's smallest message being `{},`.
        self.assertLess(len(pickle.dumps(found)), 30 * len(body) + 2000)

    def test_learned_twice_the_size(self) -> None:
        """A chat of twice the size that is only learned from takes twice the work, and not four times."""
        for path in sorted(GATED_CHATS):
            for unit, name in product(sorted(UNITS), ("messages", "input", "tools")):
                once, twice = (calls(partial(learn, path, body_of(unit, name, size))) for size in (4000, 8000))
                self.assertLess(twice, 2.3 * once + 500, (path, unit))

    def test_many_templates(self) -> None:
        """Three hundred templates make it no slower than three."""
        many = [*TEMPLATES, *(Template.of(f"@t{number}", Path("/t")) for number in range(300))]
        body = body_of("word", "prompt", 4000)

        def work(known: list[Template]) -> int:
            return calls(lambda: request_search.read_request(body, "/completion", known, None))

        self.assertLess(work(many), work(TEMPLATES) + 30 * len(many))


class Serving(WorldTest):
    """The same bodies, through the proxy."""

    def setUp(self) -> None:
        """Have a proxy whose llama-server says the same to all of them."""
        super().setUp()
        self.built = self.ready_world({"s": "[<{message}>]"})
        self.built.parts.reader.learn_minimum = 0
        self.built.llama_server.answers = {path: {} for path in FORMATS}

    @given(sampled_from(sorted(FORMATS)), sampled_from(sorted(UNITS)), sampled_from(LISTS), integers(1000, 300_000))
    @settings(max_examples=40, derandomize=True, deadline=None)
    def test_each(self, path: str, unit: str, name: str, size: int) -> None:
        """Each is answered: filled where it names a template, and else as it is or not at all."""
        world = self.built
        world.llama_server.raw.clear()
        body = body_of(unit, name, size)
        call = world.send("POST", path, body)
        while not call.status:
            world.advance(0)  # a large body is sent one portion in each turn of the reactor
        sent = [raw for _, _, raw in world.llama_server.raw if len(raw) >= len(body)]
        if call.status == 413:
            self.assertEqual([], sent)
            return
        self.assertEqual(1, len(sent))
        found = read(path, body)
        self.assertEqual(found is not None, sent[0] != body)
        self.assertEqual([], self.flushLoggedErrors())
        if found is not None:
            json.loads(sent[0], parse_int=float)
