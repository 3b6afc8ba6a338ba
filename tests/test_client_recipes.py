"""What known clients send, and what bioproxy does for them: the promises of `docs/clients/`, in memory.

`tests/fixtures/clients/` has the requests of each client as it sent them, recorded with `tools.record_client`.  Here
they are sent again, in front of `FakeLlama`.  `tests/integration/test_client_recipes.py` has real servers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bioproxy.http.targets import path_of
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.request_search import read_request
from tests.support.network import Call
from tests.support.world import CODE, World, WorldTest
from tools.record_client import FOLDER, read
from tools.scrub_request import compact

QUESTION = "What does README.md say, the first time?"
"""What the recorded user asked first, unless the table says otherwise."""

AIDER_ASKS = "What does it do?\n\nReply in English.\n"
"""The whole message in which Aider puts the first question."""

CONTEXT = 200_000
"""Tokens of the fake's context: it makes one of each character, and a long prompt has 80,000."""


@dataclass(frozen=True)
class Client:
    """What the tests expect of a client's recording."""

    name: str
    path: str
    """Where its conversations go, as llama-server reads the path."""

    learned: bool = True
    """Whether it gains from what bioproxy learns: a prompt of `learn_minimum` tokens that two sessions share."""

    goes_on: bool = True
    """Whether its last recorded request continues the conversation of an earlier one."""

    filled: bool = True
    """Whether a prefix works in its questions; not where it sends code instead of messages."""

    shares: bool = False
    """Whether its sessions share first messages of the user, so that one is restored from the file of another."""

    question: str = QUESTION


CLIENTS = (
    Client("claude-code", "/v1/messages"),
    Client("codex", "/v1/responses"),
    # ``opencode run`` puts an argument with spaces in quotation marks.
    Client("opencode", "/v1/chat/completions", question=f'"{QUESTION}"'),
    # Its system message is short, and earlier turns do not stand where they were sent: read-only files come before.
    Client("aider", "/v1/chat/completions", False, False, shares=True, question=AIDER_ASKS),
    Client("home-assistant", "/v1/chat/completions", question="Turn on the kitchen lights"),
    Client("langchain", "/v1/chat/completions", question="What is a warm-up?"),
    Client("llama-vim", "/infill", False, False, False, question="    def read(self"),
    Client("llm", "/v1/chat/completions", question="What is a warm-up?"),
    Client("open-webui", "/v1/chat/completions", question="What is a slot file?"),
)
"""Each recorded client."""


class Recorded:
    """A client's recording, as requests that can be sent."""

    def __init__(self, client: Client) -> None:
        """Read it."""
        [file] = FOLDER.glob(f"{client.name}.json*")
        self.client = client
        self.requests: list[dict[str, Any]] = read(file)["requests"]

    @property
    def first(self) -> dict[str, Any]:
        """The first request of the first session: of those with the question, the first that has most tools."""
        question = as_json(self.client.question)
        asked = [each for each in self.requests if question in compact(each["body"])]
        return max(asked, key=lambda each: len(each["body"].get("tools") or ()))

    def body(self, question: str) -> bytes:
        """Return the body of the first request of a session in which the user asks this."""
        return compact(self.first["body"]).replace(as_json(self.client.question), as_json(question))


def as_json(text: str) -> bytes:
    """Return a text as it stands in JSON, without its quotation marks."""
    return compact(text)[1:-1]


def headers(request: dict[str, Any]) -> dict[str, str]:
    """Return a recorded request's headers as `World.send` takes them."""
    return {name.replace("-", "_"): value for name, value in request["headers"].items()}


def chat(request: dict[str, Any]) -> ChatRequest | None:
    """Return what bioproxy reads in a recorded request that names no template."""
    found = read_request(compact(request["body"]), path_of(request["path"].encode()), (), 0)
    assert found is None or isinstance(found, ChatRequest)
    return found


class Recipes(WorldTest):
    """Each promise is kept for each client."""

    CLIENTS: ClassVar = [Recorded(client) for client in CLIENTS]

    def make(self, name: str, templates: dict[str, str] | None = None) -> World:
        """Build a world for a client, with room for long prompts and a folder for slot files."""
        slots: Path = self.folder / name / "slots"
        slots.mkdir(parents=True, mode=0o700)
        world = self.world(templates, slot_save_path=slots, state_dir=self.folder / name / "state")
        world.llama_server.context = CONTEXT
        self.successResultOf(world.start(world.watch.look))
        self.successResultOf(world.start(world.poller.poll))
        return world

    def send(self, world: World, request: dict[str, Any], body: bytes) -> Call:
        """Send a recorded request, with another body; the answer must be whole."""
        call = world.send(request["method"], request["path"], body, **headers(request))
        self.assertEqual((200, True), (call.status, call.whole))
        return call

    def arrived(self, world: World, request: dict[str, Any]) -> int:
        """Return which of the fake's requests is the last one with this target: bioproxy asks it for other things."""
        return max(number for number, path in enumerate(world.llama_server.paths()) if path == request["path"])

    def warm(self, world: World) -> tuple[str, int]:
        """Let warm-ups pass until what was learned has a file; return its name and its tokens."""
        for _ in range(MOST_ROUNDS):
            self.successResultOf(world.start(world.warmer.round))
            world.advance(0.5)
            for name in world.parts.prompt_learning.learned:
                if found := world.saved(name):
                    return name, len(found)
        self.fail("nothing is learned")

    def test_recorded(self) -> None:
        """Each recording has a row in the table, and nothing of the machine that it was made on."""
        self.assertEqual({each.name for each in CLIENTS}, {file.name.split(".")[0] for file in FOLDER.iterdir()})
        for each in self.CLIENTS:
            text = json.dumps(each.requests)
            self.assertNotRegex(text, r"/root\b|/tmp/|Bearer |sk-\w")
            self.assertEqual(each.client.path, path_of(each.first["path"].encode()))

    def test_unchanged(self) -> None:
        """Without a template all requests reach llama-server byte for byte, with their targets and headers."""
        for each in self.CLIENTS:
            world = self.make(each.client.name)
            for request in each.requests:
                body = compact(request["body"])
                self.send(world, request, body)
                method, found, arrived = world.llama_server.raw[self.arrived(world, request)]
                self.assertEqual((request["method"].encode(), body), (method, arrived))
                for name, value in request["headers"].items():
                    self.assertEqual([value], found.getRawHeaders(name))

    def test_filled(self) -> None:
        """A question that begins with a prefix is filled in, and nothing else of the request is changed."""
        for each in self.CLIENTS:
            if not each.client.filled:
                continue
            world = self.make(each.client.name, {"code": CODE})
            call = self.send(world, each.first, each.body("@code why?"))
            self.assertEqual("code", call.headers["X-Bioproxy-Template"])
            expected = json.loads(each.body(CODE.replace("<{message}>", "why?")))
            self.assertEqual(
                {**expected, "id_slot": 0}, world.llama_server.requests[self.arrived(world, each.first)][1]
            )

    def test_sessions(self) -> None:
        """Two sessions of a client begin alike; what is learned is warm for the second, and after a restart."""
        for each in self.CLIENTS:
            if not each.client.learned:
                continue
            world = self.make(each.client.name)
            first = self.send(world, each.first, each.body("one"))
            self.assertEqual("cold", first.headers["X-Bioproxy-Cache"])
            self.send(world, each.first, each.body("two"))
            learned, known = self.warm(world)
            warm = self.send(world, each.first, each.body("three"))
            self.assertGreater(known, world.settings.learn_minimum)
            self.assertEqual(learned, warm.headers["X-Bioproxy-Prompt"])
            self.assertIn(warm.headers["X-Bioproxy-Cache"], ("hot", "restored"))
            self.assertGreaterEqual(self.reused(world), known)
            # Another process of llama-server, in which nothing is warm yet.
            world.llama_server.restart()
            self.successResultOf(world.start(world.watch.look))
            restored = self.send(world, each.first, each.body("four"))
            self.assertEqual("restored", restored.headers["X-Bioproxy-Cache"])
            self.assertGreaterEqual(self.reused(world), known)

    def test_shared_messages(self) -> None:
        """Where no prompt is long enough, a session with another question is restored from an earlier one's file."""
        for each in self.CLIENTS:
            if not each.client.shares:
                continue
            world = self.make(each.client.name)
            self.send(world, each.first, each.body("one"))
            for _ in range(MOST_ROUNDS):
                self.successResultOf(world.start(world.warmer.round))
                world.advance(0.5)
            world.llama_server.restart()
            self.successResultOf(world.start(world.watch.look))
            restored = self.send(world, each.first, each.body("another question"))
            self.assertEqual("restored", restored.headers["X-Bioproxy-Cache"])
            computed = int(world.request_log.latest(1)[0]["prompt_tokens"]) - self.reused(world)
            self.assertLess(computed, SHORT)

    def reused(self, world: World) -> int:
        """Return how many tokens of the last request llama-server had already."""
        return int(world.request_log.latest(1)[0]["cached_tokens"])

    def test_goes_on(self) -> None:
        """The next turn of a conversation is recognised as one that goes on with it."""
        for each in self.CLIENTS:
            if not each.client.goes_on:
                continue
            *before, last = filter(None, map(chat, each.requests))
            ends = [other.message_digests[-1] for other in before if other.beginning == last.beginning]
            self.assertTrue(set(ends) & set(last.message_digests[:-1]), each.client.name)


SHORT = 100
"""Tokens that a short question may cost, with what the chat template puts around it."""

MOST_ROUNDS = 400
"""Rounds of warm-ups after which a test gives up: the longest prompt has about 160 pieces."""
