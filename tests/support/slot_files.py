"""A slot with one file, for the tests of saving and loading."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from bioproxy.prompts.digests import prefix_digests
from bioproxy.slot_files.record import PREFIX, Snapshot, SnapshotRecord
from bioproxy.slot_files.save_failures import SaveFailed
from tests.support.world import KEY, SlotTest
from tests.support.world import PREFIX as TOKENS


class SlotFilesTest(SlotTest):
    """`SlotFiles`, with one file: that of ``@code``, whose tokens the slot still holds."""

    def saving(self, kind: str = PREFIX, tokens: int = len(TOKENS), name: str = "code") -> Deferred[Snapshot]:
        """Begin to save the slot."""
        return self.built.start(lambda: self.files.save(name, kind, KEY, tokens, prefix_digests(TOKENS)))

    def save(self, kind: str = PREFIX, tokens: int = len(TOKENS)) -> Snapshot:
        """Save the slot."""
        return self.successResultOf(self.saving(kind, tokens))

    def fails(self, saving: Deferred[Snapshot]) -> str:
        """Return why a save failed."""
        return str(self.failureResultOf(saving, SaveFailed).value)

    def recorded(self, kind: str = PREFIX) -> Snapshot:
        """Return the record, also as another process would read it."""
        entry = self.built.snapshots.get("code", kind)
        again = SnapshotRecord(self.built.state)
        again.load()
        self.assertEqual(sorted(self.built.snapshots.items()), sorted(again.items()))
        assert entry is not None
        return entry

    def is_restored(self, expected: list[int]) -> None:
        """Check that what is recorded can be restored, and is this."""
        self.evaluate([1, 2, 3])
        entry = self.recorded()
        self.assertTrue(self.run_now(lambda: self.files.load("code", PREFIX, entry)))
        self.assertEqual(expected, self.server.tokens)

    def another_model(self) -> None:
        """Have another model run, in another process; only its behaviour differs."""
        self.server.odds = [(1, -9.0)]
        self.server.restart()
