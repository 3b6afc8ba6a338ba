"""What the record knows of the uses of files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.logger import capturedLogs

from bioproxy.slot_files.record import PREFIX, SnapshotRecord, Uses
from bioproxy.slot_files.record_files import USES
from bioproxy.slot_files.snapshot import TEMPLATE
from tests.slot_files.test_record import CODE, STORY, RecordTest
from tests.support.record_files import block
from tests.support.world import logged


class Using(RecordTest):
    """Which files were used, and when."""

    def order(self, snapshots: SnapshotRecord) -> list[str]:
        """Return the names of the templates' files, least recently used first."""
        return [name for (name, _), _ in snapshots.least_recently_used(TEMPLATE)]

    def test_used(self) -> None:
        """Uses are counted with their time; saving is the first one, and does not count as a hit."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.put("story", PREFIX, STORY)
        self.assertEqual(Uses(0, CODE.saved_at, CODE.saved_at), snapshots.uses("code", PREFIX))
        self.assertEqual(["code", "story"], self.order(snapshots))
        snapshots.used("code", PREFIX)
        self.time += 1.5
        snapshots.used("code", PREFIX)
        snapshots.used("missing", PREFIX)
        self.assertIsNone(snapshots.uses("missing", PREFIX))
        expected = Uses(2, "2027-01-15T08:00:01.500+00:00", CODE.saved_at)
        for _ in range(2):
            self.assertEqual((expected, ["story", "code"]), (snapshots.uses("code", PREFIX), self.order(snapshots)))
            snapshots.flush_uses()
            snapshots = self.load()

    def test_replaced(self) -> None:
        """A new file counts as used when it was saved, and keeps the hits of the one before; a renamed one does not."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.used("code", PREFIX)
        snapshots.put("story", PREFIX, STORY)
        snapshots.put("code", PREFIX, replace(CODE, filename="code.new.bin", pinned=True))
        self.assertEqual(["code", "story"], self.order(snapshots))
        later = "2028-01-01T00:00:00+00:00"
        snapshots.put("code", PREFIX, replace(CODE, saved_at=later))
        self.assertEqual(["story", "code"], self.order(snapshots))
        self.assertEqual(Uses(1, later, CODE.saved_at), snapshots.uses("code", PREFIX))
        snapshots.drop("code")
        snapshots.put("code", PREFIX, CODE)
        self.assertEqual(Uses(0, CODE.saved_at, CODE.saved_at), snapshots.uses("code", PREFIX))

    def test_written_only_if_needed(self) -> None:
        """Nothing is written with a use, and nothing by a flush if nothing was used since the last one."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.flush_uses()
        snapshots.used("code", PREFIX)
        self.assertFalse((self.folder / USES).exists())
        snapshots.flush_uses()
        (self.folder / USES).unlink()
        snapshots.flush_uses()
        self.assertFalse((self.folder / USES).exists())

    def test_cannot_be_written(self) -> None:
        """Uses that cannot be written cost a line in the log, and nothing else."""
        snapshots = self.load()
        snapshots.put("code", PREFIX, CODE)
        snapshots.used("code", PREFIX)
        block(self.folder)
        with capturedLogs() as events:
            snapshots.flush_uses()
            snapshots.flush_uses()
        self.assertEqual(1, len(events))
        self.assertIn("cannot be written", logged(events)[0])

    def test_garbage(self) -> None:
        """Uses that are not understood are no worse than none."""
        self.load().put("code", PREFIX, CODE)
        uses = {"hits": 1, "last_used": CODE.saved_at, "created": CODE.saved_at}
        contents: list[Any] = [
            *(None, 1, [1], {"code.prefix": None}, {"code.prefix": [1]}, {"code.prefix": {}}),
            *({"code.prefix": {**uses, name: wrong}} for name, wrong in (("hits", "x"), ("last_used", "then"))),
            {"code.prefix": {**uses, "last_used": 5}},
        ]
        for content in contents:
            self.state.write(USES, content)
            snapshots = self.load()
            self.assertEqual(
                (CODE, Uses(0, CODE.saved_at, CODE.saved_at)), (snapshots.get("code"), snapshots.uses("code", PREFIX))
            )
