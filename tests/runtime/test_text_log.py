"""The log as text: what a line looks like, and what its parts are called."""

from __future__ import annotations

import io
import pkgutil
from typing import Any

from twisted.logger import FileLogObserver, Logger, LogPublisher
from twisted.python import log as legacy
from twisted.trial.unittest import SynchronousTestCase

import bioproxy
from bioproxy.runtime.text_log import PARTS, part, text_line

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}"


class Lines(SynchronousTestCase):
    """`text_line`, as an observer of its own publisher."""

    def setUp(self) -> None:
        """Have a publisher that writes to a text."""
        self.output = io.StringIO()
        self.publisher = LogPublisher(FileLogObserver(self.output, text_line))

    def logger(self, namespace: str) -> Logger:
        """Return a logger of that publisher."""
        return Logger(namespace, observer=self.publisher)

    def test_event(self) -> None:
        """An event is one line: time, level, a short name, and the sentence with its values put in."""
        self.logger("bioproxy.gate.gate.Gate").info("{what} is open", what="it")
        self.assertRegex(self.output.getvalue(), rf"^{TIME} info  gate: it is open\n$")

    def test_levels(self) -> None:
        """Each level is named."""
        for level in ("debug", "info", "warn", "error", "critical"):
            getattr(self.logger("bioproxy.warmup.warmer.Warmer"), level)("so")
        levels = [line.split()[1] for line in self.output.getvalue().splitlines()]
        self.assertEqual(["debug", "info", "warn", "error", "critical"], levels)

    def test_twisted(self) -> None:
        """Twisted's own lines have a short name too, whichever of its two ways to log they come by."""
        self.logger("twisted.internet.base").info("new")
        legacy.LogPublisher(publishPublisher=self.publisher).msg("old", system="HTTPChannel,1,127.0.0.1")
        first, second = self.output.getvalue().splitlines()
        self.assertRegex(first, rf"^{TIME} info  twisted: new$")
        self.assertRegex(second, rf"^{TIME} info  twisted: old$")

    def test_traceback(self) -> None:
        """A failure has its traceback behind the sentence, in lines of its own that begin with a tab."""
        try:
            raise ValueError("so\nso")
        except ValueError:
            self.logger("bioproxy.runtime.periodic.Periodic").failure("{name} failed", name="poller")
        head, *more = self.output.getvalue().splitlines()
        self.assertRegex(head, rf"^{TIME} critical periodic: poller failed$")
        self.assertTrue(all(line.startswith("\t") for line in more), more)
        self.assertIn("test_traceback", "".join(more))
        self.assertEqual(["\tbuiltins.ValueError: so", "\tso"], [line.rstrip() for line in more[-2:]])

    def test_one_event_one_line(self) -> None:
        """A line end in a text cannot pass for the beginning of another event."""
        self.logger("bioproxy.slot.slot.Slot").warn("a\n{b}", b="2026-01-01T00:00:00+0000 info  gate: b")
        _, second = self.output.getvalue().splitlines()
        self.assertTrue(second.startswith("\t2026"))

    def test_odd_events(self) -> None:
        """An event without text is no line; one without a time or a level, or with a broken format, is one."""
        self.assertIsNone(text_line({}))
        event: dict[str, Any] = {"log_format": "hello"}
        self.assertEqual("- info  twisted: hello\n", text_line(event))
        self.assertIn("missing.thing", text_line({**event, "log_format": "{missing.thing}"}) or "")


class Names(SynchronousTestCase):
    """`part`."""

    def test_known(self) -> None:
        """Parts are called what a user calls them."""
        for namespace, name in (
            ("bioproxy.proxy.request_log.RequestLog", "requests"),
            ("bioproxy.llama.process_watch.ProcessWatch", "llama"),
            ("bioproxy.warmup.warmer.Warmer", "warmer"),
            ("bioproxy.warmup.attempts.Attempts", "warmer"),
            ("bioproxy.child.earlier_starts.EarlierStarts", "llama"),
            ("bioproxy.child.process_output.ProcessOutput", "llama.cpp"),
            ("bioproxy.slot_files.shelf.Shelf", "slot"),
            ("bioproxy.gate.gate.Gate", "gate"),
            ("bioproxy.runtime.spool", "requests"),
            ("bioproxy", "bioproxy"),
            ("twisted.web.http._GenericHTTPChannelProtocol", "twisted"),
            ("klein._app.Klein", "klein"),
            ("stdout", "stdout"),
            ("log_legacy", "twisted"),
        ):
            self.assertEqual(name, part(namespace), namespace)

    def test_table_is_current(self) -> None:
        """Each name in the table is that of a module or a folder: one that was renamed is missed here."""
        prefix = "bioproxy."
        modules = {each.name.removeprefix(prefix) for each in pkgutil.walk_packages(bioproxy.__path__, prefix)}
        self.assertEqual(set(), PARTS.keys() - modules)
