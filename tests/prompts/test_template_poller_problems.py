"""Watching template files that cannot be read, or whose readings end late."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import capturedLogs

from bioproxy.prompts import templates
from bioproxy.prompts.template_reading import Reading
from bioproxy.runtime.errors import TemplateError
from tests.prompts.test_template_poller import PollerTest
from tests.support.world import logged


class Trouble(PollerTest):
    """Files that cannot be read, and readings that end late or fail."""

    def test_template(self) -> None:
        """`read_current` fails with the template's problem, and works again as soon as the problem is gone."""

        def away() -> None:
            self.path.unlink(missing_ok=True)

        def folder() -> None:
            self.path.mkdir()

        def pipe() -> None:
            self.path.rmdir()
            os.mkfifo(self.path)

        def huge() -> None:
            self.path.unlink()
            with self.path.open("wb") as file:
                file.truncate(templates.MAX_FILE + 1)

        good = "fine <{message}>"
        for spoil, reason in (
            (away, "No such file"),
            (folder, "Is a directory"),
            (pipe, "not a regular file"),
            (huge, "larger than 64 MiB"),
            (lambda: self.path.write_bytes("fine <{message}> ü".encode()[:-1]), "not UTF-8 at byte 17"),
            (lambda: self.path.write_text("no place"), "no <{message}>"),
        ):
            spoil()
            look = Deferred.fromCoroutine(self.poller.read_current(self.poller.templates["code"]))
            self.assertIn(reason, str(self.failureResultOf(look, TemplateError).value))
            self.assertIsNone(self.poller.text("code"))
        self.path.write_text(good)
        look = Deferred.fromCoroutine(self.poller.read_current(self.poller.templates["code"]))
        self.assertEqual("fine x", self.successResultOf(look).fill("x"))

    def test_new_exceptions(self) -> None:
        """Each caller gets an exception of its own, because raising adds a traceback to the exception object."""
        self.path.unlink()
        looks = [Deferred.fromCoroutine(self.poller.read_current(self.poller.templates["code"])) for _ in range(2)]
        first, second = (self.failureResultOf(look, TemplateError).value for look in looks)
        self.assertIsNot(first, second)

    def test_reported_once(self) -> None:
        """Each error is logged and counted when it appears and when it returns, but not at each poll."""
        with capturedLogs() as events:
            for content, expected in (
                ("one <{missing.txt}> <{message}>", 1),
                ("one <{missing.txt}> <{message}>!", 1),
                ("two <{missing.txt}> <{gone.txt}> <{message}>", 2),
                ("no place", 3),
                ("fine <{message}>", 3),
                ("no place", 4),
            ):
                self.path.write_text(content)
                self.poll()
                self.poll()
                self.assertEqual(expected, self.errors())
        warnings = [line for line in logged(events) if line.startswith("template code: ")]
        self.assertEqual(4, len(warnings))
        self.assertEqual("template code: missing.txt: No such file or directory", warnings[0])

    def test_one_bad_template(self) -> None:
        """A template that is invalid, or on a disk that never answers, does not delay the others."""
        stuck: Deferred[Reading] = Deferred()
        bad = self.folder / "missing.txt"

        def in_thread(work: Callable[[], Reading]) -> Deferred[Reading]:
            # The second template's disk never answers.
            calls.append(1)
            return stuck if len(calls) == 2 else maybeDeferred(work)

        calls: list[int] = []
        self.poller = self.poller_for({"@bad": bad, "@stuck": bad, "@code": self.path}, in_thread)
        polling = Deferred.fromCoroutine(self.poller.poll())
        self.assertNoResult(polling)
        self.assertEqual(["bad", "code"], sorted(self.poller.readings))
        self.assertIsNotNone(self.poller.text("code"))
        polling.addErrback(lambda _: None)

    def test_disk_hangs_later(self) -> None:
        """A disk that stops answering does not delay templates on other disks, and occupies a single thread."""
        names = ("@a", "@b", "@code", "@d")
        self.poller = self.poller_for({name: self.path for name in names})
        self.poll()
        self.let_settle()
        self.poll()
        # As if two of them were on another disk.  There is only one here.
        for name in ("a", "b"):
            reading = self.poller.readings[name]
            elsewhere = {path: stamp and (-1, *stamp[1:]) for path, stamp in reading.stamps.items()}
            self.poller.readings[name] = replace(reading, stamps=elsewhere)
        visits: list[Callable[[], Any]] = []

        def in_thread(work: Callable[[], Any]) -> Deferred[Any]:
            visits.append(work)
            return Deferred() if len(visits) == 1 else maybeDeferred(work)

        self.poller._in_thread = in_thread
        self.include.write_text("changed meanwhile")
        polling = Deferred.fromCoroutine(self.poller.poll())
        self.assertNoResult(polling)
        for name, expected in {"a": "part one", "b": "part one", "code": "changed", "d": "changed"}.items():
            text = self.poller.text(name)
            self.assertIn(expected, text.prefix if text else "")
        # One visit hangs, one finds out that two templates changed, and two read these.
        self.assertEqual(4, len(visits))
        polling.addErrback(lambda _: None)
        polling.cancel()

    def test_removed_meanwhile(self) -> None:
        """A template that a reload removes, while its files are looked at, is not read, and the others are."""
        self.poller = self.poller_for({"@gone": self.path, "@code": self.path})
        self.poll()
        self.let_settle()
        self.poll()
        looks: list[Deferred[Any]] = []

        def in_thread(work: Callable[[], Any]) -> Deferred[Any]:
            if looks:
                return maybeDeferred(work)
            looks.append(Deferred())
            return looks[0].addCallback(lambda _: work())

        self.poller._in_thread = in_thread
        self.path.write_text("edited <{message}>")
        polling = Deferred.fromCoroutine(self.poller.poll())
        self.poller.set_templates([self.poller.templates["code"]])
        looks[0].callback(None)
        self.successResultOf(polling)
        self.assertEqual(["code"], list(self.poller.readings))
        text = self.poller.text("code")
        self.assertEqual("edited ", text and text.prefix)

    def test_bug(self) -> None:
        """`poll` fails with the exception of a bug in reading one template, after reading the others."""

        def in_thread(work: Callable[[], Reading]) -> Deferred[Reading]:
            calls.append(1)
            return fail(ZeroDivisionError()) if len(calls) == 1 else maybeDeferred(work)

        calls: list[int] = []
        self.poller = self.poller_for({"@bad": self.path, "@code": self.path}, in_thread)
        self.failureResultOf(Deferred.fromCoroutine(self.poller.poll()), ZeroDivisionError)
        self.assertEqual(["code"], list(self.poller.readings))

    def test_late_thread(self) -> None:
        """A request gets the newest text even if an older reading ends later, and the next poll corrects the latter."""
        waiting: list[tuple[Deferred[Reading], Reading]] = []

        def in_thread(work: Callable[[], Reading]) -> Deferred[Reading]:
            waiting.append((Deferred(), work()))
            return waiting[-1][0]

        def end() -> None:
            while waiting:
                done, reading = waiting.pop()
                done.callback(reading)

        self.poller = self.poller_for({"@code": self.path}, in_thread)
        early = Deferred.fromCoroutine(self.poller.poll())
        self.path.write_text("newer <{message}>")
        look = Deferred.fromCoroutine(self.poller.read_current(self.poller.templates["code"]))
        end()
        self.assertEqual("newer ", self.successResultOf(look).prefix)
        self.successResultOf(early)
        late = Deferred.fromCoroutine(self.poller.poll())
        end()
        self.successResultOf(late)
        text = self.poller.text("code")
        self.assertEqual("newer ", text and text.prefix)
