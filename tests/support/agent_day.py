"""An agent's day: the requests of a coding agent and its sub-agents, in their order, as far as each test lets them go.

`Day.morning` is what happens before llama-server is killed, `Day.afternoon` what comes after its start.  A `Step` is
one request.  Whoever runs the day sends each step's `body` and hands the answer to `hear`, which returns a `Row`: what
llama-server computed for it, beside what was new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.support.agents import Client, Dialect, Reply, Session, agent, prose, sub_agent, title_writer

ANY = 1 << 30
"""No limit."""

NEW_SESSION, OLD_SESSION = 120, 300
"""Prompt tokens that may be computed beside what is new: in a session that begins on a prompt seen before, and in a
conversation that goes on."""


@dataclass(frozen=True)
class Row:
    """One request, as it was answered."""

    what: str
    dialect: str
    reply: Reply
    new: int
    """Tokens of the prompt that no request had before: those behind the last prompt of this conversation, or the words
    of a first message."""
    allowed: int

    @property
    def beyond(self) -> int:
        """Tokens that were computed although they were not new."""
        return max(0, self.reply.computed - self.new)

    @property
    def is_fine(self) -> bool:
        """Whether no more was computed than is allowed."""
        return self.beyond <= self.allowed


@dataclass(frozen=True)
class Step:
    """A request: a session gets a message of the user, or with `result` that of a tool, of so many words."""

    what: str
    session: Session
    words: int
    result: bool = False
    stream: bool = False
    allowed: int = ANY

    def add(self) -> None:
        """Add the message to the conversation.  Called once, before `Session.body`."""
        text = prose(self.words, f"{self.what} {len(self.session.said)}")
        (self.session.use_tool if self.result else self.session.ask)(text)

    def hear(self, answer: bytes) -> Row:
        """Read the answer, which also becomes a part of the conversation."""
        session, before = self.session, self.session.whole
        reply = session.hear(answer)
        new = reply.prompt - before if before else self.words
        return Row(self.what, session.client.dialect.name, reply, new, self.allowed)


class Day:
    """An agent, its sub-agent and their sessions.  The sessions speak the dialects given in turn."""

    def __init__(self, dialects: Sequence[Dialect], seed: object = 1) -> None:
        self._dialects = dialects
        self._seed = seed
        self._begun = 0
        self.first = self.agent().session()
        self.second = self.agent().session()
        self.helper = self.sub_agent().session()

    def _dialect(self) -> Dialect:
        self._begun += 1
        return self._dialects[self._begun % len(self._dialects)]

    def agent(self) -> Client:
        """Return the agent, in the next dialect."""
        return agent(self._dialect(), self._seed)

    def sub_agent(self) -> Client:
        """Return the sub-agent, in the next dialect."""
        return sub_agent(self.agent(), self._seed)

    def morning(self) -> Iterator[Step]:
        """Yield the requests before llama-server is killed: the first session has the last word."""
        yield Step("first session", self.first, 60)
        yield Step("its title", title_writer(self._dialect()).session(), 60, stream=True)
        yield Step("tool result", self.first, 200, result=True, stream=True)
        yield Step("sub-agent", self.helper, 60)
        yield Step("another session", self.second, 60, stream=True)
        for _ in range(2):  # they take turns
            yield Step("sub-agent goes on", self.helper, 150, result=True, stream=True)
            yield Step("first goes on", self.first, 150, result=True)
        yield Step("another goes on", self.second, 250, result=True)
        yield Step("sub-agent again", self.sub_agent().session(), 60, stream=True)
        yield Step("first goes on", self.first, 250, result=True, stream=True)

    def afternoon(self) -> Iterator[Step]:
        """Yield the requests after llama-server was started again."""
        yield Step("old conversation", self.first, 60, allowed=OLD_SESSION)
        yield Step("new session", self.agent().session(), 60, stream=True, allowed=NEW_SESSION)
        yield Step("new sub-agent", self.sub_agent().session(), 60, allowed=NEW_SESSION)
        yield Step("other conversation", self.second, 60, stream=True, allowed=OLD_SESSION)
        yield Step("old goes on", self.first, 100, result=True, allowed=OLD_SESSION)
