"""The packages that people use, `openai` and `anthropic`, through the proxy: answers, streams, errors, keys, retries.

They block, so they work in threads, while the proxy runs in this process on the reactor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import anthropic
import openai
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.integration.conftest import LlamaOf, ProxyOf
from tests.integration.support import (
    PATIENCE,
    REST,
    Call,
    LlamaServer,
    RunningProxy,
    async_test,
    eventually,
    prose,
    until,
)

T = TypeVar("T")

CODE = f"{prose(1000, seed=1)}\nAnswer: <{{message}}>"
STORY = f"{prose(400, seed=2)}\nAbout: <{{message}}>"
BOTH = {"code": CODE, "story": STORY}

FEW = 40 + REST
"""Prompt tokens that a short question may take."""

KEY = "key-of-a-client"

Clients = Callable[..., tuple[openai.OpenAI, anthropic.Anthropic]]


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Return a function that makes a client of each package for a proxy; they are closed at the end."""
    made: list[openai.OpenAI | anthropic.Anthropic] = []

    def make(
        proxy: RunningProxy, key: str = KEY, retries: int = 0, **more: Any
    ) -> tuple[openai.OpenAI, anthropic.Anthropic]:
        settings: Any = {"api_key": key, "timeout": PATIENCE, "max_retries": retries, **more}
        both = (
            openai.OpenAI(base_url=f"{proxy.url}/v1", **settings),
            anthropic.Anthropic(base_url=proxy.url, **settings),
        )
        made.extend(both)
        return both

    yield make
    for each in made:
        each.close()


async def in_thread(work: Callable[[], T]) -> T:
    """Run something that blocks."""
    return await cast("Deferred[T]", deferToThread(work))


async def raised(work: Callable[[], object]) -> Exception:
    """Run something that blocks; fires with what it raises."""
    try:
        await in_thread(work)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def user(text: str) -> Any:
    """Return a conversation of one message, for either package."""
    return [{"role": "user", "content": text}]


def chat(client: openai.OpenAI, text: str, **more: Any) -> Any:
    """Ask in OpenAI's chat completions."""
    return client.chat.completions.create(**{"model": "any", "messages": user(text), "max_tokens": 8, **more})


def message(client: anthropic.Anthropic, text: str, **more: Any) -> Any:
    """Ask in Anthropic's messages."""
    return client.messages.create(**{"model": "any", "messages": user(text), "max_tokens": 8, **more})


def response(client: openai.OpenAI, text: str, **more: Any) -> Any:
    """Ask in OpenAI's responses."""
    return client.responses.create(**{"model": "any", "input": text, "max_output_tokens": 16, **more})


async def start(
    llama_of: LlamaOf, proxy_of: ProxyOf, model: Path, **settings: Any
) -> tuple[LlamaServer, RunningProxy, int]:
    """Start both; fires when the templates are warm, with the tokens of `code` too, which the slot does not hold."""
    llama = llama_of(model=model)
    await llama.start()
    proxy = proxy_of(llama.url, BOTH, **settings)
    tokens = await proxy.warm("story", "code")
    await proxy.chat("@story a chair")
    return llama, proxy, tokens


@async_test
async def test_openai(llama_of: LlamaOf, proxy_of: ProxyOf, tiny: Path, clients: Clients) -> None:
    """Chats, responses and completions of the package `openai` use the template's file, streamed or not."""
    _, proxy, tokens = await start(llama_of, proxy_of, tiny)
    client, _ = clients(proxy)
    raw = await in_thread(
        lambda: client.chat.completions.with_raw_response.create(model="any", messages=user("@code why?"), max_tokens=8)
    )
    assert raw.headers["X-Bioproxy-Cache"] == "restored"
    usage = raw.parse().usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == tokens
    assert tokens < usage.prompt_tokens <= tokens + FEW

    chunks = await in_thread(
        lambda: list(chat(client, "@code why?", stream=True, stream_options={"include_usage": True}))
    )
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) >= 4
    assert chunks[-1].usage.prompt_tokens == usage.prompt_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens >= tokens

    answer = await in_thread(lambda: response(client, "@code why?"))
    assert (answer.usage.input_tokens, answer.status) == (usage.prompt_tokens, "completed")
    assert answer.usage.input_tokens_details.cached_tokens >= tokens
    assert answer.output_text
    events = await in_thread(lambda: list(response(client, "@code why?", stream=True)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.input_tokens_details.cached_tokens >= tokens

    plain = await in_thread(lambda: client.completions.create(model="any", prompt="@code why?", max_tokens=8))
    assert plain.usage is not None and plain.usage.prompt_tokens > 1000
    assert plain.choices[0].text
    assert {each["template"] for each in (await proxy.status())["requests"][:5]} == {"code"}


@async_test
async def test_anthropic(llama_of: LlamaOf, proxy_of: ProxyOf, tiny: Path, clients: Clients) -> None:
    """Messages of the package `anthropic` use the template's file, streamed or not; tokens are counted as they are."""
    _, proxy, tokens = await start(llama_of, proxy_of, tiny)
    _, client = clients(proxy)
    raw = await in_thread(
        lambda: client.messages.with_raw_response.create(model="any", messages=user("@code why?"), max_tokens=8)
    )
    assert raw.headers["X-Bioproxy-Cache"] == "restored"
    usage = raw.parse().usage
    assert (usage.cache_read_input_tokens, 0 < usage.input_tokens <= FEW) == (tokens, True)

    def stream() -> Any:
        with client.messages.stream(model="any", messages=user("@code how?"), max_tokens=8) as events:
            pieces = list(events.text_stream)
            return pieces, events.get_final_message()

    pieces, final = await in_thread(stream)
    assert len(pieces) >= 4
    assert final.content[0].text == "".join(pieces)
    assert final.stop_reason == "max_tokens"
    assert final.usage.cache_read_input_tokens >= tokens

    # Counting never waits and fills nothing: it is none of the requests that use the slot.
    text = prose(50, seed=3)
    counted = await in_thread(lambda: client.messages.count_tokens(model="any", messages=user(text)))
    asked = await in_thread(lambda: message(client, text))
    assert counted.input_tokens == asked.usage.input_tokens + asked.usage.cache_read_input_tokens


TOOL: Any = {
    "name": "find_word",
    "description": prose(30, seed=4),
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
}


@async_test
async def test_tools(llama_of: LlamaOf, proxy_of: ProxyOf, with_tools: Path, clients: Clients) -> None:
    """With tools and a system prompt, as the packages write them, the second question finds the template."""
    _, proxy, bare = await start(llama_of, proxy_of, with_tools)
    openais, anthropics = clients(proxy)
    system = "You help. " + prose(20, seed=5)
    anthropic_tool = {
        "name": TOOL["name"],
        "description": TOOL["description"],
        "input_schema": TOOL["parameters"],
    }

    def ask(text: str) -> Any:
        return message(anthropics, text, system=system, tools=[anthropic_tool]).usage

    first = await in_thread(lambda: ask("@code why?"))
    assert first.input_tokens + first.cache_read_input_tokens > bare + 50
    tokens = await proxy.warm("code")
    assert tokens > bare + 50
    await proxy.chat("@story a chair")
    second = await in_thread(lambda: ask("@code how?"))
    assert second.cache_read_input_tokens == tokens

    await proxy.chat("@story a chair")
    answer = await in_thread(
        lambda: chat(
            openais,
            "@code how?",
            messages=[{"role": "system", "content": system}, *user("@code how?")],
            tools=[{"type": "function", "function": TOOL}],
        )
    )
    assert answer.usage.prompt_tokens_details.cached_tokens == tokens


@pytest.mark.parametrize("package", ["openai", "anthropic"])
@async_test
async def test_leaving_a_stream(
    llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, clients: Clients, package: str
) -> None:
    """A stream that is closed in the middle frees the gate, and the next user is served."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url)
    openais, anthropics = clients(proxy)

    def leave() -> list[Any]:
        ask: Any = chat if package == "openai" else message
        with ask(openais if package == "openai" else anthropics, "tell", max_tokens=15000, stream=True) as stream:
            return [next(stream) for _ in range(5)]

    assert len(await in_thread(leave)) == 5
    await eventually(lambda: proxy.gate(None, 0))
    await eventually(llama.idle)
    assert (await proxy.chat("and you?")).status == 200
    assert [each["status"] for each in (await proxy.status())["requests"]] == [200, 499]


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
@async_test
async def test_a_broken_stream(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, clients: Clients, api: str) -> None:
    """A stream that llama-server breaks off is an error to its reader, never a short answer."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url)
    openais, anthropics = clients(proxy)
    ways: dict[str, Callable[[], Any]] = {
        "chat": lambda: chat(openais, "tell", max_tokens=15000, stream=True),
        "responses": lambda: response(openais, "tell", max_output_tokens=15000, stream=True),
        "anthropic": lambda: message(anthropics, "tell", max_tokens=15000, stream=True),
    }
    seen: list[Any] = []

    def read() -> None:
        for event in ways[api]():
            seen.append(event)
            if getattr(event, "type", None) == "error":  # OpenAI's responses have an event for it
                raise openai.OpenAIError(event.message)

    reading = deferToThread(read)
    await until(lambda: len(seen) > 8)
    llama.kill()
    with pytest.raises((openai.OpenAIError, anthropic.APIStatusError), match="llama-server broke off"):
        await reading


@async_test
async def test_errors(llama_of: LlamaOf, proxy_of: ProxyOf, tiny: Path, clients: Clients, tmp_path: Path) -> None:
    """Errors arrive as the packages' own exceptions: llama-server's, and the proxy's own."""
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    llama = llama_of(model=tiny)
    await llama.start()
    proxy = proxy_of(llama.url, {"gone": CODE}, api_key_file=str(keys), max_body=300_000, queue_limit=0, warmup=False)
    openais, anthropics = clients(proxy)
    strangers = clients(proxy, "another-key")
    proxy.path("gone").unlink()

    async def failures(text: str, both: Any = (openais, anthropics)) -> list[Any]:
        return [
            await raised(lambda: chat(both[0], text)),
            await raised(lambda: response(both[0], text)),
            await raised(lambda: message(both[1], text)),
        ]

    too_long = await failures("word " * 20_000)
    assert [type(each).__name__ for each in too_long] == ["BadRequestError"] * 3
    assert all("exceed" in str(each) for each in too_long), "llama-server's own words"

    unknown = await failures("why?", strangers)
    assert [type(each).__name__ for each in unknown] == ["AuthenticationError"] * 3

    too_large = await failures("word " * 80_000)
    assert [each.status_code for each in too_large] == [413] * 3

    unreadable = await failures("@gone why?")
    assert [type(each).__name__ for each in unreadable] == ["InternalServerError"] * 3
    assert [kind(each) for each in unreadable] == ["template_error"] * 3
    assert all("gone" in each.message for each in unreadable)

    busy = proxy.ring("tell", headers={"Authorization": f"Bearer {KEY}"}, max_tokens=15000, stream=True)
    await until(lambda: b"data:" in busy.received)
    turned_away = await failures("why?")
    assert [each.status_code for each in turned_away] == [503] * 3
    assert all(isinstance(each, openai.InternalServerError | anthropic.InternalServerError) for each in turned_away)
    assert [kind(each) for each in turned_away] == ["unavailable_error"] * 3
    assert all(int(each.response.headers["Retry-After"]) >= 1 for each in turned_away)
    busy.hang_up()
    # With a queue of nobody, whoever came before the gate is free again would be turned away.
    await eventually(lambda: proxy.gate(None, 0))

    llama.kill()
    away = await failures("why?")
    assert [(each.status_code, kind(each)) for each in away] == [(502, "upstream_error")] * 3


def kind(error: Any) -> str:
    """Return the `type` that an error's body has, in either package."""
    return str(error.body.get("error", error.body)["type"])


@pytest.mark.parametrize("package", ["openai", "anthropic"])
@async_test
async def test_retries(llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, clients: Clients, package: str) -> None:
    """Where the queue is full the packages come again by themselves, and succeed as soon as there is room."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, queue_limit=0)
    openais, anthropics = clients(proxy, retries=10)
    busy = proxy.ring("tell", max_tokens=15000, stream=True)
    await until(lambda: b"data:" in busy.received)
    answer = deferToThread(
        lambda: (
            chat(openais, "why?").usage.completion_tokens
            if package == "openai"
            else message(anthropics, "why?").usage.output_tokens
        )
    )

    async def turned_away() -> bool:
        return 503 in [each["status"] for each in (await proxy.status())["requests"]]

    await eventually(turned_away)
    busy.hang_up()
    assert await answer == 8
    statuses = [each["status"] for each in (await proxy.status())["requests"]]
    assert (statuses[0], statuses.count(200)) == (200, 1)


@async_test
async def test_keys(llama_of: LlamaOf, proxy_of: ProxyOf, tiny: Path, clients: Clients, tmp_path: Path) -> None:
    """Each package shows its key in its own way, and both ways are good; llama-server gets its own key instead."""
    for name, text in (("clients", f"someone-else\n{KEY}\n"), ("llama", "key-of-llama\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    llama = llama_of(model=tiny)
    llama.params = {"api_keys": ["key-of-llama"]}
    await llama.start()
    proxy = proxy_of(
        llama.url,
        BOTH,
        api_key_file=str(tmp_path / "clients"),
        llama_api_key_file=str(tmp_path / "llama"),
    )
    tokens = await proxy.warm("story", "code")
    openais, anthropics = clients(proxy)
    assert (await in_thread(lambda: message(anthropics, "@story a chair"))).usage.input_tokens <= FEW
    usage = (await in_thread(lambda: chat(openais, "@code why?"))).usage
    assert usage.prompt_tokens_details.cached_tokens == tokens
    for each in clients(proxy, "key-of-llama"):
        error = await raised(lambda each=each: each.models.list())  # type: ignore[misc]
        assert type(error).__name__ == "AuthenticationError"
    bearer = anthropic.Anthropic(base_url=proxy.url, auth_token=KEY, timeout=PATIENCE, max_retries=0)
    try:
        assert (await in_thread(lambda: message(bearer, "why?"))).usage.output_tokens == 8
    finally:
        bearer.close()


@async_test
async def test_models_and_embeddings(llama_of: LlamaOf, proxy_of: ProxyOf, tiny: Path, clients: Clients) -> None:
    """Lists of models and embeddings are what llama-server says, also where it says that it has none."""
    llama = llama_of(model=tiny)
    await llama.start()
    proxy = proxy_of(llama.url)
    client, _ = clients(proxy)
    models = await in_thread(lambda: [model.id for model in client.models.list()])
    assert models == [each["id"] for each in (await llama.call("GET", "/v1/models")).json()["data"]]

    refused: Any = await raised(lambda: client.embeddings.create(model="any", input="why?"))
    assert (refused.status_code, kind(refused)) == (501, "not_supported_error")

    llama.kill()
    llama.params = {"embedding": True, "pooling_type": 1}  # the mean of all tokens
    await llama.start()
    found = await in_thread(lambda: client.embeddings.create(model="any", input=["why?", "how?"]).data)
    right = await llama.call("POST", "/v1/embeddings", {"input": ["why?", "how?"]})
    assert [len(each.embedding) for each in found] == [64, 64]
    for mine, theirs in zip(found, right.json()["data"], strict=True):
        assert mine.embedding == pytest.approx(theirs["embedding"], abs=0.01)


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic", "completions"])
@async_test
async def test_waiting_and_progress(
    llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, clients: Clients, api: str
) -> None:
    """The packages read streams with places, estimates, progress and pings as they read those without."""
    llama = llama_of(model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, warmup=False, ping_interval=0.05)
    openais, anthropics = clients(proxy)
    # Something is learned, so that there is an estimate.
    await proxy.chat("hello")
    text = prose(5000, seed=len(api))
    ways: dict[str, Callable[[], Any]] = {
        "chat": lambda: "".join(
            each.choices[0].delta.content or "" for each in chat(openais, text, stream=True) if each.choices
        ),
        "responses": lambda: list(response(openais, text, stream=True))[-1].response.output_text,
        "anthropic": lambda: "".join(message_stream(anthropics, text)),
        "completions": lambda: "".join(
            each.choices[0].text
            for each in openais.completions.create(model="any", prompt=text, max_tokens=8, stream=True)
        ),
    }
    busy = proxy.ring(prose(2000, seed=9))
    await eventually(lambda: proxy.gate("user", 0))
    said = await in_thread(ways[api])
    await busy.over
    assert said
    newest = (await proxy.status())["requests"][0]
    assert (newest["status"], newest["estimate_ms"] > 0, newest["queue_ms"] > 100) == (200, True, True)

    # The same as bytes: what the packages have skipped was there.
    body: Any = {"messages": user(prose(5000, seed=100 + len(api))), "max_tokens": 8, "stream": True}
    raw = Call(proxy.url + ("/v1/messages" if api == "anthropic" else "/v1/chat/completions"), body)
    await raw.over
    assert b": reading the prompt, " in raw.received, (raw.received[:300], raw.received[-700:])
    assert (b"event: ping\n" in raw.received) == (api == "anthropic")


def message_stream(client: anthropic.Anthropic, text: str) -> list[str]:
    """Return the pieces of text of a streamed message."""
    with client.messages.stream(model="any", messages=user(text), max_tokens=8) as events:
        return list(events.text_stream)


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
@async_test
async def test_an_error_after_waiting(
    llama_of: LlamaOf, proxy_of: ProxyOf, slow: Path, clients: Clients, api: str
) -> None:
    """An error behind comments and pings is still the package's own exception, with llama-server's words."""
    llama = llama_of("--ctx-size", "1024", model=slow)
    await llama.start()
    proxy = proxy_of(llama.url, warmup=False, ping_interval=0.05)
    openais, anthropics = clients(proxy)
    text = prose(3000, seed=7)

    def read() -> None:
        ways: dict[str, Callable[[], Any]] = {
            "chat": lambda: chat(openais, text, stream=True),
            "responses": lambda: response(openais, text, stream=True),
            "anthropic": lambda: message(anthropics, text, stream=True),
        }
        for event in ways[api]():
            if getattr(event, "type", None) == "error":  # OpenAI's responses have an event for it
                raise openai.OpenAIError(event.message)

    busy = proxy.ring(prose(900, seed=9))
    await eventually(lambda: proxy.gate("user", 0))
    error = await raised(lambda: read())
    await busy.over
    assert isinstance(error, openai.OpenAIError | anthropic.APIStatusError)
    assert "exceed" in str(error)
