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
    """A poller with one template, ``@code``, that includes ``part.txt``."""

    def setUp(self) -> None:
        """Write the files and poll once."""
        super().setUp()
        self.include = self.template("part", "part one")
        self.path = self.template("code", "about <{part.txt}>: <{message}>")
        self.metrics = Metrics()
        self.poller = self.poller_for({"@code": self.path})
        self.poll()

    def poller_for(self, files: dict[str, Path], in_thread: Callable[..., Any] = maybeDeferred) -> TemplatePoller:
        """Return a poller for these files, by prefix."""
        return TemplatePoller([Template.of(prefix, path) for prefix, path in files.items()], in_thread, self.metrics)

    def poll(self) -> None:
        """Poll all templates; must finish at once."""
        self.successResultOf(Deferred.fromCoroutine(self.poller.poll()))

    def text(self, name: str = "code") -> str:
        """Poll, and return the template's prefix text or a description of its error."""
        self.poll()
        reading = self.poller.readings[name]
        return reading.text.prefix if reading.text is not None else f"error: {reading.error}"

    def errors(self, name: str = "code") -> float:
        """Return the number of template errors in the metrics."""
        return self.metrics.registry.get_sample_value("bioproxy_template_errors_total", {"template": name}) or 0.0

    def count_reads(self) -> list[str]:
        """Return a list to which the name of each template is appended when it is read from now on."""
        reads: list[str] = []
        real = templates.read

        def read(template: Template) -> templates.TemplateText:
            reads.append(template.name)
            return real(template)

        self.patch(templates, "read", read)
        return reads

    def let_settle(self) -> None:
        """Advance the monotonic clock so far that equal stamps prove that a file is unchanged."""
        before = time.monotonic
        self.patch(time, "monotonic", lambda: before() + 60)


class Compared(str):
    """A string that counts how often strings are compared with it."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Compared.comparisons += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


class Changes(PollerTest):
    """Which changes are noticed, and which readings are saved."""

    def test_many_problems(self) -> None:
        """Finding out whether a problem is new does not compare it with each earlier problem."""

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
        """Unchanged files are not read again, once their stamps are old enough to prove that they are unchanged."""
        reads = self.count_reads()
        self.poll()
        self.assertEqual(["code"], reads)  # just written, so it is read once more
        self.let_settle()
        self.poll()
        self.poll()
        self.poll()
        self.assertEqual(["code"] * 2, reads)

    def test_edits(self) -> None:
        """Each kind of edit is noticed at the next poll, of the template and of its includes."""
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
        """A file is watched as soon as it is included, and no longer when it is not."""
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
        """A new include that changes between `read` and `stat` is read once more."""
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
        """An edit that keeps the size, and follows so fast that the times stay the same, is noticed."""
        for number in range(100):
            self.include.write_text(f"{number:08}")
            self.assertEqual(f"about {number:08}: ", self.text())

    def test_coarse_dates(self) -> None:
        """The same with file times of two seconds' resolution, however far the two wall clocks are apart."""
        real, wall = templates.stamp, time.time

        def coarse(path: Path) -> templates.FileStamp:
            found = real(path)
            return found and (*found[:3], *(date - date % 2_000_000_000 for date in found[3:]))

        self.patch(templates, "stamp", coarse)
        for ahead in (0, 86400, -86400):
            self.patch(time, "time", lambda ahead=ahead: wall() + ahead)
            self.test_same_size_at_once()

    def test_old_date(self) -> None:
        """An edit is noticed even if the file's time is set back afterwards, as `rsync -t` does."""
        self.let_settle()
        self.poll()
        before = self.include.stat()
        self.include.write_text("PART ONE")
        os.utime(self.include, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertEqual("about PART ONE: ", self.text())


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
