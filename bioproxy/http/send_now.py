"""Sends what was written to a connection without waiting for the reactor's next turn.

Twisted's `write` sends nothing.  It keeps the bytes and asks the reactor to call the connection's `doWrite` as soon as
the socket has room.  The reactor works in turns: it asks the operating system which sockets have something to do, and
calls `doRead` or `doWrite` of each.  So what is written in the middle of a turn leaves in the next one, after
everything else that is to be done in this turn.

Mostly that is good: ten small writes leave as one.  A proxy, though, often knows that no more bytes will be written for
now, and that somebody waits for them: the client for the end of an answer, llama-server for a request.  Then `doWrite`
may be called at once.  It sends what the socket takes.  What is left over, and what it finds out about a broken
connection, it leaves to the reactor, which is still asked to call it.

This module knows connections only, and not what is sent.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IWriteDescriptor


def send_now(connection: Any) -> None:
    """Send what was written to `connection`, the `transport` of a protocol, as far as its socket takes it.

    Never fails, and sends nothing on a connection over TLS: its bytes leave in the reactor's next turn, as usual.
    """
    # TLS is a layer around the socket, and has no `doWrite`.
    is_socket: bool = IWriteDescriptor.providedBy(connection)
    # With its last byte sent, a connection that is being closed returns from `doWrite` that it can be closed now.  The
    # reactor does that; here it would be forgotten.
    if is_socket and not connection.disconnecting:
        connection.doWrite()
