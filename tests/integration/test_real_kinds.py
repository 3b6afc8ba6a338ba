"""bioproxy's main promise on each kind of model, and what it does where the build of llama.cpp cannot keep it."""

from __future__ import annotations

import pytest

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.support import ODDS, REST, Answer, agree, async_test, eventually, prose

KNOW = prose(6000, seed=1)
CODE = f"{KNOW}\nAnswer: <{{message}}>"
SHORT = f"{prose(1000, seed=3)}\nAnswer: <{{message}}>"
STORY = f"{prose(1500, seed=2)}\nAbout: <{{message}}>"

FEW = 40 + REST
"""Prompt tokens that a short question may take."""

KINDS = {"dense": tiny_model.TINY, "sliding": tiny_model.SLIDING, "hybrid": tiny_model.HYBRID}

CANNOT_GO_BACK = ("--ctx-checkpoints", "0")
"""Makes llama.cpp behave like builds without checkpoints."""


def of_kinds(*kinds: str) -> pytest.MarkDecorator:
    """Run a test on these models, given as their kind and llama-server's arguments."""
    return pytest.mark.parametrize("kind", kinds)


@of_kinds(
    "dense",
    "hybrid",
    "hybrid --ctx-checkpoints 0",
    "sliding",
    "sliding --swa-full --ctx-checkpoints 0",
)
@async_test
async def test_few_tokens_after_a_restart(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, kind: str) -> None:
    """On a template of 6,000 tokens a question computes 40 tokens at most, also right after llama-server restarted."""
    name, *arguments = kind.split()
    llama = llama_of(*arguments, model=model_of(name, KINDS[name]))
    await llama.start()
    proxy = proxy_of(llama.url, {"code": CODE, "story": STORY}, slot_save_path=str(llama.slots))
    await proxy.warm("story")
    assert await proxy.warm("code") > 6000 - REST
    saves = await proxy.sample("slot_saves_total")
    cold = await llama.cold(f"{KNOW}\nAnswer: why?", **ODDS)
    await llama.restart()
    for question in ("@code why?", "@story a chair", "@code why?"):
        answer = await proxy.chat(question, **ODDS)
        assert (answer.status, answer.cache) == (200, "restored")
        assert answer.timings["prompt_n"] <= FEW
        assert question != "@code why?" or agree(answer, cold)
    if kind != "hybrid --ctx-checkpoints 0":
        # Hot: llama-server goes back to the end of the template.
        for question in ("@code how?", "@code what?"):
            answer = await proxy.chat(question, max_tokens=100)
            assert (answer.cache, answer.timings["prompt_n"] <= FEW) == ("hot", True)
    assert (await proxy.status())["llama"]["note"] is None
    assert await proxy.sample("slot_saves_total") == saves, "all files were good"


@of_kinds("sliding --ctx-checkpoints 0", "dense --no-cache-prompt")
@async_test
async def test_restoring_does_not_help(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, kind: str) -> None:
    """Where restored files are not used by llama-server, that is noticed, told, and not tried a third time."""
    name, *arguments = kind.split()
    llama = llama_of(*arguments, model=model_of(name, KINDS[name]))
    await llama.start()
    proxy = proxy_of(llama.url, {"code": SHORT, "story": STORY})
    await proxy.warm("code", "story")
    before = await proxy.sample("slot_restores_total", result="ok")
    saves = await proxy.sample("slot_saves_total")
    # Whatever the slot holds now: a question about neither of both takes its place.
    await proxy.chat("something else")
    first, second = await proxy.chat("@code why?"), await proxy.chat("@story a chair")
    assert (first.cache, second.cache) == ("restored", "restored")
    assert await proxy.sample("slot_restores_total", result="ok") == before + 2
    assert await proxy.sample("slot_restores_total", result="ineffective") == 2

    async def told(something: bool) -> bool:
        return ((await proxy.status())["llama"]["note"] is not None) == something

    await eventually(lambda: told(True))
    note = (await proxy.status())["llama"]["note"]
    assert "--ctx-checkpoints 0" in note and "--no-cache-prompt" in note

    third = await proxy.chat("@code why?")
    assert (third.status, third.cache, third.miss) == (200, "cold", "ineffective")
    await proxy.chat("something else")
    await proxy.rounds()
    assert (await proxy.chat("@story a chair")).miss == "ineffective"
    assert await proxy.sample("slot_restores_total", result="ok") == before + 2
    # One file is written anew, as only that file might be of no use.
    assert await proxy.sample("slot_saves_total") <= saves + 1

    # The next one, with other flags, gets a new chance, and the files are still good.  (They have no checkpoints, so a
    # sliding window needs all tokens.)
    for argument in arguments:
        llama.arguments.remove(argument)
    llama.arguments.append("--swa-full")
    await llama.restart()
    await eventually(lambda: told(False))
    answer = await proxy.chat("@code why?")
    assert answer.cache in ("restored", "hot")
    assert answer.timings["prompt_n"] <= FEW


@async_test
async def test_file_of_other_flags(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """A file that only an earlier process of llama-server could use is written anew, and is of use from then on."""
    llama = llama_of(*CANNOT_GO_BACK, model=model_of("sliding", tiny_model.SLIDING))
    await llama.start()
    proxy = proxy_of(llama.url, {"code": SHORT})
    await proxy.warm("code")
    saves = await proxy.sample("slot_saves_total", template="code", result="ok")
    for argument in CANNOT_GO_BACK:
        llama.arguments.remove(argument)
    await llama.restart()
    first = await proxy.chat("@code why?")
    assert (first.cache, first.timings["cache_n"]) == ("restored", 0)

    async def saved_again() -> bool:
        return await proxy.sample("slot_saves_total", template="code", result="ok") > saves

    await eventually(saved_again)
    await llama.restart()
    second = await proxy.chat("@code how?")
    assert (second.cache, second.timings["prompt_n"] <= FEW) == ("restored", True)
    assert (await proxy.status())["llama"]["note"] is None


@async_test
async def test_hot_but_cannot_go_back(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """A model that cannot go back to the end of the template makes one question slow: from then on it is restored."""
    llama = llama_of(*CANNOT_GO_BACK, model=model_of("hybrid", tiny_model.HYBRID))
    await llama.start()
    proxy = proxy_of(llama.url, {"code": SHORT})
    tokens = await proxy.warm("code")

    async def ask(question: str) -> Answer:
        answer = await proxy.chat(f"@code {question}")
        assert answer.status == 200
        return answer

    first, second = await ask("why?"), await ask("how?")
    assert first.timings["prompt_n"] <= FEW
    for answer in (second, await ask("what?"), await ask("who?"), await ask("when?")):
        assert (answer.cache, answer.timings["cache_n"]) == ("restored", tokens)
    assert (await proxy.status())["llama"]["note"] is None, "restoring helps"
    assert await proxy.sample("slot_restores_total", result="ineffective") == 0
