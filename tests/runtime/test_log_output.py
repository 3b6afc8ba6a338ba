"""Where the log goes, and which observer writes it."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from typing import Any

from twisted.application.service import Application
from twisted.logger import FileLogObserver, ILogObserver, Logger

from bioproxy.operator.options import Options
from bioproxy.runtime.log_output import log_observer
from bioproxy.service import makeService
from tests.support.folders import FolderTest
from tests.support.network import Reactor


class Where(FolderTest):
    """`log_observer`: the same places as with twistd's own."""

    def setUp(self) -> None:
        """Have the usual working folder be elsewhere, and nobody listen to SIGUSR1 in the end."""
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        self.output = io.StringIO()
        self.patch(sys, "stdout", self.output)

    def say(self, **twistd: Any) -> None:
        """Log one event."""
        Logger("x", observer=log_observer("json", twistd, Reactor())).info("hello")

    def test_foreground(self) -> None:
        """In the foreground it goes to standard output, unless there is a file."""
        self.say(nodaemon=True, logfile=None)
        self.say(nodaemon=True, logfile="-")
        self.say(nodaemon=True, logfile="a.log")
        self.assertEqual(2, self.output.getvalue().count("hello"))
        self.assertIn("hello", (self.folder / "a.log").read_text())

    def test_daemon(self) -> None:
        """A daemon has a file, by default twistd's; standard output is nothing for it."""
        self.say(nodaemon=False, logfile=None)
        self.assertIn("hello", (self.folder / "twistd.log").read_text())
        self.assertRaises(SystemExit, self.say, nodaemon=False, logfile="-")
        self.assertEqual("", self.output.getvalue())

    def test_not_writable(self) -> None:
        """A file that cannot be written is a mistake in one line."""
        for name, reason in (("none/a.log", "No such file or directory"), (".", "Is a directory")):
            error = self.assertRaises(SystemExit, self.say, nodaemon=True, logfile=name)
            self.assertIn("bioproxy: the log file ", str(error))
            self.assertTrue(str(error).endswith(f" cannot be written: {reason}"), error)

    def test_rotate(self) -> None:
        """SIGUSR1 begins another file, but not in the middle of whatever is going on."""
        reactor = Reactor()
        turns: list[Any] = []
        self.patch(reactor, "callFromThread", turns.append)
        log = Logger("x", observer=log_observer("json", {"logfile": "a.log"}, reactor))
        log.info("before")
        os.kill(os.getpid(), signal.SIGUSR1)
        log.info("at once")
        [rotate] = turns
        rotate()
        log.info("after")
        for name, words in (("a.log.1", ["before", "at once"]), ("a.log", ["after"])):
            lines = (self.folder / name).read_text().splitlines()
            self.assertEqual(words, [json.loads(line)["message"] for line in lines])


class Choosing(FolderTest):
    """Which observer twistd's application gets."""

    def component(self, *arguments: str, **twistd: Any) -> Any:
        """Return the observer of an application made with these options."""
        options = Options()
        options.parent = Options() if twistd else None
        if options.parent is not None:
            options.parent.update(twistd)
        options.parseOptions(["--demo", *arguments])
        application = Application("bioproxy")
        makeService(options, Reactor()).setServiceParent(application)
        return application.getComponent(ILogObserver, None)

    def line(self, *arguments: str) -> str:
        """Return what the observer of an application in the foreground makes of an event."""
        output = io.StringIO()
        self.patch(sys, "stdout", output)
        observer = self.component(*arguments, nodaemon=True)
        self.assertIsInstance(observer, FileLogObserver)
        Logger("bioproxy.gate.gate.Gate", observer=observer).warn("so it is")
        return output.getvalue()

    def test_format(self) -> None:
        """`log_format` decides what a line looks like; text is the default."""
        self.assertEqual("so it is", json.loads(self.line("--log-format", "json"))["message"])
        for arguments in ((), ("--log-format", "text")):
            self.assertRegex(self.line(*arguments), r"^\S+ warn  gate: so it is\n$")

    def test_twistds_options_win(self) -> None:
        """What goes to syslog is twistd's business, as is a logger that it is given, and everything without twistd."""
        for log_format in ("text", "json"):
            arguments = ("--log-format", log_format)
            self.assertIsNone(self.component(*arguments, nodaemon=True, syslog=True))
            self.assertIsNone(self.component(*arguments, nodaemon=True, logger="a.name"))
            self.assertIsNone(self.component(*arguments, logFile=None))  # twist's
            self.assertIsNone(self.component(*arguments))
