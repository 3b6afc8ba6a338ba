"""The process with llama.cpp, as Twisted reports it: its lines go to the log in order, and the last ones are kept.

Twisted separates a process from what is done with its output.  `reactor.spawnProcess` starts the process; a
`ProcessProtocol` is an object whose methods the reactor calls when something happens to it: `outReceived` and
`errReceived` with pieces of what it prints, `processEnded` when it is gone.  So nobody polls the process, and no thread
waits for it.

Pieces are not lines: a pipe carries bytes, and the reactor hands on what happens to be there.  Both outputs of the
process are one pipe (each of the two programs below ensures that), because lines from two pipes would arrive in another
order than they were written in.

The other side is `bioproxy.child.wheel_server` or `bioproxy.child.lifeline`.  Both agree with this module on two
things: they print a line with the number of the process that runs llama.cpp, and they end when their standard input is
closed.

Does not know when a process is started, nor what its lines mean.
"""

from __future__ import annotations

import re
from collections import deque
from contextlib import suppress

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from bioproxy.runtime.child_processes import until_fired

LAST_LINES = 60
"""Lines that are kept to find out why the process ended.

A failed start writes 20 to 30 lines, and the one that explains it comes among the first.  Halved, it could be lost;
doubled, nothing more is found.
"""

LINE_LIMIT = 2000
"""Bytes of a line that are logged; the rest is cut off.

A line of llama.cpp has about 100.  Halved, the path in an error may be cut; doubled, a process that writes without line
ends has longer lines in the log.
"""

ENDING = 10.0
"""Seconds that the process may take to end when it is asked to; then it is killed.

It ends within a moment, and `bioproxy.child.lifeline` gives llama-server half of this time.  Halved, that process could
be killed before it has ended llama-server; doubled, a stop takes longer if all of that hangs.
"""

PROCESS = re.compile(r"process (\d+)")
"""The line that tells the process id of llama.cpp."""


class ProcessOutput(ProcessProtocol):
    """One process, from its start to its end.

    Invariant: `gone` fires once, after all that the process wrote has been logged.
    """

    log = Logger()

    pid: int | None = None
    """The id of the process that runs llama.cpp, once that is known."""

    ended = False
    """Whether the process is gone."""

    code: int | None = None
    """Its exit code, once it has ended by itself."""

    killed_by: int | None = None
    """The signal that ended it, if one did."""

    transport: IProcessTransport | None = None
    """The way to the process, set by Twisted; `None` if it could not be started."""

    def __init__(self, clock: IReactorTime, aloud: bool) -> None:
        """Prepare for a process; `clock` measures how long it takes to end.

        With `aloud` false its lines are kept and not logged, until it is `heard`: it is the second try or a later one
        of what has failed, and would only repeat itself.
        """
        self.gone: Deferred[None] = Deferred()
        """Fires when the process is gone."""
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        """The last lines that it wrote, oldest first."""
        self._clock = clock
        self._aloud = aloud
        # The beginning of a line whose end has not arrived.
        self._rest = b""
        self._kill: IDelayedCall | None = None

    def heard(self) -> None:
        """Log what was kept back, and all that follows: this time the process works."""
        if not self._aloud:
            self._aloud = True
            for line in self.last_lines:
                self.log.info("{line}", line=line)

    def outReceived(self, data: bytes) -> None:
        """Log what the process writes.  Called by Twisted with each piece."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        # A line without an end must not grow for ever.
        if len(self._rest) > LINE_LIMIT:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._line(line)

    # The process has one pipe for both; this is for what is written before it has arranged that.
    errReceived = outReceived

    def _line(self, line: bytes) -> None:
        """Keep and log one line."""
        # Bytes of a name that is no UTF-8, or the colours of a terminal, must not get into the log as they are.
        text = line[:LINE_LIMIT].decode("utf-8", "backslashreplace").rstrip()
        text = "".join(each if each.isprintable() else " " for each in text)
        if not text:
            return
        if self.pid is None and (found := PROCESS.fullmatch(text)):
            self.pid = int(found[1])
        self.last_lines.append(text)
        if self._aloud:
            self.log.info("{line}", line=text)

    async def until_gone(self) -> None:
        """Fire when the process is gone, at once if it is.  Cancelling only ends this waiting."""
        await until_fired(self.gone)

    def end(self) -> None:
        """Ask the process to end, by closing its standard input.  Does nothing if it is gone."""
        if self.ended or self.transport is None:
            return
        # No signal, so that this works in the same way as the end of bioproxy itself, and is tested with it.
        self.transport.closeStdin()
        if self._kill is None:
            self._kill = self._clock.callLater(ENDING, self._kill_late)

    def _kill_late(self) -> None:
        """Kill a process that was asked to end and has had its time."""
        # Otherwise operators could not find out why the stop is slow.
        self.log.warn("llama.cpp has not ended {seconds:g} s after it was asked to, and is killed", seconds=ENDING)
        self.kill()

    def kill(self) -> None:
        """End the process the hard way."""
        if not self.ended and self.transport is not None:
            # It may be gone without Twisted having reported it yet.
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")

    def processEnded(self, reason: Failure) -> None:
        """Note that the process is gone.  Called by Twisted once, when it was collected and all its output was read."""
        # The last line of a process that crashes may have no end.
        self._line(self._rest)
        self._rest = b""
        # Only now is the id of the process free for another one.
        self.ended = True
        if self._kill is not None and self._kill.active():
            self._kill.cancel()
        # `ProcessDone` is an exit code of 0, `ProcessTerminated` any other end; both have these attributes.
        self.code = getattr(reason.value, "exitCode", None)
        self.killed_by = getattr(reason.value, "signal", None)
        self.gone.callback(None)
