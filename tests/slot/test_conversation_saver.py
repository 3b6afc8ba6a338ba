"""Keeping conversations: when it is worth it, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_ids import learned_id
from bioproxy.slot.conversation_saver import GROWN, GROWN_IF_DISPLACED, LONGEST_SAVE, WORTH
from bioproxy.slot_files.record import CHAT, Snapshot
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
            self.run_now(self.saver.save_if_due)
        return [line for line in logged(events) if "not saved" in line]

    def found(self, *chain: str) -> tuple[str, Snapshot | None]:
        """Return name and record of the saved conversation for these turns."""
        found = self.saver.saved_beginning(ConversationChain(chain))
        return ("", None) if found is None else (found.name, found.entry)

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

    def test_displaced(self) -> None:
        """If something else takes the slot, 64 tokens of a conversation that has gone on before are enough.

        Saving must be quicker than computing them.
        """
        self.assertEqual(64, GROWN_IF_DISPLACED)
        speed = self.built.speed
        speed.measured(100, 1000)  # 100 tokens take a second
        for grown, seconds, due in ((63, 0.1, False), (64, 0.6, True), (64, 0.7, False), (200, 1.9, True)):
            held = self.converse("question", "answer", "and?", grown=grown)
            speed.saved(len(held), 10 * len(held), seconds)
            self.assertEqual((False, due), (self.saver.due(), self.saver.due(displaced=True)), (grown, seconds))
        # A first question is mostly the only one.
        self.converse("question", grown=200)
        self.assertFalse(self.saver.due(displaced=True))
        # How long a save takes is found out with larger ones.
        self.use(self.ready_world(state_dir=self.folder / "other"))
        self.prepare()
        self.converse("question", "answer", "and?", grown=200)
        self.assertFalse(self.built.saver.due(displaced=True))

    def test_switch_seconds(self) -> None:
        """Bringing a conversation back takes two saves with a file, and all of its tokens without."""
        speed, total = self.built.speed, len(self.held)
        speed.measured(100, 1000)
        speed.saved(total, 10 * total, 0.25)
        self.assertEqual(0.5, round(self.saver.switch_seconds(), 6))
        self.files.enabled = False
        self.assertEqual(round(total / 100, 6), round(self.saver.switch_seconds(), 6))
        self.files.enabled = True
        speed.saved(total, 10 * total, total / 100)  # computing is quicker
        self.assertEqual(round(total / 100, 6), round(self.saver.switch_seconds(), 6))
        self.built.content.forget()
        self.assertEqual(0.0, self.saver.switch_seconds())

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
        self.run_now(lambda: self.slot.remember("code", KEY))  # the template alone
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
        keeping = self.built.start(self.saver.save_if_due)
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
        self.built.content.mark_saved(len(self.held))
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
        keeping = self.built.start(self.saver.save_if_due)
        keeping.cancel()
        self.built.settle()
        self.failureResultOf(keeping, CancelledError)
        self.assertEqual(before, self.recorded())


class Many(KeeperTest):
    """Many conversations: which file each has, and which ones go."""

    def setUp(self) -> None:
        """Let the slot folder be seen, so that files can be renamed and removed."""
        super().setUp()
        slots = self.slots_folder()
        self.use(self.warm_world(state_dir=self.folder / "other", slot_save_path=slots))
        self.saver = self.built.saver

    def chats(self) -> dict[str, tuple[str, str]]:
        """Return the recorded conversations: by id, the file's name and what is in the file behind the template."""
        found = {}
        for name, kind, entry in self.built.snapshots.items():
            if kind == CHAT:
                held = self.server.read(entry.filename)
                assert held is not None
                found[name] = (entry.filename, "".join(map(chr, held[len(PREFIX) :]))[:3])
        return found

    def talk(self, *chain: str, name: str = "code", grown: int = 300) -> None:
        """Have a conversation, and save it."""
        self.converse(*chain, name=name, grown=grown)
        self.assertEqual([], self.keep())

    def own_name(self, *chain: str) -> str:
        """Return the id that a conversation has by itself."""
        return learned_id(ConversationChain(chain).all_messages.digest)

    def test_another_on_the_template(self) -> None:
        """The last conversation has the template's name; the one before gets its own name, and is found by that."""
        self.talk("one")
        self.talk("two")
        own = self.own_name("one")
        self.assertEqual({"code": ("code.chat.bin", "two"), own: (f"{own}.chat.bin", "one")}, self.chats())
        self.assertEqual(own, self.found("one", "answer", "more")[0])

    def test_another_is_told(self) -> None:
        """Both files are told to whoever shares them: a file that gets its own name is told under that name, too."""
        told: list[tuple[str, str, str]] = []
        self.built.files.saver.saved = lambda name, kind, entry: told.append((name, kind, entry.filename))
        self.talk("one")
        self.talk("two")
        own = self.own_name("one")
        self.assertEqual(
            [("code", CHAT, "code.chat.bin"), (own, CHAT, f"{own}.chat.bin"), ("code", CHAT, "code.chat.bin")], told
        )

    def test_continued_later(self) -> None:
        """A conversation that goes on after another one leaves no shorter file behind, under whatever name."""
        self.talk("one")
        self.talk("two")
        self.talk("one", "answer", "more", grown=700)
        own = self.own_name("two")
        self.assertEqual({"code": ("code.chat.bin", "one"), own: (f"{own}.chat.bin", "two")}, self.chats())
        self.assertFalse((self.slots_folder() / f"{self.own_name('one')}.chat.bin").exists())

    def test_model_that_cannot_go_back(self) -> None:
        """Such a model keeps the conversation before the last one, which an edited question goes on with."""
        self.saver.minimum = 100
        self.built.reuse_check.went_back(100, 0)
        for name, first in (("", "one"), ("code", "two")):
            chain = [first]
            for turn in range(1, 4):
                self.talk(*chain, name=name, grown=300 * turn)
                chain += ["answer", f"more {turn}"]
            expected = {self.own_name(*chain[:3]), name or self.own_name(*chain[:5])}
            self.assertEqual(expected, set(self.chats()))
            self.assertEqual(self.own_name(*chain[:3]), self.found(*chain[:3], "answer", "edited")[0])
            # The same conversation once more, with more behind it, has one file.
            self.talk(*chain[:5], name=name, grown=1500)
            self.assertEqual(expected, set(self.chats()))
            for each in expected:
                self.built.files.discard((each, CHAT))

    def test_without_a_template(self) -> None:
        """One on no template, or on a learned prompt, is kept where learning is on and it is long enough."""
        learned = learned_id("0" * 64)
        tokens = len(PREFIX) + 300
        for name in ("", learned):
            for minimum, due in ((None, False), (tokens + 1, False), (tokens, True)):
                self.saver.minimum = minimum
                self.converse("question", name=name)
                self.assertEqual(due, self.saver.due(), (name, minimum))
        self.assertEqual([], self.keep())
        self.assertEqual([self.own_name("question")], list(self.chats()))

    def test_cannot_be_removed(self) -> None:
        """A record that cannot be written is told like a save that failed, and the new file stays."""
        self.talk("one")
        self.built.snapshots.drop_all = Mock(side_effect=OSError("full"))  # type: ignore[method-assign]
        self.converse("two")
        [line] = self.keep()
        self.assertIn("full", line)
        self.assertEqual({"code": ("code.chat.bin", "one")}, self.chats())


class Continuing(KeeperTest):
    """`ConversationSaver.saved_beginning`."""

    def test_continued(self) -> None:
        """The file is for those turns that begin with all that is in it."""
        self.assertEqual(("", None), self.found("question"))
        self.keep()
        for chain, expected in (
            (("question", "answer", "more"), ("code", self.recorded())),
            (("question",), ("code", self.recorded())),
            (("another",), ("", None)),
            (("another", "question"), ("", None)),
            ((), ("", None)),
        ):
            self.assertEqual(expected, self.found(*chain), chain)

    def test_edited(self) -> None:
        """An edited question, or a branch before it, finds what it has in common with the saved conversation."""
        self.converse("one", "answer", "two", "answer two", "three")
        self.keep()
        for chain, messages in (
            (("one", "answer", "two", "answer two", "3"), 4),
            (("one", "answer", "2"), 2),
            (("one", "answer", "two", "answer two", "three", "answer three", "four"), 5),
            (("1",), None),
        ):
            found = self.saver.saved_beginning(ConversationChain(chain))
            self.assertEqual(messages, None if found is None else found.messages, chain)
        self.built.reuse_check.went_back(100, 0)
        self.assertIsNone(self.saver.saved_beginning(ConversationChain(("one", "answer", "2"))))

    def test_cannot_go_back(self) -> None:
        """Where the model cannot go back, the same question once more cannot go on from behind its first answer."""
        self.keep()
        self.built.reuse_check.went_back(100, 0)
        self.assertEqual(("", None), self.found("question"))
        longer = ConversationChain(("question", "answer", "more"))
        self.assertEqual(("code", self.recorded()), self.found(*longer.message_digests))

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
            self.assertEqual(expected, self.found(*turns.message_digests)[1], model)

    def test_grown_since(self) -> None:
        """What is saved of a conversation does not count as grown when it goes on."""
        self.keep()
        self.converse("question", "answer", "more", grown=310)
        self.assertEqual(10, self.built.content.unsaved_tokens())
        self.converse("another", grown=310)
        self.assertEqual(310, self.built.content.unsaved_tokens())
