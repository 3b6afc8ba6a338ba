"""A llama-server out of bounds, on real sockets: answers without end, or a byte at a time.  And the real one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IPullProducer
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from bioproxy.llama.api import PROMPT_BYTES, TOKEN_BYTES
from bioproxy.llama.upstream import SMALL
from tests.integration.conftest import LlamaOf, ProxyOf
from tests.integration.support import async_fixture, async_test, begin, fetch, prose, reactor, until
from tests.support.fakes import FakeLlama

CODE = f"{prose(50, seed=1)}\nAnswer: <{{message}}>"

PIECE = b" " * 65536
IN_BUFFERS = 16 << 20
"""Bytes that the buffers of both ends of a connection may take, beside what is read of them."""

ENOUGH = 200 << 20
"""Bytes after which a flood ends, so that a test fails instead of eating the machine."""


@implementer(IPullProducer)
class Flood:
    """An answer that goes on for as long as its connection takes it.  `ended`: the other side has closed it."""

    def __init__(self, request: Request) -> None:
        self.sent = 0
        self.ended = False
        self._request = request
        request.notifyFinish().addErrback(lambda _: self.stopProducing())
        request.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """Send a piece.  Called by Twisted whenever the connection has room."""
        self.sent += len(PIECE)
        self._request.write(PIECE)
        if self.sent >= ENOUGH:
            self._request.unregisterProducer()
            self._request.finish()

    def stopProducing(self) -> None:
        """Note the end.  Called by Twisted when the connection is lost."""
        self.ended = True


class Rogue(Resource):
    """A `FakeLlama` on a socket, some of whose paths answer without end (`endless`), or a byte at a time (`slow`)."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.url = ""
        self.endless: set[str] = set()
        self.slow: set[str] = set()
        self.floods: list[Flood] = []
        self.hung_up = 0
        self._resource = FakeLlama().app.resource()

    def render(self, request: Request) -> Any:
        """Answer.  Called by Twisted."""
        path = request.uri.decode()
        if path in self.endless:
            self.floods.append(Flood(request))
        elif path in self.slow:
            trickle = LoopingCall(request.write, b" ")
            trickle.start(0.05)
            request.notifyFinish().addErrback(lambda _: self._over(trickle))
        else:
            return self._resource.render(request)
        return NOT_DONE_YET

    def _over(self, trickle: LoopingCall) -> None:
        trickle.stop()
        self.hung_up += 1


@async_fixture
async def rogue_of(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts a rogue, with TLS if that is wanted; its authority is then in ``ca.pem``."""
    ports: list[Any] = []

    async def start(tls: bool = False) -> Rogue:
        rogue = Rogue()
        endpoint: Any = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        if tls:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(tmp_path / "ca.pem")
            certificate = authority.issue_cert("localhost")
            pem = certificate.private_key_pem.bytes() + certificate.cert_chain_pems[0].bytes()
            options = PrivateCertificate.loadPEM(pem).options()
            endpoint = SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1")
        ports.append(await endpoint.listen(Site(rogue)))
        rogue.url = (
            f"https://localhost:{ports[0].getHost().port}" if tls else f"http://127.0.0.1:{ports[0].getHost().port}"
        )
        return rogue

    yield start
    for port in ports:
        await cast("Deferred[None]", port.stopListening())


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@async_test
async def test_too_long(rogue_of: Any, proxy_of: ProxyOf, tls: bool) -> None:
    """Of an answer without end about a megabyte is taken, then its connection is closed; clients are served."""
    rogue = await rogue_of(tls)
    proxy = proxy_of(rogue.url, {"code": CODE}, **({"llama_ca_file": "ca.pem"} if tls else {}))
    await proxy.warm("code")
    rogue.endless = {"/props", "/slots"}
    ready = await fetch("GET", proxy.admin_url + "/readyz")
    assert (ready.status, ready.body) == (503, b"llama-server's answer to GET /props is longer than 1048576 bytes\n")
    assert not (await proxy.status())["llama"]["up"]
    answer = await proxy.chat("@code why?")
    assert (answer.status, answer.text) == (200, "fine")
    assert len(rogue.floods) >= 2
    await until(lambda: all(flood.ended for flood in rogue.floods))
    assert max(flood.sent for flood in rogue.floods) < (1 << 20) + IN_BUFFERS
    rogue.endless = set()
    assert (await fetch("GET", proxy.admin_url + "/readyz")).status == 200


@async_test
async def test_slow(rogue_of: Any, proxy_of: ProxyOf) -> None:
    """An answer that comes a byte at a time is given up after seconds, although `/health` is fine; nobody hangs."""
    rogue = await rogue_of()
    proxy = proxy_of(rogue.url, {"code": CODE})
    await proxy.warm("code")
    assert (await proxy.chat("@code why?")).cache == "hot"
    rogue.slow = {"/slots"}
    answer = await proxy.chat("@code and now?")
    assert (answer.status, answer.text) == (200, "fine")
    assert (await proxy.status())["llama"]["up"]
    assert rogue.hung_up
    rogue.slow = {"/props"}
    ready = await fetch("GET", proxy.admin_url + "/readyz")
    words = b"llama-server did not finish its answer to GET /props within 4 s\n"
    assert (ready.status, ready.body) == (503, words)


@async_test
async def test_honest(llama_of: LlamaOf, with_tools: Path) -> None:
    """The real llama-server's answers are within the bounds, whatever the text, and with much room to spare."""
    llama = llama_of(model=with_tools)
    await llama.start()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    for text in ("\x01\x7f", '"\\', "\n\n\t", "\U0001f600é", "the quick brown fox ", " " * 64, "7"):
        long = text * (20_000 // len(text))
        content = {"content": long, "add_special": True, "parse_special": True}
        chat = {"messages": [{"role": "user", "content": long}], "tools": [tool] * 100}
        tokens = await llama.call("POST", "/tokenize", content)
        prompt = {"prompt": tokens.json()["tokens"][:8000], "n_predict": 0}
        for path, question, growth in (
            ("/tokenize", content, TOKEN_BYTES),
            ("/apply-template", chat, PROMPT_BYTES),
            ("/completion", prompt, PROMPT_BYTES),
        ):
            answer = await llama.call("POST", path, question)
            assert answer.status == 200
            assert 2 * len(answer.body) < growth * len(json.dumps(question)) + SMALL // 8, (path, text)
    for path in ("/health", "/props", "/v1/models", "/lora-adapters", "/slots"):
        assert len((await llama.call("GET", path)).body) < SMALL // 16, path


@async_test
async def test_work_before_head(llama_of: LlamaOf, slow: Path) -> None:
    """llama-server works first, and then sends head and body at once: that is why only the latter has a deadline."""
    llama = llama_of(model=slow)
    await llama.start()
    prompt = {"prompt": [*range(300, 1300)] * 6, "n_predict": 0}
    began = reactor.seconds()
    response = await begin("POST", llama.url + "/completion", prompt)
    head = reactor.seconds()
    body = await response.content()
    assert reactor.seconds() - head < (head - began) / 4
    assert response.length == len(body)
    timings = json.loads(body)["timings"]
    assert timings["prompt_n"] == 6000
    assert timings["prompt_ms"] / 1000 <= head - began
