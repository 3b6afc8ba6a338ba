"""What stands before a template in a request (system message, tools, switches), on a chat template that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.conftest import LlamaOf, ProxyOf
from tests.integration.support import (
    ODDS,
    REST,
    Answer,
    LlamaServer,
    RunningProxy,
    agree,
    async_test,
    conversation,
    prose,
)

CODE = f"{prose(1000, seed=1)}\nAnswer: <{{message}}>"
STORY = f"{prose(800, seed=2)}\nAbout: <{{message}}>"
BOTH = {"code": CODE, "story": STORY}

FEW = 40 + REST
"""Prompt tokens that a short question may take."""


def tool(name: str) -> dict[str, Any]:
    """Return the definition of a tool."""
    word = {"type": "string", "description": prose(20, seed=3)}
    function = {"name": name, "description": prose(30, seed=4), "parameters": {"properties": {"word": word}}}
    return {"type": "function", "function": function}


async def ask(server: RunningProxy | LlamaServer, question: str, system: str | None = None, **more: Any) -> Answer:
    """Send a question with a system message."""
    body = conversation(question, **more)
    if system is not None:
        body["messages"].insert(0, {"role": "system", "content": system})
    answer = await server.call("POST", "/v1/chat/completions", body)
    assert answer.status == 200
    return answer


TOOLS: dict[str, Any] = {
    "system": "You help with code. " + prose(60, seed=5),
    "tools": [tool("find_word"), tool("read_file")],
    "chat_template_kwargs": {"enable_thinking": True},
}


@async_test
async def test_second_request_is_warm(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path) -> None:
    """After the first question with a system message, tools and a switch, a template is warm for the next such one."""
    llama = llama_of(model=with_tools)
    await llama.start()
    proxy = proxy_of(llama.url, BOTH, slot_save_path=str(llama.slots))
    await proxy.warm("story")
    bare = await proxy.warm("code")
    first = await ask(proxy, "@code why?", **TOOLS)
    assert (first.cache, first.miss, first.timings["prompt_n"] > bare) == ("cold", "shape-changed", True)
    tokens = await proxy.warm("code")
    assert tokens > bare + 150, "what stands before it is a part of it"
    await proxy.chat("@story a chair")
    second = await ask(proxy, "@code how?", **TOOLS)
    assert (second.cache, second.timings["cache_n"]) == ("restored", tokens)
    assert second.timings["prompt_n"] <= FEW

    # Also after both were restarted.
    await proxy.stop()
    await llama.restart()
    proxy = proxy_of(llama.url, BOTH, slot_save_path=str(llama.slots))
    third = await ask(proxy, "@code what?", **TOOLS)
    assert (third.cache, third.timings["cache_n"]) == ("restored", tokens)
    assert await proxy.sample("slot_saves_total") == 0


@async_test
async def test_a_streamed_answer(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path) -> None:
    """The same for streams, as tools are mostly used."""
    llama = llama_of(model=with_tools)
    await llama.start()
    proxy = proxy_of(llama.url, BOTH)
    await proxy.warm("code", "story")
    await ask(proxy, "@code why?", **TOOLS, stream=True)
    tokens = await proxy.warm("code")
    await proxy.chat("@story a chair")
    second = await ask(proxy, "@code how?", **TOOLS, stream=True)
    assert (second.cache, second.timings["cache_n"]) == ("restored", tokens)


@async_test
async def test_each_shape_is_another_prompt(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path) -> None:
    """Nothing that was computed for one system message, tool or switch is taken for another."""
    llama = llama_of(model=with_tools)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    variants: list[dict[str, Any]] = [
        {},
        TOOLS,
        TOOLS | {"system": "You help."},
        TOOLS | {"tools": TOOLS["tools"][:1]},
        TOOLS | {"chat_template_kwargs": {"enable_thinking": False}},
        {"system": "You help."},
    ]
    for variant in [*variants, *reversed(variants)]:
        answer = await ask(proxy, "@code why?", **variant, **ODDS)
        filled = CODE.replace("<{message}>", "why?")
        right = await ask(llama, filled, **variant, **ODDS, cache_prompt=False)
        assert agree(answer, right)


@async_test
async def test_two_clients(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path) -> None:
    """Two clients with two shapes that take turns cause no more than a few warm-ups, and one of them is well served."""
    llama = llama_of(model=with_tools)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE})
    await proxy.warm("code")
    computed: dict[str, list[int]] = {"first": [], "second": []}
    for _ in range(4):
        for client, counts in computed.items():
            answer = await ask(proxy, "@code why?", f"You are the {client} one. {prose(40, seed=len(client))}")
            counts.append(answer.timings["prompt_n"])
            await proxy.rounds(0.6)
    assert 2 <= await proxy.sample("warmups_total") <= 5
    assert min(max(counts[-3:]) for counts in computed.values()) <= FEW
    assert (await proxy.template("code"))["note"] is None


@async_test
async def test_clock(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path) -> None:
    """A client that tells the time before each question causes a few warm-ups, then no more, and is told in /status."""
    llama = llama_of(model=with_tools)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE})
    await proxy.warm("code")
    for minute in range(10, 16):
        await ask(proxy, "@code why?", f"It is 12:{minute}. You help.")
        await proxy.rounds(0.6)
    assert await proxy.sample("warmups_total") <= 4
    assert "tell the time" in (await proxy.template("code"))["note"]
    # A regular client, afterwards, is served as ever, and the note goes.
    for _ in range(3):
        await ask(proxy, "@code why?", "You help.")
        await proxy.warm("code")
    answer = await ask(proxy, "@code how?", "You help.")
    assert answer.timings["prompt_n"] <= FEW
    assert (await proxy.template("code"))["note"] is None
