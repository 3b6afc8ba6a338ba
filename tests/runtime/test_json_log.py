"""The log as JSON: what a line has, and that each event is one line."""

from __future__ import annotations

import io
import json
import os
from datetime import datetime, timedelta, timezone
from typing import Any

from twisted.logger import FileLogObserver, Logger, LogPublisher
from twisted.python import log as legacy

from bioproxy.llama.speed import Speed
from bioproxy.proxy.request_log import Record, RequestLog
from bioproxy.runtime.json_log import json_line
from bioproxy.runtime.metrics import Metrics
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
