"""SIGHUP: reload, or end with the terminal."""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.operator.hangup import Hangup
from bioproxy.runtime.errors import ConfigError
from tests.support.world import logged


class FakeReactor:
    """Counts stops, and makes calls when it is told to."""

    def __init__(self) -> None:
        self.stops = 0
        self._calls: list[Any] = []

    def callFromThread(self, call: Any) -> None:
        """Note the call."""
        self._calls.append(call)

    def turn(self) -> None:
        """Make all calls."""
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def stop(self) -> None:
        """Be stopped, once."""
        if self.stops:
            raise ReactorNotRunning
        self.stops += 1


class HangupTest(SynchronousTestCase):
    """A `Hangup` whose terminal is a variable."""

    def setUp(self) -> None:
        """Have SIGHUP do in the end what it did before."""
        self.reactor = FakeReactor()
        self.terminal = True
        self.reloads = 0
        self.addCleanup(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def reload(self) -> None:
        """Count."""
        self.reloads += 1

    def start(self) -> Hangup:
        """Start it."""
        hangup = Hangup(self.reactor, self.reload, lambda: self.terminal)
        hangup.startService()
        self.addCleanup(hangup.stopService)
        return hangup

    def hang_up(self) -> None:
        """Send the signal."""
        os.kill(os.getpid(), signal.SIGHUP)

    def test_not_in_the_handler(self) -> None:
        """The signal's handler does nothing itself: the reactor does, in its own time."""
        self.start()
        self.hang_up()
        self.assertEqual(0, self.reloads)
        self.reactor.turn()
        self.assertEqual(1, self.reloads)

    def test_terminal_answers(self) -> None:
        """A signal by hand reloads while the terminal is there, as often as wanted."""
        self.start()
        for _ in range(2):
            self.hang_up()
            self.reactor.turn()
        self.assertEqual((2, 0), (self.reloads, self.reactor.stops))

    def test_terminal_gone(self) -> None:
        """When the terminal is closed the process stops, once, however often the signal comes, also afterwards."""
        hangup = self.start()
        self.terminal = False
        with capturedLogs() as events:
            for _ in range(2):
                self.hang_up()
            self.reactor.turn()
            self.hang_up()
            hangup.stopService()
            self.hang_up()
        self.assertEqual((0, 1), (self.reloads, self.reactor.stops))
        self.assertEqual(["the terminal was closed, so bioproxy stops"], logged(events))

    def test_no_terminal(self) -> None:
        """A process that never had one reloads."""
        self.terminal = False
        self.start()
        self.hang_up()
        self.reactor.turn()
        self.assertEqual((1, 0), (self.reloads, self.reactor.stops))

    def test_nohup(self) -> None:
        """Where the signal was ignored before, as with `nohup`, the end of the terminal ends nothing."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.start()
        self.terminal = False
        self.hang_up()
        self.reactor.turn()
        self.assertEqual((1, 0), (self.reloads, self.reactor.stops))

    def test_mistake(self) -> None:
        """A configuration that is wrong is the reload's to log: the process goes on."""

        def reload() -> None:
            raise ConfigError("wrong")

        hangup = Hangup(self.reactor, reload, lambda: True)
        hangup.startService()
        self.addCleanup(hangup.stopService)
        self.hang_up()
        self.reactor.turn()
        self.assertEqual(0, self.reactor.stops)

    def test_restores(self) -> None:
        """After the service the signal does what it did before it."""
        self.start().stopService()
        self.assertEqual(signal.SIG_DFL, signal.getsignal(signal.SIGHUP))
