"""The demonstration's llama.cpp, as bioproxy's side of the child process sees it.

Twisted separates a process from what is done with its output.  `reactor.spawnProcess` starts the process; a
`ProcessProtocol` is an object whose methods the reactor calls when something happens to it: `outReceived` and
`errReceived` with pieces of what it prints, `processEnded` when it is gone.  So nobody polls the process, and no thread
waits for it.

The other side is `bioproxy.demo.llama_child`.  Both agree on two things: the child prints a line when it answers
requests, and it ends when its standard input is closed.

Does not know how the process is started, nor what it is used for; `bioproxy.demo.service` does.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

LISTENING = b"listening on"
"""What the child prints when it answers requests."""

KEPT = 4000
"""Bytes of what llama.cpp logged last, shown when it fails.  An error stands in the last few lines."""


class LlamaProcess(ProcessProtocol):
    """The child process, as Twisted reports it.

    llama.cpp's log is long, so it is shown only if the process fails, and only the end of it.  A process that was asked
    to end does not fail, whatever its exit code is.
    """

    log = Logger()

    starting: bool
    """Whether the child may still come to answer requests: it has neither said that it does, nor ended."""

    def __init__(self) -> None:
        """Begin with a child that starts.  `spawnProcess` sets `transport`, by which the child can be reached."""
        self.starting = True
        self._printed = b""
        self._errors = b""
        # Set by `end`: tells apart an end that was asked for from a failure, and reports it to `stopService`.
        self._gone: Deferred[None] | None = None
        # Set once the process is gone.
        self._ended = False

    def outReceived(self, data: bytes) -> None:
        """Note that llama.cpp listens.  Called by Twisted with each piece of what the child prints."""
        # A line may come in two pieces, and libraries may print something before it.
        if self.starting:
            self._printed += data
            self.starting = LISTENING not in self._printed

    def errReceived(self, data: bytes) -> None:
        """Keep the end of what llama.cpp logs.  Called by Twisted with each piece."""
        self._errors = (self._errors + data)[-KEPT:]

    def end(self) -> Deferred[None] | None:
        """Ask the child to end, by closing its standard input.

        Returns a Deferred that fires when the child is gone, or `None` if it is gone already.
        """
        if self._ended:
            return None
        assert self.transport is not None
        self._gone = Deferred()
        # No signal, so that this works in the same way as the end of bioproxy itself, and is tested with it.
        self.transport.closeStdin()
        return self._gone

    def processEnded(self, reason: Failure) -> None:
        """Note that the child is gone, and log why unless it was asked to end.

        Called by Twisted once, after the process was collected and all its output was read.
        """
        # Only now is the id of the process free for another one, and all that the process printed has been read.
        self._ended = True
        self.starting = False
        if self._gone is not None:
            self._gone.callback(None)
        # `ProcessDone` is an exit code of 0, everything else is a failure: another exit code or a signal.
        elif not reason.check(ProcessDone):
            self.log.error(
                "llama.cpp ended: {reason}\n{errors}",
                reason=reason.getErrorMessage(),
                errors=self._errors.decode("utf-8", "replace"),
            )
