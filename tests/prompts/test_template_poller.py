"""Watching template files: real files, no threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import capturedLogs

from bioproxy.prompts import templates
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.prompts.template_reading import Reading
from bioproxy.prompts.templates import Template
from bioproxy.runtime.metrics import Metrics
from tests.support.world import WorldTest


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

    def test_one_visit(self) -> None:
        """Templates that did not change are looked at in one visit to a thread, however many there are."""
        visits: list[Callable[[], Any]] = []

        def in_thread(work: Callable[[], Any]) -> Deferred[Any]:
            visits.append(work)
            return maybeDeferred(work)

        self.poller = self.poller_for({f"@t{number}": self.path for number in range(30)}, in_thread)
        self.poll()
        self.let_settle()
        self.poll()
        self.assertEqual(60, len(visits))  # each was read, and then once more to be sure
        self.poll()
        self.assertEqual(61, len(visits))
        self.include.write_text("part two")
        self.assertEqual("about part two: ", self.text("t7"))
        self.assertEqual(92, len(visits))

    def test_edits(self) -> None:
        """Each kind of edit is noticed at the next poll, of the template and of its includes."""

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
            # Nothing but the stamps can tell of the edit: until its reading is settled, a template is read each time.
            self.let_settle()
            self.poll()
            self.assertTrue(self.poller.readings["code"].settled)
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
