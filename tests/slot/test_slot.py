"""How the right thing gets into slot 0: conversations, and what an answer that was broken off has left."""

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
