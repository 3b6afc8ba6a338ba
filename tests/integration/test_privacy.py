"""What people say to the model stays between them: nothing of it is in the log, the metrics, the status or on disk."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import LlamaOf, Run
from tests.integration.support import (
    TWISTD,
    Answer,
    Call,
    LlamaServer,
    Twistd,
    answers,
    async_fixture,
    async_test,
    eventually,
    fetch,
    free_port,
    prose,
    until,
)

CODE = f"{prose(600, seed=1)}\nAnswer: <{{message}}>"

KEY = "xyzzykey"
LLAMAS_KEY = "xyzzykeyofllama"
SECRET = "xyzzy"
"""The beginning of everything that is nobody's business."""


@dataclass
class Watched:
    """A bioproxy in a process of its own, in a folder where it writes all that it writes."""

    folder: Path
    process: Twistd
    port: int
    admin_port: int
    answers: list[Answer] = field(default_factory=list)

    async def send(self, path: str, body: Any, key: str = KEY) -> Answer:
        """Send a request; its answer is kept."""
        headers = {"Authorization": f"Bearer {key}", "X-Note": "xyzzyheader", "Cookie": "xyzzycookie"}
        self.answers.append(await fetch("POST", f"http://127.0.0.1:{self.port}{path}", body, headers))
        return self.answers[-1]

    def ring(self, path: str, body: Any) -> Call:
        """Send a request with a client that may hang up."""
        return Call(f"http://127.0.0.1:{self.port}{path}", body, {"Authorization": f"Bearer {KEY}"})

    async def operator(self, path: str) -> str:
        """Return what the operator's port says."""
        return (await fetch("GET", f"http://127.0.0.1:{self.admin_port}{path}")).body.decode()

    async def template(self) -> Any:
        """Return what `/status` says of the template."""
        return json.loads(await self.operator("/status"))["templates"][0]

    @property
    def log(self) -> Path:
        """The log."""
        return self.folder / "bioproxy.log"


@async_fixture
async def watched(
    llama_of: LlamaOf, run: Run, tmp_path: Path, with_tools: Path
) -> AsyncIterator[tuple[Watched, LlamaServer]]:
    """Return a bioproxy with its log in a file, and its llama-server; both want keys."""
    llama = llama_of(model=with_tools)
    llama.params = {"api_keys": [LLAMAS_KEY]}
    await llama.start()
    for name, key in (("clients", KEY), ("llama", LLAMAS_KEY)):
        (tmp_path / name).write_text(f"{key}\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "code.txt").write_text(CODE)
    (tmp_path / "gone.txt").write_text(CODE)
    port, admin_port = free_port(), free_port()
    file = tmp_path / "conf.json"
    settings = {
        "port": port,
        "admin_port": admin_port,
        "llama_url": llama.url,
        "prefixes": {"@code": "code.txt", "@gone": "gone.txt"},
        "poll_interval": 0.1,
        "max_body": 500_000,
        "api_key_file": "clients",
        "llama_api_key_file": "llama",
    }
    file.write_text(json.dumps(settings))
    before = os.umask(0o022)  # the usual one
    try:
        process = run(TWISTD, "--pidfile=", "-n", "--logfile=bioproxy.log", "bioproxy", "--config", str(file))
    finally:
        os.umask(before)
    proxy = Watched(tmp_path, process, port, admin_port)

    async def ready() -> bool:
        return bool((await proxy.template())["state"] == "warm")

    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/readyz"))
    await eventually(ready)
    yield proxy, llama


def user(text: str) -> list[dict[str, str]]:
    """Return a conversation of one message."""
    return [{"role": "user", "content": text}]


def questions(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return a question in each API, with much before it."""
    system, parameters = "xyzzysystem be brief.", {"type": "object", "properties": {}}
    function = {"name": "xyzzytool", "description": "xyzzydescription", "parameters": parameters}
    tool = {"name": "xyzzytool", "description": "xyzzydescription", "input_schema": parameters}
    messages = [{"role": "system", "content": system}, *user(text)]
    return [
        (
            "/v1/chat/completions",
            {"messages": messages, "tools": [{"type": "function", "function": function}], "max_tokens": 4},
        ),
        ("/v1/messages", {"system": system, "messages": user(text), "tools": [tool], "max_tokens": 4}),
        (
            "/v1/responses",
            {
                "instructions": system,
                "input": text,
                "tools": [{"type": "function", **function}],
                "max_output_tokens": 4,
            },
        ),
        ("/completion", {"prompt": text, "n_predict": 4}),
        ("/v1/completions", {"prompt": [text, "xyzzyprompt"], "max_tokens": 4}),
    ]


@async_test
async def test_nothing_is_told(watched: tuple[Watched, LlamaServer]) -> None:
    """Messages, system messages, tools, prompts and keys are in no log, metric, status or error of the proxy's own."""
    proxy, llama = watched
    for prefix in ("@code ", ""):
        for stream in (False, True):
            for path, body in questions(f"{prefix}xyzzymessage why?"):
                answer = await proxy.send(f"{path}?note=xyzzyquery", {**body, "stream": stream})
                assert answer.status == 200, answer.body
    assert {answer.header("X-Bioproxy-Template") for answer in proxy.answers} == {"code", None}

    async def warm_again() -> bool:
        return bool((await proxy.template())["state"] == "warm")

    await eventually(warm_again)  # in the shape of these questions

    # What goes wrong, in every way that there is.
    (proxy.folder / "gone.txt").unlink()
    failures: dict[str, int] = {"@gone xyzzymessage": 500, "xyzzy " * 20_000: 400, "xyzzy " * 90_000: 413}
    own = []
    for text, status in failures.items():
        for path, body in questions(text)[:4]:
            answer = await proxy.send(path, body)
            assert answer.status == status, answer.body
            own.append(answer)
    for path, body in questions("@code xyzzymessage"):
        answer = await proxy.send(path, body, "xyzzywrongkey")
        assert answer.status == 401
        own.append(answer)
        answer = await proxy.send(path, {**body, "messages": {"xyzzy": "xyzzy"}, "prompt": {"xyzzy": 1}, "input": 5})
        assert answer.status >= 400 or path == "/v1/messages", answer.body
    assert (await proxy.send("/xyzzypath/@code", {"xyzzy": 1})).status == 404
    await proxy.send("/slots/0?action=save", {"filename": "../xyzzyfile"})
    for ending in ("client", "llama"):
        call = proxy.ring(
            "/v1/chat/completions", {"messages": user("@code xyzzymessage"), "max_tokens": 15000, "stream": True}
        )
        await until(lambda call=call: call.received.count(b"data:") > 3)  # type: ignore[misc]
        if ending == "client":
            call.hang_up()
        else:
            llama.kill()
            await call.over
            assert not call.received.endswith(b"[DONE]\n\n")
    for path, body in questions("@code xyzzymessage"):
        own.append(await proxy.send(path, body))
        assert own[-1].status == 502

    async def all_noted() -> bool:
        return len(json.loads(await proxy.operator("/status"))["requests"]) >= 45

    await eventually(all_noted)
    for path in ("/status", "/metrics", "/readyz"):
        assert SECRET not in await proxy.operator(path), path
    await proxy.process.terminate()
    assert proxy.log.read_text().count("/v1/messages 200 template=code") >= 2, "the requests themselves are in the log"
    for text in (proxy.log.read_text(), proxy.process.output):
        assert SECRET not in text, [line for line in text.splitlines() if SECRET in line]
        assert "Traceback" not in text
    for answer in own:
        assert SECRET not in answer.body.decode() or answer.status == 400, "only llama-server may say it again"


@async_test
async def test_what_is_kept(watched: tuple[Watched, LlamaServer]) -> None:
    """On disk are only system messages and tools, for warm-ups: in a folder, and in files, that are for the owner."""
    proxy, _ = watched
    for path, body in questions("@code xyzzymessage why?")[:3]:
        assert (await proxy.send(path, body)).status == 200
    conversation = [*user("@code xyzzymessage"), {"role": "assistant", "content": "xyzzyanswer"}, *user("xyzzymore?")]
    assert (await proxy.send("/v1/chat/completions", {"messages": conversation, "max_tokens": 4})).status == 200
    state = proxy.folder / "state" / "bioproxy"
    await until(lambda: (state / "habits.json").exists() and "xyzzysystem" in (state / "habits.json").read_text())
    await proxy.process.terminate()
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    files = [file for file in state.rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"habits.json", "lock"}
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        text = file.read_text()
        for word in ("xyzzymessage", "xyzzymore", "xyzzyanswer", KEY, "xyzzyheader", "xyzzycookie"):
            assert word not in text, (file, word)


@pytest.mark.parametrize("mode", ["foreground", "daemon"])
@async_test
async def test_log_file(run: Run, tmp_path: Path, mode: str) -> None:
    """The file that twistd writes the log to is for the owner only."""
    log, pidfile, admin_port = tmp_path / "bioproxy.log", tmp_path / "bioproxy.pid", free_port()
    ports = ["--port", str(free_port()), "--admin-port", str(admin_port)]
    before = os.umask(0o022)
    try:
        process = run(
            TWISTD,
            f"--logfile={log}",
            *(["-n", "--pidfile="] if mode == "foreground" else [f"--pidfile={pidfile}"]),
            "bioproxy",
            *ports,
            "--llama-url",
            f"http://127.0.0.1:{free_port()}",
        )
    finally:
        os.umask(before)
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    seen = stat.S_IMODE(log.stat().st_mode)
    if mode == "daemon":
        os.kill(int(pidfile.read_text()), 15)
        await until(lambda: not pidfile.exists())
    else:
        await process.terminate()
    assert seen & 0o077 == 0, f"{seen:o}"
