"""How the slot is prepared for a prompt: what it holds, what is restored, and what is not."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred

from bioproxy.llama.answers import FIXED_MARKER
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot.preparer import Prepared
from bioproxy.slot_files.record import PREFIX
from tests.slot.test_slot import OTHER, RESTORE, SHAPED
from tests.support.record_files import block
from tests.support.world import KEY, SlotTest
from tests.support.world import PREFIX as TOKENS


class Preparing(SlotTest):
    """A template without any conversation: hot, restored or cold."""

    def preparing(self) -> Deferred[Prepared]:
        """Begin to prepare the slot."""
        return self.built.start(lambda: self.slot.prepare("code", KEY))

    def test_hot(self) -> None:
        """What the slot was left with is hot, for one cheap question and no restore."""
        before = len(self.server.requests)
        self.assertEqual(Prepared("hot"), self.prepare())
        self.assertEqual(["/slots"], self.asked_since(before))

    def test_restored(self) -> None:
        """Whatever happened to the slot in between, it is not hot but restored, and hot again after that."""
        events: list[tuple[str, Callable[[], object]]] = [
            ("used", lambda: self.evaluate([1, 2, 3])),
            ("used for as many tokens", lambda: self.evaluate([1] * len(TOKENS))),
            ("forgotten", self.built.content.forget),
            ("another process", self.server.restart),
            ("another process of an older build", lambda: self.server.restart(FIXED_MARKER)),
            ("and another one", lambda: self.server.restart(FIXED_MARKER)),
        ]
        for name, happens in events:
            happens()
            prepared = self.prepare()
            self.assertEqual(("restored", None, len(TOKENS)), (prepared.cache, prepared.miss, prepared.promised), name)
            self.assertEqual(TOKENS, self.server.tokens, name)
            self.assertEqual("hot", self.prepare().cache, name)

    def test_busy(self) -> None:
        """A slot that somebody works on is not hot, and what is restored meanwhile is not believed to stay."""
        self.server.busy = True
        self.assertEqual("restored", self.prepare().cache)
        self.assertFalse(self.built.content.has(KEY))

    def test_no_witness(self) -> None:
        """With `--no-slots` nothing is ever hot; it is restored each time."""
        self.server.slots_shown = False
        self.assertEqual(["restored"] * 2, [self.prepare().cache for _ in range(2)])

    def test_restore_time(self) -> None:
        """How long the restore took is told in milliseconds."""
        self.server.pause_at = {RESTORE}
        self.built.content.forget()
        preparing = self.preparing()
        self.built.clock.advance(0.25)
        self.server.go_on()
        self.built.settle()
        self.assertEqual(Prepared("restored", None, 250.0, len(TOKENS), PREFIX), self.successResultOf(preparing))

    def test_misses(self) -> None:
        """Each reason for a cold slot has its name."""
        self.assertEqual(Prepared("cold", "content-changed"), self.prepare(OTHER))
        self.assertEqual(Prepared("cold", "content-changed"), self.prepare(Key(OTHER.text, "another shape")))
        self.assertEqual(Prepared("cold", "shape-changed"), self.prepare(SHAPED))
        self.assertEqual(Prepared("cold", "first"), self.prepare(name="story"))
        self.assertEqual(Prepared("cold", "slot-taken"), self.prepare(name="story"))
        self.assertEqual(Prepared("cold", "first"), self.prepare(OTHER, name="story"))
        # A fine-tune at the same path: only its behaviour differs.
        self.server.odds = [(token, odd - 1) for token, odd in self.server.odds]
        self.server.restart()
        self.assertEqual(Prepared("cold", "other-model"), self.prepare())

    def test_no_file(self) -> None:
        """A file that is gone is one reason more, and no longer recorded."""
        self.built.content.forget()
        self.server.files = {}
        self.assertEqual(Prepared("cold", "no-file"), self.prepare())
        self.assertIsNone(self.slot.facts.saved("code", KEY))

    def test_trouble(self) -> None:
        """A llama-server in trouble makes the slot cold and unknown; preparing never fails for that."""
        for path in ("/slots", "/props", "/v1/models", RESTORE):
            self.server.answers = {path: "nonsense"}
            if path != "/slots":
                self.built.content.forget()
            prepared = self.prepare()
            self.assertEqual((Prepared("cold"), False), (prepared, self.built.content.has(KEY)), path)
            self.server.answers = {}
            self.prepare()
        self.server.down = True
        self.assertEqual(Prepared("cold"), self.prepare())

    def test_record_cannot_be_written(self) -> None:
        """Neither does it fail where a useless file cannot be forgotten on disk."""
        self.built.content.forget()
        self.server.files = {}
        block(self.built.settings.state_dir)
        self.assertEqual(Prepared("cold"), self.prepare())

    def test_cancelled(self) -> None:
        """Cancelling while the witness is asked or the file restored ends the call; the slot is unknown then."""
        for path in ("/slots", "/props", RESTORE):
            if path != "/slots":
                self.built.content.forget()
            self.server.pause_at, self.server.gone = {path}, []
            preparing = self.preparing()
            self.assertEqual(1, self.server.paused)
            preparing.cancel()
            self.built.settle()
            self.failureResultOf(preparing, CancelledError)
            self.assertEqual([path], self.server.gone)
            self.assertEqual(path == "/slots", self.built.content.has(KEY))  # asking alone changes nothing
            self.server.pause_at = set()
            self.prepare()

    def test_saved(self) -> None:
        """A template's file is for one text in one shape."""
        self.assertEqual(self.built.snapshots.get("code"), self.slot.facts.saved("code", KEY))
        for name, key in (("code", OTHER), ("code", SHAPED), ("code", None), ("story", KEY)):
            self.assertIsNone(self.slot.facts.saved(name, key), (name, key))
