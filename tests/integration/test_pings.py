"""What a streaming client hears while it waits, in front of the real llama.cpp."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.support import Call, LlamaServer, RunningProxy, async_test, conversation, eventually, until

LlamaOf = Callable[..., LlamaServer]
ProxyOf = Callable[..., RunningProxy]

PING = b'\nevent: ping\ndata: {"type": "ping"}'

TOO_LONG = "The people of the valley read all day. " * 200
"""More than fits a context of 1024 tokens."""


async def behind_a_long_answer(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> tuple[LlamaServer, RunningProxy]:
    """Return a llama.cpp that stands still in a long answer, and a proxy in front of it that pings every 0.1 s."""
    llama = llama_of("--ctx-size", "1024", model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, warmup=False, ping_interval=0.1)
    proxy.ring("tell me everything", max_tokens=900)
    await eventually(llama.decoding)
    # So the answer is not over before others wait and have heard what they are to hear, however slow that is here.
    llama.signal(signal.SIGSTOP)
    return llama, proxy


async def hears(call: Call, comments: int) -> None:
    """Wait until a client that waits has heard so many comments."""
    await until(lambda: len(split(call)[0]) >= comments)


def split(call: Call) -> tuple[list[bytes], bytes]:
    """Return the comments that a stream began with, and the rest."""
    pieces = call.received.split(b"\n\n")
    # A ping of Anthropic's API stands behind its comment, in the same event.
    comments = [piece.removesuffix(PING) for piece in pieces if piece.startswith(b":")]
    starts = [piece.removesuffix(PING) for piece in pieces[: len(comments)]]
    assert starts == comments, "comments come before events"
    return comments, b"\n\n".join(pieces[len(comments) :])


@async_test
async def test_comments_then_the_answer(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """Who waits for a stream gets comments with the place in the queue, and then the whole answer."""
    llama, proxy = await behind_a_long_answer(llama_of, proxy_of, slow)
    first = proxy.ring("hello", stream=True)
    await eventually(lambda: proxy.gate("user", 1))
    second = proxy.ring("hello", stream=True)
    await eventually(lambda: proxy.gate("user", 2))
    plain = proxy.ring("hello")
    await hears(first, 3)
    await hears(second, 3)
    llama.signal(signal.SIGCONT)
    for place, call in enumerate((first, second), start=1):
        await call.over
        assert (call.status, call.whole) == (200, True)
        assert call.headers.getRawHeaders("Content-Type") == ["text/event-stream"]
        comments, rest = split(call)
        assert comments[0].startswith((b": waiting, 1st of ", b": waiting, 2nd of ")[place - 1])
        assert rest.startswith(b"data: ") and rest.endswith(b"data: [DONE]\n\n")
        assert call.answer.timings["predicted_n"] == 8
    await plain.over
    assert (plain.status, plain.answer.timings["predicted_n"]) == (200, 8), "a plain answer has no room for comments"


@async_test
async def test_the_same_as_without(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """Behind the comments a stream says what it says without them."""
    llama, proxy = await behind_a_long_answer(llama_of, proxy_of, slow)
    waited = proxy.ring("hello", stream=True)
    await hears(waited, 1)
    llama.signal(signal.SIGCONT)
    await waited.over
    # From llama.cpp itself: on a busy machine even who need not wait may hear a comment first.
    at_once = await llama.call("POST", "/v1/chat/completions", conversation("hello", stream=True))
    assert not at_once.body.startswith(b":")
    assert waited.answer.text == at_once.text


REFUSED: dict[str, tuple[dict[str, Any], Callable[[str], Any]]] = {
    "/v1/chat/completions": (conversation(TOO_LONG, stream=True), lambda event: json.loads(event)["error"]),
    "/v1/messages": (conversation(TOO_LONG, stream=True), lambda event: json.loads(event)["error"]),
    "/v1/responses": ({"input": TOO_LONG, "stream": True}, lambda event: json.loads(event)),
}


@pytest.mark.parametrize("path", REFUSED)
@async_test
async def test_an_error_after_comments(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, path: str) -> None:
    """What llama-server refuses after comments were sent ends the stream with one event that has its own words."""
    llama, proxy = await behind_a_long_answer(llama_of, proxy_of, slow)
    body, error_of = REFUSED[path]
    call = Call(proxy.url + path, body)
    await hears(call, 2)
    llama.signal(signal.SIGCONT)
    await call.over
    assert (call.status, call.whole) == (200, True)
    assert split(call)[0]
    [event] = [each for each in call.answer.events() if json.loads(each) != {"type": "ping"}]
    assert "context" in error_of(event)["message"]
    newest = (await proxy.status())["requests"][0]
    assert newest["status"] == 400
    refused = await proxy.call("POST", path, body)
    assert refused.status == 400, "without a queue it is a status"


@async_test
async def test_llama_dies_while_one_waits(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path) -> None:
    """A llama-server that dies while streams wait is told to each as an event, and to who waits plainly as 502."""
    llama, proxy = await behind_a_long_answer(llama_of, proxy_of, slow)
    stream, plain = proxy.ring("hello", stream=True), proxy.ring("hello")
    await until(lambda: stream.received.startswith(b":"))
    llama.kill()
    await stream.over
    await plain.over
    assert (stream.status, stream.whole) == (200, True)
    [event] = stream.answer.events()
    assert json.loads(event)["error"]["type"] == "upstream_error"
    assert (plain.status, plain.answer.json()["error"]["type"]) == (502, "upstream_error")
