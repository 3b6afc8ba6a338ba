"""Agents whose answers are real tool calls, on the real llama.cpp: the gate waits for their next request."""

from __future__ import annotations

import json

from bioproxy.demo import tiny_model
from tests.integration.conftest import LlamaOf, ModelOf, ProxyOf
from tests.integration.support import Call, async_test, eventually
from tests.support.agents import prose
from tests.support.tool_callers import TEMPLATE, calling_agent, calls_a_tool

SLOW = tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=768)
"""A model that needs several seconds for `WORDS`, so that a switch is worth avoiding."""

WORDS = 2500
"""Of a system message; each is a token.

Few enough for a request to be read at once: a larger one is read by the second process, which gets its turn late on a
busy machine, perhaps too late for the gate that lingers.
"""

LINGER = 1.0
"""How long the gate lingers, in parts of the time that computing the whole prompt takes on this machine.

So the agent has time to see that the gate lingers, and to send its next request.  And it is less than twice the cost of
a switch: with a longer one the gate would not linger at all, because switching were cheaper than waiting.
"""


@async_test
async def test_lingers(llama_of: LlamaOf, proxy_of: ProxyOf, model_of: ModelOf) -> None:
    """After a tool call others wait, and the conversation's next request passes them and computes only what is new."""
    llama = llama_of(model=model_of("calls-tools", SLOW, chat_template=TEMPLATE))
    await llama.start()
    agent, other, first_of_all = (calling_agent(seed, WORDS).session() for seed in ("agent", "other", "first of all"))
    agent.ask(prose(30, "a question"))
    other.ask(prose(30, "another one"))
    first_of_all.ask(prose(30, "a third one"))
    computed = await llama.call("POST", first_of_all.path, first_of_all.body())
    linger = LINGER * computed.timings["prompt_ms"] / 1000
    proxy = proxy_of(llama.url, slot_save_path=str(llama.slots), patience=60, linger=linger, head_start=False)

    async def up() -> bool:
        return bool((await proxy.status())["llama"]["up"])

    await eventually(up)
    url = proxy.url + agent.path
    first = Call(url, agent.body(**calls_a_tool()))

    async def is_inside() -> bool:
        return bool((await proxy.status())["gate"]["busy"] == "user")

    await eventually(is_inside)
    waiting = Call(url, other.body(**calls_a_tool()))

    async def waits() -> bool:
        return bool((await proxy.status())["gate"]["waiting"] == 1)

    await eventually(waits)
    await first.over

    async def lingers() -> bool:
        return bool((await proxy.status())["gate"]["lingering"])

    # The answer is whole a little before the gate is free: a request that comes in between would simply be the next.
    await eventually(lingers)
    assert json.loads(first.received)["choices"][0]["finish_reason"] == "tool_calls"
    before = agent.hear(first.received)
    agent.use_tool(prose(30, "what the tool found"))
    second = Call(url, agent.body(**calls_a_tool()))
    await second.over
    assert waiting.status is None, "the other one still waits"
    after = agent.hear(second.received)
    assert after.computed <= after.prompt - before.prompt
    await waiting.over
    assert waiting.status == 200
    assert await proxy.sample("linger_total", result="came") == 1
    newest_first = [each["queue_ms"] for each in (await proxy.status())["requests"]]
    assert newest_first[0] > newest_first[1], "the one that came before it was passed"
