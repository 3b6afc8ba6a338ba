"""What an answer tells of whether preparing the slot has helped."""

from __future__ import annotations

from bioproxy.slot.parking import Parking
from bioproxy.slot.preparer import Prepared
from bioproxy.slot.prompt_use import AnswerJudge
from bioproxy.slot_files.record import CHAT, PREFIX
from tests.support.world import KEY, SlotTest
from tests.support.world import PREFIX as TOKENS

RESTORE = "/slots/0?action=restore"

FIRST, SECOND = ("first",), ("second",)
"""Two conversations, each with one message so far."""


class Judging(SlotTest):
    """What answers tell of whether it helped."""

    def setUp(self) -> None:
        """Make what judges."""
        super().setUp()
        built = self.built
        parking = Parking(built.llama, built.content, built.files, built.metrics)
        self.answers = AnswerJudge(built.content, built.reuse_check, parking, built.metrics)

    def restored(self) -> Prepared:
        """Have the template be restored."""
        self.built.content.forget()
        return self.prepare()

    def judge(self, prepared: Prepared, reused: int) -> None:
        """Judge an answer."""
        self.answers.compare("code", prepared, reused)

    def test_helped(self) -> None:
        """A restore that helped changes nothing."""
        for _ in range(3):
            self.judge(self.restored(), len(TOKENS) - 1)
        self.assertEqual((0, None), (self.count("restores", "ineffective"), self.built.reuse_check.trouble))
        self.assertFalse(self.slot.facts.is_doubted("code"))

    def test_did_not_help(self) -> None:
        """One that did not is counted, and nothing is restored for its template before that was looked at again."""
        self.judge(self.restored(), 0)
        self.assertEqual(1, self.count("restores", "ineffective"))
        self.assertEqual((True, False), (self.slot.facts.is_doubted("code"), self.slot.facts.is_doubted("story")))
        self.assertIsNone(self.slot.facts.saved("code", KEY))
        self.assertEqual(Prepared("cold", "ineffective"), self.restored())
        self.built.reuse_check.tokens_compared("code", same=True)
        self.assertEqual(
            (False, True), (self.slot.facts.is_doubted("code"), self.slot.facts.saved("code", KEY) is not None)
        )
        self.assertEqual("restored", self.restored().cache)

    def test_twice(self) -> None:
        """After two in a row nothing is restored any more, and the reason is told, until llama-server restarts."""
        for _ in range(2):
            self.assertIsNone(self.built.reuse_check.trouble)
            self.judge(self.restored(), 7)
            self.built.reuse_check.tokens_compared("code", same=True)
        self.assertIn(f"of {len(TOKENS)} tokens restored llama-server reused 7", str(self.built.reuse_check.trouble))
        before = len(self.server.requests)
        self.assertEqual(Prepared("cold", "ineffective"), self.restored())
        self.assertNotIn(RESTORE, self.asked_since(before))
        self.assertEqual(2, self.count("restores", "ineffective"))
        self.server.restart()
        self.run_now(self.built.watch.look)
        self.assertEqual("restored", self.restored().cache)

    def test_helped_in_between(self) -> None:
        """One that helped in between shows that they do."""
        for reused in (0, len(TOKENS), 0):
            self.judge(self.restored(), reused)
            self.built.reuse_check.tokens_compared("code", same=True)
        self.assertIsNone(self.built.reuse_check.trouble)

    def test_other_tokens(self) -> None:
        """Where the chat template makes other tokens now, at midnight perhaps, it was not the restoring that failed."""
        for _ in range(3):
            self.judge(self.restored(), 0)
            self.built.reuse_check.tokens_compared("code", same=False)
        self.built.reuse_check.tokens_compared("code", same=True)  # nothing was doubted
        self.assertIsNone(self.built.reuse_check.trouble)

    def test_doubt_from_before(self) -> None:
        """What did not help in another process of llama-server, with other flags perhaps, says nothing of this one."""
        for name in ("code", "story"):
            self.answers.compare(name, Prepared("restored", promised=1000, source=PREFIX), 0)
        self.server.restart()
        self.run_now(self.built.watch.look)
        for name in ("code", "story"):
            self.built.reuse_check.tokens_compared(name, same=True)
        self.assertIsNone(self.built.reuse_check.trouble)

    def test_conversation_did_not_help(self) -> None:
        """Conversations that do not help, twice in a row, say nothing of templates."""
        for _ in range(2):
            self.assertTrue(self.built.reuse_check.conversations)
            self.converse(*FIRST)
            self.run_now(self.built.saver.save_if_due)
            self.evaluate([1, 2, 3])
            prepared = self.prepare(KEY, *FIRST)
            self.assertEqual(CHAT, prepared.source)
            self.judge(prepared, 0)
        self.assertEqual((False, None), (self.built.reuse_check.conversations, self.built.reuse_check.trouble))
        self.assertFalse(self.slot.facts.is_doubted("code"))

    def test_conversation_is_counted(self) -> None:
        """A restored conversation that did not help is counted as any other file, and one that did is not."""
        for reused in (1000, 0):
            self.judge(Prepared("restored", promised=1000, source=CHAT), reused)
        self.assertEqual(1, self.count("restores", "ineffective"))

    def test_conversations_no_more(self) -> None:
        """Then a question gets the template instead, and no conversation is saved, until llama-server restarts."""
        self.converse(*FIRST)
        self.run_now(self.built.saver.save_if_due)
        for _ in range(2):
            self.built.reuse_check.conversation_restored(False)
        self.evaluate([1, 2, 3])
        prepared = self.prepare(KEY, *FIRST)
        self.assertEqual(("restored", PREFIX, TOKENS), (prepared.cache, prepared.source, self.server.tokens))
        self.converse(*SECOND, grown=900)
        self.assertFalse(self.built.saver.due())
        self.server.restart()
        self.run_now(self.built.watch.look)
        self.assertEqual(CHAT, self.prepare(KEY, *FIRST).source)

    def test_not_restored_is_not_judged(self) -> None:
        """What was cold, or hot with nothing behind it, promised nothing."""
        for _ in range(3):
            self.judge(Prepared("cold", "first"), 0)
            self.judge(self.prepare(), 0)
        self.assertEqual((None, True), (self.built.reuse_check.trouble, self.built.reuse_check.goes_back))
        self.assertEqual(0, self.count("restores", "ineffective"))

    def test_gone_back(self) -> None:
        """Hot with another conversation behind it shows whether the model can go back; no restore is blamed for it."""
        self.converse(*FIRST, grown=100)
        prepared = self.prepare(KEY, *SECOND)
        self.judge(prepared, len(TOKENS))
        self.assertTrue(self.built.reuse_check.goes_back)
        self.judge(prepared, 0)
        self.assertEqual((False, None), (self.built.reuse_check.goes_back, self.built.reuse_check.trouble))
        self.assertEqual((0, False), (self.count("restores", "ineffective"), self.slot.facts.is_doubted("code")))

    def test_conversation_still_counts(self) -> None:
        """What a doubted file has of the tokens counts as saved: a conversation has not grown by that."""
        self.judge(self.restored(), 0)
        self.converse(*FIRST, grown=100)
        self.assertEqual(100, self.built.content.unsaved_tokens())

    def test_kept_counts_as_saved(self) -> None:
        """So does what the conversation's file has of it, if it is the same conversation."""
        self.converse(*FIRST)
        self.run_now(self.built.saver.save_if_due)
        for chain, unsaved in ((FIRST, 20), ((*FIRST, "answer", "more"), 20), (SECOND, 320)):
            self.converse(*chain, grown=320)
            self.assertEqual(unsaved, self.built.content.unsaved_tokens(), chain)

    def test_nothing_recorded(self) -> None:
        """Where the template has no file nothing is promised by what the slot holds."""
        self.files.discard(("code", PREFIX))
        self.converse(*FIRST, grown=100)
        self.assertEqual(Prepared("hot"), self.prepare(KEY, *SECOND))
