"""Prompts that no file has outlive the restore of a file, in the memory of the real llama.cpp."""

from __future__ import annotations

from typing import Any

import pytest

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.support import REST, Answer, RunningProxy, async_test, prose

TEMPLATES = {
    "story": f"{prose(1500, seed=2)}\nAbout: <{{message}}>",
    "code": f"{prose(1200, seed=3)}\nAnswer: <{{message}}>",
}

AGENT = prose(600, seed=4)
"""A system message of fewer tokens than bioproxy learns."""

OWN_WORDS = 40 + REST
"""Prompt tokens that a new session of the agent, or a short question on a template, may compute."""

KINDS = {"dense": tiny_model.TINY, "sliding": tiny_model.SLIDING, "hybrid": tiny_model.HYBRID}


async def session(proxy: RunningProxy, *messages: str) -> int:
    """Have the agent ask; return how many tokens llama.cpp computed.  Messages are the user's and its own in turn."""
    answer: Answer = await proxy.call("POST", "/v1/chat/completions", chat(*messages))
    assert answer.status == 200
    return int(answer.timings["prompt_n"])


def chat(*messages: str) -> dict[str, Any]:
    """Return the agent's request."""
    roles = ("user", "assistant")
    turns = [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]
    return {"messages": [{"role": "system", "content": AGENT}, *turns], "max_tokens": 8, "temperature": 0}


async def switch(proxy: RunningProxy, number: int) -> None:
    """Ask a question on a template: its file takes the slot."""
    answer = await proxy.chat(f"@{list(TEMPLATES)[number % 2]} a chair {number}")
    assert (answer.status, answer.cache) == (200, "restored")
    assert answer.timings["prompt_n"] <= OWN_WORDS


@pytest.mark.parametrize("kind", KINDS)
@async_test
async def test_many_switches(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, kind: str) -> None:
    """An agent whose prompt has no file computes its own words only, however often a template's file took the slot."""
    llama = llama_of(model=model_of(kind, KINDS[kind]))
    await llama.start()
    proxy = proxy_of(llama.url, TEMPLATES, slot_save_path=str(llama.slots))
    await proxy.warm(*TEMPLATES)
    assert await session(proxy, "what is new?") > 500
    for number in range(6):
        await switch(proxy, number)
        # A new session, and then one that goes on.
        assert await session(proxy, f"what is number {number}?") <= OWN_WORDS
        await switch(proxy, number + 1)
        assert await session(proxy, f"what is number {number}?", "a house", "and then?") <= OWN_WORDS
    assert await proxy.sample("slot_parked_total", result="parked") == 12
    assert await proxy.sample("slot_parked_total", result="reused") == 12
    # All of that is judged as before: nothing was found to be of no use.
    assert await proxy.sample("slot_restores_total", result="ineffective") == 0
    assert (await proxy.status())["llama"]["note"] is None


@async_test
async def test_chats_that_are_not_read(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """The same holds where bioproxy learns nothing, and does not look at such chats at all."""
    llama = llama_of()
    await llama.start()
    proxy = proxy_of(llama.url, TEMPLATES, learn=False)
    await proxy.warm(*TEMPLATES)
    assert await session(proxy, "what is new?") > 500
    for number in range(2):
        await switch(proxy, number)
        assert await session(proxy, f"what is number {number}?") <= OWN_WORDS


@async_test
async def test_no_memory(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """A llama.cpp that keeps nothing in memory is not asked to again, after two conversations were lost."""
    llama = llama_of("--cache-ram", "0")
    await llama.start()
    proxy = proxy_of(llama.url, TEMPLATES, slot_save_path=str(llama.slots))
    await proxy.warm(*TEMPLATES)
    said = ["what is new?"]
    await session(proxy, *said)
    for number in range(4):
        await switch(proxy, number)
        said += ["a house", f"and {number}?"]
        assert await session(proxy, *said) > 500
    assert await proxy.sample("slot_parked_total", result="parked") == 2
    assert await proxy.sample("slot_parked_total", result="lost") == 2
