"""Reading the configuration again, with a real llama.cpp and a real process; and what else SIGHUP may mean."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import LlamaOf, Run
from tests.integration.support import (
    FOREGROUND,
    answers,
    async_test,
    conversation,
    defer,
    environment,
    eventually,
    fetch,
    free_port,
    prose,
    until,
)


@async_test
async def test_reload(llama_of: LlamaOf, slow: Path, run: Run, tmp_path: Path) -> None:
    """SIGHUP and POST /reload: a template comes and is warmed up, one goes and leaves no numbers; who runs goes on."""
    llama = llama_of(model=slow)
    await llama.start()
    port, admin_port = free_port(), free_port()
    file = tmp_path / "conf.json"

    def write(*names: str) -> None:
        for name in names:
            (tmp_path / f"{name}.txt").write_text(prose(300, seed=len(name)) + "<{message}>")
        settings = {"port": port, "admin_port": admin_port, "llama_url": llama.url, "poll_interval": 0.1}
        file.write_text(json.dumps({**settings, "prefixes": {f"@{name}": f"{name}.txt" for name in names}}))

    async def warm() -> list[str]:
        answer = await fetch("GET", f"http://127.0.0.1:{admin_port}/status")
        return [each["name"] for each in answer.json()["templates"] if each["state"] == "warm"]

    async def is_warm(*names: str) -> bool:
        return await warm() == list(names)

    async def metrics() -> str:
        return (await fetch("GET", f"http://127.0.0.1:{admin_port}/metrics")).body.decode()

    write("code")
    proxy = run(*FOREGROUND, "--config", str(file))
    await until(lambda: "clients' port starting" in proxy.output)
    await eventually(lambda: is_warm("code"))

    # The running answer is not touched.
    chat = f"http://127.0.0.1:{port}/v1/chat/completions"
    running = defer(fetch("POST", chat, conversation("@code why?", max_tokens=300)))
    await eventually(llama.decoding)
    write("story")
    proxy.process.send_signal(signal.SIGHUP)
    await until(lambda: "changed: prefixes" in proxy.output)
    answer = await running
    assert (answer.status, answer.json()["timings"]["predicted_n"]) == (200, 300)
    await eventually(lambda: is_warm("story"))

    async def forgotten() -> bool:
        return 'template="code"' not in await metrics()

    await eventually(forgotten)
    assert 'bioproxy_template_warm{template="story"} 1.0' in await metrics()

    file.write_text("{")
    answer = await fetch("POST", f"http://127.0.0.1:{admin_port}/reload")
    assert answer.status == 400
    assert "not JSON" in answer.json()["error"]
    assert await warm() == ["story"]
    write("code", "story")
    answer = await fetch("POST", f"http://127.0.0.1:{admin_port}/reload")
    assert (answer.status, answer.json()) == (200, {"changed": ["prefixes"], "needs_restart": []})
    await eventually(lambda: is_warm("code", "story"))
    assert await proxy.terminate() == 143


DETACH = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # of the terminal's end, for this process alone
if child := os.fork():
    open("pid", "w").write(str(child))
    os.waitpid(child, 0)
else:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.setsid()
    os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a command in a session of its own, which has no controlling terminal."""


class Terminal:
    """A real pseudo-terminal, and a bioproxy that is in it as a user's shell would start it.

    The process is the leader of a session that has the terminal as its controlling one (`pty.fork` does `setsid` and
    the rest).  `words` stand in front of the command.
    """

    def __init__(self, folder: Path, *words: str) -> None:
        self.admin_port = free_port()
        self.log = folder / "bioproxy.log"
        self.ports = ["--port", str(free_port()), "--admin-port", str(self.admin_port)]
        command = [*words, *FOREGROUND[:2], "--logfile", str(self.log), *FOREGROUND[2:], *self.ports]
        self._terminal: int | None
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, environment(folder))

    async def started(self) -> None:
        """Wait until it answers."""
        await eventually(lambda: answers(f"http://127.0.0.1:{self.admin_port}/healthz"))

    def close(self) -> None:
        """Close the terminal's window."""
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None

    def said(self, words: str) -> bool:
        """Tell whether the log has these words."""
        return self.log.exists() and words in self.log.read_text()

    async def ended(self) -> int:
        """Wait for the end of the process; fires with its exit code."""
        _, status = await until(lambda: ((found := os.waitpid(self.pid, os.WNOHANG))[0] and found) or None)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[list[Terminal]]:
    """Return a list for terminals that are to be closed in the end, with what runs in them."""
    opened: list[Terminal] = []
    yield opened
    for each in opened:
        if each.pid:
            os.kill(each.pid, signal.SIGKILL)
            os.waitpid(each.pid, 0)
        each.close()


@async_test
async def test_terminal_closed(tmp_path: Path, terminals: list[Terminal]) -> None:
    """In a terminal, SIGHUP by hand reloads; closing the terminal stops the process in order."""
    terminal = Terminal(tmp_path)
    terminals.append(terminal)
    await terminal.started()
    os.kill(terminal.pid, signal.SIGHUP)
    await until(lambda: terminal.said("the configuration was reloaded"))
    terminal.close()
    assert await terminal.ended() == 0
    assert terminal.said("the terminal was closed, so bioproxy stops")
    assert terminal.said("Server Shut Down")
    assert not terminal.said("Traceback")
    assert not await answers(f"http://127.0.0.1:{terminal.admin_port}/healthz")


@async_test
@pytest.mark.parametrize("words", [["nohup"], [sys.executable, "-c", DETACH]], ids=["nohup", "setsid"])
async def test_terminal_outlived(tmp_path: Path, terminals: list[Terminal], words: list[str]) -> None:
    """With `nohup`, or in a session without a terminal, it outlives the terminal, and SIGHUP reloads."""
    terminal = Terminal(tmp_path, *words)
    terminals.append(terminal)
    await terminal.started()
    terminal.close()
    process = terminal.pid
    if words[0] != "nohup":
        # Written by the other process, perhaps later than this one answers.
        file = tmp_path / "pid"
        process = int(await until(lambda: file.exists() and file.read_text()))
    os.kill(process, signal.SIGHUP)
    await until(lambda: terminal.said("the configuration was reloaded"))
    assert await answers(f"http://127.0.0.1:{terminal.admin_port}/healthz")
    os.kill(process, signal.SIGTERM)
    await until(lambda: terminal.said("Server Shut Down"))
