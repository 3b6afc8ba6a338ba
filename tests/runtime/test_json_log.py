"""The log as JSON: what a line has, that each event is one line, and where it goes."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

from twisted.application.service import Application
from twisted.logger import FileLogObserver, ILogObserver, Logger, LogPublisher
from twisted.python import log as legacy

from bioproxy.llama.speed import Speed
from bioproxy.operator.options import Options
from bioproxy.proxy.request_log import Record, RequestLog
from bioproxy.runtime.json_log import json_line, json_observer
from bioproxy.runtime.metrics import Metrics
from bioproxy.service import makeService
from tests.support.folders import FolderTest
from tests.support.network import Reactor


class Lines(FolderTest):
    """`json_line`, as an observer of its own publisher."""

    def setUp(self) -> None:
        """Have a publisher that writes to a text."""
        super().setUp()
        self.output = io.StringIO()
        self.publisher = LogPublisher(FileLogObserver(self.output, json_line))
        self.log = Logger("somewhere", observer=self.publisher)

    def line(self) -> dict[str, Any]:
        """Return the one line that was written."""
        [line] = self.output.getvalue().splitlines()
        self.assertTrue(self.output.getvalue().endswith("\n"))
        self.assertTrue(line.isascii())
        line.encode("ascii").decode()
        result: dict[str, Any] = json.loads(line)
        for value in result.values():
            str(value).encode()  # fails on half of a surrogate pair
        return result

    def test_event(self) -> None:
        """An event is when, how serious, who, and the text with its values put in."""
        self.log.warn("{what} is odd", what="it")
        line = self.line()
        when = datetime.fromisoformat(line.pop("time"))
        self.assertLess(abs(datetime.now(timezone.utc) - when), timedelta(seconds=60))
        self.assertEqual({"level": "warn", "system": "somewhere", "message": "it is odd"}, line)

    def test_odd_values(self) -> None:
        """Line ends of any kind, control characters and what is not UTF-8 stay in the line, as escapes."""
        odd = "a\nb\r\x1b[31m\u2028\x85\0" + os.fsdecode(b"\xff")
        self.log.info("{odd}", odd=odd, fields={"path": odd, "number": 1.5, "none": None, "object": ValueError("x\ny")})
        line = self.line()
        self.assertEqual(odd.replace("\udcff", "\\udcff"), line["message"])
        self.assertEqual(line["message"], line["path"])
        self.assertEqual((1.5, None, "x\ny"), (line["number"], line["none"], line["object"]))

    def test_failure(self) -> None:
        """A failure has its traceback, in the same line."""
        try:
            raise ValueError("so\nso")
        except ValueError:
            self.log.failure("while {doing}", doing="testing")
        line = self.line()
        self.assertEqual(("critical", "while testing"), (line["level"], line["message"]))
        self.assertIn("test_failure", line["traceback"])
        self.assertIn("ValueError: so\nso", line["traceback"])

    def test_broken_event(self) -> None:
        """An event that cannot be put into words is a line all the same."""
        self.log.info("{missing.thing}", other=1)
        self.assertIn("missing.thing", self.line()["message"])

    def test_legacy(self) -> None:
        """Who still uses Twisted's old way to log comes out the same."""
        publisher = legacy.LogPublisher(publishPublisher=self.publisher)
        publisher.msg("old\nstyle", system="parts")
        self.assertEqual(("parts", "old\nstyle", "info"), tuple(self.line()[k] for k in ("system", "message", "level")))

    def test_request(self) -> None:
        """A request's line has all that `/status` has of it."""
        metrics, reactor = Metrics(), Reactor()
        request_log = RequestLog(metrics, Speed(), reactor)
        self.patch(request_log, "log", self.log)
        record = Record("/v1/chat/\ncompletions", 0.0, template="code", status=200, cache="cold", miss="first")
        record.queue_ms = 1.26
        reactor.advance(2)
        request_log.close(record, True, {"cache_n": 900, "prompt_n": 100, "prompt_ms": 200.0})
        line, told = self.line(), request_log.latest()[0]
        self.assertEqual({"time", "level", "system", "message"} | told.keys(), line.keys())
        for key in told.keys() - {"time"}:
            self.assertEqual(told[key], line[key], key)
        self.assertEqual((1000, 1.3, 2000.0, "first"), tuple(line[k] for k in KEYS))


KEYS = ("prompt_tokens", "queue_ms", "total_ms", "miss")


class Where(FolderTest):
    """`json_observer`: the same places as with twistd's own."""

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
        Logger("x", observer=json_observer(twistd, Reactor())).info("hello")

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

    def test_rotate(self) -> None:
        """SIGUSR1 begins another file, but not in the middle of whatever is going on."""
        reactor = Reactor()
        turns: list[Any] = []
        self.patch(reactor, "callFromThread", turns.append)
        log = Logger("x", observer=json_observer({"logfile": "a.log"}, reactor))
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

    def test_chosen(self) -> None:
        """JSON only where it is wanted; what goes to syslog is twistd's business, as is everything without twistd."""
        self.assertIsInstance(self.component("--log-format", "json", nodaemon=True), FileLogObserver)
        self.assertIsNone(self.component(nodaemon=True))
        self.assertIsNone(self.component("--log-format", "text", nodaemon=True))
        self.assertIsNone(self.component("--log-format", "json", nodaemon=True, syslog=True))
        self.assertIsNone(self.component("--log-format", "json", nodaemon=True, logger="a.name"))
        self.assertIsNone(self.component("--log-format", "json", logFile=None))  # twist's
        self.assertIsNone(self.component("--log-format", "json"))
