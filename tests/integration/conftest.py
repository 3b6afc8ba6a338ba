"""Fixtures: a model made once, llama.cpp, and bioproxy in front of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogLevel, formatEventAsClassicLogText, globalLogPublisher
from zope.interface import implementer

from bioproxy.demo import tiny_model
from tests.integration.support import LlamaServer, RunningProxy, Twistd, async_fixture, environment
from tests.support.browser import BROWSER, DRIVER, Browser

LlamaOf = Callable[..., LlamaServer]
ProxyOf = Callable[..., RunningProxy]
Run = Callable[..., Twistd]
ModelOf = Callable[..., Path]

TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\nYou may call:\\n' }}"
    "{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ 'No thinking.\\n' }}{% endif %}"
    + tiny_model.CHAT_TEMPLATE
)
"""A chat template that puts tools and the switch for thinking before the messages."""


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return the browser; starting one takes seconds."""
    if not (BROWSER.exists() and DRIVER.exists()):
        reason = "needs Debian's chromium and chromium-driver"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> ModelOf:
    """Return a function that makes models, each one once."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str, size: tiny_model.Size, **more: Any) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            tiny_model.write_model(path, size, **more)
        return path

    return make


@pytest.fixture(scope="session")
def tiny(model_of: ModelOf) -> Path:
    """Return a model that evaluates thousands of tokens a second."""
    return model_of("tiny", tiny_model.TINY)


@pytest.fixture(scope="session")
def other(model_of: ModelOf) -> Path:
    """Return another model of the same shape as `tiny`."""
    return model_of("other", tiny_model.TINY, seed=2)


@pytest.fixture(scope="session")
def slow(model_of: ModelOf) -> Path:
    """Return a model on which a long prompt and a long answer take seconds."""
    return model_of("slow", tiny_model.Size(blocks=6, width=256, heads=4, feed_forward=768))


@pytest.fixture(scope="session")
def bulky(model_of: ModelOf) -> Path:
    """Return a model whose slot files are large for what they cost to compute, 16 kB a token."""
    return model_of("bulky", tiny_model.Size(blocks=16, width=256, heads=4, feed_forward=64))


@pytest.fixture(scope="session")
def with_tools(model_of: ModelOf) -> Path:
    """Return a model whose chat template knows system messages, tools and `enable_thinking`."""
    return model_of("with-tools", tiny_model.TINY, chat_template=TOOLS_TEMPLATE)


@async_fixture
async def llama_of(tmp_path: Path, tiny: Path) -> AsyncIterator[LlamaOf]:
    """Return a function that makes llama-servers, not started yet, each with a model file of its own."""
    made: list[LlamaServer] = []

    def make(*arguments: str, model: Path = tiny, slots: bool = True) -> LlamaServer:
        copy = tmp_path / f"model-{len(made)}.gguf"
        shutil.copyfile(model, copy)
        made.append(LlamaServer(tmp_path, copy, *arguments, slots=slots))
        return made[-1]

    yield make
    for each in made:
        each.kill()


@async_fixture
async def llama(llama_of: LlamaOf) -> AsyncIterator[LlamaServer]:
    """Return a llama-server with the tiny model and a slot folder, up and fresh."""
    server = llama_of()
    await server.start()
    yield server


@async_fixture
async def proxy_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ProxyOf]:
    """Return a function that starts bioproxies.  At the end none of them may have logged a bug."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    bugs: list[str] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        # pytest shows it with a test that fails.  The client that the tests use says much, and is left out.
        if not str(event.get("log_namespace")).startswith("twisted.web.client"):
            print(formatEventAsClassicLogText(event), end="")
        if event.get("log_level") == LogLevel.critical or "log_failure" in event:
            bugs.append(event["log_failure"].getTraceback() if "log_failure" in event else str(event))

    started: list[RunningProxy] = []

    def start(llama_url: str | None, templates: dict[str, str] | None = None, **settings: Any) -> RunningProxy:
        proxy = RunningProxy(tmp_path, llama_url, templates or {}, **settings)
        started.append(proxy)
        proxy.start()
        return proxy

    globalLogPublisher.addObserver(observe)
    try:
        yield start
        for proxy in reversed(started):
            await proxy.stop()
    finally:
        globalLogPublisher.removeObserver(observe)
    assert not bugs, "\n".join(bugs)


@async_fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Return a function that starts commands in a folder that is not the checkout, for a user without settings."""
    started: list[Twistd] = []

    def start(*command: str) -> Twistd:
        started.append(Twistd(tmp_path, list(command), environment(tmp_path)))
        return started[-1]

    yield start
    for each in started:
        each.kill()
