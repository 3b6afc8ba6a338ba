"""Watching template files: real files, no threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import capturedLogs

from bioproxy.prompts import templates
from bioproxy.prompts.template_poller import Reading, TemplatePoller
from bioproxy.prompts.templates import Template
from bioproxy.runtime.errors import TemplateError
from bioproxy.runtime.metrics import Metrics
from tests.support.world import WorldTest, logged


class PollerTest(WorldTest):
    """One template, ``@code``, that includes ``part.txt``."""

    def setUp(self) -> None:
        """Write the files, and have them looked at once."""
        super().setUp()
        self.include = self.template("part", "part one")
        self.path = self.template("code", "about <{part.txt}>: <{message}>")
        self.metrics = Metrics()
        self.poller = self.poller_for({"@code": self.path})
        self.poll()

    def poller_for(self, files: dict[str, Path], in_thread: Callable[..., Any] = maybeDeferred) -> TemplatePoller:
        """Make a poller."""
        return TemplatePoller([Template.of(prefix, path) for prefix, path in files.items()], in_thread, self.metrics)

    def poll(self) -> None:
        """Have it look at all files."""
        self.successResultOf(Deferred.fromCoroutine(self.poller.poll()))

    def text(self, name: str = "code") -> str:
        """Poll, and return the text before the message, or what is wrong."""
        self.poll()
        reading = self.poller.readings[name]
        return reading.text.prefix if reading.text is not None else f"error: {reading.error}"

    def errors(self, name: str = "code") -> float:
        """Return how many errors were counted."""
        return self.metrics.registry.get_sample_value("bioproxy_template_errors_total", {"template": name}) or 0.0

    def count_reads(self) -> list[str]:
        """Return a list that each reading adds to from now on."""
        reads: list[str] = []
        real = templates.read

        def read(template: Template) -> templates.TemplateText:
            reads.append(template.name)
            return real(template)

        self.patch(templates, "read", read)
        return reads

    def let_settle(self) -> None:
        """Let so much time pass that the files' dates are beyond doubt."""
        before = time.monotonic
        self.patch(time, "monotonic", lambda: before() + 60)


class Compared(str):
    """A text that counts how often texts are compared with it."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Compared.comparisons += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


class Changes(PollerTest):
    """What changes, and what does not."""

    def test_many_problems(self) -> None:
        """Whether a problem is news is found without comparing it with each one that was there before."""

        def reading(beginning: str) -> Reading:
            problems = tuple(Compared(f"{beginning}{number}") for number in range(1000))
            return Reading(templates.TemplateText(("", ""), (), problems), None, {}, 0.0, True)

        template = self.poller.templates["code"]
        with capturedLogs() as events:
            self.poller._report(template, reading("old"), reading("old"))
            self.poller._report(template, reading("old"), reading("new"))
        self.assertEqual(1000, len(events))
        self.assertLess(Compared.comparisons, 10_000)

    def test_unchanged(self) -> None:
        """Files that did not change are not read again, once their dates are old enough to prove it."""
        reads = self.count_reads()
        self.poll()
        self.assertEqual(["code"], reads)  # just written: read once more
        self.let_settle()
        self.poll()
        self.poll()
        self.poll()
        self.assertEqual(["code"] * 2, reads)

    def test_edits(self) -> None:
        """Each kind of edit is noticed at the next look, of the template and of what it includes."""
        self.let_settle()

        def replaced() -> None:
            draft = self.template("draft", "swapped <{message}>")
            draft.replace(self.path)

        def relinked() -> None:
            self.path.unlink()
            self.path.symlink_to(self.template("other", "elsewhere <{message}>"))

        edits: list[tuple[Callable[[], object], str]] = [
            (lambda: None, "about part one: "),
            (lambda: self.include.write_text("part two"), "about part two: "),
            (lambda: self.path.write_text("ABOUT <{part.txt}>: <{message}>"), "ABOUT part two: "),
            (self.include.unlink, "ABOUT [Error reading part.txt: No such file or directory]: "),
            (lambda: self.include.write_text("back"), "ABOUT back: "),
            (replaced, "swapped "),
            (relinked, "elsewhere "),
            (lambda: self.path.write_text("through the link <{message}>"), "through the link "),
        ]
        for edit, expected in edits:
            edit()
            self.assertEqual(expected, self.text())
            text = self.poller.text("code")
            self.assertEqual(expected, text and text.prefix)

    def test_new_include(self) -> None:
        """A file that is included only since an edit is watched from then on, one that is no longer is not."""
        self.let_settle()
        new = self.template("new", "n1")
        self.path.write_text("now <{new.txt}> <{message}>")
        self.assertEqual("now n1 ", self.text())
        new.write_text("n2")
        self.assertEqual("now n2 ", self.text())
        self.let_settle()
        self.poll()
        reads = self.count_reads()
        self.include.write_text("nobody includes this now")
        self.poll()
        self.assertEqual([], reads)

    def test_new_include_changed_meanwhile(self) -> None:
        """An include that is new and changes between being read and being looked at is read once more."""
        self.let_settle()
        new = self.template("new", "n1")
        self.path.write_text("now <{new.txt}> <{message}>")
        real = templates.read

        def read_and_edit(template: Template) -> templates.TemplateText:
            text = real(template)
            new.write_text("n2")
            return text

        self.patch(templates, "read", read_and_edit)
        self.assertEqual("now n1 ", self.text())
        self.patch(templates, "read", real)
        self.assertEqual("now n2 ", self.text())

    def test_same_size_at_once(self) -> None:
        """An edit that keeps the size and follows so fast that the dates stay the same is noticed too."""
        for number in range(100):
            self.include.write_text(f"{number:08}")
            self.assertEqual(f"about {number:08}: ", self.text())

    def test_coarse_dates(self) -> None:
        """The same where files are dated to two seconds, however far our wall clock and theirs are apart."""
        real, wall = templates.stamp, time.time

        def coarse(path: Path) -> templates.FileStamp:
            found = real(path)
            return found and (*found[:3], *(date - date % 2_000_000_000 for date in found[3:]))

        self.patch(templates, "stamp", coarse)
        for ahead in (0, 86400, -86400):
            self.patch(time, "time", lambda ahead=ahead: wall() + ahead)
            self.test_same_size_at_once()

    def test_old_date(self) -> None:
        """A file whose date is put back after an edit, as `rsync -t` does, is noticed."""
        self.let_settle()
        self.poll()
        before = self.include.stat()
        self.include.write_text("PART ONE")
        os.utime(self.include, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertEqual("about PART ONE: ", self.text())


class Trouble(PollerTest):
    """Files that cannot be read."""

    def test_template(self) -> None:
        """What is wrong with the template is told by `look`, and over as soon as it is."""

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

    def test_errors_are_new(self) -> None:
        """An error that is raised again is another exception: one that was raised carries its traceback along."""
        self.path.unlink()
        looks = [Deferred.fromCoroutine(self.poller.read_current(self.poller.templates["code"])) for _ in range(2)]
        first, second = (self.failureResultOf(look, TemplateError).value for look in looks)
        self.assertIsNot(first, second)

    def test_told_once(self) -> None:
        """Each error is logged and counted when it comes up, and when it comes again, but not at each look."""
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
        """A template that is bad, or on a disk that never answers, does not keep the others from being read."""
        stuck: Deferred[Reading] = Deferred()
        bad = self.folder / "missing.txt"

        def in_thread(work: Callable[[], Reading]) -> Deferred[Reading]:
            # The second template's disk is the slow one.
            calls.append(1)
            return stuck if len(calls) == 2 else maybeDeferred(work)

        calls: list[int] = []
        self.poller = self.poller_for({"@bad": bad, "@stuck": bad, "@code": self.path}, in_thread)
        polling = Deferred.fromCoroutine(self.poller.poll())
        self.assertNoResult(polling)
        self.assertEqual(["bad", "code"], sorted(self.poller.readings))
        self.assertIsNotNone(self.poller.text("code"))
        polling.addErrback(lambda _: None)

    def test_bug(self) -> None:
        """A mistake of ours with one template is told by `poll`; the others have been read all the same."""

        def in_thread(work: Callable[[], Reading]) -> Deferred[Reading]:
            calls.append(1)
            return fail(ZeroDivisionError()) if len(calls) == 1 else maybeDeferred(work)

        calls: list[int] = []
        self.poller = self.poller_for({"@bad": self.path, "@code": self.path}, in_thread)
        self.failureResultOf(Deferred.fromCoroutine(self.poller.poll()), ZeroDivisionError)
        self.assertEqual(["code"], list(self.poller.readings))

    def test_late_thread(self) -> None:
        """A request gets the newest text even where an older look ends later, and the next look sets all right."""
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
