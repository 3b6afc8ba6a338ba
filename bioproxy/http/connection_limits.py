"""How many connections a port may have, and how many bytes their request bodies may take.

Each connection costs an open file and some memory, each large body a temporary file.  An operating system allows a
process only so many open files.  When they are used up, accepting a connection fails, and so does everything else:
llama-server cannot be reached, templates cannot be read.  So without limits of its own, one client that opens
connections in a loop, by mistake or on purpose, takes the service away from all others.

The reactor runs one function at a time, so plain numbers and sets are enough here; nothing needs a lock.

When the limit of connections is reached and another one arrives, the connection that has been idle for longest is
closed for it.  Such connections are cheap to lose: a browser keeps some open just in case, a client library keeps them
in a pool, and both open a new one without a word.  A connection with a request on it is never closed for another.

This module knows neither HTTP nor Twisted; a connection is something that can be closed.
"""

from __future__ import annotations

import resource
from typing import Protocol

from bioproxy.runtime.errors import BodyTooLarge, ProxyError, Unavailable

MAX_CONNECTIONS = 2000
"""Connections of clients at the same time.

Halved, a page or a load test with many clients closes other clients' idle connections; doubled, the process needs
12,100 open files, more than many systems allow, and the limit is lowered to what they do allow.
"""

LARGEST_BODIES = 16
"""How many bodies of the largest size (`max_body`) may be kept at the same time; smaller ones count by their bytes.

With the default of 64 MiB that is 1 GiB of temporary files.  Halved, a few users with large images already get 503;
doubled, the folder for temporary files, which may be in memory, must have 2 GiB.
"""

FILES_PER_CONNECTION = 3
"""Open files that a connection may need: itself, one connection to llama-server, a temporary file for its body.

Smaller, open files may run out before the limit is reached; larger, fewer connections are allowed than would work.
"""

SPARE_FILES = 100
"""Open files for everything else: logs, templates, listening sockets, the operator's port and its open pages.

Halved, many open pages may use up the files of clients; doubled, there are 33 connections fewer where the system's
limit is too low for `MAX_CONNECTIONS`.
"""


class Connection(Protocol):
    """A client's connection."""

    def forceAbortClient(self) -> None:
        """Reset the connection at once."""


class ConnectionLimits:
    """The connections of one port and the bytes of their bodies.

    Invariant: each open connection is either idle (it has no request) or active, and each byte reserved is given back
    exactly once, when its request is done or its connection is lost.  `len` is the number of open connections.
    """

    def __init__(self, max_body: int, connections: int = MAX_CONNECTIONS) -> None:
        self.max_body = max_body
        """Bytes that one body may have.  May be changed at any time; bodies that have arrived stay."""

        self.connections = connections
        # A dictionary keeps the order of insertion, a set does not: the first key is the one idle for longest.
        self._idle: dict[Connection, None] = {}
        self._active: set[Connection] = set()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._idle) + len(self._active)

    def make_room(self) -> bool:
        """Return whether one more connection may be opened, after closing an idle one if there is need."""
        if len(self) >= self.connections and self._idle:
            longest = next(iter(self._idle))
            # Forget it now.  Twisted reports its end in a later turn of the reactor (`remove` is called then), and the
            # next new connection would choose the same one again.
            del self._idle[longest]
            longest.forceAbortClient()
        return len(self) < self.connections

    def mark_idle(self, connection: Connection, released: int = 0) -> None:
        """Note that a connection is new, or that its request is done, whose body of `released` bytes is deleted now."""
        self._active.discard(connection)
        self._idle[connection] = None
        self._bytes -= released

    def mark_active(self, connection: Connection) -> None:
        """Note that a request has begun to arrive on a connection, or waits there for its answer."""
        self._idle.pop(connection, None)
        self._active.add(connection)

    def remove(self, connection: Connection, released: int = 0) -> None:
        """Note that a connection is lost, and with it bodies of `released` bytes, also of requests still arriving."""
        self._idle.pop(connection, None)
        self._active.discard(connection)
        self._bytes -= released

    def reserve_body_bytes(self, received: int, more: int) -> ProxyError | None:
        """Reserve `more` bytes for a body that has `received` bytes already; return why not, or `None` if that is fine.

        An error is returned instead of raised, because the caller is called by Twisted's parser.  To compare an
        announced length with the limit, pass it as `received` and reserve 0 bytes: what a client announces need never
        arrive, and must not take room away from others.
        """
        if received + more > self.max_body:
            return BodyTooLarge(f"the request's body is larger than {self.max_body} bytes")
        # This one is nobody's fault, so the client is told to try again (503) instead of that the body is wrong (413).
        # After `max_body` was lowered there may be less than no room: a request without a body needs none.
        if more > max(0, LARGEST_BODIES * self.max_body - self._bytes):
            return Unavailable("too many large requests are being processed")
        self._bytes += more
        return None


def allowed_connections(wanted: int = MAX_CONNECTIONS) -> int:
    """Raise the process's limit of open files as far as needed; return how many connections it then allows.

    The soft limit is what counts and often 1024.  A process may raise it by itself, up to the hard limit, which only
    root may raise.
    """
    needed = wanted * FILES_PER_CONNECTION + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    possible = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    # At least one connection, even with a limit that is smaller than `SPARE_FILES`.
    return max(1, (possible - SPARE_FILES) // FILES_PER_CONNECTION)
