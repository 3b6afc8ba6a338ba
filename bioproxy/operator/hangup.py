"""SIGHUP: reload the configuration, or end because the terminal is gone.

The signal has two meanings.  Daemons get it from an operator (``kill -HUP``, ``systemctl reload``), who wants the
configuration read again.  Programs in a terminal get it from the kernel or from the shell when that terminal is closed,
and are expected to end: a proxy that went on would keep its ports, and nobody could see it any more.

A signal does not say which one is meant, so the terminal is asked.  A process with a *controlling terminal* reaches it
as ``/dev/tty``, whatever its standard input and output are.  When a terminal is closed, the kernel first takes it away
from all its processes and then sends the signal, so at that moment ``/dev/tty`` cannot be opened any more.

* No controlling terminal at the start (a daemon, systemd, cron, most containers): reload.
* There was one, and it still opens (``kill -HUP`` by hand): reload.
* There was one, and it is gone: end, in the same orderly way as after SIGTERM.
* SIGHUP was ignored when the process started, as with ``nohup``: the user wants it to outlive the terminal; reload.

Python runs a signal handler in the main thread between any two of its instructions, for example while another part is
half-way through a change.  So the handler only notes the call for the reactor (`callFromThread`, which is made for
threads and safe for signals), and the reactor makes it when it is back in its loop.

Does not know what a reload is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

from bioproxy.runtime.errors import ConfigError

TERMINAL = "/dev/tty"
"""What the kernel calls the controlling terminal of the process that opens it."""


def has_terminal() -> bool:
    """Tell whether this process has a controlling terminal that still works."""
    try:
        # Without `O_NOCTTY` a process that has no controlling terminal might get one.
        os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Hangup(Service):
    """Handles SIGHUP for as long as the service runs.  Before and after that, the signal does what it did before."""

    log = Logger()

    # `has_terminal` is another function in tests.
    def __init__(
        self, reactor: Any, reload: Callable[[], object], has_terminal: Callable[[], bool] = has_terminal
    ) -> None:
        """Make the service; `reload` is called at SIGHUP, and may raise `ConfigError`."""
        self.setName("hangup")
        self._reactor = reactor
        self._reload = reload
        self._has_terminal = has_terminal
        # What SIGHUP did before: a function, `SIG_DFL` (end the process) or `SIG_IGN`.
        self._before: Any = None
        # Whether the end of the terminal is to end the process.
        self._ends_with_terminal = False
        self._stopping = False

    def startService(self) -> None:
        """Take the signal.  Called by the parent service; a daemon has left its terminal by then."""
        super().startService()
        self._before = signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._handle))
        # Decided now: later, a terminal that is gone looks like one that never was.
        self._ends_with_terminal = self._before != signal.SIG_IGN and self._has_terminal()

    def stopService(self) -> None:
        """Restore what the signal did before.  Called by the parent service."""
        super().stopService()
        signal.signal(signal.SIGHUP, self._before)

    def _handle(self) -> None:
        """Reload or end.  Called by the reactor, soon after the signal.

        A signal that comes twice before the reactor calls this causes two calls.
        """
        if self._ends_with_terminal and not self._has_terminal():
            # Kernel and shell may both send the signal.  A second one must not end the process in the middle of an
            # orderly stop, which is what it would do by default when this service has stopped.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            self._before = signal.SIG_IGN
            if not self._stopping:
                self._stopping = True
                # With ``--logfile`` this can be read later.  Standard output is gone with the terminal: Twisted drops
                # lines that an observer cannot write.
                self.log.info("the terminal was closed, so bioproxy stops")
                self._reactor.stop()
            return
        # A mistake in the configuration was logged by the reload.
        with suppress(ConfigError):
            self._reload()
