"""After an answer the conversation is processed as its client will send it back: figures on the real llama.cpp."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.exactness import BATCH, SAME, difference
from tests.integration.support import (
    ODDS,
    Answer,
    LlamaServer,
    RunningProxy,
    async_test,
    defer,
    eventually,
    fetch,
    prose,
    until,
)

DROPS_REASONING = (
    "{% for message in messages %}"
    "{% set content = message['content'] or '' %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A chat template that drops what an assistant has thought, as those of thinking models do."""

THINKING = 'root ::= "<think>" [0-9]{300} "</think>" [0-9]{300}'
"""A grammar for 300 digits of reasoning and 300 of answer: each is one token."""

SHORT_THINKING = 'root ::= "<think>" [0-9]{100} "</think>" [0-9]{100}'
"""The same with so few digits that another question on a template is cut back behind it."""

USER_GRAMMAR = 1
"""llama.cpp's number for a grammar that the user gave."""

MODELS = {
    "dense": tiny_model.TINY,
    "sliding": tiny_model.SLIDING,
    "hybrid": tiny_model.HYBRID,
}

KINDS = ["dense", "sliding", "sliding --swa-full --ctx-checkpoints 0", "hybrid", "hybrid --ctx-checkpoints 0"]


# The dialects: how a conversation is asked on, and what the next request has.


def chat(history: list[Any], **more: Any) -> tuple[str, dict[str, Any]]:
    """Return a request of chat completions."""
    return "/v1/chat/completions", {"messages": history, "max_tokens": 700, "temperature": 0, **more}


def messages(history: list[Any], **more: Any) -> tuple[str, dict[str, Any]]:
    """Return a request of Anthropic's messages."""
    return "/v1/messages", {"messages": history, "max_tokens": 700, "temperature": 0, **more}


def responses(history: list[Any], **more: Any) -> tuple[str, dict[str, Any]]:
    """Return a request of OpenAI's responses."""
    return "/v1/responses", {"input": history, "max_output_tokens": 700, "temperature": 0, **more}


def said(answer: Answer) -> list[Any]:
    """Return what a client adds to its history after an answer, plain or streamed, of any dialect."""
    events = [json.loads(event) for event in answer.events() if event != "[DONE]"]
    if not events:
        value = answer.json()
        if "choices" in value:
            return [{"role": "assistant", "content": value["choices"][0]["message"]["content"]}]
        return [{"role": "assistant", "content": value["content"]}] if "content" in value else list(value["output"])
    if "choices" in events[0]:
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        return [{"role": "assistant", "content": "".join(delta.get("content") or "" for delta in deltas)}]
    if events[0]["type"] == "message_start":
        blocks: dict[int, Any] = {}
        for event in events:
            if event["type"] == "content_block_start":
                blocks[event["index"]] = event["content_block"]
            if event["type"] == "content_block_delta":
                for name in ("text", "thinking"):
                    if name in event["delta"]:
                        blocks[event["index"]][name] += event["delta"][name]
        return [{"role": "assistant", "content": list(blocks.values())}]
    return list(next(event["response"]["output"] for event in events if event["type"] == "response.completed"))


Request = Callable[..., tuple[str, dict[str, Any]]]


async def second_turn(
    proxy: RunningProxy, ask: Request, stream: bool = False, seed: int = 5, head_start: bool = True
) -> tuple[int, int]:
    """Ask twice, with a head start between; fire with the tokens computed for the second turn, and those of its text.

    Without a `head_start` some idle seconds are between.
    """
    history: list[Any] = [{"role": "user", "content": prose(400, seed=seed)}]
    path, body = ask(history, stream=stream, grammar=THINKING)
    answer = await proxy.call("POST", path, body)
    assert answer.status == 200
    await (eventually(lambda: head_starts(proxy, 1)) if head_start else proxy.rounds(2))
    question = "and then what?"
    history = [*history, *said(answer), {"role": "user", "content": question}]
    path, body = ask(history, stream=stream)
    answer = await proxy.call("POST", path, {**body, "max_tokens": 4, "max_output_tokens": 4})
    assert answer.status == 200
    requests = (await proxy.status())["requests"]
    new = len((await fetch("POST", proxy.url + "/tokenize", {"content": question})).json()["tokens"])
    return requests[0]["prompt_tokens"] - requests[0]["cached_tokens"], new


@pytest.mark.parametrize("kind", KINDS)
@async_test
async def test_kinds(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, kind: str) -> None:
    """After 300 tokens of reasoning and 300 of answer, the next turn computes what is new, and few tokens more."""
    name, *arguments = kind.split()
    llama = llama_of(*arguments, model=model_of(f"thinking-{name}", MODELS[name], chat_template=DROPS_REASONING))
    await llama.start()
    figures = {}
    for on in (True, False):
        proxy = proxy_of(llama.url, slot_save_path=str(llama.slots), head_start=on)
        await eventually(lambda proxy=proxy: up(proxy))  # type: ignore[misc]
        figures[on], new = await second_turn(proxy, chat, seed=5 + on, head_start=on)
        assert (await proxy.sample("head_starts_total", result="done") > 0) == on
        await proxy.stop()
        await llama.restart()
    print(f"{kind}: {figures[True]} tokens computed with a head start, {figures[False]} without; {new} are new")
    assert figures[True] <= new + 40
    assert figures[True] < figures[False]


async def up(proxy: RunningProxy) -> bool:
    """Tell whether bioproxy has found llama-server."""
    return bool((await proxy.status())["llama"]["up"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", [chat, messages, responses])
@async_test
async def test_dialects(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, ask: Request, stream: bool) -> None:
    """All dialects, streamed or not."""
    llama = llama_of(model=model_of("thinking-dense", MODELS["dense"], chat_template=DROPS_REASONING))
    # Two of the APIs have no field for a grammar, so all requests get it by default.
    llama.params = {"sampling": {"grammar": {"grammar": THINKING, "type": USER_GRAMMAR}}}
    await llama.start()
    proxy = proxy_of(llama.url, slot_save_path=str(llama.slots))
    await eventually(lambda: up(proxy))
    computed, new = await second_turn(proxy, ask, stream)
    print(f"{ask.__name__}, stream {stream}: {computed} tokens computed, {new} are new")
    assert computed <= new + 40
    assert await proxy.sample("head_starts_total", result="done") == 1
    assert await proxy.sample("head_starts_total", result="useless") == 0


STARTED, ENDED, SIZE = "processing task", "stop processing", r"prompt eval time = .* (\d+) tokens \("
"""What llama-server logs when it begins a request and when it is done with one; and how many tokens it computed."""

PREEMPTED: dict[str, dict[str, str]] = {"head_starts_total": {"result": "preempted"}, "preempt_seconds_count": {}}
"""The metrics that count users who came during a head start, or during any work that gives way."""


async def somebody_comes(proxy: RunningProxy, llama: LlamaServer) -> None:
    """Have a user come while a head start has a piece computed, and see that the user waits for that piece at most.

    Pieces are counted and not seconds: those depend on what else the machine does.
    """
    before = len(llama.log)
    await until(lambda: llama.log.rfind(STARTED, before) > llama.log.rfind(ENDED, before))
    # It stands still until the user is there, so the piece is not over before.
    llama.signal(signal.SIGSTOP)
    assert await proxy.gate("warmup", 0)
    started = llama.log.count(STARTED)
    counts = [await proxy.sample(name, **labels) for name, labels in PREEMPTED.items()]
    asked = defer(proxy.chat("who?", max_tokens=1))
    await eventually(lambda: proxy.gate("user", 0))
    llama.signal(signal.SIGCONT)
    assert (await asked).status == 200
    assert [await proxy.sample(name, **labels) for name, labels in PREEMPTED.items()] == [each + 1 for each in counts]
    assert llama.log.count(STARTED) <= started + 2, "a piece that was sent just before, and the question"
    sizes = [int(size) for size in re.findall(SIZE, llama.log[before:])]
    assert max(sizes) <= BATCH and "prompt processing, n_tokens" not in llama.log[before:], sizes


@async_test
async def test_who_comes_meanwhile(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """A user who comes during a head start waits for one piece at most."""
    size = tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=768, architecture="lfm2")
    llama = llama_of("--ctx-checkpoints", "0", model=model_of("thinking-slow", size, chat_template=DROPS_REASONING))
    await llama.start()
    proxy = proxy_of(llama.url, slot_save_path=str(llama.slots))
    await eventually(lambda: up(proxy))
    # The first one shows that this model cannot go back: from then on all is computed again, in pieces.
    await second_turn(proxy, chat)
    path, body = chat([{"role": "user", "content": prose(4000, seed=9)}], grammar=THINKING)
    assert (await proxy.call("POST", path, body)).status == 200
    await somebody_comes(proxy, llama)


@async_test
async def test_who_comes_during_the_first(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """The first head start finds out that a model cannot go back; whoever comes then waits for one piece at most."""
    size = tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=768, architecture="lfm2")
    llama = llama_of("--ctx-checkpoints", "0", model=model_of("thinking-slow", size, chat_template=DROPS_REASONING))
    await llama.start()
    proxy = proxy_of(llama.url, slot_save_path=str(llama.slots))
    await eventually(lambda: up(proxy))
    path, body = chat([{"role": "user", "content": prose(3000, seed=9)}], grammar=THINKING)
    assert (await proxy.call("POST", path, body)).status == 200
    await somebody_comes(proxy, llama)


@pytest.mark.parametrize("kind", ["dense", "sliding", "hybrid --ctx-checkpoints 0"])
@async_test
async def test_saved(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, kind: str) -> None:
    """The file of the conversation that a head start has left is all of use after a restart of llama-server."""
    name, *arguments = kind.split()
    llama = llama_of(*arguments, model=model_of(f"thinking-{name}", MODELS[name], chat_template=DROPS_REASONING))
    await llama.start()
    proxy = proxy_of(llama.url, slot_save_path=str(llama.slots), learn_minimum=256)
    await eventually(lambda: up(proxy))
    history: list[Any] = [{"role": "user", "content": prose(400, seed=31)}]
    path, body = chat(history, grammar=THINKING)
    answer = await proxy.call("POST", path, body)
    # Saved in an idle moment behind the head start, although it may have been saved before it as well.
    await eventually(lambda: saved_as_it_comes_back(proxy, llama))
    await llama.restart()
    path, body = chat([*history, *said(answer), {"role": "user", "content": "and then what?"}])
    second = await proxy.call("POST", path, {**body, "max_tokens": 4})
    print(f"{kind}: {second.cache}, {second.timings['prompt_n']} tokens computed")
    assert (second.cache, second.timings["prompt_n"] <= 4 + 40) == ("restored", True)


async def saved_as_it_comes_back(proxy: RunningProxy, llama: LlamaServer) -> bool:
    """Tell whether a head start was done, and a file has what it has left in the slot."""
    done = await proxy.sample("head_starts_total", result="done")
    found = [each["tokens"] for each in (await proxy.status())["prompts"] if each["kind"] == "conversation"]
    return bool(done) and found == [(await llama.slot())["n_prompt_tokens"]]


@async_test
async def test_other_question(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """After a head start, another question on the template is cut back to it: its answer is that of a cold run."""
    size = tiny_model.Size(blocks=4, width=256, heads=4, feed_forward=512)
    llama = llama_of(model=model_of("thinking-exact", size, quantization="Q8_0", chat_template=DROPS_REASONING))
    await llama.start()
    notes = prose(1290, seed=11).strip()
    proxy = proxy_of(llama.url, {"code": f"{notes}\n<{{message}}>"}, slot_save_path=str(llama.slots))
    await proxy.warm("code")
    questions = [prose(2 + number, seed=40 + number).strip() for number in range(3)]
    answers = []
    for number, question in enumerate(questions):
        assert (await proxy.chat("@code who?", max_tokens=250, grammar=SHORT_THINKING)).status == 200
        await eventually(lambda done=number + 1: head_starts(proxy, done))  # type: ignore[misc]
        answers.append(await proxy.chat(f"@code {question}", **ODDS))
    for question, answer in zip(questions, answers, strict=True):
        cold = await llama.cold(f"{notes}\n{question}", **ODDS)
        assert answer.cache == "hot" and answer.timings["cache_n"] > 1000
        assert (difference(answer, cold) < SAME, answer.text) == (True, cold.text)


async def head_starts(proxy: RunningProxy, done: int) -> bool:
    """Tell whether so many head starts were done."""
    return await proxy.sample("head_starts_total", result="done") == done


@async_test
async def test_conversation(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """Over some turns of a model that cannot go back, each computes what is new, and few tokens more."""
    llama = llama_of(
        "--ctx-checkpoints", "0", model=model_of("thinking-hybrid", MODELS["hybrid"], chat_template=DROPS_REASONING)
    )
    await llama.start()
    figures: dict[bool, list[int]] = {}
    for on in (True, False):
        proxy = proxy_of(llama.url, slot_save_path=str(llama.slots), head_start=on)
        await eventually(lambda proxy=proxy: up(proxy))  # type: ignore[misc]
        history: list[Any] = [{"role": "user", "content": prose(1500, seed=20 + on)}]
        figures[on] = []
        for turn in range(4):
            path, body = chat(history, grammar=THINKING)
            answer = await proxy.call("POST", path, body)
            figures[on].append(answer.timings["prompt_n"])
            if on:
                await eventually(lambda proxy=proxy, done=turn + 1: head_starts(proxy, done))  # type: ignore[misc]
            else:
                await proxy.rounds(2)
            history += [*said(answer), {"role": "user", "content": "and then what?"}]
        await proxy.stop()
        await llama.restart()
    print(f"tokens computed, turn by turn: {figures[True]} with head starts, {figures[False]} without")
    assert all(computed <= 10 + 40 for computed in figures[True][1:])
    assert sum(figures[False][1:]) > 10 * sum(figures[True][1:])
