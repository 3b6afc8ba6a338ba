"""A client that sends what it likes, when it likes, and looks closely at what comes back."""

from __future__ import annotations

from http.client import HTTPMessage, HTTPResponse
from io import BytesIO
from typing import NamedTuple

from tests.support.network import Call
from tests.support.world import World, WorldTest


class Answer(NamedTuple):
    """One answer on a connection."""

    status: int
    headers: HTTPMessage
    body: bytes


class Raw(Call):
    """A connection to the clients' port, or to the operator's, on which nothing has been sent yet."""

    def __init__(self, world: World, *, operator: bool = False) -> None:
        super().__init__(world.operators_port if operator else world.clients_port, b"")
        self._world = world

    def say(self, data: bytes) -> Raw:
        """Send some bytes, even if bioproxy has closed the connection (TLS may deliver them), and let all move."""
        self._protocol.dataReceived(data)
        self._world.settle()
        return self

    def trickle(self, data: bytes) -> Raw:
        """Send some bytes one by one."""
        for at in range(len(data)):
            self._protocol.dataReceived(data[at : at + 1])
        self._world.settle()
        return self

    @property
    def closing(self) -> bool:
        """Whether bioproxy has closed the connection, or will once everything is sent."""
        return self.transport.disconnecting or self.transport.disconnected

    @property
    def answers(self) -> list[Answer]:
        """All that came back, which must be whole answers and nothing behind them; a 100 is skipped."""
        stream, found = _Stream(self.received), []
        while stream.tell() < len(self.received):
            response = HTTPResponse(stream)  # type: ignore[arg-type]
            response.begin()
            found.append(Answer(response.status, response.headers, response.read()))
        return found

    @property
    def statuses(self) -> list[int]:
        """The status of each answer."""
        return [answer.status for answer in self.answers]


class RawTest(WorldTest):
    """A test with such clients."""

    def connect(self, world: World, *, operator: bool = False) -> Raw:
        """Connect one; it hangs up when the test is over."""
        raw = Raw(world, operator=operator)
        self.addCleanup(raw.hang_up)
        return raw


class _Stream(BytesIO):
    """What `HTTPResponse` reads from, again and again."""

    def makefile(self, _mode: str) -> BytesIO:
        """Be a socket's file."""
        return self

    def close(self) -> None:
        """Stay open for the next answer."""
