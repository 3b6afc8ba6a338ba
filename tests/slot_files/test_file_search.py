"""The best file for a request, among those that may be used."""

from __future__ import annotations

from dataclasses import replace

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.digests import prefix_digests
from bioproxy.slot_files.record import CHAT, PART, PREFIX, Snapshot
from bioproxy.slot_files.snapshot import names_of
from tests.support.slot_files import SlotFilesTest
from tests.support.world import KEY

LEARNED, OTHER = "auto-0123456789ab", "auto-ba9876543210"


class Searching(SlotFilesTest):
    """`longest_conversation` and `sharing`, with entries but without files."""

    def setUp(self) -> None:
        """Begin with an empty record."""
        super().setUp()
        self.model = self.recorded().model
        self.built.snapshots.drop("code")

    def prompt(self, name: str, kind: str, length: int, model: Model | None = None, changed: int = 10**6) -> Snapshot:
        """Record a prompt of so many tokens, which are 0, 1, ... up to the one where it is changed."""
        tokens = [token if token < changed else -token for token in range(length)]
        entry = Snapshot(
            names_of(name, kind)[0],
            KEY,
            length,
            10 * length,
            model or self.model,
            "2026-01-01T00:00:00+00:00",
            prefix_digests(tokens),
        )
        self.built.snapshots.put(name, kind, entry)
        return entry

    def test_prefix(self) -> None:
        """The prompt or part that shares most comes first; of equal ones the shorter; none that shares nothing."""
        self.assertEqual([], self.files.sharing(range(1000)))
        entry = self.prompt("code", PREFIX, 640, changed=200)
        code = ("code", PREFIX, entry, 192)
        self.assertEqual([code], self.files.sharing(range(1000)))
        part = self.prompt(LEARNED, PART, 320)
        self.assertEqual([(LEARNED, PART, part, 320), code], self.files.sharing(range(1000)))
        other = self.prompt(OTHER, PREFIX, 640, changed=330)
        expected = [(LEARNED, PART, part, 320), (OTHER, PREFIX, other, 320), code]
        self.assertEqual(expected, self.files.sharing(range(1000)))
        self.assertEqual((LEARNED, PART, part, 64), self.files.sharing([*range(64), 7, *range(65, 1000)])[0])
        self.assertEqual([], self.files.sharing(range(5, 1000)))
        self.assertEqual([], self.files.sharing([]))

    def test_unusable(self) -> None:
        """A file of another model is passed over, and all are while it is unknown which model runs."""
        self.prompt(LEARNED, PREFIX, 640, Model("other", self.model.odds))
        entry = self.prompt("code", PREFIX, 128)
        self.assertEqual([("code", PREFIX, entry, 128)], self.files.sharing(range(1000)))
        self.built.identity.current = None
        self.assertEqual([], self.files.sharing(range(1000)))

    def test_conversation(self) -> None:
        """The longest conversation of the running model is found; while that is unknown, of any model."""
        turns = ConversationChain(("a", "b", "c"))
        for name, length, model in (("code", 1, self.model), (LEARNED, 2, Model("other", self.model.odds))):
            entry = replace(
                self.prompt(name, PREFIX, 64, model),
                filename=names_of(name, CHAT)[0],
                marks=(),
                conversation=turns.first_messages(length),
            )
            self.built.snapshots.put(name, CHAT, entry)
        found = self.files.longest_conversation(turns)
        self.assertEqual("code", found and found.name)
        self.built.identity.fell_asleep()
        found = self.files.longest_conversation(turns)
        self.assertEqual(LEARNED, found and found.name)
        self.assertIsNone(self.files.longest_conversation(ConversationChain(("x",))))
