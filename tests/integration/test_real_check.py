"""``--check`` against the real llama.cpp, and what the log says of one that is set up unwisely."""

from __future__ import annotations

import signal
import socket

from twisted.logger import capturedLogs, formatEvent

from tests.integration.conftest import LlamaOf, ProxyOf, Run
from tests.integration.support import FOREGROUND, PATIENCE, LlamaServer, RunningProxy, async_test, eventually, free_port


def sections(output: str) -> tuple[str, str]:
    """Return what is said of the settings, and of llama-server."""
    settings, _, llama = output.partition("llama-server at ")
    return settings, llama


@async_test
async def test_well(llama: LlamaServer, run: Run) -> None:
    """All is well: it says so, counts the template, leaves no file, and the slot as it was."""
    llama.slots.chmod(0o700)
    template = llama.slots.parent / "code.txt"
    template.write_text("Know this. " * 50 + "<{message}>")
    before = await llama.slot()
    arguments = ["--check", "--llama-url", llama.url, "--prefix", f"@code={template}"]
    process = run(*FOREGROUND, *arguments, "--slot-save-path", str(llama.slots))
    assert await process.ended() == 0
    said = sections(process.output)[1]
    assert "ok: it is up" in said and "ok: it writes slot files" in said and "ok: template code takes" in said
    assert "warning" not in process.output and "\x1b" not in process.output
    assert list(llama.slots.iterdir()) == []
    assert await llama.slot() == before


@async_test
async def test_slot_files_cannot_be_written(llama: LlamaServer, run: Run) -> None:
    """A slot folder that llama-server cannot write to is a warning, and does not change the exit code."""
    here = llama.slots.with_name("here")
    here.mkdir(0o700)
    llama.slots.rmdir()
    process = run(*FOREGROUND, "--check", "--llama-url", llama.url, "--slot-save-path", str(here))
    assert await process.ended() == 0
    assert "warning: it cannot write slot files: 500" in sections(process.output)[1]


@async_test
async def test_unwise(llama_of: LlamaOf, proxy_of: ProxyOf, run: Run) -> None:
    """Each unwise flag is found, with how to mend it, by the check and in the log; the exit code is 0."""
    llama = llama_of("--parallel", "2", "--no-slots", slots=False)
    await llama.start()
    process = run(*FOREGROUND, "--check", "--llama-url", llama.url)
    with capturedLogs() as events:
        proxy = proxy_of(llama.url)
        await eventually(lambda: is_up(proxy))
    assert await process.ended() == 0
    log = "\n".join(formatEvent(event) for event in events)
    for said in (sections(process.output)[1], log):
        for words in ("2 slots", "-np 1", "keeps no slot files", "--slot-save-path", "--no-slots"):
            assert words in said


async def is_up(proxy: RunningProxy) -> bool:
    """Tell whether llama-server was seen."""
    return bool((await proxy.status())["llama"]["up"])


@async_test
async def test_not_there(run: Run) -> None:
    """A llama-server that is not started yet is a warning; what is wrong here is what counts."""
    away = ["--check", "--llama-url", f"http://127.0.0.1:{free_port()}"]
    fine, wrong = run(*FOREGROUND, *away), run(*FOREGROUND, *away, "--prefix", "@code=missing.txt")
    assert await fine.ended() == 0
    assert await wrong.ended() == 1
    for process in (fine, wrong):
        assert "warning: llama-server refuses connections" in process.output
        assert "Traceback" not in process.output


@async_test
async def test_no_llama_server(run: Run, proxy_of: ProxyOf) -> None:
    """Another program that answers there (here bioproxy's own admin port) is told from a llama-server."""
    url = proxy_of(f"http://127.0.0.1:{free_port()}").admin_url
    process = run(*FOREGROUND, "--check", "--llama-url", url)
    assert await process.ended() == 0
    assert "seems to be no llama-server: 404" in process.output


@async_test
async def test_interrupted(run: Run) -> None:
    """Ctrl-C ends a check that waits, quietly."""
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        dumb.settimeout(PATIENCE)
        process = run(*FOREGROUND, "--check", "--llama-url", f"http://127.0.0.1:{dumb.getsockname()[1]}")
        connection, _ = dumb.accept()
        process.process.send_signal(signal.SIGINT)
        assert await process.ended() == 130
        connection.close()
    assert "Traceback" not in process.output
