"""Templates in each API that llama-server speaks: the same promises for all of them, on the real llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import LlamaOf, ProxyOf
from tests.integration.support import REST, Answer, LlamaServer, RunningProxy, async_test, prose

CODE = f"{prose(1000, seed=1)}\nAnswer: <{{message}}>"
STORY = f"{prose(400, seed=2)}\nAbout: <{{message}}>"
BOTH = {"code": CODE, "story": STORY}

FEW = 40 + REST
"""Prompt tokens that a short question may take."""

SYSTEM = "You help with code. " + prose(60, seed=5)
PARAMETERS = {"type": "object", "properties": {"word": {"type": "string", "description": prose(20, seed=3)}}}
FIND = {"name": "find_word", "description": prose(30, seed=4)}


def filled(message: str) -> str:
    """Return what the template `code` makes of a message."""
    return CODE.replace("<{message}>", message)


@dataclass(frozen=True)
class Api:
    """One way to ask: its path, and the body that a conversation of a user and the model has there."""

    path: str
    body: Callable[..., dict[str, Any]]

    async def ask(self, server: RunningProxy | LlamaServer, *messages: str, **more: Any) -> Answer:
        """Send a conversation; the answer is short and repeatable."""
        answer = await server.call("POST", self.path, {"temperature": 0, **self.body(*messages), **more})
        assert answer.status == 200, answer.body
        return answer


def turns(*messages: str) -> list[dict[str, Any]]:
    """Return messages of the user and the model in turn."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(messages)]


def items(*messages: str) -> list[dict[str, Any]]:
    """Return the same as OpenAI's responses have it."""
    return [{"type": "message", **each} if each["role"] == "assistant" else each for each in turns(*messages)]


def parts(kind: str, text: str) -> list[dict[str, Any]]:
    """Return a user's message whose content is a list of one text."""
    return [{"role": "user", "content": [{"type": kind, "text": text}]}]


CHAT = Api("/v1/chat/completions", lambda *said: {"messages": turns(*said), "max_tokens": 8})
ANTHROPIC = Api("/v1/messages", lambda *said: {"model": "any", "messages": turns(*said), "max_tokens": 8})
RESPONSES = Api("/v1/responses", lambda *said: {"input": items(*said), "max_output_tokens": 8})
ANTHROPIC_PARTS = Api("/v1/messages", lambda said: {"messages": parts("text", said), "max_tokens": 8})
RESPONSES_PARTS = Api("/v1/responses", lambda said: {"input": parts("input_text", said), "max_output_tokens": 8})
RESPONSES_TEXT = Api("/v1/responses", lambda said: {"input": said, "max_output_tokens": 8})
COMPLETION = Api("/completion", lambda *said: {"prompt": "\n".join(said), "n_predict": 8})
COMPLETIONS = Api("/v1/completions", lambda *said: {"prompt": "\n".join(said), "max_tokens": 8})

CHATS = {"chat": CHAT, "anthropic": ANTHROPIC, "responses": RESPONSES}
APIS = {
    **CHATS,
    "anthropic-parts": ANTHROPIC_PARTS,
    "responses-parts": RESPONSES_PARTS,
    "responses-text": RESPONSES_TEXT,
    "completion": COMPLETION,
    "completions": COMPLETIONS,
}


def values(answer: Answer) -> list[dict[str, Any]]:
    """Return the JSON of an answer: its body, or all events of its stream."""
    events = [json.loads(event) for event in answer.events() if event != "[DONE]"]
    return events or [answer.json()]


def prompt_tokens(answer: Answer) -> tuple[int, int]:
    """Return how many tokens llama-server says it reused of the prompt, and how many it computed."""
    for value in values(answer):
        message = value.get("message", value)
        if "cache_read_input_tokens" in message.get("usage", {}):
            return message["usage"]["cache_read_input_tokens"], message["usage"]["input_tokens"]
        usage = value.get("response", value).get("usage", {})
        if "input_tokens_details" in usage:
            cached = usage["input_tokens_details"]["cached_tokens"]
            return cached, usage["input_tokens"] - cached
    for value in values(answer):
        if "timings" in value:
            return value["timings"]["cache_n"], value["timings"]["prompt_n"]
    raise AssertionError(f"no word of prompt tokens in {answer.body!r}")


def said(answer: Answer) -> str:
    """Return what the model said, of a chat that was not streamed."""
    value = answer.json()
    if "choices" in value:
        return str(value["choices"][0]["message"]["content"])
    return str((value.get("content") or value["output"][0]["content"])[0]["text"])


async def as_filled(llama: LlamaServer, api: Api, answer: Answer, *messages: str, **more: Any) -> bool:
    """Tell whether an answer was given to just this prompt: the slot holds it, and it has as many tokens."""
    reused, computed = prompt_tokens(await api.ask(llama, *messages, **more))
    return computed == 1 and reused + computed == sum(prompt_tokens(answer))


async def start(
    llama_of: LlamaOf, proxy_of: ProxyOf, model: Path, templates: dict[str, str] = BOTH
) -> tuple[LlamaServer, RunningProxy]:
    """Start llama-server with a model, and the proxy; fires when the templates are warm."""
    llama = llama_of(model=model)
    await llama.start()
    proxy = proxy_of(llama.url, templates, slot_save_path=str(llama.slots))
    await proxy.warm(*templates)
    return llama, proxy


@pytest.mark.parametrize("name", APIS)
@async_test
async def test_filled_and_reused(llama_of: LlamaOf, proxy_of: ProxyOf, tiny: Path, name: str) -> None:
    """A question is filled, and its template comes from the file, then from the slot, streamed or not."""
    api = APIS[name]
    llama, proxy = await start(llama_of, proxy_of, tiny)
    if name.startswith("completion"):  # no chat template: the first question of this kind shows it
        first = await api.ask(proxy, "@code first?")
        assert (first.cache, first.miss) == ("cold", "shape-changed")
    tokens = await proxy.warm("code")
    for stream in (False, True):
        await proxy.chat("@story a chair")
        restored = await api.ask(proxy, "@code why?", stream=stream)
        hot = await api.ask(proxy, "@code how?", stream=stream)
        assert await as_filled(llama, api, hot, filled("how?"), stream=stream)
        assert not await as_filled(llama, api, hot, filled("who?"), stream=stream)

        newest = (await proxy.status())["requests"][:2]
        for answer, cache, record in ((restored, "restored", newest[1]), (hot, "hot", newest[0])):
            reused, computed = prompt_tokens(answer)
            assert (answer.cache, answer.header("X-Bioproxy-Template")) == (cache, "code")
            assert reused >= tokens - 1
            assert 0 < computed <= FEW
            assert {
                "path": api.path,
                "template": "code",
                "cache": cache,
                "status": 200,
                "prompt_tokens": reused + computed,
                "cached_tokens": reused,
            }.items() <= record.items()
    assert (await proxy.status())["llama"]["note"] is None


OPENAI_TOOL = {"type": "function", "function": {**FIND, "parameters": PARAMETERS}}

BEFORE: dict[str, tuple[Api, dict[str, Any]]] = {
    "chat": (
        Api(
            CHAT.path, lambda *said: {**CHAT.body(), "messages": [{"role": "system", "content": SYSTEM}, *turns(*said)]}
        ),
        {"tools": [OPENAI_TOOL]},
    ),
    "anthropic": (
        Api(ANTHROPIC.path, lambda *said: {**ANTHROPIC.body(*said), "system": SYSTEM}),
        {"tools": [{**FIND, "input_schema": PARAMETERS}]},
    ),
    "anthropic-blocks": (
        Api(
            ANTHROPIC.path,
            lambda *said: {
                **ANTHROPIC.body(*said),
                "system": [
                    {"type": "text", "text": SYSTEM[:20]},
                    {"type": "text", "text": SYSTEM[20:], "cache_control": {"type": "ephemeral"}},
                ],
            },
        ),
        {"tools": [{**FIND, "input_schema": PARAMETERS}]},
    ),
    "responses": (
        Api(RESPONSES.path, lambda *said: {**RESPONSES.body(*said), "instructions": SYSTEM}),
        {"tools": [{"type": "function", **FIND, "parameters": PARAMETERS}]},
    ),
    "responses-text": (
        Api(RESPONSES.path, lambda *said: {**RESPONSES_TEXT.body(*said), "instructions": SYSTEM}),
        {"tools": [{"type": "function", **FIND, "parameters": PARAMETERS}]},
    ),
}
"""Ways to say the same system message, and to define the same tool."""


@pytest.mark.parametrize("name", BEFORE)
@async_test
async def test_system_and_tools(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path, name: str) -> None:
    """After one question with a system message and tools the template is warm for such ones, to the last token."""
    api, tools = BEFORE[name]
    llama, proxy = await start(llama_of, proxy_of, with_tools)
    bare = (await proxy.template("code"))["tokens"]
    first = await api.ask(proxy, "@code why?", **tools)
    assert (first.cache, first.miss) == ("cold", "shape-changed")
    assert sum(prompt_tokens(first)) > bare + 100, "what stands before it is a part of the prompt"
    tokens = await proxy.warm("code")
    assert tokens > bare + 100
    saves = await proxy.sample("slot_saves_total", template="code")

    # Another template takes the slot, then nothing is in it any more.
    await proxy.chat("@story a chair")
    after_another = await api.ask(proxy, "@code how?", **tools)
    assert (await proxy.call("POST", "/slots/0?action=erase", {})).status == 200
    after_erasing = await api.ask(proxy, "@code who?", **tools, stream=True)
    for answer in (after_another, after_erasing):
        reused, computed = prompt_tokens(answer)
        assert (answer.cache, reused, computed <= FEW) == ("restored", tokens, True)
    assert await as_filled(llama, api, after_erasing, filled("who?"), **tools)
    assert await proxy.sample("slot_saves_total", template="code") == saves
    assert (await proxy.status())["llama"]["note"] is None


@async_test
async def test_one_file_for_all(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path) -> None:
    """What was warmed up for a system message over one API is there for the same one over every other."""
    _, proxy = await start(llama_of, proxy_of, with_tools)
    await BEFORE["anthropic"][0].ask(proxy, "@code why?")
    tokens = await proxy.warm("code")
    saves = await proxy.sample("slot_saves_total", template="code")
    for name, (api, _) in BEFORE.items():
        await proxy.chat("@story a chair")
        answer = await api.ask(proxy, "@code how?")
        assert (answer.cache, prompt_tokens(answer)[0]) == ("restored", tokens), name
        hot = await api.ask(proxy, "@code who?")
        assert (hot.cache, prompt_tokens(hot)[0] >= tokens - 1) == ("hot", True), name
    assert await proxy.sample("slot_saves_total", template="code") == saves


@async_test
async def test_tools_of_two_apis(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path) -> None:
    """The same tools over chat completions and Anthropic's messages are the same prompt, from one file."""
    _, proxy = await start(llama_of, proxy_of, with_tools)
    (chat, openai), (anthropic, anthropics) = BEFORE["chat"], BEFORE["anthropic-blocks"]
    await chat.ask(proxy, "@code why?", **openai)
    tokens = await proxy.warm("code")
    await proxy.chat("@story a chair")
    answer = await anthropic.ask(proxy, "@code how?", **anthropics)
    assert (answer.cache, prompt_tokens(answer)[0]) == ("restored", tokens)


NOTHING: dict[str, tuple[Api, dict[str, Any]]] = {
    "chat": (CHAT, {"tools": None, "tool_choice": None, "response_format": None}),
    "anthropic": (ANTHROPIC, {"system": None, "tools": [], "thinking": {"type": "disabled"}}),
    "responses": (RESPONSES_TEXT, {"instructions": None, "tools": [], "previous_response_id": None}),
    "responses-reasoning": (RESPONSES_TEXT, {"reasoning": {"effort": None}, "metadata": None}),
}
"""Fields that are there and say nothing."""


@pytest.mark.parametrize("name", NOTHING)
@async_test
async def test_fields_that_say_nothing(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path, name: str) -> None:
    """Whatever a request has before its template, even nothing in many words, is never taken for something else.

    A file that does not fit would be restored in vain, and after two of these nothing is restored any more.
    """
    api, more = NOTHING[name]
    llama, proxy = await start(llama_of, proxy_of, with_tools)
    for question in ("why?", "how?", "who?"):
        await proxy.chat("@story a chair")
        answer = await api.ask(proxy, f"@code {question}", **more)
        promised = (await proxy.template("code"))["tokens"]
        if answer.cache == "restored":
            assert prompt_tokens(answer)[0] >= promised - 1
        assert await as_filled(llama, api, answer, filled(question), **more)
        await proxy.warm("code")
    assert answer.cache == "restored"
    assert await proxy.sample("slot_restores_total", result="ineffective") == 0
    assert (await proxy.status())["llama"]["note"] is None


@async_test
async def test_stamped_system_message(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path) -> None:
    """A system prompt with a stamp that is another one each time, and that llama-server blots out, is still one."""
    _, proxy = await start(llama_of, proxy_of, with_tools)

    async def ask(stamp: str) -> Answer:
        system = f"x-anthropic-billing-header: cc_version=2.1; cch={stamp};You help. {SYSTEM}"
        return await ANTHROPIC.ask(proxy, "@code why?", system=[{"type": "text", "text": system}])

    await ask("a1b2c")
    tokens = await proxy.warm("code")
    await proxy.chat("@story a chair")
    answer = await ask("99999")
    assert (answer.cache, prompt_tokens(answer)[0]) == ("restored", tokens)


@pytest.mark.parametrize("name", CHATS)
@async_test
async def test_second_turn(llama_of: LlamaOf, proxy_of: ProxyOf, tiny: Path, name: str) -> None:
    """The second turn finds the first one in its file after another template took the slot, the third in the slot."""
    api = CHATS[name]
    llama, proxy = await start(llama_of, proxy_of, tiny)
    question = f"@code {prose(400, seed=7)}".strip()
    first = await api.ask(proxy, question)
    await proxy.chat("@story a chair")
    second = await api.ask(proxy, question, said(first), "and then?")
    assert (second.cache, prompt_tokens(second)[0] >= sum(prompt_tokens(first))) == ("restored", True)
    conversation = [question, said(first), "and then?", said(second), "or else?"]
    third = await api.ask(proxy, *conversation, stream=True)
    assert (third.cache, prompt_tokens(third)[0] >= sum(prompt_tokens(second))) == ("hot", True)
    conversation[0] = filled(question.removeprefix("@code "))
    assert await as_filled(llama, api, third, *conversation)


@pytest.mark.parametrize("name", ["completion", "completions"])
@async_test
async def test_lists_of_prompts(llama_of: LlamaOf, proxy_of: ProxyOf, tiny: Path, name: str) -> None:
    """Each prompt of a list is filled; a list of one is like a prompt alone; nothing is promised of several."""
    api = APIS[name]
    llama, proxy = await start(llama_of, proxy_of, tiny)
    await api.ask(proxy, "@code first?")
    tokens = await proxy.warm("code")
    await proxy.chat("@story a chair")
    one = await proxy.call("POST", api.path, {**api.body(), "prompt": ["@code why?"], "temperature": 0})
    value = one.json()[0] if isinstance(one.json(), list) else one.json()
    assert (one.status, one.cache, value["timings"]["cache_n"]) == (200, "restored", tokens)

    several = {**api.body(), "temperature": 0}
    answer = await proxy.call("POST", api.path, {**several, "prompt": ["@code why?", "plain", "@story a chair"]})
    texts = [filled("why?"), "plain", STORY.replace("<{message}>", "a chair")]
    right = await llama.call("POST", api.path, {**several, "prompt": texts})
    assert (answer.status, answer.cache, answer.miss) == (200, "cold", "ineffective")
    assert counted(answer) == counted(right)
    await proxy.chat("@story a chair")
    again = await api.ask(proxy, "@code how?")
    assert (again.cache, prompt_tokens(again)[0]) == ("restored", tokens)


def counted(answer: Answer) -> list[int]:
    """Return how many tokens each prompt of a list had, or all of them together, as far as an answer tells."""
    value = answer.json()
    return [each["tokens_evaluated"] for each in value] if isinstance(value, list) else [len(value["choices"])]


@async_test
async def test_token_lists_are_left_alone(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A prompt of tokens, or of tokens and texts, goes on as it is, even if a text in it begins with a prefix."""
    proxy = proxy_of(llama.url, {"code": CODE}, warmup=False)
    for prompt in ([300, 301, 302], [300, "@code why?"], [[300, 301], [302, 303]]):
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0}
        answer = await proxy.call("POST", "/completion", body)
        right = await llama.call("POST", "/completion", body)
        assert (answer.status, answer.header("X-Bioproxy-Template")) == (200, None)
        mine, theirs = answer.json(), right.json()
        for one, other in zip(*(each if isinstance(each, list) else [each] for each in (mine, theirs)), strict=True):
            assert one["tokens_evaluated"] == other["tokens_evaluated"] < FEW
            assert one["prompt"] == other["prompt"]


COUNTING: dict[str, dict[str, Any]] = {
    "/apply-template": {"messages": turns("@code why?")},
    "/v1/chat/completions/input_tokens": {"messages": turns("@code why?")},
    "/chat/completions/input_tokens": {"messages": turns("@code why?")},
    "/v1/messages/count_tokens": {"messages": turns("@code why?"), "max_tokens": 1},
    "/v1/responses/input_tokens": {"input": "@code why?"},
    "/responses/input_tokens": {"input": "@code why?"},
}


@pytest.mark.parametrize("path", COUNTING)
@async_test
async def test_counted_as_filled(llama: LlamaServer, proxy_of: ProxyOf, path: str) -> None:
    """Whoever asks how many tokens a request has, or what its prompt is, is told of the filled one; nobody waits."""
    proxy = proxy_of(llama.url, {"code": CODE}, warmup=False)
    body = COUNTING[path]
    answer = await proxy.call("POST", path, body)
    named, plain = json.dumps("@code why?"), json.dumps(filled("why?"))
    right = await llama.call("POST", path, json.loads(json.dumps(body).replace(named, plain)))
    unfilled = await llama.call("POST", path, body)
    assert (answer.status, answer.json()) == (right.status, right.json())
    assert right.status == 404 or right.body != unfilled.body
    assert answer.header("X-Bioproxy-Queue-Ms") is None
