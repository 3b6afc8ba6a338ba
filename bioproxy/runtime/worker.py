"""Reads large requests in a process of its own, so that nobody else has to wait for it.

Twisted serves everybody in one thread, and what takes long there holds up all of them.  Threads are no help with JSON:
Python's parser keeps the interpreter to itself until it is through, and what it makes of a text may take 25 times the
text's size (``[[],[],...]``).  So requests of more than some kilobytes are read by a child process: one at a time, with
a limit of memory and time.  A request that takes more is refused, and its child ended.

Twisted starts processes with `spawnProcess` and tells a `ProcessProtocol` of what becomes of them.  The two talk over a
pair of Unix sockets, because over such a socket a *file descriptor* can be passed: the child reads the request's body
from the very file in which it lies, and no byte of it is copied.

`bioproxy.runtime.worker_main` is the child.  What is run there is a plain function of bytes, named by its module and
name.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, TimeoutError
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IUNIXTransport
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from bioproxy.runtime.errors import TooComplex, Unavailable

SECONDS = 10.0
"""Seconds that reading one request may take."""

MEMORY = 1 << 30
"""Bytes of memory that the child may use (where the operating system can limit that)."""

LARGEST_RESULT = 16 << 20
"""Bytes of what the child tells.  It tells positions and fingerprints, and one text of limited size."""


class Worker(Service):
    """Runs one function at a time, in a child that is started when it is first needed.

    There is at most one child.  One that was interrupted is killed, and the next call gets another.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self.setName("worker")
        self._reactor = reactor
        self._one_at_a_time = DeferredLock()
        self._child: Child | None = None

    async def call(self, function: Callable[..., Any], descriptor: int, *args: Any) -> Any:
        """Run `function(view, *args)` in the child, where `view` is the content of an open file, as an `mmap`.

        Fires with what it returns; fails with what it raises, or with `TooComplex` if it takes too long or too much
        memory. Cancelling ends the child.
        """
        async with self._one_at_a_time:
            child = self._child
            if child is None or child.ended:
                child = self._child = self._start()
            done = False
            try:
                # A reactor that stood still is no reason: time counts in which the child could run as well.
                succeeded, result = await child.ask(function, descriptor, args).addTimeout(SECONDS, self._reactor)
                done = True
            except TimeoutError:
                self.log.warn("reading a request took more than {seconds} s; it is refused", seconds=SECONDS)
                raise TooComplex(f"reading the request took more than {SECONDS:g} s") from None
            finally:
                if not done:
                    child.end()
            if succeeded:
                return result
            raise result

    def _start(self) -> Child:
        try:
            return Child(self._reactor)
        except OSError as error:  # too many processes or open files
            raise Unavailable(f"there is nobody to read large requests: {error.strerror}") from None

    def stopService(self) -> None:
        """End the child, if there is one.  Called by Twisted."""
        super().stopService()
        if self._child is not None:
            self._child.end()
            self._child = None


class Child(ProcessProtocol):
    """The child process, and the connection to it.  `ended`: it is of no more use."""

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self.ended = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            # Twisted gets a copy of the descriptor; its child's standard input is the other end.
            self._line = Line()
            reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: self._line))
            command = [sys.executable, "-m", "bioproxy.runtime.worker_main", str(MEMORY)]
            # Whatever folder this process runs in, the child finds the same bioproxy.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            descriptors = {0: theirs.fileno(), 1: "r", 2: "r"}
            self._process: IProcessTransport = reactor.spawnProcess(
                self, command[0], command, env=environment, childFDs=descriptors
            )

    def ask(self, function: Callable[..., Any], descriptor: int, args: tuple[Any, ...]) -> Deferred[tuple[bool, Any]]:
        """Have the child run a function; fires with whether that succeeded, and with its result or its exception."""
        return self._line.ask(descriptor, pickle.dumps((function, args)))

    def end(self) -> None:
        """Kill the child.  Its work is of no use to anybody."""
        if not self.ended:
            self.ended = True
            self._line.close()
            with suppress(ProcessExitedAlready):
                self._process.signalProcess("KILL")

    def errReceived(self, data: bytes) -> None:
        """Tell what the child complains of.  Called by Twisted."""
        self.log.warn("the process that reads requests says: {text}", text=data.decode("utf-8", "replace").strip())

    def processEnded(self, reason: Failure) -> None:
        """Note that the child is gone.  Called by Twisted."""
        self.ended = True
        self._line.close()


class Line(Int32StringReceiver):
    """The connection to the child: messages with their length in front, and a file descriptor with each question."""

    MAX_LENGTH = LARGEST_RESULT
    transport: Any
    _answer: Deferred[tuple[bool, Any]] | None = None

    def ask(self, descriptor: int, question: bytes) -> Deferred[tuple[bool, Any]]:
        """Send a question; the Deferred fires with the answer."""
        answer: Deferred[tuple[bool, Any]] = Deferred()
        self._answer = answer
        IUNIXTransport(self.transport).sendFileDescriptor(descriptor)
        self.sendString(question)
        return answer

    def stringReceived(self, string: bytes) -> None:
        """Take the answer.  Called by Twisted when all of it is here."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.callback(pickle.loads(string))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Note that no answer will come.  Called by Twisted, also when the child is gone."""
        answer, self._answer = self._answer, None
        if answer is not None and not answer.called:
            answer.errback(TooComplex("reading the request took more memory than is allowed"))

    def close(self) -> None:
        """End the connection."""
        if self.transport is not None:
            self.transport.abortConnection()
