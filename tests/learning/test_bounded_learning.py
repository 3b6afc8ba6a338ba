"""Clients whose requests never begin alike: the work for them is bounded, and `/status` says what changes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

from tests.support.agents import CHAT, Client, agent, prose, title_writer
from tests.support.network import Call
from tests.support.world import WarmTest

AT_ONCE = 4
"""Learned prompts that may wait for a second conversation; further ones are not learned before they have two."""

SHARED = 2
"""Warm-ups for parts that beginnings share, at most, where all of them share the same one."""

BLOCK = 64
"""Tokens by which shared parts are compared; the last block of a part may be a little shorter than what is shared."""

ROUNDS = 3
"""Rounds of the warmer after each request: enough for a warm-up to begin, and to be saved."""

AGENT = agent(CHAT)


class EverChangingTest(WarmTest):
    """Requests of clients that change what stands before the first user message."""

    def setUp(self) -> None:
        """Build a world without templates that sees its slot folder."""
        super().setUp()
        slots = self.folder / "slots"
        slots.mkdir(mode=0o700)
        self.use({}, slot_save_path=slots)

    def send(self, client: Client, question: str) -> Call:
        """Send the first question of a conversation, and let the warmer work."""
        session = client.session()
        session.ask(question)
        call = self.built.send("POST", session.path, json.dumps(session.body()).encode())
        self.assertEqual(call.status, 200)
        self.rounds(ROUNDS)
        return call

    def ask_all(self, clients: Iterable[Client]) -> Call:
        """Send a conversation of each client, and before the last one a request for a title; return the last answer.

        The title takes the slot: what is reused afterwards was kept in a file.
        """
        *rest, last = clients
        for number, client in enumerate(rest):
            self.send(client, prose(20, number))
        self.send(title_writer(CHAT), prose(20, "title"))
        return self.send(last, prose(20, "last"))

    def warmups(self) -> float:
        """Return how many warm-ups of learned prompts there were, however they ended."""
        return sum(
            self.built.sample("warmups_total", template="auto", result=result)
            for result in ("done", "preempted", "failed")
        )

    def check_said(self, words: str) -> None:
        """Check that `/status` says this about the miss of one of the latest requests."""
        requests = self.built.operate("GET", "/status").json()["requests"]
        details = [each.get("miss_detail") or "" for each in requests]
        self.assertTrue(any(words in each for each in details), details)

    def check_regular_client(self) -> None:
        """Check that a client that always begins alike is still served as ever: its second conversation is learned."""
        regular = Client(CHAT, prose(500, "regular"))
        call = self.ask_all([regular] * 3)
        self.assertGreaterEqual(timings(call)["cache_n"], len(regular.system) - BLOCK)


def timings(call: Call) -> Any:
    """Return what the fake says of its work."""
    return call.json()["timings"]


def with_clock(of: Client, requests: int) -> Iterator[Client]:
    """Yield clients that have another minute at the end of their system message each time."""
    for minute in range(requests):
        yield Client(of.dialect, f"{of.system} It is 12:{minute:02}", of.tools)


class ClockTest(EverChangingTest):
    """A clock at the end of the system message."""

    def test_bounded(self) -> None:
        """Sixty minutes cause a warm-up of what they share, and the requests behind it reuse that part."""
        client = Client(CHAT, prose(500, "clock"))
        last = self.ask_all(with_clock(client, 60))
        self.assertLessEqual(self.warmups(), SHARED)
        self.assertGreaterEqual(self.warmups(), 1)
        self.assertGreaterEqual(timings(last)["cache_n"], len(client.system) - BLOCK)
        self.check_regular_client()

    def test_bounded_with_tools(self) -> None:
        """With tools a few beginnings are learned at once, and then the shared part serves all."""
        last = self.ask_all(with_clock(AGENT, 60))
        self.assertLessEqual(self.warmups(), AT_ONCE + SHARED)
        shared = len(self.server.prompt({"messages": [], "tools": tools_of(AGENT)})) + len(AGENT.system)
        self.assertGreaterEqual(timings(last)["cache_n"], shared - 2 * BLOCK)
        self.check_regular_client()

    def test_said(self) -> None:
        """`/status` names the message and the character from which on it is another one."""
        client = Client(CHAT, prose(500, "clock"))
        self.ask_all(with_clock(client, 3))
        # Minutes 00, 01 and 02 differ in their second digit.
        digit = len(client.system) + len(" It is 12:00")
        self.check_said(f"messages[0].content differs from character {digit} on")


class ToolsTest(EverChangingTest):
    """The same tools in another order each time."""

    def shuffled(self, requests: int) -> Iterator[Client]:
        """Yield clients with their tools in another order."""
        for number in range(requests):
            tools = list(AGENT.tools)
            random.Random(number).shuffle(tools)
            yield Client(CHAT, AGENT.system, tuple(tools))

    def test_bounded(self) -> None:
        """Sixty orders of tools cause a few warm-ups: those that were learned before it was known that none returns."""
        self.ask_all(self.shuffled(60))
        self.assertLessEqual(self.warmups(), AT_ONCE + SHARED)
        self.check_regular_client()

    def test_said(self) -> None:
        """`/status` names the tool from which on the request is another one."""
        self.ask_all(self.shuffled(3))
        self.check_said("tools[0]")


class SystemMessagesTest(EverChangingTest):
    """Another system message each time."""

    def different(self, requests: int, *tools: dict[str, Any]) -> Iterator[Client]:
        """Yield clients of whom each has a system message of its own."""
        for number in range(requests):
            yield Client(CHAT, prose(400, f"system {number}"), tools)

    def test_bounded(self) -> None:
        """Two hundred system messages, each of which comes once, cause no warm-up at all."""
        self.ask_all(self.different(200))
        self.assertEqual(self.warmups(), 0)
        self.check_regular_client()

    def test_bounded_with_tools(self) -> None:
        """With the same tools before each, a few are learned at once, and the tools once for all."""
        last = self.ask_all(self.different(200, *AGENT.tools))
        self.assertLessEqual(self.warmups(), AT_ONCE + SHARED)
        shared = len(self.server.prompt({"messages": [], "tools": tools_of(AGENT)}))
        self.assertGreaterEqual(timings(last)["cache_n"], shared - 2 * BLOCK)

    def test_said(self) -> None:
        """`/status` says that the system message is another one from its first character on."""
        self.ask_all(self.different(3))
        self.check_said("messages[0].content differs from character 1 on")


def tools_of(client: Client) -> Any:
    """Return the tools as a request has them."""
    session = client.session()
    session.ask("any")
    return session.body()["tools"]
