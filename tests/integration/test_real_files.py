"""Slot files that were damaged, exchanged or lost: llama-server never gets one, and nobody gets a wrong answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.support import (
    ODDS,
    REST,
    Answer,
    LlamaServer,
    RunningProxy,
    agree,
    async_test,
    eventually,
    prose,
)

TOKENS = 200
CUTS = 20

Damage = Callable[[Path], object]


def text(name: str) -> str:
    """Return what a template says, for each name something else."""
    return f"The notes of {name}: {prose(TOKENS, seed=sum(map(ord, name)))}"


def templates(*names: str) -> dict[str, str]:
    """Return templates with these names."""
    return {name: f"{text(name)}\nAnswer: <{{message}}>" for name in names}


async def truth(llama: LlamaServer, name: str) -> Answer:
    """Return the answer to "why?" of a llama-server that computes all of it."""
    return await llama.cold(f"{text(name)}\nAnswer: why?", **ODDS)


async def check(proxy: RunningProxy, name: str, right: Answer) -> None:
    """See that a template is warm again by itself and that its file is of use."""
    await proxy.warm(name)
    await proxy.chat("something else")
    answer = await proxy.chat(f"@{name} why?", **ODDS)
    assert (answer.status, answer.cache, agree(answer, right)) == (200, "restored", True), name
    assert answer.timings["prompt_n"] < 40 + REST


def cut(part: int) -> Damage:
    """Return what cuts a file short: of so many possible parts this many are left, none for 0."""
    return lambda file: os.truncate(file, file.stat().st_size * part // CUTS)


def garbage(extra: int) -> Damage:
    """Return what fills a file with bytes of no meaning, so many more than it had."""
    return lambda file: file.write_bytes(bytes(range(256)) * ((file.stat().st_size + extra) // 256 + 1))


def same_size_garbage(file: Path) -> None:
    """Fill a file with bytes of no meaning, and keep its size and its beginning."""
    with open(file, "r+b") as stream:
        stream.seek(16)
        stream.write(os.urandom(file.stat().st_size - 16))


def folder_instead(file: Path) -> None:
    """Put a folder in a file's place: llama-server cannot write there either."""
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Damage] = {
    **{f"cut{part}": cut(part) for part in range(CUTS)},
    "header": lambda file: os.truncate(file, 16),
    "longer": garbage(1000),
    "shorter": garbage(-1000),
    "garbage": same_size_garbage,
    "gone": lambda file: file.unlink(),
    "folder": folder_instead,
}


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
@async_test
async def test_damaged(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, kind: str) -> None:
    """Files cut at 20 places, filled with garbage, or gone: the answer is right, and the template is warm again."""
    size = {"dense": tiny_model.TINY, "hybrid": tiny_model.HYBRID}[kind]
    llama = llama_of(model=model_of(kind, size))
    await llama.start()
    names = list(DAMAGES) if kind == "dense" else list(DAMAGES)[1 :: CUTS // 3]
    right = {name: await truth(llama, name) for name in names}
    proxy = proxy_of(llama.url, templates(*names), slot_save_path=str(llama.slots))
    await proxy.warm(*names)
    await proxy.chat("something else")
    for name in names:
        DAMAGES[name](llama.slots / f"{name}.bin")
        answer = await proxy.chat(f"@{name} why?", **ODDS)
        assert llama.alive
        assert (answer.status, answer.cache, answer.miss) == (200, "cold", "no-file"), name
        assert agree(answer, right[name]), name
    for name in [name for name in names if name != "folder"]:
        await check(proxy, name, right[name])
    assert llama.alive


@async_test
async def test_damaged_while_nobody_asks(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """A file that is damaged makes its template cold at the next look, and it is made again without anybody asking."""
    llama = llama_of()
    await llama.start()
    names = [name for name in DAMAGES if name != "folder"][::4]
    proxy = proxy_of(llama.url, templates(*names), slot_save_path=str(llama.slots))
    await proxy.warm(*names)
    right = {name: await truth(llama, name) for name in names}
    for name in names:
        DAMAGES[name](llama.slots / f"{name}.bin")
    states = [each["state"] for each in (await proxy.status())["templates"]]
    assert states.count("cold") >= len(names) - 1, "one may be in the slot"
    for name in names:
        await check(proxy, name, right[name])


@pytest.mark.parametrize("shape", ["same shape", "another shape"])
@async_test
async def test_file_of_another_model(llama_of: LlamaOf, proxy_of: ProxyOf, other: Path, slow: Path, shape: str) -> None:
    """A file that another model saved under the same name is not restored, also if it is just as long."""
    stranger = llama_of(model=other if shape == "same shape" else slow)
    llama = llama_of()
    await stranger.start()
    await llama.start()
    right = await truth(llama, "code")
    assert not agree(await truth(stranger, "code"), right)
    proxy = proxy_of(stranger.url, templates("code"), slot_save_path=str(stranger.slots))
    await proxy.warm("code")
    theirs = shutil.copyfile(stranger.slots / "code.bin", llama.slots / "theirs.bin")
    await proxy.stop()
    stranger.kill()

    proxy = proxy_of(llama.url, templates("code"), slot_save_path=str(llama.slots))
    await proxy.warm("code")
    await proxy.chat("something else")
    file = llama.slots / "code.bin"
    assert (file.stat().st_size == theirs.stat().st_size) == (shape == "same shape")
    shutil.copyfile(theirs, file)
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.cache, answer.miss, agree(answer, right)) == ("cold", "no-file", True)
    await check(proxy, "code", right)


@async_test
async def test_gone_between_check_and_use(llama_of: LlamaOf, proxy_of: ProxyOf, tmp_path: Path) -> None:
    """A file that is whole when it is looked at and gone when llama-server opens it makes one question cold."""
    llama = llama_of()
    await llama.start()
    right = await truth(llama, "code")
    # Two folders are what two moments would be: bioproxy looks into the one, llama-server into the other.
    seen = tmp_path / "seen"
    seen.symlink_to(llama.slots)
    proxy = proxy_of(llama.url, templates("code"), slot_save_path=str(seen))
    await proxy.warm("code")
    await proxy.chat("something else")
    seen.unlink()
    seen.mkdir()
    shutil.copy2(llama.slots / "code.bin", seen)
    (llama.slots / "code.bin").unlink()
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.status, answer.cache, answer.miss) == (200, "cold", "no-file")
    assert agree(answer, right)
    assert await proxy.sample("slot_restores_total", result="missing") == 1
    shutil.rmtree(seen)
    seen.symlink_to(llama.slots)
    await check(proxy, "code", right)


@async_test
async def test_cut_between_check_and_use(llama_of: LlamaOf, proxy_of: ProxyOf) -> None:
    """A file that ends llama-server all the same costs one answer; it is never tried again."""
    llama = llama_of()
    await llama.start()
    right = await truth(llama, "code")
    proxy = proxy_of(llama.url, templates("code"))  # it cannot see the folder
    await proxy.warm("code")
    await proxy.chat("something else")
    cut(10)(llama.slots / "code.bin")
    assert (await proxy.chat("@code why?")).status == 502
    assert not llama.alive
    assert await proxy.sample("slot_restores_total", result="failed") == 1
    await llama.start()
    # Cold, or hot if its warm-up was quicker than this question.
    answer = await proxy.chat("@code why?", **ODDS)
    assert (answer.status, agree(answer, right)) == (200, True)
    await check(proxy, "code", right)
    assert await proxy.sample("slot_restores_total", result="failed") == 1
    assert llama.alive


@pytest.mark.parametrize("visible", [True, False], ids=["folder-seen", "folder-not-seen"])
@async_test
async def test_another_model_file(llama_of: LlamaOf, proxy_of: ProxyOf, other: Path, visible: bool) -> None:
    """After another model of the same shape was put at the model's path, nothing of the first one is used."""
    llama = llama_of()
    await llama.start()
    proxy = proxy_of(llama.url, templates("code"), **({"slot_save_path": str(llama.slots)} if visible else {}))
    await proxy.warm("code")
    # There is a conversation's file, too.
    question = f"@code why? {prose(400, seed=1)}"
    first = await proxy.chat(question)
    await proxy.chat("something else")
    assert (llama.slots / "code.chat.bin").exists()
    llama.kill()
    shutil.copyfile(other, llama.model)
    await llama.start()
    answer = await proxy.chat(question, first.text, "and then?", **ODDS)
    assert (answer.status, answer.cache, answer.miss) == (200, "cold", "other-model")
    filled = [f"{text('code')}\nAnswer: {question.removeprefix('@code ').strip()}", first.text, "and then?"]
    direct = llama_of(model=other)
    await direct.start()
    assert agree(answer, await direct.cold(*filled, **ODDS))

    async def warm_again() -> bool:
        return (await proxy.template("code"))["warmed_at"] is not None

    await eventually(warm_again)
    await check(proxy, "code", await truth(direct, "code"))
