"""Killed the hard way in the middle of a save, llama-server or bioproxy: nothing wrong is ever restored afterwards."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from tests.integration.conftest import LlamaOf
from tests.integration.support import (
    FOREGROUND,
    ODDS,
    PATIENCE,
    Answer,
    LlamaServer,
    Twistd,
    agree,
    answers,
    async_fixture,
    async_test,
    conversation,
    defer,
    environment,
    eventually,
    fetch,
    free_port,
    prose,
)

ROUNDS = 14
SAVE_SECONDS = 0.012
"""About how long a save takes here, and what is done after it."""

KNOW = prose(500, seed=1)
LONG = prose(300, seed=2)

DaemonOf = Callable[..., "Daemon"]


class Daemon:
    """A bioproxy in a process of its own that can be killed; its address, templates and record stay."""

    def __init__(self, folder: Path, llama_url: str, slots: Path) -> None:
        self.template = folder / "code.txt"
        self._folder = folder
        self._ports = free_port(), free_port()
        settings = {
            "port": self._ports[0],
            "admin_port": self._ports[1],
            "llama_url": llama_url,
            "prefixes": {"@code": str(self.template)},
            "poll_interval": 0.1,
            "slot_save_path": str(slots),
        }
        (folder / "conf.json").write_text(json.dumps(settings))
        self.process: Twistd | None = None

    async def start(self) -> None:
        """Start it; fires when it answers."""
        self.process = Twistd(self._folder, [*FOREGROUND, "--config", "conf.json"], environment(self._folder))
        await eventually(lambda: answers(f"http://127.0.0.1:{self._ports[1]}/healthz"))

    @property
    def output(self) -> str:
        """Return what it wrote since it was started last."""
        return self.process.output if self.process is not None else ""

    def kill(self) -> None:
        """End it the hard way."""
        if self.process is not None:
            self.process.kill()

    async def chat(self, *messages: str, **more: Any) -> Answer:
        """Send a chat."""
        body = conversation(*messages, **more)
        return await fetch("POST", f"http://127.0.0.1:{self._ports[0]}/v1/chat/completions", body)

    async def warm(self) -> None:
        """Wait until there is a good file with the present text."""

        async def warmed() -> bool:
            admin = f"http://127.0.0.1:{self._ports[1]}"
            await fetch("GET", admin + "/readyz")  # has it look at llama-server now
            status = (await fetch("GET", admin + "/status")).json()
            return bool(status["llama"]["up"] and status["templates"][0]["warmed_at"])

        await eventually(warmed)


@async_fixture
async def daemon_of(tmp_path: Path) -> AsyncIterator[DaemonOf]:
    """Return a function that makes bioproxies, not started yet."""
    made: list[Daemon] = []

    def make(*arguments: Any) -> Daemon:
        made.append(Daemon(tmp_path, *arguments))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def kill_during_save(kill: Callable[[], None], folder: Path, after: float) -> bool:
    """Wait until a slot file is begun, and so many seconds more, and kill; tell whether one was.  For a thread."""

    def files() -> set[tuple[str, int, int]]:
        """A new file may have name and inode of one that was just removed, but it is younger."""
        found = set()
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                found.add((entry.name, entry.inode(), entry.stat().st_mtime_ns))
        return found

    before, deadline = files(), time.monotonic() + PATIENCE
    while files() <= before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    time.sleep(after)
    kill()
    return True


@async_test
async def test_killed_while_saving(llama_of: LlamaOf, daemon_of: DaemonOf, bulky: Path) -> None:
    """Killed again and again during a save, started again, the answer is that of a cold run, and all is warm again."""
    llama, direct = llama_of(model=bulky), llama_of(model=bulky, slots=False)
    await direct.start()
    await llama.start()
    daemon = daemon_of(llama.url, llama.slots)
    daemon.template.write_text(f"{KNOW}<{{message}}>")
    await daemon.start()
    await daemon.warm()
    moments = random.Random(11)
    victims: tuple[LlamaServer | Daemon, ...] = (llama, daemon)
    for number in range(ROUNDS):
        victim = moments.choice(victims)
        killing = deferToThread(kill_during_save, victim.kill, llama.slots, moments.random() * SAVE_SECONDS)
        if moments.random() < 0.3:
            # A conversation, another each time, saved because somebody else wants the slot.
            await daemon.chat(f"@code tell me {number} {LONG}")
            defer(daemon.chat("something else")).addErrback(lambda _: None)
        else:
            daemon.template.write_text(f"{KNOW}Number {number}. <{{message}}>")
        assert await killing, f"round {number}: nothing was saved"
        await victim.start()

        text = daemon.template.read_text().replace("<{message}>", "why?")
        right = await direct.call("POST", "/v1/chat/completions", conversation(text, **ODDS))
        answer = await daemon.chat("@code why?", **ODDS)
        assert (answer.status, agree(answer, right)) == (200, True), f"round {number}"
        await daemon.warm()
        assert llama.alive
    await daemon.chat("something else")
    answer = await daemon.chat("@code why?", **ODDS)
    assert (answer.cache, agree(answer, right)) == ("restored", True)
    # One file of the template, and nothing left over.  A kill between the record of a new file and its renaming, in the
    # last round, leaves it under its second name, where it is as good.
    names = {file.name for file in llama.slots.iterdir()} - {"code.chat.bin", "code.chat.new.bin"}
    assert names in ({"code.bin"}, {"code.new.bin"}), names
    assert "Traceback" not in daemon.output
