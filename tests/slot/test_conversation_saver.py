"""Keeping conversations: when it is worth it, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.slot.conversation_saver import GROWN, LONGEST_SAVE, WORTH
from bioproxy.slot.record import CHAT, Snapshot
from tests.support.world import KEY, PREFIX, SlotTest, logged

SAVE = "/slots/0?action=save"


class KeeperTest(SlotTest):
    """`ConversationSaver`, with a conversation in the slot that has grown by 300 tokens."""

    def setUp(self) -> None:
        """Have one."""
        super().setUp()
        self.saver = self.built.saver
        self.held = self.converse("question")

    def keep(self) -> list[str]:
        """Keep it; return what was logged."""
        with capturedLogs() as events:
            self.run_now(self.saver.keep)
        return [line for line in logged(events) if "not kept" in line]

    def recorded(self) -> Snapshot | None:
        """Return what the record has of the conversation."""
        return self.built.snapshots.get("code", CHAT)

    def saves(self) -> int:
        """Return how often llama-server was asked to save."""
        return self.server.paths().count(SAVE)


class Due(KeeperTest):
    """When it is worth it."""

    def test_grown(self) -> None:
        """A conversation is worth saving from 256 new tokens on, again and again."""
        self.assertEqual(256, GROWN)
        for grown, due in ((255, False), (256, True)):
            self.converse("question", grown=grown)
            self.assertEqual(due, self.saver.due(), grown)
        self.keep()
        self.assertFalse(self.saver.due())
        for grown, due in ((256 + 255, False), (256 + 256, True)):
            self.converse("question", "answer", "more", grown=grown)
            self.assertEqual(due, self.saver.due(), grown)

    def test_time(self) -> None:
        """A save may take a second; or else a tenth of what computing the new tokens again would take."""
        speed, total = self.built.speed, len(self.held)
        self.assertEqual((1.0, 0.1), (LONGEST_SAVE, WORTH))
        speed.measured(1000, 1)  # computing is quick
        for seconds, due in ((0.99, True), (1.01, False)):
            speed.saved(total, 10 * total, seconds)
            self.assertEqual(due, self.saver.due(), seconds)
        speed.measured(100, 10_000)  # 300 tokens take 30 seconds
        for seconds, due in ((2.99, True), (3.01, False)):
            speed.saved(total, 10 * total, seconds)
            self.assertEqual(due, self.saver.due(), seconds)

    def test_first_save(self) -> None:
        """How long a save takes nobody knows before the first one, which is risked."""
        self.use(self.ready_world(state_dir=self.folder / "other"))
        self.saver = self.built.saver
        self.prepare()
        self.converse("question")
        self.assertIsNone(self.built.speed.save_seconds(1))
        self.assertTrue(self.saver.due())

    def test_not_due(self) -> None:
        """Nothing is saved without a conversation, a model, slot files that help, or the wish to."""
        self.assertTrue(self.saver.due())
        self.built.content.forget()
        self.assertFalse(self.saver.due())
        self.evaluate(PREFIX)
        self.run_now(lambda: self.slot.note("code", KEY))  # the template alone
        self.assertFalse(self.saver.due())
        self.converse("question")
        self.files.enabled = False
        self.assertFalse(self.saver.due())
        self.files.enabled = True
        model, self.built.identity.current = self.built.identity.current, None
        self.assertFalse(self.saver.due())
        self.built.identity.current = model
        self.assertTrue(self.saver.due())
        for _ in range(2):
            self.built.reuse_check.did_not_help(1000, 0)
        self.assertFalse(self.saver.due())

    def test_switched_off(self) -> None:
        """With `save_conversations` off no conversation is kept."""
        self.use(self.warm_world(state_dir=self.folder / "other", save_conversations=False))
        self.saver = self.built.saver
        self.converse("question")
        self.assertFalse(self.saver.due())
        before = len(self.server.requests)
        self.keep()
        self.assertEqual([], self.asked_since(before))


class Keeping(KeeperTest):
    """What becomes of it."""

    def test_kept(self) -> None:
        """The whole slot is saved and recorded with its conversation; the slot holds it still."""
        self.assertEqual([], self.keep())
        entry = self.recorded()
        assert entry is not None
        self.assertEqual(
            ("code.chat.bin", KEY, len(self.held), ConversationChain(("question",)).all_messages),
            (entry.filename, entry.key, entry.tokens, entry.conversation),
        )
        self.assertEqual(self.held, self.built.saved("code", CHAT))
        self.assertEqual(PREFIX, self.built.saved())
        self.assertTrue(self.built.content.has(KEY))

    def test_once(self) -> None:
        """What is kept already is not saved again."""
        for _ in range(3):
            self.keep()
        self.assertEqual(2, self.saves())  # the template's, and this

    def test_next_goes_beside(self) -> None:
        """The next save goes to another name: the old file is good until the new one is."""
        self.keep()
        longer = self.converse("question", "answer", "more", grown=900)
        self.server.pause_at = {SAVE}
        keeping = self.built.start(self.saver.keep)
        entry = self.recorded()
        assert entry is not None
        self.assertEqual(("code.chat.bin", len(self.held)), (entry.filename, entry.tokens))
        self.server.go_on()
        self.built.settle()
        self.successResultOf(keeping)
        self.assertEqual(longer, self.built.saved("code", CHAT))
        assert self.server.files is not None
        self.assertEqual({"code.bin", "code.chat.bin", "code.chat.new.bin"}, set(self.server.files))

    def test_slot_taken(self) -> None:
        """What is not in the slot any more is not saved as what it was."""
        self.evaluate([1] * len(self.held))
        self.assertEqual([], self.keep())
        self.assertEqual((1, None), (self.saves(), self.recorded()))

    def test_failure(self) -> None:
        """A save that fails is told, and not tried again before the conversation has grown again."""
        self.server.answers = {SAVE: "nonsense"}
        [line] = self.keep()
        self.assertIn("saving code.chat.bin", line)
        self.assertEqual((2, None, False), (self.saves(), self.recorded(), self.saver.due()))
        self.keep()
        self.converse("question", "answer", "more", grown=310)
        self.built.content.now_saved(len(self.held))
        self.keep()
        self.assertEqual(2, self.saves())
        self.server.answers = {}
        longer = self.converse("question", "answer", "more", grown=600)
        self.assertEqual([], self.keep())
        self.assertEqual(longer, self.built.saved("code", CHAT))

    def test_failure_logged_once(self) -> None:
        """The same trouble again and again is one line in the log, until it went well in between."""
        lines = []
        for answer in ("nonsense", "nonsense", "nonsense", None, "nonsense"):
            self.server.answers = {} if answer is None else {SAVE: answer}
            self.held = self.converse("question", grown=len(self.held) + 300)
            lines.append(len(self.keep()))
        self.assertEqual([1, 0, 0, 0, 1], lines)

    def test_full_disk_logged_once(self) -> None:
        """A disk that is full stays one line in the log, however much is needed each time."""
        self.use(self.warm_world(state_dir=self.folder / "other", slot_save_path=self.slots_folder()))
        self.saver = self.built.saver
        self.built.free = 0
        lines = 0
        for turn in range(1, 5):
            self.built.speed.saved(1, 1 << 14, 0)
            self.converse("question", grown=turn * 300)
            lines += len(self.keep())
        self.assertEqual((1, 1), (lines, self.saves()))

    def test_trouble(self) -> None:
        """Keeping never fails for reasons of llama-server's: whoever comes next is served all the same."""
        for path in ("/slots", SAVE):
            self.converse("question", grown=300)
            self.server.answers = {path: "nonsense"}
            self.keep()
            self.server.answers = {}
        self.server.files = None
        self.converse("question", grown=300)
        self.keep()
        self.server.down = True
        self.keep()
        self.assertIsNone(self.recorded())

    def test_cancelled(self) -> None:
        """A user who hangs up meanwhile ends it; the old file stays recorded."""
        self.keep()
        before = self.recorded()
        self.converse("question", "answer", "more", grown=900)
        self.server.pause_at = {SAVE}
        keeping = self.built.start(self.saver.keep)
        keeping.cancel()
        self.built.settle()
        self.failureResultOf(keeping, CancelledError)
        self.assertEqual(before, self.recorded())


class Continuing(KeeperTest):
    """`ConversationSaver.continued`."""

    def test_continued(self) -> None:
        """The file is for those turns that begin with all that is in it, on the same template."""
        self.assertIsNone(self.saver.continued("code", ConversationChain(("question",))))
        self.keep()
        for name, chain, expected in (
            ("code", ("question", "answer", "more"), self.recorded()),
            ("code", ("question",), self.recorded()),
            ("code", ("another",), None),
            ("code", ("another", "question"), None),
            ("code", (), None),
            ("story", ("question",), None),
        ):
            self.assertEqual(expected, self.saver.continued(name, ConversationChain(chain)), (name, chain))

    def test_other_model(self) -> None:
        """A conversation with another model is none; while nobody knows which one runs, it may be the same."""
        self.keep()
        entry, turns = self.recorded(), ConversationChain(("question",))
        assert entry is not None
        for model, expected in (
            (entry.model, entry),
            (None, entry),
            (replace(entry.model, facts="other"), None),
        ):
            self.built.identity.current = model
            self.assertEqual(expected, self.saver.continued("code", turns), model)

    def test_grown_since(self) -> None:
        """What is saved of a conversation does not count as grown when it goes on."""
        self.keep()
        self.converse("question", "answer", "more", grown=310)
        self.assertEqual(10, self.built.content.unsaved())
        self.converse("another", grown=310)
        self.assertEqual(310, self.built.content.unsaved())
