"""``--demo`` as a user sees it: it says what to try, and what it announces happens."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from twisted.internet.threads import deferToThread

from bioproxy.demo import service
from bioproxy.settings.configuration import Settings
from tests.integration.support import (
    Twistd,
    answers,
    async_fixture,
    async_test,
    children,
    environment,
    eventually,
    fetch,
    free_port,
    is_running,
    until,
)

TWISTD = str(Path(sys.executable).with_name("twistd"))

Demo = Callable[..., Twistd]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the home folder of all demonstrations here: the model is made in it once."""
    return tmp_path_factory.mktemp("home")


@async_fixture
async def demo(home: Path) -> AsyncIterator[Demo]:
    """Return a function that starts a demonstration with these options."""
    started: list[Twistd] = []

    def start(*options: str) -> Twistd:
        command = [TWISTD, "--pidfile=", "-n", "bioproxy", "--demo", *options]
        started.append(Twistd(home, command, environment(home)))
        return started[-1]

    yield start
    for each in started:
        each.kill()


async def llama_of(process: Twistd) -> int:
    """Wait for the demonstration's llama.cpp and return its process id."""
    return (await until(lambda: children(process.process.pid)))[0]


def run_line(line: str) -> str:
    """Do what a printed line says, and return what it shows.  Blocking: for a thread."""
    assert shutil.which("curl"), "the demonstration's lines need curl"
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=True).stdout


@async_test
async def test_what_it_announces(demo: Demo, home: Path) -> None:
    """The lines that it prints work as they are, and show restored, hot and restored, as it says."""
    admin_port = free_port()
    process = demo("--port", str(free_port()), "--admin-port", str(admin_port))
    llama = await llama_of(process)
    await until(lambda: "/metrics" in process.output or process.process.poll() is not None, seconds=120)
    assert process.process.poll() is None, process.output
    assert " is starting" in process.output
    assert not re.findall(r"^.* (?:warn|error|critical) .*$", process.output, re.MULTILINE), "all is well"

    questions = re.findall(r"^ *(curl .*completions.*)$", process.output, re.MULTILINE)
    shown = [await deferToThread(run_line, question) for question in questions]
    caches = [re.findall(r"^x-bioproxy-cache: (\w+)", each, re.MULTILINE | re.IGNORECASE) for each in shown]
    assert caches == [["restored"], ["hot"], ["restored"]]
    status = (await fetch("GET", f"http://127.0.0.1:{admin_port}/status")).json()
    tokens = {each["name"]: each["tokens"] for each in status["templates"]}
    assert all(count > 400 for count in tokens.values()), "long enough to feel"
    reused = [int(re.findall(r'"cache_n":(\d+)', each)[0]) for each in shown]
    for name, count in zip(("code", "code", "story"), reused, strict=True):
        assert count >= tokens[name]
    others = re.findall(r"^ *(curl .*(?:status|metrics))$", process.output, re.MULTILINE)
    assert len(others) == 2
    assert '"templates"' in await deferToThread(run_line, others[0])
    assert "bioproxy_warmups_total" in await deferToThread(run_line, others[1])

    # The folder that it names holds the templates, to be edited.
    folder = next(Path(line.strip()) for line in process.output.splitlines() if line.endswith("/templates"))
    assert folder.is_relative_to(home)
    assert {"code.txt", "story.txt"} <= {file.name for file in folder.iterdir()}

    assert await process.terminate() in (0, 128 + signal.SIGTERM)
    await until(lambda: not is_running(llama))
    assert "Traceback" not in process.output
    assert not (home / "state" / "bioproxy").exists(), "a user's own records are left alone"


@async_test
async def test_sigterm_while_it_starts(demo: Demo) -> None:
    """SIGTERM ends it and its llama.cpp within 5 seconds, also before it is ready."""
    admin_port = free_port()
    process = demo("--port", str(free_port()), "--admin-port", str(admin_port))
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    llama = await llama_of(process)
    assert await process.terminate() in (0, 128 + signal.SIGTERM)
    await until(lambda: not is_running(llama))
    assert "Traceback" not in process.output


def test_own_templates() -> None:
    """A user's template takes the place of the example that has its name, whatever stands before that."""
    own = {"/code": Path("mine.txt"), "@mail": Path("mail.txt")}
    prefixes = service.Demo(Settings(prefixes=own), None).settings.prefixes
    assert set(prefixes) == {"@story", *own}
    assert prefixes["/code"] == own["/code"]


@async_test
async def test_sigkill(demo: Demo) -> None:
    """When twistd is killed the hard way, llama.cpp goes too, even from the middle of a warm-up."""
    admin_port = free_port()
    process = demo("--port", str(free_port()), "--admin-port", str(admin_port))
    llama = await llama_of(process)

    async def warming() -> bool:
        status = (await fetch("GET", f"http://127.0.0.1:{admin_port}/status")).json()
        return bool(status["gate"]["busy"] == "warmup")

    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    await eventually(warming)
    process.kill()
    await until(lambda: not is_running(llama))


@async_test
async def test_port_in_use(demo: Demo) -> None:
    """A demonstration that cannot listen ends with one line, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = demo("--port", str(port), "--admin-port", str(free_port()))
        assert await process.ended() == 1
    assert "Traceback" not in process.output
    assert len([line for line in process.output.splitlines() if f"127.0.0.1:{port}" in line]) == 1
