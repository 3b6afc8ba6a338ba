"""The wall clock is set a day ahead and back, and bioproxy stands still: a real twistd before the real llama.cpp."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.support import (
    ROOT,
    TWISTD,
    Call,
    ConfiguredProxy,
    LlamaServer,
    Twistd,
    answers,
    async_fixture,
    async_test,
    environment,
    eventually,
    pause,
    until,
)

LlamaOf = Callable[..., LlamaServer]

DAY = 86_400.0

SITE = """
import time

real = time.time
time.time = lambda: real() + float(open({file!r}).read())
"""
"""A module that Python imports by itself before anything else, Twisted included: it sets the wall clock."""


class TwistdProxy(ConfiguredProxy):
    """A bioproxy in a twistd of its own, whose wall clock can be set."""

    process: Twistd

    def start(self, reactor: str) -> None:
        """Start it, on one of Twisted's reactors."""
        self.set_clock(0)
        site = self.folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.format(file=str(self.folder / "offset")))
        command = [TWISTD, "--pidfile=", "--reactor", reactor, "-n", "bioproxy", "--config", str(self.file)]
        self.process = Twistd(self.folder, command, environment(self.folder, PYTHONPATH=f"{site}:{ROOT}"))

    def set_clock(self, ahead: float) -> None:
        """Set the process's wall clock so many seconds ahead of the right time, at once."""
        draft = self.folder / "offset.new"
        draft.write_text(str(ahead))
        draft.replace(self.folder / "offset")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.process.send_signal(number)


ProxyOf = Callable[..., Any]


@pytest.fixture(params=["epoll", "asyncio"])
def reactor_name(request: pytest.FixtureRequest) -> str:
    """Return the name of one of Twisted's reactors: its own, and the one on top of asyncio's loop."""
    return str(request.param)


@async_fixture
async def twistd_of(tmp_path: Path, reactor_name: str) -> AsyncIterator[ProxyOf]:
    """Return a function that starts a bioproxy in a twistd of its own; fires when it answers."""
    started: list[TwistdProxy] = []

    async def start(llama: LlamaServer, templates: dict[str, str], **settings: Any) -> TwistdProxy:
        proxy = TwistdProxy(tmp_path, llama.url, templates, slot_save_path=str(llama.slots), **settings)
        started.append(proxy)
        proxy.start(reactor_name)
        await eventually(lambda: answers(proxy.admin_url + "/readyz"))
        return proxy

    yield start
    for proxy in started:
        print(proxy.process.output)
        proxy.process.kill()


async def hears(call: Call, what: bytes, times: int = 3) -> None:
    """Wait until a client got something a few times more."""
    before = call.received.count(what)
    await until(lambda: call.over.called or call.received.count(what) >= before + times)
    assert not call.over.called, call.answer


@async_test
async def test_clients_while_the_clock_is_set(llama_of: LlamaOf, twistd_of: ProxyOf, slow: Path) -> None:
    """Whatever the wall clock does, an answer streams on, who waits goes on waiting and hears comments, all get all."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = await twistd_of(llama, {}, ping_interval=0.2)
    streaming = proxy.ring("tell me everything", stream=True, max_tokens=15_000)
    await hears(streaming, b"data: ")
    hearing = proxy.ring("hello", stream=True)
    await eventually(lambda: proxy.gate("user", 1))
    plain = proxy.ring("hello")
    await eventually(lambda: proxy.gate("user", 2))
    for ahead in (DAY, -DAY, 0.0):
        proxy.set_clock(ahead)
        await hears(hearing, b": waiting, 1st of ")
        await hears(streaming, b"data: ")
        assert not plain.over.called, plain.answer
        assert await proxy.gate("user", 2)
    streaming.hang_up()
    for call in (hearing, plain):
        await call.over
        assert (call.status, call.whole) == (200, True)
        assert call.answer.timings["predicted_n"] == 8
    newest = (await proxy.status())["requests"]
    # Far less than what the clock was set by, and far more than anything here takes.
    assert all(0 <= each["queue_ms"] <= each["total_ms"] < DAY * 1000 / 24 for each in newest)


@async_test
async def test_warm_ups_while_the_clock_is_set(llama_of: LlamaOf, twistd_of: ProxyOf, slow: Path) -> None:
    """Whatever the wall clock does, warm-ups go on to their end and edits of templates are noticed at once."""
    llama = llama_of("--ctx-size", "8192", model=slow)
    await llama.start()
    text = "The people of the valley read all day. " * 400
    proxy = await twistd_of(llama, {"code": f"{text}<{{message}}>"}, warmup_chunk=128)

    async def under_way() -> bool:
        return bool(0 < (await proxy.template("code"))["progress"] < 1)

    for number, ahead in enumerate((DAY, -DAY, 0.0)):
        await eventually(under_way)
        proxy.set_clock(ahead)
        before = await proxy.warm("code")
        assert llama.alive
        # Something longer each time, so that its tokens tell that it is this text.
        proxy.path("code").write_text(f"Edition {number}. " * (number + 1) + f"{text}<{{message}}>")
        await eventually(under_way)
        assert await proxy.warm("code") > before
        proxy.path("code").write_text(f"Now {text}<{{message}}>" + " " * number)
    assert await proxy.sample("warmups_total", result="failed") == 0
    assert await proxy.sample("warmups_total", result="done") >= 6
    assert "does not answer" not in proxy.process.output


def stalls(proxy: TwistdProxy) -> list[float]:
    """Return how many seconds bioproxy says that it stood still, each time that was no short one of a busy machine."""
    told = re.findall(r"was stopped or busy for ([\d.]+) s", proxy.process.output)
    return [float(seconds) for seconds in told if float(seconds) > 7]


@async_test
async def test_bioproxy_stands_still(llama_of: LlamaOf, twistd_of: ProxyOf, slow: Path) -> None:
    """A machine that stands still for longer than any patience costs nobody an answer, and is told as what it is."""
    llama = llama_of("--ctx-size", "4096", model=slow)
    await llama.start()
    proxy = await twistd_of(llama, {}, upstream_timeout=6, queue_timeout=7, warmup=False)
    streaming = proxy.ring("tell me everything", stream=True, max_tokens=400)
    # Most of the answer comes before, so that who waits for its end need not wait long, also on a busy machine.
    await hears(streaming, b"data: ", 300)
    # llama.cpp first: bioproxy is to be caught in the middle of a look at it.
    llama.signal(signal.SIGSTOP)
    plain = proxy.ring("hello")
    await eventually(lambda: proxy.gate("user", 1))
    await until(lambda: llama.unread)
    proxy.signal(signal.SIGSTOP)
    # Nothing to wait for but time: more than a look, llama-server's silence and the queue may take.
    await pause(8)
    proxy.signal(signal.SIGCONT)
    await until(lambda: stalls(proxy) or streaming.over.called or plain.over.called)
    llama.signal(signal.SIGCONT)
    for call, tokens in ((streaming, 400), (plain, 8)):
        await call.over
        assert (call.status, call.whole) == (200, True), call.answer
        assert call.answer.timings["predicted_n"] == tokens
    assert await proxy.sample("reactor_stall_seconds_sum") > 7
    assert len(stalls(proxy)) == 1
    assert "does not answer" not in proxy.process.output
