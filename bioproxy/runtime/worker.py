"""Reads large requests in a child process, so that all other requests go on meanwhile.

Twisted serves all connections in one thread, so a computation of a second stops all of them for a second.  Threads do
not help with JSON: Python's parser holds the interpreter's lock until it is through, and the objects that it makes of a
text may take 25 times the text's size (``[[],[],...]``).  So requests of more than some kilobytes are read by a child
process: one at a time, with a limit of memory and of time.  A request that exceeds a limit is refused, and the child is
killed.

Twisted starts processes with `spawnProcess` and reports to a `ProcessProtocol`, whose methods the reactor calls.  The
messages go over a pair of Unix sockets instead of pipes, because a *file descriptor* can be passed over such a socket:
the child reads the request's body from the very file that bioproxy keeps it in, and no byte of it is copied.

`bioproxy.runtime.worker_main` is the child's program.  What it runs is a plain function of bytes, which `pickle` sends
by the name of its module and its own name.  Functions and results are trusted, as both sides are bioproxy.

Does not know what is read or why.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, DeferredLock, TimeoutError
from twisted.internet.error import ConnectionLost, ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from bioproxy.runtime.errors import TooComplex, Unavailable
from bioproxy.runtime.worker_line import Line

SECONDS = 10.0
"""Seconds of a processor that reading one request may take.

On an ordinary machine the slowest JSON of 64 MiB, the default of `max_body`, takes three to four seconds.  Half of the
limit could refuse such a body on a slow machine; with twice as much, one hostile request keeps all other large ones
waiting for so long.
"""

HANGING = 60.0
"""Seconds after which the child is given up although it has not used its `SECONDS`: the disk hangs, or no processor is
free for it.

Half of it refuses large requests on a machine that is overloaded; with twice as much, the others wait longer for a disk
that does not answer.
"""

MEMORY = 1 << 30
"""Bytes of memory that the child may use (where the operating system can limit that).

JSON with nothing but tiny values needs 25 times its size, so such a body of 40 MiB is refused.  With half of it, one of
20 MiB would be; with twice as much, a small machine may run out of the memory that llama-server needs.
"""


# Three objects for one child: `Worker` is what the rest of bioproxy calls, `Child` is the process, and `Line`, in
# `bioproxy.runtime.worker_line`, the connection to it.  Twisted reports separately on the two latter, since a process
# may die while its connection still has data in it, and a connection may be lost while the process still runs.


class Worker(Service):
    """Runs functions in a child process, one at a time.

    There is at most one child.  It is started by the first call that needs it, and serves many calls.  A child whose
    call did not end by itself is killed, since it may still be busy, and the next call starts another.
    """

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Make a worker without a child; `reactor` starts the child and keeps the time limit."""
        self.setName("worker")
        self._reactor = reactor
        # Twisted's lock for coroutines; it blocks no thread.
        # A queue: `async with` waits until all earlier calls have left it.
        self._one_at_a_time = DeferredLock()
        self._child: Child | None = None
        # The present child, and those killed before that Twisted has not reported as gone yet.
        self._alive: set[Child] = set()

    async def call(self, function: Callable[..., Any], descriptor: int, *args: Any) -> Any:
        """Run `function(view, *args)` in the child, where `view` is the content of an open file, as an `mmap`.

        Fires with what the function returns.  Fails with the `ProxyError` that it raises, with `TooComplex` if it takes
        too long or too much memory, and with `Unavailable` if no child can be started.  Cancelling leaves the queue, or
        kills the child if the function runs already.
        """
        # A coroutine that is cancelled raises `CancelledError` at the `await` where it waits.  In the queue that is the
        # line below, and the lock takes the caller out of its queue; further down it is the answer's `await`.
        async with self._one_at_a_time:
            # A child may also have died between two calls, for example because the system ran out of memory.
            child = self._child
            if child is None or not child.usable:
                child = self._child = self._start()
            # A child that has just been started need not be waited for: the question waits in the socket.
            done = False
            try:
                # `addTimeout` cancels the Deferred after `HANGING` and turns the cancellation into a `TimeoutError`.
                # The reactor's clock stands still while bioproxy is stopped, but the child could run then, too: so
                # the limit is never reached only because bioproxy itself was slow.
                succeeded, result = await child.ask(function, descriptor, args).addTimeout(HANGING, self._reactor)
                done = True
            except TimeoutError:
                raise self._too_long(HANGING) from None
            except ConnectionLost:
                # The connection may be gone some moments before it is known how the process has ended.  Should it still
                # run, it is of no use; if not, this changes nothing about its end.
                child.end()
                if await child.how_it_ended() == signal.SIGPROF:
                    raise self._too_long(SECONDS) from None
                raise TooComplex("reading the request took more memory than is allowed") from None
            finally:
                # Reached by a time-out, a lost connection, and a cancellation alike.  A child that still works would
                # send its answer later, and the next call would take it for its own.
                if not done:
                    child.end()
            # An exception was pickled in the child like any other result, and is raised here for the request that
            # asked.
            if succeeded:
                return result
            raise result

    def _too_long(self, seconds: float) -> TooComplex:
        """Log that reading a request took longer than so many seconds, and return the error for its client."""
        self.log.warn("a request was refused: reading it took more than {seconds} s", seconds=seconds)
        return TooComplex(f"reading the request took more than {seconds:g} s")

    def _start(self) -> Child:
        """Start a child.  Raises `Unavailable`."""
        try:
            child = Child(self._reactor)
        except OSError as error:  # too many processes or open files
            raise Unavailable(f"no process can be started to read large requests: {error.strerror}") from None
        self._alive.add(child)
        child.gone.addCallback(lambda _: self._alive.discard(child))
        return child

    def stopService(self) -> Deferred[Any]:
        """Kill the child, if there is one; fires when no child is left.  Called by the parent service, which waits."""
        super().stopService()
        # A call in progress fails, and with it the request that waits for it; the ports are being closed as well.  Also
        # a child whose connection was lost is killed here, if it has not ended by itself.
        children = list(self._alive)
        for child in children:
            child.end()
        self._child = None
        return DeferredList([child.gone for child in children])


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
            # Whatever folder this process runs in, the child finds the same bioproxy.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            # The child's standard input is its end of the socket; Twisted reads what it prints ("r").
            descriptors = {0: theirs.fileno(), 1: "r", 2: "r"}
            self._process: IProcessTransport = reactor.spawnProcess(
                self, command[0], command, env=environment, childFDs=descriptors
            )

    @property
    def usable(self) -> bool:
        """Whether the child can be asked: it runs, as far as is known, and its connection is open."""
        # When a process dies, Twisted may report the end of its connection some moments before that of the process.  A
        # question in between would never be sent, and nothing would tell that no answer comes.
        return not self.ended and not self._line.lost

    def ask(self, function: Callable[..., Any], descriptor: int, args: tuple[Any, ...]) -> Deferred[tuple[bool, Any]]:
        """Have the child run a function; see `Line.ask`."""
        # `pickle` stores a function as the names of its module and of itself, so the child imports the same one.
        return self._line.ask(descriptor, pickle.dumps((function, args, SECONDS)))

    async def how_it_ended(self) -> int | None:
        """Wait until the process is gone; fires with the signal that ended it, if one did.

        Cancelling only ends this waiting.
        """
        # A Deferred of its own: awaiting `gone` directly would leave nothing for others that wait, and cancelling would
        # cancel it for all of them.
        own: Deferred[None] = Deferred()
        self.gone.addCallback(lambda _: own.callback(None) if not own.called else None)
        await own
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
