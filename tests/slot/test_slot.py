"""How the right thing gets into slot 0, and what is learned from it."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import CancelledError

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY, Key
from bioproxy.slot.known_content import ProbableContent
from bioproxy.slot.preparer import Prepared
from bioproxy.slot_files.record import CHAT, PREFIX
from tests.support.world import KEY, SlotTest
from tests.support.world import PREFIX as TOKENS

OTHER = USER_MESSAGE_ONLY.key(digest("something else "))


SHAPED = Key(KEY.text, "another shape")


SAVE, RESTORE = "/slots/0?action=save", "/slots/0?action=restore"


FIRST, SECOND = ("first",), ("second",)
"""Two conversations, each with one message so far."""


GOES_ON = Prepared("hot", promised=len(TOKENS), source=CHAT)


AGAIN = Prepared("hot", promised=len(TOKENS))
"""Hot for a conversation that goes on, and for a question that is asked once more."""


class Conversing(SlotTest):
    """Conversations: in the slot, in a file, or neither."""

    def keep(self, *chain: str, grown: int = 300) -> list[int]:
        """Have a conversation in the slot and keep it; return its tokens."""
        held = self.converse(*chain, grown=grown)
        self.run_now(self.built.saver.save_if_due)
        return held

    def chat_file(self) -> list[int] | None:
        """Return the tokens in the conversation's file."""
        return self.built.saved("code", CHAT)

    def test_in_the_slot(self) -> None:
        """A question that goes on with the conversation in the slot is hot: nothing is saved or restored for it."""
        held = self.converse(*FIRST)
        before = len(self.server.requests)
        self.assertEqual(GOES_ON, self.prepare(KEY, *FIRST, "answer", "more"))
        self.assertEqual(["/slots"], self.asked_since(before))
        self.assertEqual(held, self.server.tokens)

    def test_asked_again(self) -> None:
        """The same question once more goes on with it, too; an earlier turn or another conversation does not."""
        self.converse(*FIRST, "answer", "more")
        self.assertEqual(AGAIN, self.prepare(KEY, *FIRST, "answer", "more"))
        self.assertEqual(AGAIN, self.prepare(KEY, *FIRST))
        self.assertEqual("shape-changed", self.prepare(SHAPED, "in", "another", "shape").miss)

    def test_in_the_slot_and_in_the_file(self) -> None:
        """What is in the slot wins: it may have more."""
        self.keep(*FIRST)
        held = self.converse(*FIRST, "answer", "more", grown=320)
        before = len(self.server.requests)
        self.assertEqual(GOES_ON, self.prepare(KEY, *FIRST, "answer", "more", "answer", "yet more"))
        self.assertEqual((["/slots"], held), (self.asked_since(before), self.server.tokens))

    def test_in_the_file(self) -> None:
        """A question that goes on with the conversation in the file gets that, and then the slot has it."""
        kept = self.keep(*FIRST)
        self.evaluate([1, 2, 3])
        prepared = self.prepare(KEY, *FIRST, "answer", "more")
        self.assertEqual(("restored", len(kept)), (prepared.cache, prepared.promised))
        self.assertEqual(kept, self.server.tokens)
        self.assertEqual(0, self.built.content.unsaved_tokens())
        self.assertEqual(GOES_ON, self.prepare(KEY, *FIRST, "answer", "more"))

    def test_file_before_template_in_the_slot(self) -> None:
        """It gets that also where the slot has the template: the conversation is more."""
        kept = self.keep(*FIRST)
        for in_slot in (SECOND, ()):
            self.converse(*in_slot, grown=len(in_slot) * 100)
            self.assertEqual("restored", self.prepare(KEY, *FIRST, "answer", "more").cache)
            self.assertEqual((kept, kept), (self.server.tokens, self.chat_file()))

    def test_another_conversation(self) -> None:
        """On another conversation's template a question is hot: a model can go back to where both part."""
        self.slot.facts.tokens_of = lambda key: None
        held = self.converse(*FIRST, grown=100)
        before = len(self.server.requests)
        self.assertEqual(Prepared("hot", promised=len(TOKENS)), self.prepare(KEY, *SECOND))
        self.assertEqual((["/slots"], held), (self.asked_since(before), self.server.tokens))

    def test_cut_back(self) -> None:
        """Where the prompt's tokens are known, the slot is cut down to it: the answer is then that of a cold run."""
        self.slot.facts.tokens_of = lambda key: [*TOKENS[:-3], 7] if key == KEY else None
        self.converse(*FIRST, grown=100)
        self.assertEqual(Prepared("hot", promised=len(TOKENS)), self.prepare(KEY, *SECOND))
        self.assertEqual([*TOKENS[:-3], 7], self.server.tokens)
        # What a conversation goes on with stays.
        held = self.converse(*FIRST, grown=100)
        self.assertEqual(GOES_ON, self.prepare(KEY, *FIRST, "answer", "more"))
        self.assertEqual(held, self.server.tokens)

    def test_cut_back_in_vain(self) -> None:
        """A model that cannot go back is found out by that, and gets the prompt from its file, then and later."""
        self.slot.facts.tokens_of = lambda key: [*TOKENS[:-3], 7]
        self.server.goes_back = False
        self.converse(*FIRST, grown=100)
        self.assertEqual(("restored", TOKENS), (self.prepare(KEY, *SECOND).cache, self.server.tokens))
        self.converse(*FIRST, grown=100)
        before = len(self.server.requests)
        self.assertEqual("restored", self.prepare(KEY, *SECOND).cache)
        self.assertNotIn("/completion", self.asked_since(before))

    def test_another_conversation_is_kept(self) -> None:
        """What the slot holds is kept first if it is worth that: it is about to be lost."""
        held = self.converse(*FIRST)
        self.assertEqual("hot", self.prepare(KEY, *SECOND).cache)
        self.assertEqual(held, self.chat_file())

    def test_another_key(self) -> None:
        """So it is for any other template, text or shape that comes, and for one whose file is there."""
        for name, key in (("code", OTHER), ("code", SHAPED), ("story", KEY)):
            self.files.discard(("code", CHAT))
            held = self.converse(*FIRST)
            self.prepare(key, *SECOND, name=name)
            self.assertEqual(held, self.chat_file(), name)

    def test_conversations_on_two_templates(self) -> None:
        """Conversations on two templates in turn are both kept, each time that they have grown."""
        self.prepare(OTHER, name="story")
        story = self.converse(*SECOND, key=OTHER, name="story")
        self.prepare(KEY, *FIRST)
        code = self.converse(*FIRST, grown=310)
        self.assertEqual(("restored", story), (self.prepare(OTHER, *SECOND, name="story").cache, self.server.tokens))
        self.assertEqual(("restored", code), (self.prepare(KEY, *FIRST).cache, self.server.tokens))
        story = self.converse(*SECOND, "answer", "more", grown=900, key=OTHER, name="story")
        self.assertEqual(("restored", code), (self.prepare(KEY, *FIRST).cache, self.server.tokens))
        self.assertEqual(story, self.built.saved("story", CHAT))

    def test_two_conversations_on_one_template(self) -> None:
        """Both are kept: the last one has the template's name, and the other one that of its digest."""
        self.use(self.warm_world(state_dir=self.folder / "other", slot_save_path=self.slots_folder()))
        first = self.keep(*FIRST)
        second = self.converse(*SECOND, grown=900)
        self.assertEqual("restored", self.prepare(KEY, *FIRST).cache)
        self.assertEqual((first, second), (self.server.tokens, self.chat_file()))
        self.assertEqual("restored", self.prepare(KEY, *SECOND).cache)
        self.assertEqual(second, self.server.tokens)

    def test_file_gone(self) -> None:
        """Where the conversation's file turns out to be gone, the template's is restored."""
        self.keep(*FIRST)
        self.evaluate([1, 2, 3])
        assert self.server.files is not None
        del self.server.files["code.chat.bin"]
        prepared = self.prepare(KEY, *FIRST)
        self.assertEqual(("restored", len(TOKENS)), (prepared.cache, prepared.promised))
        self.assertEqual((TOKENS, None), (self.server.tokens, self.built.snapshots.get("code", CHAT)))

    def test_unusable_file(self) -> None:
        """A conversation's file that cannot be used is no reason to leave what the slot holds of the template."""
        self.use(self.warm_world(state_dir=self.folder / "other", slot_save_path=self.slots_folder()))
        self.slot.facts.tokens_of = lambda key: None
        self.keep(*FIRST)
        held = self.converse(*SECOND, grown=210)
        (self.slots_folder() / "code.chat.bin").unlink()
        self.assertEqual("hot", self.prepare(KEY, *FIRST).cache)
        self.assertEqual(held, self.server.tokens)

    def test_after_a_restart(self) -> None:
        """A conversation's file is as good for the next process of llama-server, of which no model is known yet."""
        kept = self.keep(*FIRST)
        self.server.restart()
        self.run_now(self.built.watch.look)
        self.assertFalse(self.files.model_known)
        prepared = self.prepare(KEY, *FIRST, "answer", "more")
        self.assertEqual(("restored", len(kept)), (prepared.cache, prepared.promised))
        self.assertEqual(kept, self.server.tokens)

    def test_other_model(self) -> None:
        """A conversation with another model is not gone on with."""
        self.keep(*FIRST)
        self.server.odds = [(token, odd - 1) for token, odd in self.server.odds]
        self.server.restart()
        self.assertEqual(Prepared("cold", "other-model"), self.prepare(KEY, *FIRST))
        self.assertIsNotNone(self.built.snapshots.get("code", CHAT))  # perhaps that model comes back

    def test_cannot_go_back(self) -> None:
        """A model that cannot go back gets the template from its file where another conversation is in the slot."""
        self.server.goes_back = False
        held = self.converse(*FIRST)
        self.built.reuse_check.went_back(len(TOKENS), 0)
        prepared = self.prepare(KEY, *SECOND)
        self.assertEqual(("restored", len(TOKENS)), (prepared.cache, prepared.promised))
        self.assertEqual((TOKENS, held), (self.server.tokens, self.chat_file()))
        self.assertEqual(Prepared("hot"), self.prepare(KEY, *SECOND))  # the template alone: it goes on from its end

    def test_cannot_go_back_but_go_on(self) -> None:
        """Its own conversation stays hot for it."""
        self.server.goes_back = False
        self.built.reuse_check.went_back(len(TOKENS), 0)
        held = self.converse(*FIRST)
        self.assertEqual(GOES_ON, self.prepare(KEY, *FIRST, "answer", "more"))
        self.assertEqual(held, self.server.tokens)

    def test_warmup_is_no_conversation(self) -> None:
        """A warm-up goes on with no conversation, but finds the template."""
        self.converse(*FIRST, grown=100)
        self.assertEqual(Prepared("hot", promised=len(TOKENS)), self.prepare())

    def test_brought_back(self) -> None:
        """What was used last is brought back: a conversation, or the template alone where that was not kept."""
        # In this order, as in a request: uses are compared by the second, and one may end between these two lines.
        self.files.used("code", PREFIX)
        kept = self.keep(*FIRST)
        for expected in (kept, TOKENS):
            self.evaluate([1, 2, 3])
            self.slot.llama_restarted()
            file = self.slot.to_bring_back(lambda name, kind, entry: True)
            assert file is not None
            self.run_now(partial(self.slot.bring_back, *file))
            self.assertEqual(expected, self.server.tokens)
            self.assertTrue(self.built.content.has(KEY))
            self.files.discard(("code", CHAT))

    def test_hung_up_while_keeping(self) -> None:
        """A client that hangs up while the conversation before its own is being kept does no harm to that."""
        self.converse(*FIRST)
        self.server.pause_at = {SAVE}
        preparing = self.built.start(lambda: self.slot.prepare("code", OTHER, ConversationChain(SECOND)))
        self.assertEqual(1, self.server.paused)
        preparing.cancel()
        self.built.settle()
        self.failureResultOf(preparing, CancelledError)
        self.server.pause_at = set()
        self.assertEqual(AGAIN, self.prepare(KEY, *FIRST))  # a save changes nothing in the slot


class Judging(SlotTest):
    """What answers tell of whether it helped."""

    def restored(self) -> Prepared:
        """Have the template be restored."""
        self.built.content.forget()
        return self.prepare()

    def judge(self, prepared: Prepared, reused: int) -> None:
        """Judge an answer."""
        self.slot.judge("code", prepared, reused)

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
            self.slot.judge(name, Prepared("restored", promised=1000, source=PREFIX), 0)
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


class BrokenOff(SlotTest):
    """After an answer that was broken off, or whose witness cannot be had: what the slot has probably."""

    def broken_off(self, tokens: list[int], *chain: str, key: Key = KEY) -> None:
        """Have a question leave so many tokens in the slot, and its client hang up."""
        self.built.content.taken_by_user(ProbableContent(key, ConversationChain(chain)))
        self.evaluate(tokens)

    def test_asked_again(self) -> None:
        """The same question once more, or a new one on the template, finds what was computed there."""
        held = [*TOKENS, *range(1000, 1400)]
        for chain in (FIRST, (*FIRST, "answer", "more"), SECOND):
            self.broken_off(held, *FIRST)
            self.assertEqual(Prepared("hot"), self.prepare(KEY, *chain))
            self.assertEqual(held, self.server.tokens)

    def test_restarted(self) -> None:
        """Not after a restart of llama-server, even where nothing else tells of it."""
        self.server.slots_shown = False
        self.broken_off([*TOKENS, 1000], *FIRST)
        self.server.restart("<__media_three__>")
        self.assertEqual("restored", self.prepare(KEY, *FIRST).cache)

    def test_less_than_the_file(self) -> None:
        """Where the file has more than what was computed before the client hung up, it is restored."""
        self.broken_off(TOKENS[:5], *FIRST)
        self.assertEqual("restored", self.prepare(KEY, *FIRST).cache)
        self.broken_off([*TOKENS, 1000], *FIRST)
        self.built.content.forget()
        self.assertEqual("restored", self.prepare(KEY, *FIRST).cache)

    def test_something_else(self) -> None:
        """Another template or shape, or a model that cannot go back, gets its file."""
        held = [*TOKENS, *range(1000, 1400)]
        self.broken_off(held, *FIRST, key=SHAPED)
        self.assertEqual("restored", self.prepare(KEY, *FIRST).cache)
        self.built.reuse_check.goes_back = False
        self.broken_off(held, *FIRST)
        self.assertEqual("restored", self.prepare(KEY, *FIRST).cache)

    def test_saved_conversation(self) -> None:
        """A conversation that is in the file is taken from there, unless it is the one that was broken off."""
        self.converse(*FIRST)
        self.run_now(self.built.saver.save_if_due)
        self.broken_off([*TOKENS, *range(1000, 1400)], *SECOND)
        self.assertEqual(CHAT, self.prepare(KEY, *FIRST, "answer", "more").source)
        self.broken_off([*TOKENS, *range(1000, 1400)], *FIRST, "answer", "more")
        self.assertEqual(Prepared("hot"), self.prepare(KEY, *FIRST, "answer", "more"))

    def test_no_witness(self) -> None:
        """With `--no-slots` a conversation that goes on is believed to be there; anything else is restored."""
        self.server.slots_shown = False
        self.broken_off([*TOKENS, 1000], *FIRST)
        self.run_now(lambda: self.slot.remember("code", KEY, ConversationChain(FIRST)))
        self.assertEqual(Prepared("hot"), self.prepare(KEY, *FIRST, "answer", "more"))
        self.assertEqual("restored", self.prepare(KEY, *SECOND).cache)
