"""LoRA adapters on the real llama.cpp: what they have computed is in no file that others get their answers from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ProxyOf
from tests.integration.support import ODDS, Answer, LlamaServer, RunningProxy, agree, async_test, eventually, prose

SYSTEM = prose(600, seed=77)
"""A system message that is long enough to be learned."""

RANK = 8
"""Columns of an adapter's narrow matrices."""

OFF = [{"id": 0, "scale": 0.0}]


def write_adapter(path: Path, size: tiny_model.Size) -> None:
    """Write a LoRA adapter with random weights that changes the keys and values of each layer."""
    random = numpy.random.default_rng(9)
    writer = gguf.GGUFWriter(str(path), size.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for block in range(size.blocks):
        for part in ("attn_k", "attn_v"):
            name = f"blk.{block}.{part}.weight"
            writer.add_tensor(f"{name}.lora_a", random.standard_normal((RANK, size.width), dtype=numpy.float32) / 8)
            writer.add_tensor(f"{name}.lora_b", random.standard_normal((size.width, RANK), dtype=numpy.float32) / 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def question(text: str, **more: Any) -> dict[str, Any]:
    """Return a chat request with the system message."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return {"messages": messages, "max_tokens": 4, "temperature": 0, **ODDS, **more}


async def ask(server: RunningProxy | LlamaServer, text: str, **more: Any) -> Answer:
    """Ask bioproxy or llama-server."""
    answer = await server.call("POST", "/v1/chat/completions", question(text, **more))
    assert answer.status == 200
    return answer


async def learned(proxy: RunningProxy) -> bool:
    """Tell whether the system message is learned and in a file."""
    return any(each["kind"] == "learned" and each["bytes"] > 0 for each in (await proxy.status())["prompts"])


@pytest.mark.parametrize("switched", [False, True], ids=["of-a-request", "switched"])
@async_test
async def test_not_in_files(llama_of: LlamaOf, proxy_of: ProxyOf, tmp_path: Path, switched: bool) -> None:
    """After a question with other adapters, all others have their model's answers, also from files after a restart."""
    adapter = tmp_path / "adapter.gguf"
    write_adapter(adapter, tiny_model.TINY)
    llama = llama_of()
    llama.params["lora_adapters"] = [str(adapter)]
    await llama.start()
    cold = {text: await ask(llama, text, cache_prompt=False) for text in ("one", "two")}
    other = await ask(llama, "one", cache_prompt=False, lora=OFF)
    assert not agree(cold["one"], other), "the adapter changes the answer"
    await llama.restart()
    proxy = proxy_of(llama.url, {}, learn_minimum=100, slot_save_path=str(llama.slots))
    await eventually(lambda: up(proxy))
    if switched:
        assert (await proxy.call("POST", "/lora-adapters", OFF)).status == 200
        assert agree(await ask(proxy, "one"), other)
        # Another prompt takes the slot, and llama-server keeps a copy of this one, whatever adapters it is of.
        await proxy.chat(prose(100, seed=5))
        assert (await proxy.call("POST", "/lora-adapters", [{"id": 0, "scale": 1.0}])).status == 200
        await ask(proxy, "one")
        await ask(proxy, "two")
    else:
        assert agree(await ask(proxy, "one", lora=OFF), other)
        for text in ("one", "two"):
            assert agree(await ask(proxy, text), cold[text])
    await eventually(lambda: learned(proxy))
    await llama.restart()
    for text in ("one", "two"):
        answer = await ask(proxy, text)
        assert answer.cache in ("restored", "hot")
        assert agree(answer, cold[text])


async def up(proxy: RunningProxy) -> bool:
    """Tell whether bioproxy has seen llama-server."""
    return bool((await proxy.status())["llama"]["up"])
