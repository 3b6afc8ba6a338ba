"""What `FakeLlama` promises, the real llama.cpp keeps: the same calls to both, so that the fake cannot drift."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from twisted.web.server import Site

from bioproxy.demo import tiny_model
from bioproxy.llama.answers import Witness
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.connections import Agents
from bioproxy.llama.prefix_tokens import prefix_tokens
from bioproxy.llama.upstream import Upstream
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.runtime.errors import LlamaError
from bioproxy.settings.api_keys import ApiKeys
from tests.integration.conftest import LlamaOf, ModelOf
from tests.integration.support import Answer, async_fixture, async_test, conversation, eventually, fetch, reactor
from tests.support.fakes import FakeLlama

PREFIX = "Know this: the house by the sea is small. "


@dataclass(frozen=True)
class Server:
    """One of the two, fresh."""

    url: str
    llama: LlamaApi
    restart: Callable[[], Awaitable[None]]

    async def call(self, method: str, path: str, body: Any = None) -> Answer:
        """Ask it without bioproxy's own words for errors."""
        return await fetch(method, self.url + path, body)

    async def tokens(self, text: str) -> list[int]:
        """Return a text's tokens."""
        question = {"content": text, "add_special": True, "parse_special": True}
        found: list[int] = (await self.call("POST", "/tokenize", question)).json()["tokens"]
        return found

    async def witness(self) -> Witness:
        """Return what slot 0 says, on a server that says it."""
        witness = await self.llama.witness()
        assert witness is not None
        return witness


ServerOf = Callable[..., Awaitable[Server]]


@async_fixture
async def server_of(request: pytest.FixtureRequest, llama_of: LlamaOf, model_of: ModelOf) -> AsyncIterator[ServerOf]:
    """Return a function that starts the server that the test is run for."""
    ports: list[Any] = []
    all_agents: list[Agents] = []

    def api(url: str) -> LlamaApi:
        """Return bioproxy's way to a server."""
        all_agents.append(Agents.over_network(reactor, url))
        return LlamaApi(Upstream(url, all_agents[-1], reactor, ApiKeys(None, None)))

    async def start(
        files: bool = True,
        slots_shown: bool = True,
        context: int = 16384,
        goes_back: bool = True,
        reuses_files: bool = True,
        idle: int | None = None,
        memory: bool = False,
    ) -> Server:
        if request.param == "real":
            options = ["--ctx-size", str(context), *([] if slots_shown else ["--no-slots"])]
            options += [] if idle is None else ["--sleep-idle-seconds", str(idle)]
            options += [] if memory else ["--cache-ram", "0"]
            # Without checkpoints these kinds of model show what older builds of llama.cpp can do with them.
            kind, size = "tiny", tiny_model.TINY
            if not goes_back:
                kind, size = "hybrid", tiny_model.HYBRID
            elif not reuses_files:
                kind, size = "sliding", tiny_model.SLIDING
            real = llama_of(*options, "--ctx-checkpoints", "0", model=model_of(kind, size), slots=files)
            await real.start()
            return Server(real.url, api(real.url), real.restart)
        fake = FakeLlama()
        fake.files = {} if files else None
        fake.slots_shown = slots_shown
        fake.context = context
        fake.goes_back, fake.reuses_files = goes_back, reuses_files
        fake.asleep = idle is not None
        fake.memory = [] if memory else None
        port = reactor.listenTCP(0, Site(fake.app.resource()), interface="127.0.0.1")
        ports.append(port)
        url = f"http://127.0.0.1:{port.getHost().port}"

        async def restart() -> None:
            fake.restart()

        return Server(url, api(url), restart)

    yield start
    for agents in all_agents:
        agents.close()
    for port in ports:
        await port.stopListening()


def bare(message: str) -> dict[str, Any]:
    """Return a chat with nothing but a message."""
    return {"messages": [{"role": "user", "content": message}]}


on_both = pytest.mark.parametrize("server_of", ["fake", "real"], indirect=True)


async def refusal(call: Awaitable[Any]) -> int:
    """Return the status with which a call is refused."""
    with pytest.raises(LlamaError) as caught:
        await call
    return caught.value.status


@on_both
@async_test
async def test_about_the_server(server_of: ServerOf) -> None:
    """It is healthy, and tells what bioproxy wants to know of it and its model."""
    server = await server_of(context=4096)
    await server.llama.health()
    props = (await server.call("GET", "/props")).json()
    assert props["default_generation_settings"]["n_ctx"] == 4096
    for key in ("model_path", "model_ftype", "build_info"):
        assert isinstance(props[key], str) and props[key]
    assert isinstance(props["chat_template"], str)
    known = await server.llama.props()
    assert (known.model, known.build, known.context) == (props["model_path"], props["build_info"], 4096)
    assert known.marker == props["media_marker"]
    meta = (await server.call("GET", "/v1/models")).json()["data"][0]["meta"]
    assert meta["n_params"] > 0 and meta["n_vocab"] > 0
    assert (await server.call("GET", "/lora-adapters")).json() == []
    assert str(meta["n_vocab"]) in await server.llama.model_facts()


@on_both
@async_test
async def test_marker(server_of: ServerOf) -> None:
    """The marker tells one process from the next one, and stays the same within each."""
    server = await server_of()
    first = await server.llama.props()
    assert first.marker.startswith("<__media_")
    await server.llama.evaluate([1, 65, 66])
    assert await server.llama.props() == first
    await server.restart()
    second = await server.llama.props()
    assert second.marker != first.marker
    assert second.about_model == first.about_model


@on_both
@async_test
async def test_witness(server_of: ServerOf) -> None:
    """The slot of a fresh server had no task; then each use gives it a higher one; looking changes nothing."""
    server = await server_of()
    assert await server.witness() == Witness(None, 0, False)
    await server.llama.evaluate(list(range(60, 80)))
    used = await server.witness()
    assert (used.tokens, used.busy) == (20, False)
    assert await server.witness() == used
    await server.llama.evaluate(list(range(60, 80)))
    again = await server.witness()
    assert used.task is not None and again.task is not None and again.task > used.task
    await server.call("POST", "/v1/chat/completions", conversation("hello"))
    chatted = await server.witness()
    assert chatted.task is not None and chatted.task > again.task
    assert not chatted.busy
    await server.restart()
    assert await server.witness() == Witness(None, 0, False)


@on_both
@async_test
async def test_witness_and_files(server_of: ServerOf) -> None:
    """Saving and restoring leave the slot's last task alone: the witness does not see them."""
    server = await server_of()
    await server.llama.evaluate(list(range(60, 80)))
    before = await server.witness()
    await server.llama.save("a.bin")
    assert await server.witness() == before
    await server.llama.evaluate(list(range(100, 110)))
    task = (await server.witness()).task
    await server.llama.restore("a.bin")
    assert await server.witness() == Witness(task, 20, False)


@on_both
@async_test
async def test_no_witness(server_of: ServerOf) -> None:
    """A server that shows no slots has no witness, and still works."""
    server = await server_of(slots_shown=False)
    assert await server.llama.witness() is None
    assert (await server.llama.evaluate([1, 65, 66])).computed == 3


@on_both
@async_test
async def test_evaluate(server_of: ServerOf) -> None:
    """The common beginning is reused, but for a prompt's last token; nothing is added to the slot."""
    server = await server_of()
    tokens = list(range(60, 160))

    async def evaluate(*prompt: int) -> tuple[int, int]:
        result = await server.llama.evaluate(prompt)
        return result.reused, result.computed

    assert await evaluate(*tokens[:40]) == (0, 40)
    assert await evaluate(*tokens) == (40, 60)
    assert await evaluate(*tokens) == (99, 1)
    assert await evaluate(*tokens[:50]) == (49, 1), "a shorter prompt cuts the slot down"
    assert (await server.witness()).tokens == 50
    assert await evaluate(*tokens[:30], 200, 201) == (30, 2)
    assert await evaluate(200, 201, 202) == (0, 3)


@on_both
@async_test
async def test_slot_files(server_of: ServerOf) -> None:
    """What was saved is restored, also after a restart; it then counts as held."""
    server = await server_of()
    tokens = list(range(60, 160))
    await server.llama.evaluate(tokens)
    saved = await server.llama.save("a.bin")
    assert saved.tokens == 100 and saved.size > 0
    assert (await server.llama.evaluate([*tokens, 7])).reused == 100, "saving leaves the slot as it is"
    await server.restart()
    restored = await server.llama.restore("a.bin")
    assert restored == saved
    evaluated = await server.llama.evaluate([*tokens, 7, 8])
    assert (evaluated.reused, evaluated.computed) == (100, 2)


@on_both
@async_test
async def test_cannot_go_back(server_of: ServerOf) -> None:
    """Some models go on from the end of what the slot holds, and from nowhere else; also after a restore."""
    server = await server_of(goes_back=False)
    tokens = list(range(60, 160))

    async def evaluate(*prompt: int) -> tuple[int, int]:
        result = await server.llama.evaluate(prompt)
        return result.reused, result.computed

    assert await evaluate(*tokens) == (0, 100)
    await server.llama.save("a.bin")
    assert await evaluate(*tokens, 200, 201) == (100, 2)
    assert await evaluate(*tokens, 300, 301) == (0, 102), "two tokens back"
    assert await evaluate(*tokens) == (0, 100), "and to the very end of the others"
    assert await evaluate(*tokens) == (0, 100), "the last token is computed in any case, and it stands before that"
    await evaluate(7, 8, 9)
    await server.llama.restore("a.bin")
    assert await evaluate(*tokens, 200, 201) == (100, 2)


@on_both
@async_test
async def test_files_of_no_use(server_of: ServerOf) -> None:
    """With some models nothing of a restored file is reused, though all of it is there; in the slot they go back."""
    server = await server_of(reuses_files=False)
    tokens = [60 + number % 800 for number in range(1500)]
    await server.llama.evaluate(tokens)
    saved = await server.llama.save("a.bin")
    await server.llama.evaluate([7, 8, 9])
    assert await server.llama.restore("a.bin") == saved
    assert (await server.witness()).tokens == 1500
    assert (await server.llama.evaluate([*tokens, 7, 8])).reused == 0
    assert (await server.llama.evaluate([*tokens, 9, 8])).reused == 1500


@on_both
@async_test
async def test_asleep(server_of: ServerOf) -> None:
    """A server that sleeps says so, is healthy, and has the marker that it had; asking for that does not wake it."""
    server = await server_of(idle=1)
    marker = (await server.llama.props()).marker

    async def asleep() -> bool:
        return (await server.llama.props()).asleep

    await eventually(asleep)
    await server.llama.health()
    assert await server.llama.props() == replace(await server.llama.props(), marker=marker, asleep=True)
    assert (await server.call("GET", "/props")).json()["is_sleeping"] is True


@on_both
@async_test
async def test_awake(server_of: ServerOf) -> None:
    """A server that does not sleep says that."""
    server = await server_of()
    assert (await server.call("GET", "/props")).json()["is_sleeping"] is False
    assert (await server.llama.props()).asleep is False


@on_both
@async_test
async def test_empty_slot_is_saved(server_of: ServerOf) -> None:
    """Saving an empty slot is not refused; only the count of tokens tells."""
    server = await server_of()
    assert (await server.llama.save("a.bin")).tokens == 0


@on_both
@async_test
async def test_missing_file(server_of: ServerOf) -> None:
    """A missing file is refused, and leaves the slot empty."""
    server = await server_of()
    await server.llama.evaluate([60, 61, 62])
    assert await refusal(server.llama.restore("nothing.bin")) == 400
    assert (await server.llama.evaluate([60, 61, 62, 63])).reused == 0


@on_both
@async_test
async def test_bad_names(server_of: ServerOf) -> None:
    """Names that lead elsewhere are refused, and change nothing."""
    server = await server_of()
    await server.llama.evaluate([60, 61, 62])
    for name in ("/", "a/b.bin", "../a.bin"):
        assert await refusal(server.llama.save(name)) == 400
        assert await refusal(server.llama.restore(name)) == 400
    assert (await server.llama.evaluate([60, 61, 62, 63])).reused == 3


@on_both
@async_test
async def test_files_switched_off(server_of: ServerOf) -> None:
    """Without a slot folder saving and restoring are not supported, and that can be found out beforehand."""
    server = await server_of(files=False)
    assert await server.llama.slot_files_enabled() is False
    assert await refusal(server.llama.save("a.bin")) == 501
    assert await refusal(server.llama.restore("a.bin")) == 501


@on_both
@async_test
async def test_files_switched_on(server_of: ServerOf) -> None:
    """Finding out that there is a slot folder leaves the slot alone."""
    server = await server_of()
    await server.llama.evaluate([60, 61, 62])
    before = await server.witness()
    assert await server.llama.slot_files_enabled() is True
    assert await server.witness() == before
    assert (await server.llama.evaluate([60, 61, 62, 63])).reused == 3


@on_both
@async_test
async def test_odds(server_of: ServerOf) -> None:
    """The likeliest next tokens come with log-probabilities, the best one first, and again the same."""
    server = await server_of()
    odds = await server.llama.next_token_odds("The quick brown fox")
    assert len(odds) == 4
    assert [odd for _, odd in odds] == sorted((odd for _, odd in odds), reverse=True)
    assert all(odd < 0 for _, odd in odds)
    await server.llama.evaluate(list(range(60, 80)))
    again = await server.llama.next_token_odds("The quick brown fox")
    assert [token for token, _ in again] == [token for token, _ in odds]
    assert [odd for _, odd in again] == pytest.approx([odd for _, odd in odds], abs=0.02)
    assert (await server.llama.evaluate(list(range(60, 80)))).reused < 20, "it overwrote the slot"


@on_both
@async_test
async def test_prefix_tokens(server_of: ServerOf) -> None:
    """The prefix tokens are what every chat begins with whose message begins so: all of them are reused."""
    server = await server_of()
    tokens = await prefix_tokens(server.llama, PREFIX, USER_MESSAGE_ONLY, 16384)
    for message in ("why?", "a", "(", "Zebra"):
        prompt = (await server.call("POST", "/apply-template", bare(PREFIX + message))).json()["prompt"]
        assert PREFIX + message in prompt
        assert (await server.tokens(prompt))[: len(tokens)] == tokens
        await server.llama.evaluate(tokens)
        answer = await server.call("POST", "/v1/chat/completions", conversation(PREFIX + message))
        assert answer.timings["cache_n"] == len(tokens) or message == "a", "of stand-ins more may be in common"
        assert answer.timings["cache_n"] >= len(tokens)


@on_both
@async_test
async def test_counting_tokens(server_of: ServerOf) -> None:
    """Counting counts the whole chat, and agrees with the prompt's tokens to one or two."""
    server = await server_of()
    prompt = (await server.call("POST", "/apply-template", bare(PREFIX))).json()["prompt"]
    count = await server.llama.count_tokens(PREFIX)
    assert count is not None
    assert abs(count - len(await server.tokens(prompt))) <= 2


@on_both
@async_test
async def test_chat(server_of: ServerOf) -> None:
    """A chat's answer has the text and the timings where bioproxy looks for them."""
    server = await server_of()
    answer = await server.call("POST", "/v1/chat/completions", conversation(PREFIX))
    assert answer.text
    assert answer.timings["cache_n"] == 0
    assert answer.timings["prompt_n"] > 0
    assert answer.timings["prompt_ms"] > 0
    again = await server.call("POST", "/chat/completions", conversation(PREFIX))
    assert again.timings["prompt_n"] == 1


@on_both
@async_test
async def test_streamed_chat(server_of: ServerOf) -> None:
    """A streamed answer comes as events, the last JSON has the timings, then comes the end mark."""
    server = await server_of()
    answer = await server.call("POST", "/v1/chat/completions", conversation(PREFIX, stream=True))
    assert answer.header("Content-Type") == "text/event-stream"
    *chunks, last, end = answer.events()
    assert end == "[DONE]"
    assert json.loads(last)["timings"]["prompt_n"] > 0
    said = [json.loads(chunk)["choices"][0]["delta"].get("content") for chunk in chunks]
    assert "".join(filter(None, said))


@on_both
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/nothing", None, 404, "not_found_error"),
        ("POST", "/slots/0?action=restore", {"filename": "nothing.bin"}, 400, "invalid_request_error"),
        ("POST", "/slots/0?action=save", {"filename": "a/b"}, 400, "invalid_request_error"),
        ("POST", "/v1/chat/completions", conversation("word " * 900), 400, "exceed_context_size_error"),
    ],
)
@async_test
async def test_error_shapes(server_of: ServerOf, method: str, path: str, body: Any, status: int, kind: str) -> None:
    """Errors are one JSON object with code, message and type."""
    server = await server_of(context=512)
    answer = await server.call(method, path, body)
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["type"]) == (status, status, kind)
    assert isinstance(error["message"], str) and error["message"]
    assert answer.header("Content-Type") == "application/json; charset=utf-8"
    assert answer.header("Server") == "llama.cpp"


@on_both
@async_test
async def test_erase(server_of: ServerOf) -> None:
    """An erased slot tells how many tokens it had, and nothing of it is reused."""
    server = await server_of()
    question = conversation("one two three")
    whole = (await server.call("POST", "/v1/chat/completions", question)).timings["prompt_n"]
    erased = await server.call("POST", "/slots/0?action=erase", {"filename": ""})
    assert (erased.status, erased.json()["n_erased"] >= whole) == (200, True)
    assert (await server.call("POST", "/v1/chat/completions", question)).timings["prompt_n"] == whole


@on_both
@pytest.mark.parametrize(("method", "path"), [("POST", "/slots/0?action=save"), ("GET", "/slots")])
@async_test
async def test_not_supported(server_of: ServerOf, method: str, path: str) -> None:
    """What was not switched on is refused with 501."""
    server = await server_of(files=False, slots_shown=False)
    answer = await server.call(method, path, {"filename": "a.bin"} if method == "POST" else None)
    assert (answer.status, answer.json()["error"]["type"]) == (501, "not_supported_error")


@on_both
@async_test
async def test_memory(server_of: ServerOf) -> None:
    """A prompt that loses the slot to a request comes back from memory; one that a file is restored over is lost."""
    for memory in (True, False):
        server = await server_of(memory=memory)
        [file, mine] = [await server.tokens(text) for text in (PREFIX * 10, "We speak of something else here. " * 10)]
        await server.llama.evaluate(file)
        await server.llama.save("file.bin")
        # Lost to the file.
        await server.llama.evaluate(mine)
        await server.llama.restore("file.bin")
        assert (await server.llama.evaluate([*mine, *file])).reused <= 1
        # Lost to a request, of one token.
        await server.llama.evaluate(mine)
        await server.llama.evaluate([0])
        await server.llama.restore("file.bin")
        again = await server.llama.evaluate([*mine, *file])
        assert (again.reused == len(mine)) is memory
