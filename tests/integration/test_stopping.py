"""SIGTERM while clients are served, with twistd as people start it and the real llama.cpp."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.support import (
    FOREGROUND,
    Answer,
    Call,
    LlamaServer,
    Twistd,
    answers,
    async_test,
    conversation,
    eventually,
    fetch,
    free_port,
    until,
)

LlamaOf = Callable[..., LlamaServer]
Run = Callable[..., Twistd]

ENDED = (0, 128 + signal.SIGTERM)
"""Exit codes of a good end: twistd stops everything in order, and then ends by the signal that it got."""

CODE = "You know this code. " + "The server keeps one slot and a file for each text. " * 20 + "\nAnswer: <{message}>"


@dataclass(frozen=True)
class Running:
    """A bioproxy that twistd runs."""

    process: Twistd
    url: str
    admin_url: str

    async def waiting(self) -> int:
        """Return how many wait at the gate."""
        return int((await self.status())["gate"]["waiting"])

    async def status(self) -> Any:
        """Return `/status`."""
        return (await fetch("GET", self.admin_url + "/status")).json()

    def ring(self, *messages: str, **more: Any) -> Call:
        """Send a chat with a client that may hang up."""
        return Call(self.url + "/v1/chat/completions", conversation(*messages, **more))

    async def chat(self, *messages: str) -> Answer:
        """Send a chat."""
        return await fetch("POST", self.url + "/v1/chat/completions", conversation(*messages))


async def start(run: Run, folder: Path, llama: LlamaServer) -> Running:
    """Start bioproxy and wait until its template is warm."""
    (folder / "code.txt").write_text(CODE)
    port, admin_port = free_port(), free_port()
    options = ["--port", str(port), "--admin-port", str(admin_port), "--llama-url", llama.url]
    process = run(*FOREGROUND, *options, "--prefix", "@code=code.txt", "--ping-interval", "0.1")
    running = Running(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}")
    await eventually(lambda: answers(running.admin_url + "/healthz"))

    async def warm() -> bool:
        return bool((await running.status())["templates"][0]["state"] == "warm")

    await eventually(warm)
    return running


@async_test
async def test_the_running_answer_is_finished(llama_of: LlamaOf, run: Run, tmp_path: Path, slow: Path) -> None:
    """SIGTERM turns away who waits at once, and ends when the running answer is whole and its conversation saved."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = await start(run, tmp_path, llama)
    running = proxy.ring("@code tell me everything", max_tokens=500, stream=True)
    # It stands still when most of it is said: so it is there when SIGTERM comes, and the rest takes a moment only,
    # however busy the machine is.
    await until(lambda: running.received.count(b"data:") > 300)
    llama.signal(signal.SIGSTOP)
    assert not running.over.called, "it is not at its end yet"
    plain, stream = proxy.ring("hello"), proxy.ring("hello", stream=True)
    await until(lambda: stream.received.startswith(b":"))

    async def both_wait() -> bool:
        return await proxy.waiting() == 2

    await eventually(both_wait)

    proxy.process.process.send_signal(signal.SIGTERM)
    await plain.over
    await stream.over
    assert not running.over.called, "those who wait are told at once"
    assert (plain.status, plain.whole) == (503, True)
    assert plain.answer.json()["error"]["type"] == "unavailable_error"
    assert int(plain.answer.header("Retry-After") or 0) >= 1
    assert (stream.status, stream.whole) == (200, True)
    [event] = stream.answer.events()
    assert json.loads(event)["error"]["type"] == "unavailable_error"
    late = proxy.ring("hello")
    await late.over
    assert late.status is None, "nobody new comes in"
    # Nor does a user who presses Ctrl-C again change anything, or see a traceback.
    proxy.process.process.send_signal(signal.SIGTERM)
    proxy.process.process.send_signal(signal.SIGINT)

    llama.signal(signal.SIGCONT)
    await running.over
    assert (running.status, running.whole, running.answer.events()[-1]) == (200, True, "[DONE]")
    assert running.answer.timings["predicted_n"] == 500
    assert await proxy.process.ended() in ENDED
    assert "Traceback" not in proxy.process.output
    assert (llama.slots / "code.chat.bin").exists()

    await llama.restart()
    again = await start(run, tmp_path, llama)
    answer = await again.chat("@code tell me everything", running.answer.text, "and then?")
    # In the slot already, if there was time to bring it back before the question came.
    assert (answer.status, answer.cache in ("hot", "restored")) == (200, True)
    held = sum(running.answer.timings[count] for count in ("cache_n", "prompt_n"))
    assert answer.timings["cache_n"] > held, "some of the answer is in the cache too"
    assert await again.process.terminate() in ENDED


@async_test
async def test_a_long_answer_is_cut(llama_of: LlamaOf, run: Run, tmp_path: Path, slow: Path) -> None:
    """An answer that takes longer than ten seconds breaks off then, with an error, and does not look whole."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = await start(run, tmp_path, llama)
    running = proxy.ring("tell me everything", max_tokens=15000, stream=True)
    await until(lambda: running.received.count(b"data:") > 3)
    began = time.monotonic()
    assert await proxy.process.terminate() in ENDED
    assert time.monotonic() - began > 9
    assert proxy.process.waited_in_vain
    await running.over
    assert b"[DONE]" not in running.received
    assert b"bioproxy is shutting down" in running.received.rpartition(b"data: ")[2]
    assert "Traceback" not in proxy.process.output
    await eventually(llama.idle)


@async_test
async def test_nobody_there(llama_of: LlamaOf, run: Run, tmp_path: Path) -> None:
    """With nobody to wait for it ends at once."""
    llama = llama_of()
    await llama.start()
    proxy = await start(run, tmp_path, llama)
    assert (await proxy.chat("@code why?")).status == 200
    assert await proxy.process.terminate() in ENDED
    assert not proxy.process.waited_in_vain
    assert "Traceback" not in proxy.process.output
