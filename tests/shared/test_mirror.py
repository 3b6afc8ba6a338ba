"""What the shared shelf has, in memory."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.shared.entry import SharedEntry
from bioproxy.shared.mirror import Mirror
from bioproxy.slot_files.snapshot import PREFIX
from tests.shared.support import MODEL, OTHER, chat, entry, snapshot


class Search(SynchronousTestCase):
    """What is found."""

    def setUp(self) -> None:
        """Make an empty one."""
        self.mirror = Mirror()

    def add(self, *entries: SharedEntry) -> None:
        """Add entries."""
        self.mirror.add({each.stem: each for each in entries})

    def prompt(self, text: str = "text", name: str = "code") -> SharedEntry | None:
        """Look for a prompt of the usual model."""
        return self.mirror.prompt(MODEL, name, snapshot(text=text).key)

    def test_prompt(self) -> None:
        """A prompt is found by its name and its text, for the model that runs, added before or after it was known."""
        mine = entry()
        self.add(mine, entry(name="story", model=OTHER))
        self.assertEqual(mine, self.prompt())
        self.assertIsNone(self.prompt(text="other"))
        self.assertIsNone(self.prompt(name="story"))
        later = entry(name="later")
        self.add(later, entry(name="story", model=OTHER))
        self.assertEqual(later, self.prompt(name="later"))
        self.assertIsNone(self.prompt(name="story"))
        self.assertTrue(self.mirror.has("code", PREFIX, snapshot()))
        self.assertFalse(self.mirror.has("code", PREFIX, snapshot(text="other")))
        self.assertFalse(self.mirror.has("story", PREFIX, snapshot()))

    def test_models(self) -> None:
        """After a change of the model only what is of the new one is found."""
        mine, other = entry(), entry(model=OTHER)
        self.add(mine, other)
        self.assertEqual(mine, self.prompt())
        self.assertEqual(other, self.mirror.prompt(OTHER, "code", other.snapshot.key))
        self.assertEqual(mine, self.prompt())

    def test_gone(self) -> None:
        """What is gone is not found; what another process has published since is."""
        old, new = entry(1), entry(2)
        self.prompt()
        self.add(old)
        self.add(new)
        self.assertEqual(set(), self.mirror.news({new.stem}))
        self.assertEqual(new, self.prompt())
        self.mirror.drop(new.stem)
        self.mirror.drop(new.stem)
        self.assertIsNone(self.prompt())

    def test_unreadable(self) -> None:
        """What cannot be read, or is not as it says, is not tried again."""
        good, damaged = entry(), entry()
        self.mirror.add({"broken": None, good.stem: good, damaged.stem: damaged})
        self.mirror.ignore(damaged.stem)
        self.assertEqual({"new"}, self.mirror.news({"broken", good.stem, damaged.stem, "new"}))
        self.mirror.news(set())
        self.assertEqual({"broken"}, self.mirror.news({"broken"}))

    def test_conversation(self) -> None:
        """The longest conversation that a request goes on with."""
        turns = ConversationChain(("a", "b", "c", "d"))
        found = {}
        for length in (1, 3):
            conversation = turns.first_messages(length)
            about = snapshot("auto-000000000000", "chat", conversation=conversation)
            found[length] = SharedEntry(f"s{length}", f"auto-00000000000{length}", "chat", about, 1)
        self.assertIsNone(self.mirror.conversation(MODEL, turns))
        self.add(*found.values())
        self.assertEqual(found[3], self.mirror.conversation(MODEL, turns))
        self.assertEqual(found[1], self.mirror.conversation(MODEL, ConversationChain(("a", "x"))))

    def test_superseded(self) -> None:
        """An older file of the same prompt, and all but the longest beginning of a conversation; of this model only."""
        old, new, other = entry(1), entry(2, text="newer"), entry(1, model=OTHER)
        self.add(old, new, other, entry(3))
        self.assertEqual([old.stem], self.mirror.superseded(new))
        two, four, foreign = chat(2), chat(4, 2), chat(2, model=OTHER)
        self.add(two, four, foreign)
        six = chat(6, 4, 2)
        self.add(six)
        self.assertEqual([two.stem], self.mirror.superseded(six))

    def test_totals(self) -> None:
        """Files and bytes by class, of all models."""
        self.add(entry(size=5), entry(size=7, model=OTHER), chat(2, size=11))
        self.assertEqual({"template": (2, 12), "conversation": (1, 11)}, self.mirror.totals())
