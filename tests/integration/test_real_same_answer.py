"""Whose answers come through bioproxy are those of a cold run, bit for bit: templates and learned prompts.

The rule, and what it does not cover, is in `docs/same-answer.md`; `test_real_exact` holds it on llama-server itself.
Here it is held where users meet it: a prompt that is hot, again and again, with another question each time; one that
is restored after a restart of llama-server; and one whose warm-up was interrupted, and went on from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.exactness import BATCH, SAME, TILE, WORDS, difference
from tests.integration.support import (
    ODDS,
    Answer,
    LlamaServer,
    RunningProxy,
    async_test,
    conversation,
    eventually,
    prose,
)

DENSE = tiny_model.Size(blocks=4, width=256, heads=4, feed_forward=512)
NOTES = prose(1290, seed=11).strip()
QUESTIONS = tuple(prose(words, seed=100 + words).strip() for words in (1, 2, 3, 5, 8, 11, 13, 17, 20, 24))
EXACT: dict[str, Any] = {**ODDS, "temperature": 0, "max_tokens": WORDS}


async def compare(llama: LlamaServer, answers: Sequence[Answer], questions: Sequence[dict[str, Any]]) -> None:
    """Compare answers with those of a run that reuses nothing."""
    # Past bioproxy, and only when all others are there: each of them takes the slot.
    for number, (answer, question) in enumerate(zip(answers, questions, strict=True)):
        cold = await llama.call("POST", "/v1/chat/completions", {**question, "cache_prompt": False})
        length = cold.json()["usage"]["prompt_tokens"]
        assert length % BATCH == 0 or length % BATCH >= TILE, f"a prompt of {length} tokens is the known exception"
        assert answer.timings["cache_n"] > length / 2, f"question {number} was not answered from the cache"
        assert difference(answer, cold) < SAME, f"question {number}: {difference(answer, cold)}"
        assert answer.text == cold.text, f"question {number}"


async def learned(proxy: RunningProxy) -> bool:
    """Tell whether there is a learned prompt, and all of them are warm."""
    found = [each for each in (await proxy.status())["prompts"] if each["kind"] == "learned"]
    return bool(found) and all(each["state"] == "warm" and each["saved_at"] for each in found)


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0"])
@async_test
async def test_template(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, quantization: str) -> None:
    """Ten questions on a template, all but the first hot, and two more after a restart of llama-server."""
    llama = llama_of(model=model_of(f"same-{quantization}", DENSE, quantization=quantization))
    await llama.start()
    proxy = proxy_of(llama.url, {"code": f"{NOTES}\n<{{message}}>"})
    await proxy.warm("code")
    answers = [await proxy.chat(f"@code {question}", **EXACT) for question in QUESTIONS]
    assert {answer.cache for answer in answers} == {"hot"}
    await llama.restart()
    answers += [await proxy.chat(f"@code {question}", **EXACT) for question in QUESTIONS[:2]]
    questions = [conversation(f"{NOTES}\n{each}", **EXACT) for each in (*QUESTIONS, *QUESTIONS[:2])]
    await compare(llama, answers, questions)


@async_test
async def test_after_a_short_chat(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, tmp_path: Path) -> None:
    """A chat of a few tokens is in the slot before a warm-up, and another one when the template's end is edited."""
    llama = llama_of(model=model_of("same-Q8_0", DENSE, quantization="Q8_0"))
    await llama.start()
    await llama.call("POST", "/v1/chat/completions", conversation("hello", max_tokens=4))
    proxy = proxy_of(llama.url, {"code": f"{NOTES}\n<{{message}}>"})
    before = await proxy.warm("code")
    answers = [await proxy.chat(f"@code {QUESTIONS[0]}", **EXACT)]
    assert (await proxy.chat("hello", max_tokens=4)).status == 200
    # The old text's file has all but a few of the tokens that are warmed up.
    edited = NOTES[: NOTES.rindex(" ", 0, len(NOTES) - 300)]
    (tmp_path / "code.txt").write_text(f"{edited}\n<{{message}}>")

    async def warm_again() -> bool:
        return await proxy.warm("code") < before

    await eventually(warm_again)
    answers += [await proxy.chat(f"@code {QUESTIONS[1]}", **EXACT)]
    texts = (f"{NOTES}\n{QUESTIONS[0]}", f"{edited}\n{QUESTIONS[1]}")
    await compare(llama, answers, [conversation(text, **EXACT) for text in texts])


@async_test
async def test_moved_text(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, tmp_path: Path) -> None:
    """With ``--cache-reuse`` a warm-up after an edit computes what llama-server would only move to another position."""
    one, two, three = (prose(words, seed=words) for words in (600, 300, 400))
    llama = llama_of("--cache-reuse", "16", model=model_of("same-Q8_0", DENSE, quantization="Q8_0"))
    await llama.start()
    proxy = proxy_of(llama.url, {"code": f"{one}{two}{three}\n<{{message}}>"})
    before = await proxy.warm("code")
    (tmp_path / "code.txt").write_text(f"{one}{three}\n<{{message}}>")

    async def edited() -> bool:
        return await proxy.warm("code") < before

    await eventually(edited)
    await llama.restart()
    answer = await proxy.chat("@code hello", **EXACT)
    assert answer.cache == "restored"
    await compare(llama, [answer], [conversation(f"{one}{three}\nhello", **EXACT)])


@async_test
async def test_learned_prompt(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """Ten questions on a system message that nobody configured, and two more after a restart of llama-server."""
    llama = llama_of(model=model_of("same-Q8_0", DENSE, quantization="Q8_0"))
    await llama.start()
    proxy = proxy_of(llama.url, {}, slot_save_path=str(llama.slots))

    def ask(question: str) -> dict[str, Any]:
        return {"messages": [{"role": "system", "content": NOTES}, {"role": "user", "content": question}], **EXACT}

    for question in ("one", "another"):
        assert (await proxy.call("POST", "/v1/chat/completions", ask(question))).status == 200
    await eventually(lambda: learned(proxy))
    answers = [await proxy.call("POST", "/v1/chat/completions", ask(question)) for question in QUESTIONS]
    await llama.restart()
    answers += [await proxy.call("POST", "/v1/chat/completions", ask(question)) for question in QUESTIONS[:2]]
    assert {answer.header("X-Bioproxy-Prompt") for answer in answers} == {answers[0].header("X-Bioproxy-Prompt")}
    await compare(llama, answers, [ask(question) for question in (*QUESTIONS, *QUESTIONS[:2])])


@async_test
async def test_interrupted_warmup(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """A template whose warm-up a user has interrupted, and which then went on from the file of its beginning."""
    size = tiny_model.Size(blocks=12, width=512, heads=8, feed_forward=1536)
    llama = llama_of(model=model_of("same-slow", size, quantization="Q8_0"))
    await llama.start()
    proxy = proxy_of(llama.url, {"code": f"{prose(1600, seed=12)}\n<{{message}}>"}, warmup_chunk=128)

    async def part_saved() -> bool:
        return await proxy.sample("slot_saves_total", template="code", result="ok") >= 1

    await eventually(part_saved)
    assert (await proxy.chat("hello", max_tokens=1)).status == 200
    assert await proxy.sample("warmups_total", template="code", result="preempted") >= 1
    await proxy.warm("code")
    assert await proxy.sample("slot_restores_total", template="code", result="ok") >= 1
    answers = [await proxy.chat(f"@code {question}", **EXACT) for question in QUESTIONS[:3]]
    text = prose(1600, seed=12)
    await compare(llama, answers, [conversation(f"{text}\n{each}", **EXACT) for each in QUESTIONS[:3]])
