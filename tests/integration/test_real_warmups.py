"""Warm-ups that are disturbed: by users, by edits, by both."""

from __future__ import annotations

import json
import time
from pathlib import Path

from twisted.internet.threads import deferToThread

from bioproxy.demo import tiny_model
from bioproxy.warmup.progress import LEAST
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.support import (
    ODDS,
    PATIENCE,
    REST,
    Answer,
    LlamaServer,
    RunningProxy,
    agree,
    async_test,
    defer,
    eventually,
    pause,
    prose,
)

CODE = f"{prose(600, seed=1)}\nAnswer: <{{message}}>"
LONG = f"{prose(3000, seed=2)}\nAbout: <{{message}}>"
"""Takes some seconds on the slow model."""

LONGER = f"{prose(6000, seed=2)}\nAbout: <{{message}}>"
"""So long that its warm-up is not over when its first part is seen to be saved, however busy the machine is."""

INTERVAL = 1.2
"""Seconds between two questions: more than bioproxy waits for further ones before it warms up, and not much more."""


async def longer_than(seconds: float, llama: LlamaServer) -> str:
    """Return a template that takes longer than that on this machine, and at least 2,500 tokens."""
    words = 2500
    computed = (await llama.cold(prose(words, seed=3))).timings["prompt_ms"] / 1000
    # The time grows faster than the tokens, so this is enough.
    return f"{prose(int(words * max(1.0, seconds / computed)), seed=2)}\nAbout: <{{message}}>"


async def warm_with(proxy: RunningProxy, llama: LlamaServer, text: str) -> None:
    """Wait until the template `code` is warm, and see that it is with this text."""
    right = await llama.cold(text.replace("<{message}>", "why?"), **ODDS)
    await proxy.look("code")
    tokens = await proxy.warm("code")
    await proxy.chat("something else")
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.cache, answer.timings["cache_n"], agree(answer, right)) == ("restored", tokens, True)


async def evaluated(llama: LlamaServer) -> int:
    """Return how many prompt tokens llama-server computed since its start."""
    text = (await llama.call("GET", "/metrics")).body.decode()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("llamacpp:prompt_tokens_total "))


@async_test
async def test_among_users(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """While users ask for one template every two seconds, another, long one becomes warm all the same, bit by bit."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    await proxy.stop()
    # So long that it cannot become warm between two questions.
    story = await longer_than(1.5 * INTERVAL, llama)
    proxy = proxy_of(llama.url, {"code": CODE, "story": story}, slot_save_path=str(llama.slots))
    began, progress = time.monotonic(), [0.0]
    while (template := await proxy.template("story"))["state"] != "warm":
        assert time.monotonic() < began + 2 * PATIENCE
        answer = await proxy.chat("@code why?", max_tokens=4)
        assert (answer.status, answer.cache != "cold") == (200, True)
        await pause(INTERVAL)
        progress.append(template["progress"])
    assert await proxy.sample("slot_saves_total", template="story", result="ok") >= 2, "a part was saved, and the whole"
    assert any(0 < each < 1 for each in progress), "it is told on the way"
    assert await proxy.sample("warmups_total", template="story", result="preempted") >= 1
    assert not (llama.slots / "story.part.bin").exists()
    answer = await proxy.chat("@story why?", max_tokens=4)
    assert answer.timings["cache_n"] == template["tokens"]


@async_test
async def test_user_during_a_part(llama_of: LlamaOf, proxy_of: ProxyOf, bulky: Path) -> None:
    """A user who comes just while the beginning of a warm-up is saved waits for that, and for no more."""
    llama = llama_of(model=bulky)
    await llama.start()
    part = llama.slots / "code.part.bin"

    def saved() -> None:
        deadline = time.monotonic() + PATIENCE
        while not part.exists() and time.monotonic() < deadline:
            time.sleep(0.0002)

    saving = deferToThread(saved)
    proxy = proxy_of(llama.url, {"code": LONG})
    await saving
    answer = await proxy.chat("hello", max_tokens=1)
    assert (answer.status, part.exists()) == (200, True)
    assert (await proxy.template("code"))["state"] != "warm"


@async_test
async def test_goes_on_after_a_restart(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """A warm-up goes on from its part where bioproxy and llama-server were both restarted in the middle of it."""
    llama = llama_of(model=slow)
    await llama.start()
    settings = {"slot_save_path": str(llama.slots)}
    proxy = proxy_of(llama.url, {"story": LONGER}, **settings)

    async def part_saved() -> bool:
        return await proxy.sample("slot_saves_total", result="ok") > 0

    await eventually(part_saved)
    assert (llama.slots / "story.part.bin").exists()
    await proxy.stop()
    # How far it came depends on how fast this machine is just now.
    record = json.loads((proxy.file.parent / "state" / "shelf" / "story.part.json").read_text())
    await llama.restart()
    proxy = proxy_of(llama.url, {"story": LONGER}, **settings)
    tokens = await proxy.warm("story")
    assert record["tokens"] >= LEAST
    # The few others are those by which the model is identified.
    assert await evaluated(llama) < tokens - record["tokens"] + LEAST


@async_test
async def test_two_edits(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """Of two edits between two looks at the files the last one counts, also if it has the size of the one before."""
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    first, second = (CODE.replace("Answer", word) for word in ("Say all", "Tell me"))
    proxy.path("code").write_text(first)
    proxy.path("code").write_text(second)
    await warm_with(proxy, llama, second)
    assert await proxy.sample("warmups_total", result="done") == 2


@async_test
async def test_edit_during_a_warmup(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """An edit in the middle of a warm-up ends that; the new text becomes warm, the old one never does."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": LONG}, slot_save_path=str(llama.slots))

    async def under_way() -> bool:
        return 0.1 < float((await proxy.template("code"))["progress"]) < 0.5

    await eventually(under_way)
    proxy.path("code").write_text(CODE)
    await warm_with(proxy, llama, CODE)
    assert await proxy.sample("warmups_total", result="done") == 1
    assert {file.name for file in llama.slots.iterdir()} == {"code.bin"}


@async_test
async def test_edit_during_a_question(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """An edit during a question does not change its answer, and the new text is warm afterwards."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    old = await llama.cold(CODE.replace("<{message}>", "why?"), **ODDS)
    await proxy.warm("code")
    asked = defer(proxy.chat("@code why?", max_tokens=200, **ODDS))

    async def answering() -> bool:
        return bool((await llama.slot())["is_processing"])

    await eventually(answering)
    edited = CODE.replace("Answer", "Say all")
    proxy.path("code").write_text(edited)
    assert agree(await asked, old)
    await warm_with(proxy, llama, edited)


@async_test
async def test_edit_near_the_end(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """After an edit near the end of a long template only the end is computed again."""
    proxy = proxy_of(llama.url, {"code": LONG}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    await proxy.chat("something else")
    before = await evaluated(llama)
    edited = LONG.replace("\nAbout", "\nAll about")
    proxy.path("code").write_text(edited)

    async def warm_again() -> bool:
        return await proxy.sample("warmups_total", result="done") == 2

    await eventually(warm_again)
    assert 0 < await evaluated(llama) - before < 300
    await warm_with(proxy, llama, edited)


@async_test
async def test_edit_near_the_end_of_a_hybrid(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """On a model that cannot go back, an edited template is computed anew, and is right and of use."""
    llama = llama_of("--ctx-checkpoints", "0", model=model_of("hybrid", tiny_model.HYBRID))
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    for word in ("Answer", "All answers", "More answers"):
        edited = CODE.replace("Answer", word)
        proxy.path("code").write_text(edited)
        await warm_with(proxy, llama, edited)
    assert (await proxy.status())["llama"]["note"] is None


@async_test
async def test_from_a_conversation(llama: LlamaServer, proxy_of: ProxyOf) -> None:
    """A prompt that is learned after something else took the slot is not computed again: a conversation's file has it.

    The next session has all of it from the prompt's own file.
    """
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    agent = {"role": "system", "content": prose(1500, seed=7)}

    async def session(question: str) -> Answer:
        messages = [agent, {"role": "user", "content": question}]
        return await proxy.call("POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 4})

    async def learned() -> bool:
        return any(each["kind"] == "learned" and each["state"] == "warm" for each in (await proxy.status())["prompts"])

    assert (await session("what is new?")).timings["prompt_n"] > 1000
    # Each time the template takes the slot, and the conversation is saved before.
    await proxy.chat("@code why?")
    before = await evaluated(llama)
    # The second conversation has the prompt learned.  Its warm-up waits for a quiet moment.
    await session("and what else?")
    await proxy.chat("@code why?")
    await eventually(learned)
    assert await evaluated(llama) - before < 300
    await proxy.chat("@code why?")
    answer = await session("and now?")
    assert (answer.cache, answer.timings["prompt_n"] < 80 + REST) == ("restored", True)
