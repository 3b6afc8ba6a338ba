"""Reads large requests in a child process, so that all other requests go on meanwhile.

Twisted serves all connections in one thread, so a computation of a second stops all of them for a second.  Threads do
not help with JSON: Python's parser holds the interpreter's lock until it has finished, and the objects that it makes of
a text may take 25 times the text's size (``[[],[],...]``).  So requests of more than some kilobytes are read by a child
process: one at a time, with a limit of memory and of time.  A request that exceeds a limit is refused, and the child is
killed.

The process itself and the connection to it are in `bioproxy.runtime.worker_child`, and what runs in it in
`bioproxy.runtime.worker_main`.  A function that is to run there is a plain function of bytes.  Functions and results
are trusted, as both sides are bioproxy.

In Twisted the caller awaits the answer, and everything else goes on meanwhile.  A caller that is cancelled, because its
client has hung up, ends the child: nothing else could stop a parser that is at work.

Does not know what is read or why.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, DeferredLock, TimeoutError
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger

from bioproxy.runtime.errors import TooComplex, Unavailable
from bioproxy.runtime.worker_child import Child

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


class Killed(TooComplex):
    """The child was killed, and not for one of its own limits: by the operating system, where memory is short."""


class Worker(Service):
    """Runs functions in a child process, one at a time.

    There is at most one child.  It is started by the first call that needs it, and serves many calls.  A child whose
    call did not end by itself is killed, since it may still be busy, and the next call starts another.  A call whose
    child is killed by somebody else is made once more, with another child.
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
            try:
                return await self._ask(function, descriptor, args)
            except Killed:
                # Where memory is short, the system chooses whom to kill, and this request need not be the reason.
                # Reading changes nothing, so another child may do it again; once, as the reason may be this request.
                self.log.warn("the process that reads large requests was killed; another one is asked")
                return await self._ask(function, descriptor, args)

    async def _ask(self, function: Callable[..., Any], descriptor: int, args: tuple[Any, ...]) -> Any:
        """Have the child answer one question.  Fires and fails as `call`, or fails with `Killed`.

        Cancelling kills the child.
        """
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
            answer = child.ask(function, descriptor, args, SECONDS)
            succeeded, result = await answer.addTimeout(HANGING, self._reactor)
            done = True
        except TimeoutError:
            raise self._too_long(HANGING) from None
        except ConnectionLost:
            # The connection may be gone some moments before it is known how the process has ended.  Should it still
            # run, it is of no use; if not, this changes nothing about its end.
            child.end()
            ended = await child.how_it_ended()
            if ended == signal.SIGPROF:
                raise self._too_long(SECONDS) from None
            # `stopService` kills the child, too, and then there must not be another one.
            if ended == signal.SIGKILL and self._child is child:
                raise Killed("the process that reads large requests was killed") from None
            raise TooComplex("reading the request took more memory than is allowed") from None
        finally:
            # Reached by a time-out, a lost connection, and a cancellation alike.  A child that still works would
            # send its answer later, and the next call would take it for its own.
            if not done:
                child.end()
        # An exception was pickled in the child like any other result, and is raised here for the request that asked.
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
