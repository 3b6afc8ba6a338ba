"""How many clients there are, and how much they have sent: both have a limit.

Each connection costs an open file and some memory, each large body a temporary file.  Without limits whoever reaches
the port can use up all there is, on purpose or by mistake, and everybody else gets nothing.

Where one connection too many arrives, the one that has been without a request for longest is ended for it: a browser
that keeps one open just in case, or somebody who opens many and says nothing.  Who has asked for something is never
ended for another.
"""

from __future__ import annotations

import resource
from typing import Protocol

from bioproxy.runtime.errors import BodyTooLarge, ProxyError, Unavailable

CONNECTIONS = 2000
"""Connections of clients at a time, at most."""

BODIES = 16
"""So many bodies of the largest size may be here at a time."""

FILES = 3
"""Open files that a connection may need: itself, one to llama-server, a body."""

SPARE = 100
"""Open files for everything else."""


class Connection(Protocol):
    """A client's connection."""

    def forceAbortClient(self) -> None:
        """End it at once."""


class ConnectionLimits:
    """The clients of one port."""

    def __init__(self, max_body: int, connections: int = CONNECTIONS) -> None:
        self.max_body = max_body
        self.connections = connections
        self._idle: dict[Connection, None] = {}  # in the order in which they became so
        self._busy: set[Connection] = set()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    def has_room(self) -> bool:
        """Make room for one more connection, and tell whether there is any."""
        if len(self) >= self.connections and self._idle:
            longest = next(iter(self._idle))
            del self._idle[longest]
            longest.forceAbortClient()
        return len(self) < self.connections

    def idle(self, connection: Connection, size: int = 0) -> None:
        """Note that a connection has no request, or no longer one with `size` bytes of body."""
        self._busy.discard(connection)
        self._idle[connection] = None
        self._bytes -= size

    def busy(self, connection: Connection) -> None:
        """Note that a connection has a request."""
        self._idle.pop(connection, None)
        self._busy.add(connection)

    def left(self, connection: Connection, size: int = 0) -> None:
        """Note that a connection has ended; `size` bytes of body go with it."""
        self._idle.pop(connection, None)
        self._busy.discard(connection)
        self._bytes -= size

    def take(self, size: int, more: int) -> ProxyError | None:
        """Take `more` bytes of a body that has `size` already, or tell why not."""
        if size + more > self.max_body:
            return BodyTooLarge(f"the request's body is larger than {self.max_body} bytes")
        if self._bytes + more > BODIES * self.max_body:
            return Unavailable("too many large requests are here already")
        self._bytes += more
        return None


def allowed_connections(wanted: int = CONNECTIONS) -> int:
    """Have the operating system allow as many open files as so many connections need, or return how many it allows."""
    needed = wanted * FILES + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    possible = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    return max(1, (possible - SPARE) // FILES)
