"""Templates: reading and filling them, and detecting changes."""

from __future__ import annotations

import itertools
import os
import re
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts import templates
from bioproxy.prompts.digests import digest
from bioproxy.prompts.templates import Template, TemplateText
from bioproxy.runtime.errors import TemplateError
from tests.support.folders import FolderTest


class Reading(FolderTest):
    """`read`, with files in a temporary folder."""

    def read(self, content: str | bytes) -> TemplateText:
        """Return the text of a template file with this content."""
        path = self.folder / "code.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return templates.read(Template.of("@code", path))

    def refused(self, path: Path) -> str:
        """Return the reason why a file cannot be read."""
        with self.assertRaises(ValueError) as caught:
            templates.read_file(path)
        return str(caught.exception)

    def test_fill(self) -> None:
        """The message is put into each of its places; everything else stays, including line ends and white space."""
        for source, filled in {
            "<{message}>": "Q",
            "a <{message}>": "a Q",
            "<{message}> z": "Q z",
            "a\r\n\t<{message}>\n<{message}>\n": "a\r\n\tQ\nQ\n",
            "<{message}><{message}>": "QQ",
            "é <{message}> 語": "é Q 語",
            "<{ not closed <{message}>": "<{ not closed <{message}>",
        }.items():
            if source != filled:
                self.assertEqual(filled, self.read(source).fill("Q"), source)

    def test_prefix(self) -> None:
        """The prefix text ends at the first place of the message."""
        text = self.read("a <{message}> b <{message}> c")
        self.assertEqual(("a ", " b ", " c"), text.parts)
        self.assertEqual("a ", text.prefix)
        self.assertEqual("", self.read("<{message}> b").prefix)

    def test_includes(self) -> None:
        """Includes are expanded before and behind the message; relative paths start at the template's folder."""
        (self.folder / "sub").mkdir()
        one, two = self.template("one", "1"), self.template("sub/two", "2")
        text = self.read(f"<{{one.txt}}><{{sub/two.txt}}><{{message}}><{{{one}}}><{{sub/../one.txt}}>")
        self.assertEqual(("12", "11"), text.parts)
        self.assertEqual((one, two, self.folder / "sub/../one.txt"), text.includes)
        self.assertEqual((), text.errors)

    def test_home(self) -> None:
        """A `~` in an include is the home folder."""
        self.patch(os, "environ", {"HOME": str(self.folder)})
        self.template("one", "1")
        self.assertEqual("1Q", self.read("<{~/one.txt}><{message}>").fill("Q"))

    def test_one_pass(self) -> None:
        """The texts of includes and messages are not searched for places."""
        self.template("one", "<{message}> <{two.txt}>")
        self.template("two", "2")
        text = self.read("<{one.txt}>|<{message}>|")
        self.assertEqual(("<{message}> <{two.txt}>|", "|"), text.parts)
        self.assertEqual([self.folder / "one.txt"], list(text.includes))
        for message in ("<{message}>", "<{two.txt}>", "<{/etc/passwd}>", "\\1 {0} %s $x"):
            self.assertEqual(f"<{{message}}> <{{two.txt}}>|{message}|", text.fill(message))

    def test_split_over_pieces(self) -> None:
        """Characters that look like a place only together with an include are not a place."""
        self.template("half", "<{mess")
        self.assertEqual("<{message}>|Q", self.read("<{half.txt}>age}>|<{message}>").fill("Q"))

    def test_include_that_cannot_be_read(self) -> None:
        """An unreadable include leaves its path and the reason in the text and in `errors`; the rest works."""
        self.template("bad", "")
        (self.folder / "bad.txt").write_bytes(b"ab\xff")
        for path, reason in {
            "gone.txt": "No such file or directory",
            "bad.txt": "not UTF-8 at byte 2",
            ".": "Is a directory",
            "": "Is a directory",
            "bad.txt/x": "Not a directory",
            "a\0b": "embedded null byte",
            "/dev/null": "not a regular file",
            "x" * 300: "File name too long",
            " message ": "No such file or directory",
        }.items():
            text = self.read(f"a <{{{path}}}> <{{message}}>")
            self.assertEqual(f"a [Error reading {path}: {reason}] ", text.prefix)
            self.assertEqual((f"{path}: {reason}",), text.errors)
            self.assertEqual((self.folder / path,), text.includes)

    def test_include_of_nobody(self) -> None:
        """The home folder of an unknown user is an error like any other."""
        text = self.read("<{~nobody-of-this-name/x}> <{message}>")
        self.assertTrue(text.prefix.startswith("[Error reading ~nobody-of-this-name/x: "), text.prefix)
        self.assertEqual(1, len(text.errors))

    def test_template_that_cannot_be_read(self) -> None:
        """A template that is missing, a folder, not UTF-8, or without a message is an error with its name and path."""
        for content, reason in {
            b"\xff": "not UTF-8 at byte 0",
            b"": "no <{message}>",
            b"<{ message}>": "no <{",
        }.items():
            with self.assertRaises(TemplateError) as caught:
                self.read(content)
            self.assertIn(f"template code: {self.folder / 'code.txt'}: {reason}", str(caught.exception))
        for path, reason in {self.folder: "Is a directory", self.folder / "x": "No such file or directory"}.items():
            with self.assertRaises(TemplateError) as caught:
                templates.read(Template.of("@code", path))
            self.assertEqual(f"template code: {path}: {reason}", str(caught.exception))

    def test_byte_order_mark(self) -> None:
        """A byte-order mark is dropped in the template and in an include."""
        self.template("one", "\ufeff1")
        self.assertEqual("1Q", self.read("\ufeff<{one.txt}><{message}>").fill("Q"))

    def test_many_includes(self) -> None:
        """Reading takes linear time: four times as many includes take about four times as long, not sixteen."""
        self.template("one", "1")

        def effort(includes: int) -> float:
            source = ("x" * 16_000 + "<{one.txt}>") * includes + "<{message}>"
            template = Template.of("@code", self.template("code", source))
            took = []
            for _ in range(3):
                began = time.thread_time()
                self.assertEqual(16_001 * includes, len(templates.read(template).prefix))
                took.append(time.thread_time() - began)
            return min(took)

        self.assertLess(effort(1000), 9 * effort(250))

    def test_too_large(self) -> None:
        """A file of exactly the largest size is read, and one with a byte more is refused."""
        self.patch(templates, "MAX_FILE", 1 << 20)
        path = self.template("large", "x" * (1 << 20))
        self.assertEqual(1 << 20, len(templates.read_file(path)))
        path.write_text("x" * ((1 << 20) + 1))
        self.assertEqual("larger than 1 MiB", self.refused(path))

    def test_nothing_stays_open(self) -> None:
        """All files are closed again, even those that cannot be read: a poller runs for months."""
        os.mkfifo(self.folder / "pipe")
        for path in (self.template("one", "1"), self.folder / "gone", self.folder / "pipe", self.folder):
            before = os.listdir("/dev/fd")
            for _ in range(3):
                try:
                    templates.read_file(path)
                except ValueError:
                    continue
            self.assertEqual(len(before), len(os.listdir("/dev/fd")), path)


class Counted(str):
    """A string that counts the characters that `find` has searched."""

    searched = 0

    def find(self, what: str, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        """Search as `str.find` does, and count."""
        stop = len(self) if end is None else end
        found = super().find(what, start, stop)
        self.searched += (stop if found < 0 else found + len(what)) - start
        return found


class Splitting(SynchronousTestCase):
    """`split`."""

    @given(st.text(alphabet="<{}>\n\r\u2028a", max_size=40))
    def test_regular_expression(self, source: str) -> None:
        """The result is that of the regular expression that defines a place."""
        self.assertEqual(re.split(r"<\{(.*?)\}>", source), list(templates.split(source)))

    def test_all_short(self) -> None:
        """The same for all texts of up to six of the characters that matter."""
        for size in range(7):
            for each in itertools.product("<{}>\n", repeat=size):
                source = "".join(each)
                self.assertEqual(re.split(r"<\{(.*?)\}>", source), list(templates.split(source)), source)

    def test_effort(self) -> None:
        """Each character is searched a few times at most, however often something looks like a place."""
        for unit in ("<{", "<{\n", "}>", "<{}>", "<{a}>", "<{\n}>", "<{<{}>", "}><{", "a", "<", "{\n<"):
            for count in (1, 1000, 50_000):
                for tail in ("", "}>", "\n}>", "<{"):
                    source = Counted(unit * count + tail)
                    pieces = list(templates.split(source))
                    self.assertLessEqual(source.searched, 4 * len(source), (unit, count, tail))
                    self.assertEqual(1, len(pieces) % 2)


class Changes(FolderTest):
    """Digests and stamps."""

    def test_digests(self) -> None:
        """A text has a digest of all parts and one of its prefix, which depend on nothing else."""
        text = TemplateText(("a", "b"), (), ())
        self.assertEqual((digest("a", "b"), digest("a")), (text.digest, text.prefix_digest))
        same = TemplateText(("a", "b"), (Path("x"),), ("an error",))
        self.assertEqual((text.digest, text.prefix_digest), (same.digest, same.prefix_digest))
        behind = TemplateText(("a", "c"), (), ())
        self.assertEqual((False, True), (text.digest == behind.digest, text.prefix_digest == behind.prefix_digest))

    def test_stamp(self) -> None:
        """A stamp stays the same for an unchanged file, and changes with content, time and inode."""
        path = self.template("one", "1")
        first = templates.stamp(path)
        self.assertEqual(first, templates.stamp(path))
        stamps = {first}
        path.write_text("12")
        stamps.add(templates.stamp(path))
        os.utime(path, (1, 1))
        stamps.add(templates.stamp(path))
        other = self.template("two", "12")
        os.utime(other, (1, 1))
        other.replace(path)
        stamps.add(templates.stamp(path))
        path.unlink()
        stamps.add(templates.stamp(path))
        self.assertEqual(5, len(stamps))

    def test_stamp_of_nothing(self) -> None:
        """The stamp of a missing file is `None`."""
        self.assertIsNone(templates.stamp(self.folder / "gone"))
        self.assertIsNone(templates.stamp(Path("a\0b")))
