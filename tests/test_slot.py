"""What slot 0 holds."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred

from bioproxy.llama import FIXED_MARKER
from bioproxy.rewrite import prefix_key
from bioproxy.slot import Prepared, SaveFailed
from bioproxy.snapshots import Snapshot
from tests.world import PREFIX, World, WorldTest

KEY = prefix_key("Know this: abc. ")
OTHER = prefix_key("something else ")


class SlotTest(WorldTest):
    """The slot, warm for ``@code`` to begin with."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        self.use(self.warm_world())

    def use(self, world: World) -> None:
        """Use another."""
        self.built, self.server, self.slot = world, world.llama_server, world.slot

    def prepare(self, key: str = KEY, bare_key: str | None = None) -> Prepared:
        """Prepare the slot for ``@code``."""
        return self.successResultOf(self.preparing(key, bare_key))

    def preparing(self, key: str = KEY, bare_key: str | None = None) -> Deferred[Prepared]:
        """Begin to."""
        return self.built.start(lambda: self.slot.prepare("code", key, bare_key or key))

    def evaluate(self, tokens: list[int]) -> None:
        """Have llama-server use the slot behind the proxy's back."""
        self.successResultOf(self.built.start(lambda: self.built.llama.evaluate(tokens)))

    def saving(self, tokens: int = len(PREFIX)) -> Deferred[Snapshot]:
        """Begin to save what is in the slot."""
        return self.built.start(lambda: self.slot.save("code", KEY, tokens))

    def count(self, what: str, result: str) -> float:
        """Return how often something was counted for ``@code``."""
        return self.built.sample(f"slot_{what}_total", template="code", result=result)


class Preparing(SlotTest):
    """Hot, restored or cold."""

    def test_hot(self) -> None:
        """What the slot was left with is hot, for one cheap question and no restore."""
        before = len(self.server.requests)
        self.assertEqual(Prepared("hot"), self.prepare())
        self.assertEqual(["/slots"], self.server.paths()[before:])

    def test_not_hot(self) -> None:
        """Whatever happened to the slot in between, it is not hot but restored, and hot again after that."""
        events: list[tuple[str, Callable[[], object]]] = [
            ("used", lambda: self.evaluate([1, 2, 3])),
            ("used for as many tokens", lambda: self.evaluate([1] * len(PREFIX))),
            ("forgotten", self.slot.forget),
            ("another process", self.server.restart),
            ("another process of an older build", lambda: self.server.restart(FIXED_MARKER)),
            ("and another one", lambda: self.server.restart(FIXED_MARKER)),
        ]
        for name, happens in events:
            happens()
            self.assertEqual("restored", self.prepare().cache, name)
            self.assertEqual(PREFIX, self.server.tokens, name)
            self.assertEqual("hot", self.prepare().cache, name)

    def test_busy(self) -> None:
        """A slot that somebody works on is not hot, and what is restored meanwhile is not believed to stay."""
        self.server.busy = True
        self.assertEqual("restored", self.prepare().cache)
        self.assertFalse(self.slot.holds(KEY))

    def test_fresh_server(self) -> None:
        """The witness of a server that did nothing yet proves nothing: the next fresh one's looks the same."""
        self.server.restart(self.server.marker)
        self.successResultOf(self.built.start(lambda: self.slot.note(KEY)))
        self.assertFalse(self.slot.holds(KEY))

    def test_no_witness(self) -> None:
        """With `--no-slots` nothing is ever hot; it is restored each time."""
        self.server.slots_shown = False
        for _ in range(2):
            self.assertEqual("restored", self.prepare().cache)
        self.assertFalse(self.slot.visible)

    def test_restore_time(self) -> None:
        """How long the restore took is told in milliseconds, and counted with its bytes."""
        self.server.pause_at = {"/slots/0?action=restore"}
        self.slot.forget()
        preparing = self.preparing()
        self.built.clock.advance(0.25)
        self.server.go_on()
        self.built.settle()
        self.assertEqual(Prepared("restored", None, 250.0), self.successResultOf(preparing))
        self.assertEqual(1, self.count("restores", "ok"))
        self.assertEqual(10 * len(PREFIX), self.built.sample("slot_bytes_total", direction="restored"))

    def test_misses(self) -> None:
        """Each reason for a cold slot has its name."""
        self.assertEqual(Prepared("cold", "content-changed"), self.prepare(OTHER))
        self.assertEqual(Prepared("cold", "shape-changed"), self.prepare(OTHER, bare_key=KEY))
        # A fine-tune at the same path: only its behaviour differs.
        self.server.odds = [(token, odd - 1) for token, odd in self.server.odds]
        self.server.restart()
        self.assertEqual(Prepared("cold", "other-model"), self.prepare())
        self.use(self.ready_world({"new": "Hello. <{message}>"}, state_dir=self.folder / "other"))
        self.assertEqual(Prepared("cold", "first"), self.prepare())
        self.assertEqual(Prepared("cold", "slot-taken"), self.prepare())

    def test_other_file_at_the_same_path(self) -> None:
        """A model that says other things of itself is another one, even if it behaves the same."""
        self.server.context = 8192  # not the model's
        self.server.restart()
        self.assertEqual("restored", self.prepare().cache)
        self.server.answers["/lora-adapters"] = [{"id": 0, "scale": 1.0}]
        self.slot.forget()
        self.assertEqual(Prepared("cold", "other-model"), self.prepare())

    def test_trouble(self) -> None:
        """A llama-server in trouble makes the slot cold and unknown; preparing never fails for that."""
        for path in ("/slots", "/props", "/v1/models"):
            self.server.answers = {path: "nonsense"}
            if path != "/slots":
                self.slot.forget()
            self.assertEqual(("cold", False), (self.prepare().cache, self.slot.holds(KEY)), path)
            self.server.answers = {}
            self.prepare()
        self.server.down = True
        self.assertEqual("cold", self.prepare().cache)

    def test_cancelled(self) -> None:
        """Cancelling while the witness is asked or the file restored ends the call; the slot is unknown then."""
        for path in ("/slots", "/props", "/slots/0?action=restore"):
            if path != "/slots":
                self.slot.forget()
            self.server.pause_at, self.server.gone = {path}, []
            preparing = self.preparing()
            self.assertEqual(1, self.server.paused)
            preparing.cancel()
            self.built.settle()
            self.failureResultOf(preparing, CancelledError)
            self.assertEqual([path], self.server.gone)
            self.assertEqual(path == "/slots", self.slot.holds(KEY))  # asking alone changes nothing
            self.server.pause_at = set()
            self.prepare()


class Restoring(SlotTest):
    """Files that are not what they should be."""

    def setUp(self) -> None:
        """Have the file be needed."""
        super().setUp()
        self.slot.forget()

    def is_dropped(self, prepared: Prepared, result: str) -> None:
        """Check that the file was of no use, counted as `result`, and is not tried again."""
        self.assertEqual("cold", prepared.cache)
        self.assertEqual(1, self.count("restores", result))
        self.assertEqual(0, self.count("restores", "ok"))
        self.assertIsNone(self.built.snapshots.get("code"))
        self.assertFalse(self.slot.holds(KEY))
        before = len(self.server.requests)
        self.prepare()
        self.assertNotIn("/slots/0?action=restore", self.server.paths()[before:])

    def test_missing(self) -> None:
        """A file that llama-server does not have."""
        self.server.files = {}
        self.is_dropped(self.prepare(), "missing")

    def test_switched_off(self) -> None:
        """A llama-server that runs without slot files now."""
        self.server.files = None
        self.is_dropped(self.prepare(), "refused")

    def test_wrong_count(self) -> None:
        """A file with another number of tokens than were saved."""
        assert self.server.files is not None
        self.server.files["code.bin"] = PREFIX[:-1]
        self.is_dropped(self.prepare(), "failed")

    def test_breaking(self) -> None:
        """A file that llama-server seems to die of."""
        self.server.pause_at = {"/slots/0?action=restore"}
        preparing = self.preparing()
        self.server.break_off()
        self.built.settle()
        self.is_dropped(self.successResultOf(preparing), "failed")

    def test_no_file_reason(self) -> None:
        """The client learns that there was no usable file."""
        self.server.files = {}
        self.assertEqual(Prepared("cold", "no-file"), self.prepare())


class SeenFolder(SlotTest):
    """Where the proxy sees the folder with the slot files."""

    def setUp(self) -> None:
        """Show it."""
        WorldTest.setUp(self)
        self.use(self.warm_world(slot_save_path=self.folder))
        self.slot.forget()

    def test_size(self) -> None:
        """A file is restored only when its size is the one that was written; it is not even tried otherwise."""
        file = self.folder / "code.bin"
        written = 10 * len(PREFIX)
        self.assertEqual("restored", self.prepare().cache)
        for size in (written - 1, written + 1, 0, None):
            self.use(self.built)
            if size is None:
                file.unlink()
            else:
                file.write_bytes(bytes(size))
            entry = self.built.snapshots.get("code")
            assert entry is not None
            self.slot.forget()
            before = len(self.server.requests)
            self.assertEqual(Prepared("cold", "no-file"), self.prepare())
            self.assertNotIn("/slots/0?action=restore", self.server.paths()[before:])
            self.assertIsNone(self.built.snapshots.get("code"))
            self.built.snapshots.put("code", entry)
        self.assertEqual(4, self.count("restores", "missing"))

    def test_gone(self) -> None:
        """A file that is gone makes its template cold at once, and it is warmed up again before anyone asks."""
        (self.folder / "code.bin").unlink()
        self.assertIsNone(self.slot.saved("code", KEY))
        self.assertEqual("cold", self.built.warmer.state("code")[0])
        self.successResultOf(self.built.start(self.built.warmer.round))
        self.assertEqual("warm", self.built.warmer.state("code")[0])

    def test_another_folder(self) -> None:
        """A folder that is not llama-server's is told, and what it does not show is not restored."""
        self.server.folder = None
        (self.folder / "code.bin").unlink()
        self.successResultOf(self.built.start(self.built.warmer.round))
        self.assertIn("--slot-save-path", str(self.built.warmer.state("code")[1]))
        self.assertIsNone(self.built.snapshots.get("code"))


class Saving(SlotTest):
    """From the slot to a file and its record."""

    def test_saved(self) -> None:
        """A save is recorded with what llama-server wrote, for this text and this model, and counted."""
        entry = self.successResultOf(self.saving())
        self.assertEqual(
            ("code.bin", KEY, len(PREFIX), 10 * len(PREFIX)), (entry.filename, entry.key, entry.tokens, entry.size)
        )
        self.assertEqual(entry, self.slot.saved("code", KEY))
        self.assertIsNone(self.slot.saved("code", OTHER))
        self.assertEqual(2, self.count("saves", "ok"))
        self.assertEqual(2 * entry.size, self.built.sample("slot_bytes_total", direction="saved"))

    def test_record_goes_first(self) -> None:
        """While a file is being written nothing says that it may be restored, and no more if that is broken off."""
        for end in (self.server.break_off, None):
            self.successResultOf(self.saving())
            self.server.pause_at = {"/slots/0?action=save"}
            saving = self.saving()
            self.assertEqual(1, self.server.paused)
            self.assertIsNone(self.built.snapshots.get("code"))
            if end is None:
                saving.cancel()
                self.built.settle()
                self.failureResultOf(saving, CancelledError)
            else:
                end()
                self.built.settle()
                self.failureResultOf(saving, SaveFailed)
            self.assertIsNone(self.built.snapshots.get("code"))
            self.server.pause_at = set()

    def test_somebody_else(self) -> None:
        """Where somebody else used the slot, before the save or during it, nothing is recorded."""
        # Before: another number of tokens is in there, or work is going on.
        self.failureResultOf(self.saving(tokens=5), SaveFailed)
        self.assertIsNotNone(self.built.snapshots.get("code"))  # nothing was written, the old file is good
        self.server.busy = True
        self.failureResultOf(self.saving(), SaveFailed)
        self.server.busy = False
        # During: as many tokens as before, but others; or another process, in the same state.
        self.server.pause_at = {"/slots/0?action=save"}
        saving = self.saving()
        self.evaluate([1] * len(PREFIX))
        self.server.go_on()
        self.built.settle()
        self.failureResultOf(saving, SaveFailed)
        self.assertIsNone(self.built.snapshots.get("code"))
        self.assertEqual(3, self.count("saves", "failed"))

    def test_empty(self) -> None:
        """A slot that is empty when it is saved gives no record, whatever the witness said."""
        self.server.slots_shown = False
        self.server.tokens = []
        self.failureResultOf(self.saving(), SaveFailed)
        self.assertIsNone(self.built.snapshots.get("code"))

    def test_without_witness(self) -> None:
        """With `--no-slots` a save is recorded if the same model runs after it, and not otherwise."""
        self.server.slots_shown = False
        self.successResultOf(self.saving())
        self.server.pause_at = {"/slots/0?action=save"}
        saving = self.saving()
        tokens = list(self.server.tokens)
        self.server.restart()
        self.server.tokens = tokens
        self.server.odds = [(1, -9.0)]
        self.server.pause_at = set()
        self.server.go_on()
        self.built.settle()
        self.failureResultOf(saving, SaveFailed)
        self.assertIsNone(self.built.snapshots.get("code"))

    def test_refused(self) -> None:
        """A llama-server without slot files refuses; that is counted as such."""
        self.server.files = None
        self.assertIn("code.bin", str(self.failureResultOf(self.saving(), SaveFailed).value))
        self.assertEqual(1, self.count("saves", "refused"))

    def test_model_unknown(self) -> None:
        """Nothing is saved while it is unknown which model runs."""
        self.built.identity.current = None
        self.failureResultOf(self.saving(), SaveFailed)
        self.assertIsNone(self.slot.saved("code", KEY))

    def test_client_writes_our_file(self) -> None:
        """A file of ours that somebody else had written is forgotten, any other file is not our business."""
        self.slot.file_changed("other.bin")
        self.assertIsNotNone(self.slot.saved("code", KEY))
        self.slot.file_changed("code.bin")
        self.assertIsNone(self.slot.saved("code", KEY))

    def test_note_in_trouble(self) -> None:
        """Where the witness cannot be had, the slot is unknown; that is no error."""
        self.server.answers = {"/slots": "nonsense"}
        self.successResultOf(self.built.start(lambda: self.slot.note(KEY)))
        self.assertFalse(self.slot.holds(KEY))
