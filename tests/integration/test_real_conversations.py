"""Conversations that are interrupted, and short questions that are not worth a file."""

from __future__ import annotations

import pytest

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.support import ODDS, REST, LlamaServer, agree, async_test, eventually, prose

CODE = f"{prose(1000, seed=1)}\nAnswer: <{{message}}>"
STORY = f"{prose(800, seed=2)}\nAbout: <{{message}}>"
BOTH = {"code": CODE, "story": STORY}

ALLOWED = 256
"""Tokens that may be computed again in each turn of a conversation."""


@async_test
async def test_switches(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Thirty switches between two templates with single questions write no file again, and compute next to nothing."""
    proxy = proxy_of(llama.url, BOTH)
    await proxy.warm("code", "story")
    written = await proxy.sample("slot_bytes_total", direction="saved")
    for number in range(30):
        answer = await proxy.chat(f"{('@story', '@code')[number % 2]} what of {number}?", max_tokens=30)
        assert (answer.status, answer.cache) == (200, "restored" if number else answer.cache)
        assert answer.timings["prompt_n"] < 40 + REST
    assert await proxy.sample("slot_bytes_total", direction="saved") == written
    assert {file.name for file in llama.slots.iterdir()} == {"code.bin", "story.bin"}


@pytest.mark.parametrize("kind", ["dense", "hybrid", "sliding"])
@async_test
async def test_interrupted(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, kind: str) -> None:
    """Each of ten turns, with another template asked in between, computes what is new and 256 tokens at most."""
    sizes = {"dense": tiny_model.TINY, "hybrid": tiny_model.HYBRID, "sliding": tiny_model.SLIDING}
    llama = llama_of(model=model_of(kind, sizes[kind]))
    await llama.start()
    proxy = proxy_of(llama.url, BOTH, slot_save_path=str(llama.slots))
    await proxy.warm("story")
    length = await proxy.warm("code")
    messages: list[str] = []
    for turn in range(10):
        # Long turns and short ones: a short one is not worth a file.
        words, predict = ((250, 100), (30, 60), (400, 80))[turn % 3]
        messages.append(("" if turn else "@code ") + prose(words, seed=10 + turn))
        answer = await proxy.chat(*messages, max_tokens=predict)
        assert answer.status == 200
        whole = answer.timings["cache_n"] + answer.timings["prompt_n"]
        new, length = whole - length, whole
        assert answer.timings["prompt_n"] <= new + ALLOWED, f"turn {turn}"
        messages.append(answer.text)
        assert (await proxy.chat("@story a chair")).timings["prompt_n"] < 40 + REST
    assert length > 3000, "long enough to matter"
    assert (llama.slots / "code.chat.bin").exists()
    assert not (llama.slots / "code.chat.new.bin").exists()


@async_test
async def test_after_both_restart(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A conversation that was left alone is saved, and goes on where it was after everything was restarted."""
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    question = f"@code {prose(400, seed=3)}"
    first = await proxy.chat(question, max_tokens=60)
    whole = first.timings["cache_n"] + first.timings["prompt_n"]

    async def saved() -> bool:
        prompts = (await proxy.status())["prompts"]
        return any(each["kind"] == "conversation" and each["bytes"] for each in prompts)

    await eventually(saved)  # in an idle moment
    assert (llama.slots / "code.chat.bin").exists()
    await proxy.stop()
    await llama.restart()
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    second = await proxy.chat(question, first.text, "and then?")
    assert (second.cache, second.timings["cache_n"] >= whole) == ("restored", True)


@async_test
async def test_not_kept(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """With conversations switched off no file of any is written."""
    proxy = proxy_of(llama.url, BOTH, save_conversations=False)
    tokens = await proxy.warm("story", "code")
    question = f"@code {prose(400, seed=3)}"
    first = await proxy.chat(question, max_tokens=60)
    await proxy.chat("@story a chair")
    second = await proxy.chat(question, first.text, "and then?")
    assert (second.cache, second.timings["cache_n"]) == ("restored", tokens)
    assert {file.name for file in llama.slots.iterdir()} == {"code.bin", "story.bin"}


@async_test
async def test_two_conversations(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Of two conversations on a template each gets its own, or the template: never the other one's."""
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    tokens = await proxy.warm("code")
    asked = [f"@code {prose(400, seed=seed)}" for seed in (3, 4)]
    filled = [CODE.replace("<{message}>", each.removeprefix("@code ").strip()) for each in asked]
    first = [await proxy.chat(each, **ODDS) for each in asked]
    for text, answer in zip(filled, first, strict=True):
        assert agree(answer, await llama.cold(text, **ODDS))
    for number in (0, 1, 0, 1):
        behind = [first[number].text, "and then?"]
        answer = await proxy.chat(asked[number], *behind, **ODDS)
        assert answer.timings["cache_n"] >= tokens
        assert agree(answer, await llama.cold(filled[number], *behind, **ODDS))
