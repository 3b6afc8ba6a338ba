"""What is believed to be in slot 0, and when it is believed no more."""

from __future__ import annotations

from bioproxy.llama.answers import FIXED_MARKER
from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.runtime.errors import UpstreamError
from bioproxy.slot.content import IDLE_POLL
from bioproxy.slot.known_content import ProbableContent
from tests.support.world import KEY, PREFIX, SlotTest

OTHER = USER_MESSAGE_ONLY.key(digest("something else "))


class HoldingTest(SlotTest):
    """`SlotContent`, of a slot that was left with ``@code``."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        self.content = self.built.content

    def note(self, saved: int = 0, conversation: Conversation | None = None) -> None:
        """Note that the slot was left with ``@code``."""
        self.run_now(lambda: self.content.remember("code", KEY, conversation, saved))

    def looks(self) -> bool:
        """Look; tell whether the slot still holds what it was left with."""
        return self.run_now(self.content.confirm) is not None

    def test_held(self) -> None:
        """What the slot was left with is known with all that belongs to it, for this key and no other."""
        conversation = Conversation(1, "digest")
        self.note(5, conversation)
        held = self.run_now(self.content.confirm)
        assert held is not None
        self.assertEqual(("code", KEY, conversation, 5), (held.name, held.key, held.conversation, held.saved))
        self.assertEqual((self.server.task, len(PREFIX)), (held.witness.task, held.witness.tokens))
        self.assertEqual([True, False, False], [self.content.has(key) for key in (KEY, OTHER, None)])

    def test_asked(self) -> None:
        """Looking is one cheap question, and none where nothing is believed anyway."""
        before = len(self.server.requests)
        self.assertTrue(self.looks())
        self.assertEqual(["/slots"], self.asked_since(before))
        self.content.forget()
        self.assertFalse(self.looks())
        self.assertEqual(["/slots"], self.asked_since(before))

    def test_continued(self) -> None:
        """A conversation goes on with the slot's if it begins with all of its messages, however that is known."""
        chain = ConversationChain(("a", "b"), ((0, "text"),))
        longer, same, other = (
            ConversationChain(messages) for messages in (("a", "b", "c"), ("a", "b"), ("a", "x", "c"))
        )
        shorter = ConversationChain(("a",))

        def continued() -> list[bool]:
            return [self.content.is_continued_by(each) for each in (longer, same, other, shorter, ConversationChain())]

        self.note()
        self.assertEqual([False] * 5, continued())
        self.run_now(lambda: self.content.remember("code", KEY, chain.all_messages, 0, chain))
        self.assertEqual([True, True, False, False, False], continued())
        # Restored from a file, which has no chain; its templates' texts count, too.
        self.note(conversation=longer.first_messages(2))
        self.assertEqual([True, True, False, False, False], continued())
        # Broken off, or without a witness.
        self.content.taken_by_user(ProbableContent(KEY, chain))
        self.assertEqual([True, True, False, False, False], continued())
        self.content.taken_by_warmup()
        self.assertEqual([False] * 5, continued())

    def test_used_by_somebody(self) -> None:
        """Whoever used the slot, and whatever for, it is unknown from then on."""
        for tokens in ([1, 2, 3], [1] * len(PREFIX), PREFIX):
            self.note()
            self.evaluate(tokens)
            self.assertFalse(self.looks())
            self.assertFalse(self.content.has(KEY))

    def test_another_process(self) -> None:
        """Another process of llama-server holds nothing of ours, by its marker or without one."""
        for marker in ("<__media_other__>", FIXED_MARKER, FIXED_MARKER):
            self.evaluate(PREFIX)
            self.note()
            self.assertTrue(self.looks())
            self.server.restart(marker)
            self.assertFalse(self.looks())

    def test_work_going_on(self) -> None:
        """A slot that somebody works on is not what it was, and is not believed to stay as it is."""
        self.server.busy = True
        self.assertFalse(self.looks())
        self.note()
        self.assertFalse(self.content.has(KEY))

    def test_until_idle(self) -> None:
        """It can be waited for that nobody works in the slot: with some time between the questions, and no end else."""
        self.server.busy = True
        before = len(self.server.requests)
        waiting = self.built.start(self.content.until_idle)
        for count in range(1, 5):
            self.built.advance(IDLE_POLL - 0.1)
            self.assertEqual(["/slots"] * count, self.asked_since(before))
            self.assertNoResult(waiting)
            self.built.advance(0.1)
        self.server.busy = False
        self.built.advance(IDLE_POLL)
        self.successResultOf(waiting)

    def test_until_idle_at_once(self) -> None:
        """Where the slot is idle, or nothing is told of it, or in trouble, there is nothing to wait for."""
        changes: tuple[dict[str, object], ...] = (
            {},
            {"slots_shown": False},
            {"answers": {"/slots": "nonsense"}},
            {"loading": True},
            {"down": True},
        )
        for change in changes:
            vars(self.server).update(change)
            self.successResultOf(self.built.start(self.content.until_idle))

    def test_fresh_server(self) -> None:
        """The witness of a server that did nothing yet proves nothing: the next fresh one's looks the same."""
        self.server.restart(self.server.marker)
        self.note()
        self.assertFalse(self.content.has(KEY))

    def test_not_shown(self) -> None:
        """With `--no-slots` nothing is known, and that is known; another process may show it again."""
        self.assertTrue(self.content.visible)
        self.server.slots_shown = False
        self.note()
        self.assertEqual((False, False), (self.content.visible, self.content.has(KEY)))
        self.content.llama_restarted()
        self.assertTrue(self.content.visible)

    def test_trouble(self) -> None:
        """Where the witness cannot be had, noting leaves the slot unknown and is no error; looking fails."""
        self.server.answers = {"/slots": "nonsense"}
        self.failureResultOf(self.built.start(self.content.confirm), UpstreamError)
        self.note()
        self.assertFalse(self.content.has(KEY))

    def test_broken_off_while_noting(self) -> None:
        """What was believed before does not outlive a note that was broken off."""
        self.server.pause_at = {"/slots"}
        noting = self.built.start(lambda: self.content.remember("code", OTHER, None, 0))
        self.assertFalse(self.content.has(KEY))
        self.server.break_off()
        self.built.settle()
        self.successResultOf(noting)
        self.assertFalse(self.content.has(KEY) or self.content.has(OTHER))

    def test_forgotten_first(self) -> None:
        """Before anything changes the slot it is unknown; who used it last is known, until llama-server restarts."""
        for change, users in (
            (self.content.taken_by_user, True),
            (self.content.forget, True),
            (self.content.taken_by_warmup, False),
            (self.content.taken_by_user, True),
            (self.content.llama_restarted, False),
        ):
            self.note()
            self.assertTrue(self.content.has(KEY))
            change()
            self.assertEqual((None, users), (self.content.known, self.content.left_by_user))

    def test_unsaved(self) -> None:
        """A conversation is unsaved by what it has grown since it was saved, or else since the template was."""
        self.assertEqual(0, self.content.unsaved_tokens())  # the template is no conversation
        self.converse("q", grown=300)
        self.assertEqual(300, self.content.unsaved_tokens())
        total = len(PREFIX) + 300
        self.content.mark_saved(total - 10)
        self.assertEqual(10, self.content.unsaved_tokens())
        self.content.mark_saved(5)  # less than that is saved, too: it changes nothing
        self.assertEqual(10, self.content.unsaved_tokens())
        self.content.mark_saved(total)
        self.assertEqual(0, self.content.unsaved_tokens())
        self.content.forget()
        self.content.mark_saved(total)
        self.assertEqual((None, 0), (self.content.known, self.content.unsaved_tokens()))

    def test_template_alone(self) -> None:
        """After a warm-up there is no conversation, and the template is saved."""
        held = self.content.known
        assert held is not None
        self.assertEqual((None, 0), (held.conversation, self.content.unsaved_tokens()))

    def test_conversation(self) -> None:
        """After a question it is the whole conversation, saved as far as the template is."""
        self.converse("a", "b", "c", grown=300)
        held = self.content.known
        assert held is not None
        self.assertEqual(
            (ConversationChain(("a", "b", "c")).all_messages, len(PREFIX)), (held.conversation, held.saved)
        )

    def test_nothing_saved(self) -> None:
        """Where no file has anything of it, all of it is unsaved."""
        self.files.discard(("code", "prefix"))
        self.converse("q", grown=10)
        self.assertEqual(len(PREFIX) + 10, self.content.unsaved_tokens())
