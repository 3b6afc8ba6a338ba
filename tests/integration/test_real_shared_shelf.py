"""Several bioproxies, each with a real llama.cpp of its own, and one shared shelf."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ProxyOf
from tests.integration.support import (
    ODDS,
    LlamaServer,
    RunningProxy,
    agree,
    async_fixture,
    async_test,
    eventually,
    prose,
)

TEMPLATES = {"code": f"{prose(900, seed=1)}\nAnswer: <{{message}}>", "story": f"{prose(700, seed=2)}\n<{{message}}>"}

NEW = 256
"""Tokens that a conversation may compute again after it has moved, beside what is new."""


@dataclass
class Pair:
    """A bioproxy and its llama-server."""

    llama: LlamaServer
    proxy: RunningProxy

    async def shared(self, action: str) -> float:
        """Return how many files were published or fetched."""
        return await self.proxy.sample("shared_files_total", action=action, result="ok")

    async def computed(self) -> float:
        """Return how many warm-ups computed something."""
        return await self.proxy.sample("warmups_total", result="done")


PairOf = Callable[..., Awaitable[Pair]]


@async_fixture
async def pair_of(tmp_path: Path, tiny: Path, proxy_of: ProxyOf) -> AsyncIterator[PairOf]:
    """Return a function that starts pairs which share a folder, by their names."""
    servers: list[LlamaServer] = []

    async def start(name: str, model: Path = tiny, templates: dict[str, str] = TEMPLATES, **settings: Any) -> Pair:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copyfile(model, folder / "model.gguf")
        llama = LlamaServer(folder, folder / "model.gguf")
        servers.append(llama)
        await llama.start()
        more = {"state_dir": name + "/state", "slot_save_path": str(llama.slots), "shared_shelf": "shelf", **settings}
        return Pair(llama, proxy_of(llama.url, templates, **more))

    yield start
    for server in servers:
        server.kill()


@async_test
async def test_computed_once(pair_of: PairOf) -> None:
    """What one pair has computed, the other restores: each template is computed once in all, with the same answer."""
    first = await pair_of("a")
    length = await first.proxy.warm("code", "story")
    second = await pair_of("b")
    await second.proxy.warm("code", "story")
    assert (await first.computed(), await second.computed()) == (2, 0)
    assert await second.proxy.sample("shared_warmups_saved_total") == 2
    answer = await second.proxy.chat("@code what of it?", max_tokens=20, **ODDS)
    assert (answer.cache, answer.timings["prompt_n"] < length) == ("restored", True)
    assert agree(answer, await first.proxy.chat("@code what of it?", max_tokens=20, **ODDS))


@async_test
async def test_started_together(pair_of: PairOf) -> None:
    """Of two pairs that start at the same moment with nothing, only one computes each template."""
    pairs = [await pair_of("a"), await pair_of("b")]
    for pair in pairs:
        await pair.proxy.warm("code", "story")
    assert sum([await pair.computed() for pair in pairs]) == 2
    assert sum([await pair.shared("fetched") for pair in pairs]) == 2


@async_test
async def test_conversation_moves(pair_of: PairOf) -> None:
    """A conversation that goes on at the other pair computes what is new there, and little more."""
    first, second = await pair_of("a"), await pair_of("b")
    await first.proxy.warm("code")
    await second.proxy.warm("code")
    question = f"@code {prose(700, seed=3)}"
    answer = await first.proxy.chat(question, max_tokens=40)
    whole = answer.timings["cache_n"] + answer.timings["prompt_n"]

    async def published() -> bool:
        return bool((await first.proxy.status())["shared_shelf"]["files"].get("conversation"))

    await eventually(published)
    moved = await second.proxy.chat(question, answer.text, "and then?", max_tokens=10)
    assert moved.cache == "restored"
    assert moved.timings["cache_n"] >= whole
    assert moved.timings["prompt_n"] <= NEW


@async_test
async def test_other_model(pair_of: PairOf, other: Path) -> None:
    """A pair with another model of the same shape finds nothing on the shelf, and computes for itself."""
    first = await pair_of("a")
    await first.proxy.warm("code", "story")
    second = await pair_of("b", other)
    await second.proxy.warm("code", "story")
    assert (await second.computed(), await second.shared("fetched")) == (2, 0)


@pytest.mark.parametrize("trouble", ["file", "read-only"])
@async_test
async def test_no_shelf(pair_of: PairOf, tmp_path: Path, trouble: str) -> None:
    """Where the shelf cannot be used, everything goes on without it, and `/status` says why."""
    if trouble == "file":
        (tmp_path / "shelf").write_text("in the way")
        shelf = "shelf"
    else:
        # Root may write anywhere but to what is mounted for reading only.
        shelf = "/proc/shelf"
    pair = await pair_of("a", shared_shelf=shelf)
    await pair.proxy.warm("code", "story")
    assert (await pair.proxy.chat("@code what?")).status == 200
    told = (await pair.proxy.status())["shared_shelf"]
    assert (told["usable"], bool(told["trouble"])) == (False, True)
