"""What recorded clients send, on the real llama.cpp.

`tests/test_client_recipes.py` has the same in memory; here requests have fewer tools, to be quick.  The clients
themselves are run by `benchmarks.soak_real_clients`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.support import RunningProxy, async_test, eventually
from tests.support.agents import TEMPLATE
from tests.test_client_recipes import CLIENTS, Client, Recorded

TOOLS = 5
"""Tools of a request here, the shortest ones: with all of them a cold prompt takes half a minute on a busy machine."""

CHARACTERS = 6000
"""What these tools have at least, as JSON: with fewer, a prompt may be too short to be learned."""

AGAIN = 128
"""Tokens of the learned prompt that may be computed again: bioproxy goes on where a whole batch ended."""


def request(recorded: Recorded, question: str) -> dict[str, Any]:
    """Return a client's first request with fewer tools and a short answer."""
    body: dict[str, Any] = json.loads(recorded.body(question))
    tools = sorted(body.get("tools", ()), key=lambda tool: len(json.dumps(tool)))
    few = next((n for n in range(TOOLS, len(tools)) if len(json.dumps(tools[:n])) >= CHARACTERS), len(tools))
    body |= {"tools": tools[:few]} if tools else {}
    limit = "max_output_tokens" if "input" in body else "max_tokens"
    return {**body, limit: 4}


async def ask(proxy: RunningProxy, recorded: Recorded, question: str) -> dict[str, Any]:
    """Send it; return what `/status` tells of it."""
    answer = await proxy.call("POST", recorded.first["path"], request(recorded, question))
    assert answer.status == 200, answer.body
    told: dict[str, Any] = (await proxy.status())["requests"][0]
    return told


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@async_test
async def test_sessions(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf, client: Client) -> None:
    """A client's second session begins with what the first one taught, also after llama-server was restarted."""
    if not client.learned:
        pytest.skip("nothing of it is learned")
    size = replace(tiny_model.TINY, context=32768)
    llama = llama_of("--ctx-size", "32768", "--cache-ram", "0", model=model_of("recipes", size, chat_template=TEMPLATE))
    await llama.start()
    proxy = proxy_of(llama.url, slot_save_path=str(llama.slots))
    recorded = Recorded(client)
    first = await ask(proxy, recorded, "What is it?")
    assert (first["status"], first["cache"]) == (200, "cold")

    async def warm() -> bool:
        """Tell whether something was learned, and all of it is in files."""
        learned = [each for each in (await proxy.status())["prompts"] if each["kind"] == "learned"]
        return bool(learned) and all(each["state"] == "warm" and each["bytes"] for each in learned)

    # What has tools is learned from the first request on; other prompts when a second session begins alike.
    second = await ask(proxy, recorded, "Another question, then?")
    await eventually(warm)
    await llama.restart()
    third = await ask(proxy, recorded, "Explain the notes.")
    assert third["cache"] in ("hot", "restored")
    [learned] = [each for each in (await proxy.status())["prompts"] if each["name"] == third["prompt"]]
    assert learned["kind"] == "learned" and learned["tokens"] > 1024
    for each in (second, third):
        assert each["cached_tokens"] >= learned["tokens"] - AGAIN
