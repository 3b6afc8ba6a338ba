"""bioproxy as people start it: with twistd, from a checkout and installed, in the foreground and as a daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bioproxy import __version__
from tests.integration.support import (
    FOREGROUND,
    ROOT,
    TWISTD,
    Twistd,
    answers,
    async_test,
    environment,
    eventually,
    fetch,
    free_port,
    is_running,
    until,
)

Run = Callable[..., Twistd]


def configure(folder: Path, **settings: object) -> Path:
    """Write the configuration file where it is looked for by default."""
    file = folder / "config" / "bioproxy" / "conf.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings))
    return file


def ports(port: int, admin_port: int) -> list[str]:
    """Return the options for these ports, and for a llama-server that is not there."""
    return ["--port", str(port), "--admin-port", str(admin_port), "--llama-url", f"http://127.0.0.1:{free_port()}"]


def listens(port: int) -> bool:
    """Tell whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Starting.


@async_test
async def test_from_a_checkout(run: Run) -> None:
    """With the checkout on Python's path twistd knows the command, and says so."""
    process = run(TWISTD, "--help")
    assert await process.ended() == 0
    assert "bioproxy" in process.output
    version = run(TWISTD, "bioproxy", "--version")
    assert await version.ended() == 0
    assert version.output.strip() == f"bioproxy {__version__}"


@async_test
async def test_python_m_twisted(run: Run) -> None:
    """`python -m twisted` starts it too."""
    admin_port = free_port()
    process = run(sys.executable, "-m", "twisted", "bioproxy", *ports(free_port(), admin_port))
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    await process.terminate()
    assert "Traceback" not in process.output


@async_test
async def test_command_line_beats_file_beats_default(run: Run, tmp_path: Path) -> None:
    """A setting on the command line wins over the file's, and that over the default."""
    (tmp_path / "x.json").write_text('{"port": 9001, "admin_port": 9002, "warmup": false}')
    by_default = run(*FOREGROUND, "--check")
    by_file = run(*FOREGROUND, "--check", "--config", "x.json")
    by_option = run(*FOREGROUND, "--check", "--config", "x.json", "--port", "9003", "--warmup")
    for process, expected in (
        (by_default, {"port = 8081", "admin_port = 8082", "warmup = true", "llama_url = http://127.0.0.1:8080"}),
        (by_file, {"port = 9001", "admin_port = 9002", "warmup = false"}),
        (by_option, {"port = 9003", "admin_port = 9002", "warmup = true"}),
    ):
        assert await process.ended() == 0
        assert expected <= set(process.output.splitlines())


@async_test
async def test_foreground(run: Run, tmp_path: Path) -> None:
    """It listens where the command line says, not where the file says, and SIGTERM ends it without a traceback."""
    elsewhere, port, admin_port = free_port(), free_port(), free_port()
    configure(tmp_path, port=elsewhere)
    process = run(*FOREGROUND, *ports(port, admin_port))
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    answer = await fetch("GET", f"http://127.0.0.1:{port}/health")
    assert (answer.status, answer.json()["error"]["type"]) == (502, "upstream_error")
    assert not listens(elsewhere)
    assert await process.terminate() in (0, 128 + signal.SIGTERM)
    assert "Traceback" not in process.output
    assert not listens(port)


@async_test
async def test_daemon(run: Run, tmp_path: Path) -> None:
    """As a daemon it writes its pid and its log, answers, and goes within 5 seconds of SIGTERM, with its pid file."""
    port, admin_port = free_port(), free_port()
    pidfile, logfile = tmp_path / "bioproxy.pid", tmp_path / "bioproxy.log"
    template = tmp_path / "code.txt"
    template.write_text("Know this. <{message}>")
    # A relative path on the command line starts at the working folder, even if the daemon leaves that.
    process = run(
        TWISTD,
        f"--pidfile={pidfile}",
        f"--logfile={logfile}",
        "bioproxy",
        *ports(port, admin_port),
        "--prefix",
        "@code=code.txt",
    )
    assert await process.ended() == 0
    pid = int(await until(lambda: pidfile.read_text() if pidfile.exists() else None))
    try:
        await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
        status = (await fetch("GET", f"http://127.0.0.1:{admin_port}/status")).json()
        assert [each["path"] for each in status["templates"]] == [str(template)]
        assert status["templates"][0]["error"] is None
        assert (await fetch("GET", f"http://127.0.0.1:{port}/health")).status == 502
        os.kill(pid, signal.SIGTERM)
        await until(lambda: not is_running(pid))
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    assert not pidfile.exists()
    assert not listens(port)
    assert "Traceback" not in logfile.read_text()


@async_test
async def test_log_of_json(run: Run, tmp_path: Path) -> None:
    """Each line of a JSON log is one object, Twisted's own included, in the foreground and as a daemon."""
    pidfile, logfile = tmp_path / "bioproxy.pid", tmp_path / "bioproxy.log"
    port, admin_port = free_port(), free_port()
    foreground = run(*FOREGROUND, "--log-format", "json", *ports(port, admin_port))
    (tmp_path / "x.json").write_text('{"log_format": "json", "state_dir": "other-state"}')
    daemons_port, daemons_admin_port = free_port(), free_port()
    daemon = [TWISTD, f"--pidfile={pidfile}", f"--logfile={logfile}", "bioproxy", "--config", "x.json"]
    assert await run(*daemon, *ports(daemons_port, daemons_admin_port)).ended() == 0
    pid = int(await until(lambda: pidfile.read_text() if pidfile.exists() else None))
    try:
        await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
        await eventually(lambda: answers(f"http://127.0.0.1:{daemons_admin_port}/healthz"))
        for ours in (port, daemons_port):
            body = {"messages": [{"role": "user", "content": "a secret"}]}
            assert (await fetch("POST", f"http://127.0.0.1:{ours}/v1/chat/completions", body)).status == 502
            assert (await fetch("POST", f"http://127.0.0.1:{ours}/slots/%0a%22{{%1b?q=secret", body)).status == 502
        os.kill(pid, signal.SIGUSR1)  # has the log begin another file
        await until(lambda: logfile.with_name("bioproxy.log.1").exists())
        os.kill(pid, signal.SIGTERM)
        await until(lambda: not is_running(pid))
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    await foreground.terminate()
    for text in (foreground.output, logfile.with_name("bioproxy.log.1").read_text() + logfile.read_text()):
        lines = [json.loads(line) for line in text.splitlines()]
        assert all({"time", "level", "system", "message"} <= line.keys() for line in lines)
        assert [line["path"] for line in lines if "path" in line] == ["/v1/chat/completions", '/slots/\n"{\x1b']
        assert {line["status"] for line in lines if "path" in line} == {502}
        assert "starting up" in lines[0]["message"] and "Server Shut Down" in lines[-1]["message"]
        assert "secret" not in text


@async_test
async def test_state_dir_is_for_one(run: Run, tmp_path: Path) -> None:
    """A second bioproxy with the same records does not start, and says why in one line."""
    admin_port = free_port()
    run(*FOREGROUND, *ports(free_port(), admin_port))
    await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    second = run(*FOREGROUND, *ports(free_port(), free_port()))
    assert await second.ended() == 1
    assert str(tmp_path / "state" / "bioproxy") in one_line(second)


# Not starting.


def one_line(process: Twistd) -> str:
    """Return the one line that says what is wrong."""
    assert "Traceback" not in process.output
    lines = [line for line in process.output.splitlines() if "bioproxy: " in line]
    assert len(lines) == 1, process.output
    return lines[0]


@async_test
async def test_port_in_use(run: Run) -> None:
    """A port in use ends the start with exit code 1 and one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = [*FOREGROUND, *ports(free_port(), free_port())]
        started = [run(*options, option, str(port)) for option in ("--port", "--admin-port")]
        for process in started:
            assert await process.ended() == 1
            assert f"127.0.0.1:{port}" in one_line(process)


@async_test
async def test_port_in_use_for_a_daemon(run: Run, tmp_path: Path) -> None:
    """A daemon that cannot listen says so with its exit code, leaves the reason in its log, and no pid file."""
    pidfile, logfile = tmp_path / "bioproxy.pid", tmp_path / "bioproxy.log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = [TWISTD, f"--pidfile={pidfile}", f"--logfile={logfile}", "bioproxy"]
        process = run(*daemon, *ports(port, free_port()))
        assert await process.ended() == 1
    said = process.output + (logfile.read_text() if logfile.exists() else "")
    assert f"127.0.0.1:{port}" in said
    assert "Traceback" not in said
    # The process that was started ends a little before the daemon that failed.
    await until(lambda: not pidfile.exists())


BROKEN = {
    '{"prot": 8081}': ["'prot'", "'port'"],
    '{"port": "x"}': ["port", '"x"'],
    '{"port": 8081,}': ["not JSON"],
    '{"prefixes": {"@code": "a", "/code": "b"}}': ["prefixes", "'@code'", "'/code'"],
}


@async_test
async def test_broken_configuration(run: Run, tmp_path: Path) -> None:
    """A mistake in the configuration ends the start with exit code 1 and one line that helps to find it."""
    started = []
    for number, content in enumerate(BROKEN):
        file = tmp_path / f"{number}.json"
        file.write_text(content)
        started.append((file, run(*FOREGROUND, "--config", str(file))))
    for (file, process), words in zip(started, BROKEN.values(), strict=True):
        assert await process.ended() == 1
        line = one_line(process)
        for word in [str(file), *words]:
            assert word in line


@async_test
async def test_wrong_words(run: Run) -> None:
    """Wrong words on the command line end the start with exit code 1, and the output says what is wrong."""
    mistakes = {
        "--prot 1": "--prot",
        "--port x": "--port",
        "--port": "port requires",
        "--prefix @code": "--prefix",
        "surplus": "surplus",
    }
    started = [run(*FOREGROUND, "--check", *wrong.split()) for wrong in mistakes]
    for process, word in zip(started, mistakes.values(), strict=True):
        assert await process.ended() == 1
        assert "Traceback" not in process.output
        # The last line: there may be the help before it.
        assert word in process.output.splitlines()[-1]


@async_test
async def test_which_file(run: Run, tmp_path: Path) -> None:
    """The file that is read by default may be missing but not broken; one that is named must be there."""
    file = configure(tmp_path, prot=8081)
    by_default, named = run(*FOREGROUND), run(*FOREGROUND, "--config", "nothing.json")
    assert await by_default.ended() == 1
    assert str(file) in one_line(by_default)
    assert await named.ended() == 1
    assert "nothing.json" in one_line(named)


@async_test
async def test_check(run: Run, tmp_path: Path) -> None:
    """`--check` reads every template and says what it found, and what is wrong with exit code 1; it starts nothing."""
    (tmp_path / "good.txt").write_text("Know <{notes.md}> this. <{message}>")
    (tmp_path / "notes.md").write_text("The notes.")
    good = run(*FOREGROUND, "--check", "--prefix", "@code=good.txt")
    bad = run(*FOREGROUND, "--check", "--prefix", "@code=good.txt", "--prefix", "@story=missing.txt")
    assert await good.ended() == 0
    assert "@code" in good.output and "notes.md" in good.output
    assert await bad.ended() == 1
    assert "missing.txt" in one_line(bad)
    assert not (tmp_path / "state").exists()


# Installed.


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout: building leaves traces."""
    copy = tmp_path_factory.mktemp("copy") / "bioproxy"
    copy.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md", "bioproxy", "twisted"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
        elif source.exists():
            shutil.copyfile(source, copy / name)
    return copy


@pytest.fixture(params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path: Path, checkout: Path) -> Iterator[tuple[Path, Path]]:
    """Return the Python of an environment in which bioproxy was installed, and the folder that it should come from."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60)
    python = home / "bin" / "python"
    # Twisted and the rest come from here; only folders with a `site` of their own run a .pth file, so a bioproxy that
    # is installed here as editable is not seen there.
    packages = home / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "from_outside.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    editable = ["--editable"] if request.param == "editable" else []
    subprocess.run(
        [*install, "--disable-pip-version-check", "--no-build-isolation", *editable, str(checkout)],
        check=True,
        timeout=120,
    )
    yield python, checkout if editable else packages


@async_test
async def test_installed(installed: tuple[Path, Path], tmp_path: Path) -> None:
    """Installed, as a wheel or editable, twistd knows the command wherever it is called, and all files are there."""
    python, origin = installed
    env = {key: value for key, value in environment(tmp_path).items() if key != "PYTHONPATH"}
    where = "import bioproxy.demo.service as s; print(s.__file__, sorted(p.name for p in s.TEMPLATES.iterdir()))"
    found = Twistd(tmp_path, [str(python), "-c", where], env)
    assert await found.ended() == 0, found.output
    assert found.output.strip() == (
        f"{origin / 'bioproxy' / 'demo' / 'service.py'} ['handbook.txt', 'island.txt', 'manual.txt']"
    )
    version = Twistd(tmp_path, [str(python), TWISTD, "bioproxy", "--version"], env)
    assert await version.ended() == 0, version.output
    assert version.output.strip() == f"bioproxy {__version__}"
    admin_port = free_port()
    process = Twistd(tmp_path, [str(python), *FOREGROUND, *ports(free_port(), admin_port)], env)
    try:
        await eventually(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"))
    finally:
        process.kill()
