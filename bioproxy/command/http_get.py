"""One GET for the small command: over TCP, over TLS or over a Unix socket, blocking.

bioproxy itself uses Twisted's HTTP client, which never blocks, because one thread serves everybody.  The small command
does one thing after the other and serves nobody.  So it has no event loop, and Python's own `http.client` is the
simpler choice: a call returns the answer or raises.

An address is ``http://HOST:PORT``, ``https://HOST:PORT``, or ``unix:/path/of/a/socket``, as in Twisted's endpoints.
Proxies from the environment (``http_proxy``) are not used: what is asked here is local, or meant as it is written.

Does not know what is asked for.
"""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

UNIX = "unix:"
"""What the address of a Unix socket begins with; the socket's path follows."""

SILENCE = 5.0
"""Seconds for connecting, and for each piece of the answer.

Halved, a machine that is busy with a prompt is reported as not answering; doubled, a user waits 10 s to learn that.
"""

LARGEST = 16 << 20
"""Bytes of an answer that are read.

`/status` has some 100 KB.  Halved, it still fits; doubled, a program that is not bioproxy can fill twice as much
memory.
"""


class NoAnswer(Exception):
    """Nobody answered; the text says why."""


@dataclass(frozen=True)
class Reply:
    """An answer: its status and the beginning of its body, which is all of it up to `LARGEST`."""

    status: int
    """The number in the first line of the answer."""
    body: bytes
    """Not decoded: the caller knows what it should be."""


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket.  `Host` is ``localhost``, which the operator's port always answers to."""

    def __init__(self, path: str) -> None:
        """Connect to the socket at `path`, when a request is made."""
        # The name is only used for `Host`; HTTP wants one, and a socket in a folder has none.
        super().__init__("localhost", timeout=SILENCE)
        self._path = path

    def connect(self) -> None:
        """Open the connection.  Called by `http.client` before it sends."""
        # In the place of the base class's method, which connects to host and port.
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SILENCE)
        self.sock.connect(self._path)


def connection(address: str) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection to an address, not open yet, and the beginning of the paths there.  Raises `ValueError`."""
    # Nothing is opened here: `http.client` connects when the request is made.
    if address.startswith(UNIX):
        return UnixConnection(address.removeprefix(UNIX)), ""
    # Settings have been checked by now, but not an address of the command line.  The errors of `urlsplit` and `port` do
    # not say what would be right.
    try:
        parts = urlsplit(address)
        port, host = parts.port, parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        host = None
    if not host:
        raise ValueError(f"{address}: must be an address like http://127.0.0.1:8082")
    # For TLS, the system's certificates are trusted.  The path is for a server behind another one, such as nginx.
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=SILENCE), parts.path.rstrip("/")


def get(address: str, path: str) -> Reply:
    """Return the answer to a GET of `path` at `address`, whatever its status.

    Raises `ValueError` for an address that makes no sense, and `NoAnswer` if there is no answer.
    """
    server, base = connection(address)
    # Everything in one: looking up the name, connecting, sending, and reading the answer.
    try:
        server.request("GET", base + path)
        answer = server.getresponse()
        return Reply(answer.status, answer.read(LARGEST))
    except (OSError, http.client.HTTPException) as error:
        # `strerror` is the plain reason, such as "Connection refused"; time-outs and broken HTTP have a text only.
        raise NoAnswer(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None
    finally:
        server.close()
