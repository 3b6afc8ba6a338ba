"""Reading the configuration again, with a real llama.cpp and a real process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.integration.conftest import LlamaOf, Run
from tests.integration.support import (
    FOREGROUND,
    async_test,
    conversation,
    defer,
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
