"""The llama.cpp that bioproxy starts itself: from nothing to an answer, and everything that can go wrong with it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from bioproxy.child.command_line import command_line
from tests.integration.conftest import ModelOf, ProxyOf, Run
from tests.integration.support import (
    FOREGROUND,
    ODDS,
    Answer,
    RunningProxy,
    agree,
    answers,
    async_test,
    conversation,
    defer,
    eventually,
    fetch,
    free_port,
    is_running,
    prose,
    until,
)

KNOW = prose(400, seed=1)

ARGUMENTS = ["--threads", "1", "--cache-ram", "256"]
"""One thread: with more, llama.cpp's threads wait for each other in busy loops, slow where others work too."""

KILLS = 3
"""Times that llama.cpp is killed; `make soak` has a longer form."""

FAKE = """#!{python}
import json, os, sys, time
json.dump(sys.argv[1:], open({file!r} + ".new", "w"))
os.replace({file!r} + ".new", {file!r})
print("fake llama-server runs", flush=True)
time.sleep(600)
"""
"""A program in the place of llama-server: it writes down its flags, and never answers."""


def fake_program(folder: Path) -> tuple[Path, Path]:
    """Make such a program; return its path, and the file with its flags."""
    program, file = folder / "bin" / "llama-server", folder / "flags.json"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable, file=str(file)))
    program.chmod(0o755)
    return program, file


async def state(proxy: RunningProxy, **expected: Any) -> bool:
    """Tell whether the child is like this."""
    child = (await proxy.status())["llama"]["child"]
    return bool(expected.items() <= child.items())


async def running(proxy: RunningProxy, restarts: int = 0) -> int:
    """Wait until llama.cpp answers after so many restarts; return its process id."""
    await eventually(lambda: state(proxy, state="running", restarts=restarts))
    return int((await proxy.status())["llama"]["child"]["pid"])


@async_test
async def test_a_request_waits_for_the_start(proxy_of: ProxyOf, tiny: Path, tmp_path: Path) -> None:
    """Asked at once, it is answered when llama.cpp is there; a stream is told meanwhile; all its files are private."""
    proxy = proxy_of(None, {"code": f"{KNOW}<{{message}}>"}, model=str(tiny), llama_args=ARGUMENTS, ping_interval=0.05)
    stream = proxy.ring("@code why?", stream=True)
    # At the same moment: one after the other, the second could find that llama.cpp has started meanwhile.
    questions = proxy.call("GET", "/v1/models"), fetch("GET", proxy.admin_url + "/readyz")
    models, ready = await gatherResults([Deferred.fromCoroutine(each) for each in questions])
    assert models.status == 503, "what needs no slot is refused"
    assert ready.body == b"llama-server is starting\n"
    await stream.over
    assert (stream.status, stream.whole) == (200, True)
    assert b": llama-server is starting\n" in stream.received
    assert stream.answer.text
    await proxy.warm("code")
    assert (await proxy.chat("@code why?")).cache in ("hot", "restored")
    status = (await proxy.status())["llama"]
    assert (status["up"], status["slot_save"], status["child"]["restarts"]) == (True, True, 0)
    slots = tmp_path / "state" / "slots"
    assert stat.S_IMODE(slots.stat().st_mode) == 0o700
    assert (slots / "code.bin").exists()
    pid = status["child"]["pid"]
    await proxy.stop()
    assert not is_running(pid)


async def load(proxy: RunningProxy, number: int, results: list[Answer]) -> None:
    """Ask again and again, on the template and without it, until llama.cpp was killed often enough."""
    while len(results) < 10_000 and proxy.child.restarts < KILLS:
        words = f"@code tell me {number}" if len(results) % 2 else prose(100, seed=len(results))
        results.append(await proxy.chat(words))


@async_test
async def test_killed_at_random(proxy_of: ProxyOf, tiny: Path, tmp_path: Path) -> None:
    """Killed again and again under load: back each time, every request is answered or told, and files are right."""
    proxy = proxy_of(None, {"code": f"{KNOW}<{{message}}>"}, model=str(tiny), llama_args=ARGUMENTS)
    await running(proxy)
    await proxy.warm("code")
    results: list[Answer] = []
    clients = [defer(load(proxy, number, results)) for number in range(3)]
    moments = random.Random(5)
    for number in range(KILLS):
        pid = await running(proxy, number)
        # By work done and not by time, so that a busy machine kills at the same moments.
        enough = len(results) + moments.randint(1, 20)
        await until(lambda enough=enough: len(results) >= enough)  # type: ignore[misc]
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda number=number: state(proxy, restarts=number + 1))  # type: ignore[misc]
        assert not is_running(pid)
    await gatherResults(clients)
    await running(proxy, KILLS)
    # No request was lost: each has an answer, and an error has words.
    assert {answer.status for answer in results} <= {200, 502, 503}
    assert all("llama" in answer.json()["error"]["message"] for answer in results if answer.status != 200)
    assert sum(answer.status == 200 for answer in results) > KILLS
    assert await proxy.sample("llama_restarts_total") == KILLS
    # What is restored now is what a cold run computes.
    await proxy.warm("code")
    await proxy.chat("something else")
    answer = await proxy.chat("@code why?", **ODDS)
    port = proxy.child.port
    cold = conversation(f"{KNOW}why?", cache_prompt=False, **ODDS)
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    # Nobody but bioproxy can ask it.
    assert (await fetch("POST", url, cold)).status == 401
    right = await fetch("POST", url, cold, {"Authorization": f"Bearer {proxy.child.key()}"})
    assert (answer.cache, agree(answer, right)) == ("restored", True)
    assert not list((tmp_path / "state" / "slots").glob("code.new.bin"))


@async_test
async def test_bad_model(proxy_of: ProxyOf, tiny: Path, tmp_path: Path, capsys: Any) -> None:
    """A broken model file: one line in the log, in `/status` and for each client; a good one is found by itself."""
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny.read_bytes()[:200_000])
    proxy = proxy_of(None, model=str(model), llama_args=ARGUMENTS)
    answer = await proxy.chat("hello")
    reason = "llama.cpp does not start: the model's file is incomplete: was its download interrupted?"
    assert (answer.status, answer.json()["error"]["message"]) == (503, reason)
    assert int(answer.header("Retry-After") or 0) > 0
    assert (await proxy.status())["llama"]["trouble"] == reason
    await eventually(lambda: state(proxy, state="pausing", restarts=2))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if reason in line]
    assert "llama" in line
    model.write_bytes(tiny.read_bytes())
    await eventually(lambda: state(proxy, state="running"))
    assert (await proxy.chat("hello")).status == 200
    assert (await proxy.status())["llama"]["trouble"] is None


@async_test
async def test_port_taken(proxy_of: ProxyOf, tiny: Path) -> None:
    """A port that another program has is told as that."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        proxy = proxy_of(None, model=str(tiny), llama_args=[*ARGUMENTS, "--port", str(port)])
        await eventually(lambda: state(proxy, state="pausing"))
        answer = await proxy.chat("hello")
        assert answer.status == 503
        assert f"port {port} is in use by another program" in answer.json()["error"]["message"]


@async_test
async def test_no_memory(run: Run, model_of: ModelOf, bulky: Path) -> None:
    """A context that does not fit in the memory there is: one line, and bioproxy goes on."""
    port, admin_port = free_port(), free_port()
    words = [*FOREGROUND, "--port", port, "--admin-port", admin_port, "--model", bulky]
    words += ["--llama-args", "--threads 1 -c 400000"]
    limited = run("sh", "-c", 'ulimit -v 3000000; exec "$@"', "sh", *map(str, words))
    await until(lambda: "llama.cpp does not start" in limited.output)
    (line,) = [line for line in limited.output.splitlines() if "llama.cpp does not start" in line]
    assert "the context does not fit in memory" in line, line
    status = (await fetch("GET", f"http://127.0.0.1:{admin_port}/status")).json()
    assert "the context does not fit in memory" in status["llama"]["trouble"]


@async_test
async def test_never_ready(proxy_of: ProxyOf, tiny: Path, tmp_path: Path) -> None:
    """A program that never answers is killed, and that is told; it got the right flags, more of them last."""
    program, file = fake_program(tmp_path)
    proxy = proxy_of(None, model=str(tiny), llama_server=str(program), llama_args=["-c", "4096", "--some-new-flag"])
    waiting = defer(proxy.chat("hello"))
    await until(file.exists)
    pid = await until(lambda: proxy.child.pid)
    assert is_running(pid)
    # The next process gets the short limit; the present one is killed for it.
    proxy.child.life.start_limit = 0.3
    os.kill(pid, signal.SIGTERM)
    answer = await waiting
    assert answer.status == 503
    await eventually(lambda: told(proxy, "it did not get ready within 0.3 s"))
    assert not is_running(pid)
    flags = json.loads(file.read_text())
    slots = f"{tmp_path / 'state' / 'slots'}/"
    assert flags[:4] == ["--model", str(tiny), "--host", "127.0.0.1"]
    assert flags[4:] == [
        *("--port", str(proxy.child.port), "--parallel", "1", "--slot-save-path", slots, "--no-webui", "--metrics"),
        *("-c", "4096", "--some-new-flag"),
    ]


async def told(proxy: RunningProxy, words: str) -> bool:
    """Tell whether `/status` says this of llama-server."""
    return words in str((await proxy.status())["llama"]["trouble"])


async def killed(run: Run, *more: str) -> None:
    """Start bioproxy with these options, kill it the hard way when its llama.cpp runs, and wait for that to end."""
    admin_port = free_port()
    process = run(*FOREGROUND, "--port", str(free_port()), "--admin-port", str(admin_port), *more)
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))

    async def child() -> Any:
        return (await fetch("GET", f"http://127.0.0.1:{admin_port}/status")).json()["llama"]["child"]["pid"]

    async def known() -> bool:
        return await child() is not None

    await eventually(known)
    pid = await child()
    process.kill()
    await until(lambda: not is_running(pid))


@async_test
async def test_bioproxy_killed(run: Run, tiny: Path, tmp_path: Path) -> None:
    """When bioproxy is killed the hard way, llama.cpp ends, the wheel's and a program."""
    program, _ = fake_program(tmp_path)
    await killed(run, "--model", str(tiny), "--llama-args", "--threads 1")
    await killed(run, "--model", str(tiny), "--llama-server", str(program))


def test_bioproxy_killed_while_the_model_is_loaded(tiny: Path) -> None:
    """A llama.cpp whose parent is gone when the model is loaded ends at once, and waits for no thread of C++."""
    flags = ["--model", str(tiny), "--port", str(free_port()), "--threads", "1"]
    child = subprocess.Popen(command_line(None, flags), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline().startswith(b"process ")
    child.stdin.close()
    child.stdout.close()
    # An exception that ended Python in the usual way would give 1.
    assert child.wait(timeout=60) == 0


@async_test
async def test_lifeline_killed(proxy_of: ProxyOf, tiny: Path, tmp_path: Path) -> None:
    """When the process between bioproxy and a program is killed, the program ends, and another one is started."""
    program, _ = fake_program(tmp_path)
    proxy = proxy_of(None, model=str(tiny), llama_server=str(program))
    pid = await until(lambda: proxy.child.pid)
    os.kill(int(Path(f"/proc/{pid}/stat").read_text().split()[3]), signal.SIGKILL)
    await until(lambda: not is_running(pid))
    await until(lambda: proxy.child.pid not in (None, pid))


@async_test
async def test_a_key_that_bioproxy_has_not(proxy_of: ProxyOf, tiny: Path, tmp_path: Path) -> None:
    """With a key of the user's alone nobody waits for a start: clients with it are served, and what helps is told."""
    proxy = proxy_of(
        None, {"code": f"{KNOW}<{{message}}>"}, model=str(tiny), llama_args=[*ARGUMENTS, "--api-key", "mine"]
    )
    chat, body = proxy.url + "/v1/chat/completions", conversation("@code why?", max_tokens=1)
    assert (await fetch("POST", chat, body)).status == 401
    assert (await fetch("POST", chat, body, {"Authorization": "Bearer mine"})).status == 200
    ready = await fetch("GET", proxy.admin_url + "/readyz")
    assert (ready.status, "401" in ready.body.decode()) == (503, True)
    (tmp_path / "key").write_text("mine")
    settings = json.loads(proxy.file.read_text())
    proxy.file.write_text(json.dumps({**settings, "llama_api_key_file": str(tmp_path / "key")}))
    assert (await fetch("POST", proxy.admin_url + "/reload")).status == 200
    await proxy.warm("code")


@async_test
async def test_another_model(proxy_of: ProxyOf, slow: Path, other: Path, tiny: Path) -> None:
    """A reload with another model finishes the answer in progress, and the next one is the new model's; all is warm."""
    proxy = proxy_of(None, {"code": f"{KNOW}<{{message}}>"}, model=str(slow), llama_args=ARGUMENTS)
    await running(proxy)
    await proxy.warm("code")
    answer = proxy.ring("tell me all", max_tokens=60, stream=True)
    await until(lambda: answer.received)
    settings = json.loads(proxy.file.read_text())
    proxy.file.write_text(json.dumps({**settings, "model": str(other), "llama_args": [*ARGUMENTS, "-c", "4096"]}))
    said = (await fetch("POST", proxy.admin_url + "/reload")).json()
    assert said == {"changed": ["model", "llama_args"], "needs_restart": []}
    next_one = await proxy.chat("@code why?")
    assert (answer.status, answer.whole) == (200, True)
    assert next_one.status == 200
    status = await proxy.status()
    assert status["llama"]["child"]["restarts"] == 1
    await eventually(lambda: runs(proxy, other))
    await proxy.warm("code")
    assert (await proxy.chat("@code why?")).cache in ("hot", "restored")
    # What cannot be run changes nothing.
    proxy.file.write_text(json.dumps({**settings, "model": "/no/such/file"}))
    refused = await fetch("POST", proxy.admin_url + "/reload")
    assert (refused.status, b"/no/such/file" in refused.body) == (400, True)
    assert (await proxy.chat("hello")).status == 200


async def runs(proxy: RunningProxy, model: Path) -> bool:
    """Tell whether `/status` names this model."""
    return bool((await proxy.status())["llama"]["model"] == str(model))
