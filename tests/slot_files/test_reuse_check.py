"""Whether restoring helps."""

from __future__ import annotations

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.slot_files.reuse_check import ReuseCheck, helped
from tests.support.world import logged


class Proving(SynchronousTestCase):
    """`ReuseCheck`."""

    def setUp(self) -> None:
        """Begin with nothing known."""
        self.reuse_check = ReuseCheck()

    def test_hope(self) -> None:
        """Until something else is known, restoring helps and the model goes back."""
        self.assertEqual((None, True), (self.reuse_check.trouble, self.reuse_check.goes_back))

    def test_enough(self) -> None:
        """Half of what was promised is enough: checkpoints lie a little before the end."""
        for promised, reused, expected in ((1000, 1000, True), (1000, 500, True), (1000, 499, False), (1000, 0, False)):
            self.assertEqual(expected, helped(promised, reused), reused)

    def test_two_in_a_row(self) -> None:
        """One restore that did not help is an accident; two in a row are enough, and are told once, with numbers."""
        self.reuse_check.did_not_help(1000, 0)
        self.reuse_check.helped()
        self.reuse_check.did_not_help(1000, 0)
        self.assertIsNone(self.reuse_check.trouble)
        with capturedLogs() as events:
            for reused in (14, 0):
                self.reuse_check.did_not_help(6000, reused)
        [line] = logged(events)
        self.assertIn("of 6000 tokens restored llama-server reused 14", line)
        self.assertIn("--ctx-checkpoints 0", line)
        self.assertIn(str(self.reuse_check.trouble), line)

    def test_stays(self) -> None:
        """What was found out stays, also if another one helps."""
        self.reuse_check.did_not_help(1000, 0)
        self.reuse_check.did_not_help(1000, 0)
        self.reuse_check.helped()
        self.assertIsNotNone(self.reuse_check.trouble)

    def test_goes_back(self) -> None:
        """A model that reuses little where the slot held more cannot go back; that says nothing about files."""
        self.reuse_check.went_back(1000, 500)
        self.assertTrue(self.reuse_check.goes_back)
        for _ in range(3):
            self.reuse_check.went_back(1000, 499)
        self.assertEqual((False, None), (self.reuse_check.goes_back, self.reuse_check.trouble))

    def test_conversations(self) -> None:
        """Two restored conversations in a row that did not help are enough to stop that, and only that."""
        expected = True, True, True, False, False
        for useful, wanted in zip((False, True, False, False, True), expected, strict=True):
            self.reuse_check.conversation_restored(useful)
            self.assertEqual(wanted, self.reuse_check.conversations)
        self.assertEqual((None, True), (self.reuse_check.trouble, self.reuse_check.goes_back))
        self.reuse_check.llama_restarted()
        self.assertTrue(self.reuse_check.conversations)
        self.reuse_check.conversation_restored(False)
        self.reuse_check.llama_restarted()
        self.reuse_check.conversation_restored(False)
        self.assertTrue(self.reuse_check.conversations)

    def test_anew(self) -> None:
        """The next process of llama-server gets a new chance: two strikes, again."""
        self.reuse_check.did_not_help(1000, 0)
        self.reuse_check.llama_restarted()
        self.reuse_check.did_not_help(1000, 0)
        self.assertIsNone(self.reuse_check.trouble)
        self.reuse_check.did_not_help(1000, 0)
        self.reuse_check.went_back(1000, 0)
        self.reuse_check.llama_restarted()
        self.assertEqual((None, True), (self.reuse_check.trouble, self.reuse_check.goes_back))
