"""The child process that reads large requests, seen from bioproxy: the process, and the connection to it.

Twisted starts processes with `spawnProcess` and reports to a `ProcessProtocol`, whose methods the reactor calls.  The
messages go over a pair of Unix sockets instead of pipes, because a *file descriptor* can be passed over such a socket:
the child reads the request's body from the very file that bioproxy keeps it in, and no byte of it is copied.

So there are two objects: `Child` is the process, and `Line` the connection to it.  Twisted reports separately on both,
since a process may die while its connection still has data in it, and a connection may be lost while the process still
runs.

Functions and results go over the line as `pickle` makes them.  That is safe only because both sides are bioproxy.

Does not know when a child is needed, or how long a question may take: `bioproxy.runtime.worker` does.
"""

from __future__ import annotations

import pickle
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IUNIXTransport
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from bioproxy.runtime.child_processes import environment, until_fired

MEMORY = 1 << 30
"""Bytes of memory that the child may use (where the operating system can limit that).

JSON with nothing but tiny values needs 25 times its size, so such a body of 40 MiB is refused.  With half of it, one of
20 MiB would be; with twice as much, a small machine may run out of the memory that llama-server needs.
"""

LARGEST_RESULT = 16 << 20
"""Bytes of a result at most.

A result has positions and fingerprints, and one text of limited size.  Half of it is still enough for usual requests;
twice as much only takes more memory in the process that must not grow.
"""


class Child(ProcessProtocol):
    """The child process, and the connection to it.

    `ended` is set once and for all, by `end` or when the process is gone; the child is of no use from then on.  `gone`
    fires when the process has been collected and its pipes are closed.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Start the process.  Raises `OSError` where the operating system refuses a socket or a process."""
        self.ended = False
        self.gone: Deferred[None] = Deferred()
        self._signal: int | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # Both ends are duplicated, by Twisted and for the child, so our own copies are closed at the end of the block.
        # A copy of the child's end that stayed open here would hide the child's death: our end would never see EOF.
        with ours, theirs:
            self._line = Line()
            # Has the reactor serve a socket that exists already.  A factory is what Twisted asks for the protocol of a
            # new connection; here there is one connection, and its protocol exists already, too.
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: self._line))
            command = [sys.executable, "-m", "bioproxy.runtime.worker_main", str(MEMORY)]
            # The child's standard input is its end of the socket; Twisted reads what it prints ("r").
            descriptors = {0: theirs.fileno(), 1: "r", 2: "r"}
            self._process: IProcessTransport = reactor.spawnProcess(
                self, command[0], command, env=environment(), childFDs=descriptors
            )

    @property
    def usable(self) -> bool:
        """Whether the child can be asked: it runs, as far as is known, and its connection is open."""
        # When a process dies, Twisted may report the end of its connection some moments before that of the process.  A
        # question in between would never be sent, and nothing would tell that no answer comes.
        return not self.ended and not self._line.lost

    def ask(
        self, function: Callable[..., Any], descriptor: int, args: tuple[Any, ...], seconds: float
    ) -> Deferred[tuple[bool, Any]]:
        """Have the child run a function, which may use a processor for so many seconds; see `Line.ask`."""
        # `pickle` stores a function as the names of its module and of itself, so the child imports the same one.
        return self._line.ask(descriptor, pickle.dumps((function, args, seconds)))

    async def how_it_ended(self) -> int | None:
        """Wait until the process is gone; fires with the signal that ended it, if one did.

        Cancelling only ends this waiting.
        """
        await until_fired(self.gone)
        return self._signal

    def end(self) -> None:
        """Kill the child.  It has nothing to lose or to save, so it is not asked to end by itself.

        A second call does nothing.  A question that has no answer yet fails.
        """
        if not self.ended:
            self.ended = True
            self._line.close()
            # The process may be gone without Twisted having reported it yet.
            with suppress(ProcessExitedAlready):
                self._process.signalProcess("KILL")

    def errReceived(self, data: bytes) -> None:
        """Log what the child writes to its standard error, for example a traceback.

        Called by Twisted with each piece.  A child that had bioproxy's own standard error would write between the lines
        of the log, and nobody would see in them where they come from.
        """
        self.log.warn(
            "the process that reads large requests wrote: {text}", text=data.decode("utf-8", "replace").strip()
        )

    def processEnded(self, reason: Failure) -> None:
        """Note that the process is gone, for whatever reason.

        Called by Twisted once, after it has collected the process, so that no zombie is left.
        """
        self.ended = True
        self._signal = getattr(reason.value, "signal", None)
        # Normally the connection is lost anyway; this makes sure that a question in it fails.
        self._line.close()
        self.gone.callback(None)


class Line(Int32StringReceiver):
    """The connection to the child.

    A stream of bytes has no messages in it, so each message has its length in front, in 32 bits; `Int32StringReceiver`
    collects the bytes until a message is whole.  A file descriptor goes with each question.  There is at most one
    question without an answer.
    """

    MAX_LENGTH = LARGEST_RESULT
    """Bytes of a message at most.  Twisted closes the connection when a longer one is announced."""

    transport: Any
    """The socket, set by Twisted."""

    lost = False
    """Whether the connection was lost.  Once it was, it stays so."""

    _answer: Deferred[tuple[bool, Any]] | None = None

    def ask(self, descriptor: int, question: bytes) -> Deferred[tuple[bool, Any]]:
        """Send a question and a file descriptor.

        Fires with whether the function succeeded, and its result or its exception.  Fails with `ConnectionLost`
        when the connection is lost, because the child dies of a limit.  Cancelling only forgets the question.
        """
        # A Deferred without a canceller: if it is cancelled, it fires with `CancelledError`, and a value that arrives
        # after that is dropped once.
        answer: Deferred[tuple[bool, Any]] = Deferred()
        self._answer = answer
        # In this order: Twisted sends the descriptor together with the next bytes that it writes, so it is there when
        # the child has the question.
        IUNIXTransport(self.transport).sendFileDescriptor(descriptor)
        self.sendString(question)
        return answer

    def stringReceived(self, string: bytes) -> None:
        """Hand on the answer.  Called by Twisted when all of it is here.

        `pickle.loads` would run any code that a hostile sender wants; here the sender is bioproxy's own child.
        """
        # The attribute is cleared before the Deferred fires: firing runs the coroutine that waits, right here, and that
        # may ask the next question before `callback` returns.
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.callback(pickle.loads(string))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Report that no answer will come.  Called by Twisted, also when the child is gone."""
        self.lost = True
        answer, self._answer = self._answer, None
        # A Deferred that was cancelled, by the time-out or by a client that hung up, has fired already, and Twisted
        # allows each Deferred to fire only once.
        if answer is not None and not answer.called:
            answer.errback(ConnectionLost())

    def close(self) -> None:
        """Close the connection without sending what is still buffered.

        `transport` is `None` if the connection never came to be.  `connectionLost` is called in any case, a moment
        later, and reports to the coroutine that waits.
        """
        if self.transport is not None:
            self.transport.abortConnection()
