"""Requests that follow each other on a connection to the real llama.cpp, which closes connections when it likes."""

from __future__ import annotations

import json

from twisted.web.http_headers import Headers

from bioproxy.http.response_body import collect
from bioproxy.llama.connections import Agents
from bioproxy.llama.upstream import Upstream
from bioproxy.settings.api_keys import ApiKeys
from tests.integration.support import LlamaServer, async_test, conversation, reactor
from tests.support.bodies import body

KEPT = 100
"""Answers after which llama-server closes a connection."""


async def answered(upstream: Upstream, stream: bool) -> None:
    """Have a chat relayed; fires when its answer is whole."""
    chat = conversation("hi", max_tokens=1, stream=stream)
    headers = Headers({b"Content-Type": [b"application/json"]})
    response = await upstream.relay(b"POST", b"/v1/chat/completions", headers, body(json.dumps(chat).encode()))
    answer = await collect(response, "a chat", 1 << 20)
    assert response.code == 200, answer
    assert answer.endswith(b"data: [DONE]\n\n") == stream, answer


@async_test
async def test_none_is_lost(llama: LlamaServer) -> None:
    """However whole and streamed answers alternate, also beyond llama-server's limit, each request is answered."""
    agents = Agents.over_network(reactor, llama.url)
    upstream = Upstream(llama.url, agents, reactor, ApiKeys(None, None))
    for _ in range(2 * KEPT + 10):
        await answered(upstream, stream=False)
    # The next request is sent in the same turn of the reactor in which the last answer ended, and llama-server closes
    # the connection behind a stream at that moment.
    for number in range(60):
        await answered(upstream, stream=number % 3 != 2)
    agents.close()
