"""Clients that hang up, at each point of a request's way, on the real llama.cpp: it stops working for them."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.support import Call, LlamaServer, RunningProxy, async_test, conversation, eventually, until

LlamaOf = Callable[..., LlamaServer]
ProxyOf = Callable[..., RunningProxy]

CODE = "You know this code. " + "The server keeps one slot and a file for each text. " * 20 + "\nAnswer: <{message}>"
LONG = "The people of the valley read all day and write all night. " * 200
"""Takes about four seconds on the slow model."""

ENDLESS = 15000
"""Tokens; half a minute on the slow model."""

BOTH_KINDS = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


async def was_stopped(llama: LlamaServer) -> bool:
    """Tell whether an answer of `ENDLESS` tokens was ended before its time: only whole ones are counted here."""
    text = (await llama.call("GET", "/metrics")).body.decode()
    [count] = re.findall(r"^llamacpp:tokens_predicted_total (\S+)$", text, re.MULTILINE)
    return float(count) < ENDLESS


async def frees_the_slot(call: Call, proxy: RunningProxy, llama: LlamaServer) -> None:
    """Hang up, and check that the gate and llama-server are free long before the answer would be whole.

    Nobody may ask for `GET /slots` meanwhile: llama.cpp looks whether the client of a plain request is still there only
    after a second in which no other task has ended.
    """
    call.hang_up()
    await eventually(lambda: proxy.gate(None, 0))
    assert not call.whole
    assert (await proxy.status())["requests"][0]["status"] == 499
    answer = await proxy.chat("hello")
    assert (answer.status, answer.timings["predicted_n"]) == (200, 8)
    assert await was_stopped(llama)


@BOTH_KINDS
@async_test
async def test_while_waiting(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, stream: bool) -> None:
    """Who hangs up while waiting leaves the queue, and llama-server never hears of that request."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, warmup=False)
    first = proxy.ring("tell me everything", stream=True, max_tokens=ENDLESS)
    await eventually(llama.decoding)
    task = (await llama.slot())["id_task"]
    waiting = proxy.ring("hello", stream=stream)
    await eventually(lambda: proxy.gate("user", 1))
    waiting.hang_up()
    await eventually(lambda: proxy.gate("user", 0))
    assert (await proxy.status())["requests"][0]["status"] == 499
    assert (await llama.slot())["id_task"] == task
    first.hang_up()
    await eventually(llama.idle)
    assert (await llama.slot())["id_task"] == task
    assert await was_stopped(llama)


@BOTH_KINDS
@async_test
async def test_while_restoring(llama: LlamaServer, proxy_of: ProxyOf, stream: bool) -> None:
    """Who hangs up while the slot is being restored frees the gate; the next question is restored as it should be."""
    proxy = proxy_of(llama.url, {"code": CODE})
    tokens = await proxy.warm("code")
    # llama-server lets a restore wait while its slot is busy: as long as somebody else uses it, past the proxy.
    everything = conversation("tell me everything", stream=True, max_tokens=ENDLESS)
    other = Call(llama.url + "/v1/chat/completions", everything)
    await eventually(llama.decoding)
    task = (await llama.slot())["id_task"]
    call = proxy.ring("@code why?", stream=stream)

    async def restoring() -> bool:
        return b"llamacpp:requests_deferred 1" in (await llama.call("GET", "/metrics")).body

    await eventually(restoring)
    assert await proxy.gate("user", 0)
    call.hang_up()
    await eventually(lambda: proxy.gate(None, 0))
    assert (await proxy.status())["requests"][0]["status"] == 499
    assert (await llama.slot())["id_task"] == task, "the question itself was never sent"
    other.hang_up()
    await eventually(llama.idle)
    answer = await proxy.chat("@code how?")
    assert (answer.status, answer.cache, answer.timings["cache_n"]) == (200, "restored", tokens)


@BOTH_KINDS
@async_test
async def test_before_the_first_byte(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, stream: bool) -> None:
    """Who hangs up while a long prompt is processed ends that, at llama-server's next look at its connections."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, warmup=False)
    call = proxy.ring(LONG, stream=stream, max_tokens=ENDLESS)

    async def processing() -> bool:
        return not await llama.idle()

    await eventually(processing)
    assert call.status is None
    await frees_the_slot(call, proxy, llama)


@BOTH_KINDS
@async_test
async def test_in_the_middle(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, stream: bool) -> None:
    """Who hangs up in the middle of an answer ends it, whether parts of it were sent or not."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, warmup=False)
    call = proxy.ring("tell me everything", stream=stream, max_tokens=ENDLESS)
    await eventually(llama.decoding)
    if stream:
        await until(lambda: call.received.count(b"data:") > 3)
    await frees_the_slot(call, proxy, llama)
    assert b"[DONE]" not in call.received
    assert bool(call.received) == stream


@async_test
async def test_goes_on_by_design(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """llama-server goes on with a stream that has `X-Conversation-Id`: the next user waits until it is done."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, warmup=False)
    call = proxy.ring("tell me everything", stream=True, max_tokens=1500, headers={"X-Conversation-Id": "1"})
    await until(lambda: call.received.count(b"data:") > 3)
    # It stands still until the next one waits, or it might be at its end before.
    llama.signal(signal.SIGSTOP)
    call.hang_up()
    next_one = proxy.ring("hello")
    await eventually(lambda: proxy.gate("user", 1))
    llama.signal(signal.SIGCONT)
    assert await llama.decoding(), "the gate is kept for what goes on"
    await next_one.over
    assert (next_one.status, next_one.whole) == (200, True)
    waited = float(next_one.answer.header("X-Bioproxy-Queue-Ms") or 0)
    assert waited > 500
    assert [each["status"] for each in (await proxy.status())["requests"]] == [200, 499]
    assert next_one.answer.timings["cache_n"] < 30
    later = await proxy.chat("hello")
    assert float(later.header("X-Bioproxy-Queue-Ms") or 9e9) < waited / 5, "nothing goes on any more"


@async_test
async def test_plain_ones_do_not_go_on(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """llama-server ends a plain answer that has `X-Conversation-Id` like any other: nobody waits for the rest of it."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, warmup=False)
    call = proxy.ring("tell me everything", headers={"X-Conversation-Id": "1"}, max_tokens=ENDLESS)
    await eventually(llama.decoding)
    call.hang_up()
    next_one = proxy.ring("hello")
    await until(lambda: next_one.whole)
    assert next_one.status == 200
    assert await was_stopped(llama)
