"""What counts as a use of a slot file: a user's request that began with it, at the time of that request."""

from __future__ import annotations

from bioproxy.slot_files.record import PREFIX
from tests.support.world import KEY, SlotTest


class FileUsesTest(SlotTest):
    """The uses of the template's file."""

    def hits(self) -> int:
        """Return how often the file was used."""
        uses = self.built.snapshots.uses("code", PREFIX)
        return 0 if uses is None else uses.hits

    def test_warmups_do_not_count(self) -> None:
        """A file that a warm-up restores is not used by that: nobody has asked for its prompt."""
        self.evaluate([1, 2, 3])
        self.assertEqual(self.prepare().cache, "restored")
        self.assertEqual(self.hits(), 0)

    def test_requests_count(self) -> None:
        """A file that is restored for a conversation is used."""
        self.evaluate([1, 2, 3])
        self.assertEqual(self.prepare(KEY, "question").cache, "restored")
        self.assertEqual(self.hits(), 1)
