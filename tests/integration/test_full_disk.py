"""A bioproxy that cannot write its temporary files, started as a user would, over real sockets."""

from __future__ import annotations

from pathlib import Path

from tests.integration.conftest import Run
from tests.integration.support import FOREGROUND, Answer, Twistd, async_test, defer, fetch, free_port, until

MEGABYTE = 1 << 20


async def started(run: Run, port: int, *prefix: str) -> Twistd:
    """Start a bioproxy by a command that begins like this.  No llama-server is there: what is sent on gets a 502."""
    ports = ["--port", str(port), "--admin-port", str(free_port()), "--llama-url", f"http://127.0.0.1:{free_port()}"]
    proxy = run(*prefix, *FOREGROUND, *ports)
    await until(lambda: "clients' port starting" in proxy.output)
    return proxy


async def post(port: int, megabytes: int) -> Answer:
    """Send a large request."""
    return await fetch("POST", f"http://127.0.0.1:{port}/v1/chat/completions", "x" * megabytes * MEGABYTE)


def check_refused(answer: Answer, reason: str) -> None:
    """Check that an answer says that there is no room now, why, and when to come again."""
    error = answer.json()["error"]
    assert (answer.status, error["type"]) == (503, "unavailable_error")
    assert answer.header("Retry-After") == "30"
    assert reason in error["message"]


def lines(proxy: Twistd) -> int:
    """Return how often the log says that there is no room."""
    return proxy.output.count("no temporary file can be written")


@async_test
async def test_no_folder(run: Run, tmp_path: Path) -> None:
    """Without a folder for temporary files large requests are told so and small ones served; with it, both again."""
    folder, port = tmp_path / "temporary", free_port()
    folder.mkdir()
    proxy = await started(run, port, "env", f"TMPDIR={folder}")
    assert (await post(port, 1)).status == 502
    folder.rmdir()
    for _ in range(3):
        check_refused(await post(port, 1), "No such file or directory")
        assert (await post(port, 0)).status == 502
    assert lines(proxy) == 1
    folder.mkdir()
    assert (await post(port, 1)).status == 502
    assert "Traceback" not in proxy.output
    assert await proxy.terminate() == 143


@async_test
async def test_no_room(run: Run) -> None:
    """A request that fills the disk when most of it is there is told so, also where several come at once."""
    port = free_port()
    # The system's limit for the size of one file, in blocks of 512 bytes, is as good as a disk of that size.
    proxy = await started(run, port, "sh", "-c", 'ulimit -f 4096 && exec "$@"', "sh")
    assert (await post(port, 1)).status == 502
    for refused in [defer(post(port, 8)) for _ in range(4)]:
        check_refused(await refused, "File too large")
    assert (await post(port, 1)).status == 502
    assert lines(proxy) == 1
    assert "Traceback" not in proxy.output
    assert await proxy.terminate() == 143
