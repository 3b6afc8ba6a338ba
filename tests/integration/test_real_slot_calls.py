"""Slot calls in odd forms: which of them make a real llama-server write a file, and that none goes unnoticed."""

from __future__ import annotations

import pytest
from twisted.internet.threads import deferToThread

from tests.integration.conftest import LlamaOf, ProxyOf
from tests.integration.support import ODDS, LlamaServer, agree, async_test
from tests.integration.test_http import Raw, send
from tests.integration.test_real_cache import nonsense
from tests.integration.test_real_files import templates, truth
from tests.slot_files.test_client_calls import CAREFUL, NO_WRITE, WRITE, Ask


def raw(ask: Ask) -> Raw:
    """Return a request as it is sent."""
    return Raw("POST", ask.target.decode(), ask.body, {"Content-Type": ask.kind.decode()} if ask.kind else {})


@async_test
async def test_what_is_written(llama: LlamaServer) -> None:
    """The tables are right: what should write a real llama-server's file does, and what should not does not."""
    await llama.call("POST", "/completion", {"prompt": "the house", "n_predict": 1})
    file = llama.slots / "code.bin"
    for table, expected in ((WRITE, True), (NO_WRITE, False)):
        for name, ask in table.items():
            file.unlink(missing_ok=True)
            await deferToThread(send, llama.url, raw(ask))
            assert file.exists() == expected, name
            for other in set(llama.slots.iterdir()) - {file}:
                other.unlink()


@pytest.mark.parametrize("visible", [True, False], ids=["folder-seen", "folder-not-seen"])
@async_test
async def test_nothing_written_is_restored(llama_of: LlamaOf, proxy_of: ProxyOf, visible: bool) -> None:
    """Whatever a client has written over a template's file, in whatever form, the next question is answered right."""
    llama = llama_of()
    await llama.start()
    right = await truth(llama, "code")
    proxy = proxy_of(llama.url, templates("code"), **({"slot_save_path": str(llama.slots)} if visible else {}))
    file = llama.slots / "code.bin"
    for name, ask in {**WRITE, **CAREFUL}.items():
        tokens = await proxy.warm("code")
        # As many other tokens, so that the file has the same size.
        await proxy.call("POST", "/completion", nonsense(tokens))
        before = file.stat()
        assert (await deferToThread(send, proxy.url, raw(ask)))[0] in (200, 400), name
        written = file.stat().st_mtime_ns != before.st_mtime_ns
        assert written or name in CAREFUL, name
        assert not written or file.stat().st_size == before.st_size, name
        answer = await proxy.chat("@code why?", **ODDS)
        assert (answer.status, agree(answer, right)) == (200, True), name
        assert not written or answer.cache == "cold", name
    assert llama.alive
