"""llama-servers with other flags: several slots, sleep, no `GET /slots`; and one that comes back with another model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.support import ODDS, REST, LlamaServer, agree, async_test, eventually, pause, prose

CODE = f"{prose(1000, seed=1)}\nAnswer: <{{message}}>"
STORY = f"{prose(800, seed=2)}\nAbout: <{{message}}>"
BOTH = {"code": CODE, "story": STORY}
WHY = CODE.replace("<{message}>", "why?")

FEW = 40 + REST
"""Prompt tokens that a short question may take."""


async def asleep(llama: LlamaServer) -> bool:
    """Tell whether it has unloaded its model; asking this does not wake it."""
    return bool((await llama.call("GET", "/props")).json()["is_sleeping"])


@async_test
async def test_two_slots(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """Of two slots the first has the templates, whatever others do in the second."""
    llama = llama_of("--parallel", "2")
    await llama.start()
    proxy = proxy_of(llama.url, BOTH, slot_save_path=str(llama.slots))
    await proxy.warm("code", "story")
    right = await llama.cold(WHY, **ODDS, id_slot=1)
    for question in ("@code why?", "@story a chair", "@code why?"):
        assert (await llama.cold("something else", id_slot=1)).status == 200
        assert (await proxy.chat("and something else")).status == 200
        answer = await proxy.chat(question, **ODDS)
        assert answer.cache in ("hot", "restored")
        assert answer.timings["prompt_n"] <= FEW
        assert question != "@code why?" or agree(answer, right)
    await llama.restart()
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.cache, answer.timings["prompt_n"] <= FEW, agree(answer, right)) == ("restored", True, True)
    assert await proxy.sample("warmups_total") == 2


@async_test
async def test_no_slots(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """Where llama-server does not say what its slot holds, each other question is restored, and right."""
    llama = llama_of("--no-slots")
    await llama.start()
    right = await llama.cold(WHY, **ODDS)
    proxy = proxy_of(llama.url, BOTH, slot_save_path=str(llama.slots))
    await proxy.warm("code", "story")
    saves = await proxy.sample("slot_saves_total")
    for question in ("@code why?", "@story a chair", "@code why?"):
        answer = await proxy.chat(question, **ODDS)
        assert (answer.cache, answer.timings["prompt_n"] <= FEW) == ("restored", True)
        assert question != "@code why?" or agree(answer, right)
        # Somebody whom nobody sees.
        await llama.cold("something else " * 50)
    await llama.restart()
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.cache, agree(answer, right)) == ("restored", True)
    await proxy.rounds()
    assert await proxy.sample("slot_saves_total") == saves


@async_test
async def test_sleep(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """A llama-server that sleeps when idle is neither kept awake nor woken; a question wakes it and is restored."""
    llama = llama_of("--sleep-idle-seconds", "1")
    await llama.start()
    right = await llama.cold(WHY, **ODDS)
    proxy = proxy_of(llama.url, BOTH, slot_save_path=str(llama.slots))
    tokens = await proxy.warm("story", "code")
    await eventually(lambda: asleep(llama))
    end = time.monotonic() + 4.5  # two looks of the watch, and nine rounds of the warmer
    while time.monotonic() < end:
        assert await asleep(llama)
        await pause(0.1)
    states = [each["state"] for each in (await proxy.status())["templates"]]
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.status, answer.cache, answer.timings["cache_n"]) == (200, "restored", tokens)
    assert agree(answer, right)
    assert (await proxy.chat("@code why?")).cache == "hot"
    await eventually(lambda: asleep(llama))
    assert await proxy.sample("warmups_total", result="done") == 2
    assert states == ["warm", "warm"], "and this is told while it sleeps"


@async_test
async def test_edit_while_asleep(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """An edit is worth waking it for, once; then it sleeps again."""
    llama = llama_of("--sleep-idle-seconds", "1")
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    await eventually(lambda: asleep(llama))
    proxy.path("code").write_text(STORY)

    async def warm_again() -> bool:
        return await proxy.sample("warmups_total", result="done") == 2

    await eventually(warm_again)
    await eventually(lambda: asleep(llama))
    answer = await proxy.chat("@code a chair", **ODDS)
    assert (answer.cache, answer.timings["prompt_n"] <= FEW) == ("restored", True)


@async_test
async def test_another_model_while_asleep(llama_of: LlamaOf, proxy_of: ProxyOf, other: Path) -> None:
    """A model file that is exchanged while the model is unloaded is noticed, though it is still the same process."""
    direct = llama_of(model=other, slots=False)
    await direct.start()
    right = await direct.cold(WHY, **ODDS)
    llama = llama_of("--sleep-idle-seconds", "1")
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    await eventually(lambda: asleep(llama))
    shutil.copyfile(other, draft := llama.model.with_suffix(".new"))
    draft.replace(llama.model)  # not in place: who still has the old one mapped keeps it
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.cache, answer.miss, agree(answer, right)) == ("cold", "other-model", True)
    await proxy.warm("code")
    await proxy.chat("something else")
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.cache, agree(answer, right)) == ("restored", True)


@async_test
async def test_other_models(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, tiny: Path) -> None:
    """Restarted with a model of another kind and back, each time the template is warmed up for it and then restored."""
    llama = llama_of()
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    for model in (model_of("sliding", tiny_model.SLIDING), tiny):
        llama.kill()
        shutil.copyfile(model, llama.model)
        await llama.start()
        answer = await proxy.chat("@code why?", **ODDS)
        right = await llama.cold(WHY, **ODDS)
        assert (answer.status, answer.miss, agree(answer, right)) == (200, "other-model", True)
        await proxy.warm("code")
        await proxy.chat("something else")
        answer = await proxy.chat("@code why?", **ODDS)
        assert (answer.cache, answer.timings["prompt_n"] <= FEW, agree(answer, right)) == ("restored", True, True)
