"""From a file to the slot: what comes of it is counted, and a bad file is forgotten."""

from __future__ import annotations

from dataclasses import replace

from bioproxy.runtime.errors import UpstreamError
from bioproxy.slot_files.record import PREFIX
from tests.support.slot_files import SlotFilesTest
from tests.support.world import PREFIX as TOKENS

RESTORE = "/slots/0?action=restore"


class Loading(SlotFilesTest):
    """Files that are not what they should be, or are it."""

    def load(self) -> bool:
        """Restore the file."""
        entry = self.recorded()
        return self.run_now(lambda: self.files.load("code", PREFIX, entry))

    def dropped(self, result: str) -> None:
        """Check that the file was of no use, counted as `result`, and is forgotten."""
        self.assertEqual((1, 0), (self.count("restores", result), self.count("restores", "ok")))
        self.assertIsNone(self.built.snapshots.get("code"))

    def test_loaded(self) -> None:
        """A good one is in the slot then, counted with its bytes, and stays recorded."""
        self.evaluate([1, 2, 3])
        self.assertTrue(self.load())
        self.assertEqual(TOKENS, self.server.tokens)
        self.assertEqual(1, self.count("restores", "ok"))
        self.assertEqual(10 * len(TOKENS), self.built.sample("slot_bytes_total", direction="restored"))
        self.recorded()

    def test_forgotten(self) -> None:
        """A file that was forgotten or replaced since it was chosen is not read; the new one stays recorded."""
        chosen = self.recorded()
        newer = replace(chosen, tokens=chosen.tokens + 1)
        for known in (newer, None):
            if known is not None:
                self.built.snapshots.put("code", PREFIX, known)
            else:
                self.files.forget("code", PREFIX)
            before = len(self.server.requests)
            self.assertFalse(self.run_now(lambda: self.files.load("code", PREFIX, chosen)))
            self.assertEqual([], self.asked_since(before))
            self.assertEqual(known, self.built.snapshots.get("code"))

    def test_missing(self) -> None:
        """A file that llama-server does not have."""
        self.server.files = {}
        self.assertFalse(self.load())
        self.dropped("missing")

    def test_switched_off(self) -> None:
        """A llama-server that runs without slot files now."""
        self.server.files = None
        self.assertFalse(self.load())
        self.dropped("refused")

    def test_wrong_count(self) -> None:
        """A file with another number of tokens than were saved."""
        assert self.server.files is not None
        self.server.files["code.bin"] = TOKENS[:-1]
        self.assertFalse(self.load())
        self.dropped("failed")

    def test_breaking(self) -> None:
        """A file that llama-server seems to die of is not tried again."""
        entry = self.recorded()
        self.server.pause_at = {RESTORE}
        loading = self.built.start(lambda: self.files.load("code", PREFIX, entry))
        self.server.break_off()
        self.built.settle()
        self.failureResultOf(loading, UpstreamError)
        self.dropped("failed")
