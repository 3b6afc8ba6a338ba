"""Which templates are looked at together, and which files are looked at."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts import templates
from bioproxy.prompts.template_reading import Reading, by_disk, changed_among, read_if_changed
from bioproxy.prompts.templates import FileStamp, Template, TemplateText
from tests.support.folders import FolderTest

TEXT = TemplateText(("a", ""), (), ())
"""Any text."""


def on_disks(*disks: int | None, settled: bool = True) -> Reading:
    """Return the reading of a template with a file on each of these devices; `None` is a missing file."""
    stamps: dict[Path, FileStamp] = {
        Path(f"file{number}"): None if disk is None else (disk, 1, 2, 3, 4) for number, disk in enumerate(disks)
    }
    return Reading(TEXT, None, stamps, 0.0, settled)


class Groups(SynchronousTestCase):
    """`by_disk`."""

    def test_same_disks(self) -> None:
        """Templates with files on the same disks are one group, however many files, and in whatever order."""
        readings = {"a": on_disks(1), "b": on_disks(1, 1), "c": on_disks(1, 2), "d": on_disks(2, 1), "e": on_disks(2)}
        groups, others = by_disk(readings, readings)
        self.assertEqual([["a", "b"], ["c", "d"], ["e"]], [list(group) for group in groups])
        self.assertEqual([], others)
        for group in groups:
            for name, reading in group.items():
                self.assertIs(readings[name], reading)

    def test_others(self) -> None:
        """A template that was never read, is not settled, or misses a file is in no group."""
        readings = {
            "new": on_disks(1, settled=False),
            "gap": on_disks(1, None),
            "fine": on_disks(1),
            "gone": on_disks(),
        }
        groups, others = by_disk(["unread", "new", "gap", "fine"], readings)
        self.assertEqual([["fine"]], [list(group) for group in groups])
        self.assertEqual(["unread", "new", "gap"], others)


class Looks(FolderTest):
    """`changed_among`, with files in a temporary folder."""

    def setUp(self) -> None:
        """Write three templates that include one file."""
        super().setUp()
        self.include = self.template("part", "part")
        self.group: dict[str, Reading] = {}
        for name in ("a", "b", "c"):
            source = "<{part.txt}><{message}>" if name != "c" else "<{message}>"
            self.group[name] = read_if_changed(Template.of(f"@{name}", self.template(name, source)), None)

    def test_names(self) -> None:
        """Those whose files have other stamps are named, and no others."""
        self.assertEqual([], changed_among(self.group))
        (self.folder / "b.txt").write_text("other <{message}>")
        self.assertEqual(["b"], changed_among(self.group))
        self.include.unlink()
        self.assertEqual(["a", "b"], changed_among(self.group))

    def test_shared_include(self) -> None:
        """A file is looked at once, however many templates include it."""
        looked_at: list[Path] = []
        real = templates.stamp

        def stamp(path: Path) -> FileStamp:
            looked_at.append(path)
            return real(path)

        self.patch(templates, "stamp", stamp)
        changed_among(self.group)
        self.assertEqual(["a.txt", "b.txt", "c.txt", "part.txt"], sorted(path.name for path in looked_at))
