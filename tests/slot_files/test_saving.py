"""From the slot to a file: a good file is never lost, and none is recorded that is not whole."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred

from bioproxy.prompts.digests import prefix_digests
from bioproxy.slot_files.folder import MAGIC, RESERVE
from bioproxy.slot_files.record import CHAT, PART, PREFIX, Snapshot
from bioproxy.slot_files.save_failures import SHORTEST_PAUSE
from tests.support.fakes import Refusal
from tests.support.record_files import block, unblock
from tests.support.slot_files import SlotFilesTest
from tests.support.world import KEY
from tests.support.world import PREFIX as TOKENS

SAVE = "/slots/0?action=save"


class Saving(SlotFilesTest):
    """A save that goes well, or finds out in time that it does not."""

    def test_saved(self) -> None:
        """A save is recorded with what llama-server wrote, for this text and this model, and counted."""
        entry = self.save()
        self.assertEqual(
            ("code.new.bin", KEY, len(TOKENS), 10 * len(TOKENS), prefix_digests(TOKENS), None, None),
            (entry.filename, entry.key, entry.tokens, entry.size, entry.marks, entry.conversation, entry.written_at),
        )
        self.assertEqual((entry, self.built.identity.current), (self.recorded(), entry.model))
        self.assertEqual(2, self.count("saves", "ok"))
        self.assertEqual(2 * entry.size, self.built.sample("slot_bytes_total", direction="saved"))

    def test_names_take_turns(self) -> None:
        """Where files cannot be renamed, saves go to two names in turn, never to the one that is recorded."""
        self.assertEqual(
            ["code.bin", "code.new.bin", "code.bin"],
            [self.recorded().filename, self.save().filename, self.save().filename],
        )

    def test_old_one_stays(self) -> None:
        """While a file is being written the old one is recorded and whole, and nothing says that it is not."""
        old = self.recorded()
        self.evaluate([*TOKENS, 5])
        self.server.pause_at = {SAVE}
        saving = self.saving(tokens=len(TOKENS) + 1)
        self.assertEqual((1, old), (self.server.paused, self.recorded()))
        self.server.go_on()
        self.built.settle()
        new = self.successResultOf(saving)
        self.assertEqual((len(TOKENS) + 1, new), (new.tokens, self.recorded()))
        self.assertEqual(TOKENS, (self.server.files or {})[old.filename])

    def test_kinds_apart(self) -> None:
        """A save of one kind leaves the others alone."""
        before = self.recorded()
        self.assertEqual("code.chat.bin", self.save(CHAT).filename)
        self.assertEqual("code.part.bin", self.save(PART).filename)
        self.assertEqual(before, self.recorded())

    def test_part_has_one_name(self) -> None:
        """The beginning of a warm-up has one file only: while that is written over, it is not recorded."""
        self.save(PART)
        for end in (self.server.break_off, self.server.go_on):
            self.server.pause_at = {SAVE}
            saving = self.saving(PART)
            self.assertIsNone(self.built.snapshots.get("code", PART))
            end()
            self.built.settle()
            self.server.pause_at = set()
            if end == self.server.go_on:
                self.assertEqual(self.successResultOf(saving), self.recorded(PART))
            else:
                self.fails(saving)
                self.assertIsNone(self.built.snapshots.get("code", PART))

    def test_somebody_else_before(self) -> None:
        """Where the slot holds another number of tokens, or is at work, nothing is written."""
        before = self.recorded()
        self.assertEqual("saving code.new.bin: another request used the slot", self.fails(self.saving(tokens=5)))
        self.server.busy = True
        self.assertIn("another request used the slot", self.fails(self.saving()))
        self.assertEqual((1, before), (self.server.paths().count(SAVE), self.recorded()))
        self.assertEqual(2, self.count("saves", "failed"))

    def test_somebody_else_meanwhile(self) -> None:
        """Where somebody used the slot during the save, or llama-server was restarted, it does not count."""
        before = self.recorded()
        happenings: list[Callable[[], object]] = [
            lambda: self.evaluate([1] * len(TOKENS)),
            lambda: self.server.restart(self.server.marker),
            lambda: setattr(self.server, "busy", True),
        ]
        for number, happens in enumerate(happenings):
            self.server.busy, self.server.pause_at = False, set()
            self.evaluate(TOKENS)
            self.server.pause_at = {SAVE}
            saving = self.saving()
            happens()
            self.server.go_on()
            self.built.settle()
            self.assertIn("code.new.bin: ", self.fails(saving), number)
            self.assertEqual(before, self.recorded())

    def test_without_witness(self) -> None:
        """With `--no-slots` a save counts if the same model runs after it, and not otherwise."""
        self.server.slots_shown = False
        entry = self.save()
        self.server.pause_at = {SAVE}
        saving = self.saving()
        self.another_model()
        self.server.tokens = list(TOKENS)
        self.built.go_on()
        self.assertIn("the model changed", self.fails(saving))
        self.assertEqual(entry, self.recorded())

    def test_another_process(self) -> None:
        """What another process has in its slot is not recorded as the old one's, also before the watch knows of it."""
        before = self.recorded()
        self.another_model()
        self.evaluate(TOKENS)
        self.assertEqual("saving code.new.bin: llama-server was restarted", self.fails(self.saving()))
        self.assertEqual(before, self.recorded())

    def test_empty(self) -> None:
        """A slot that is empty when it is saved gives no record, whatever the witness said."""
        before = self.recorded()
        self.server.slots_shown = False
        self.server.tokens = []
        self.fails(self.saving())
        self.assertEqual(before, self.recorded())

    def test_refused(self) -> None:
        """A llama-server without slot files refuses; that is counted as such."""
        self.server.files = None
        self.assertIn("saving code.new.bin: ", self.fails(self.saving()))
        self.assertEqual((1, 0), (self.count("saves", "refused"), self.count("saves", "failed")))

    def test_rest(self) -> None:
        """After a save that can only fail again files rest for a while, longer each time until one succeeds."""
        self.built.llama_server.answers = {SAVE: Refusal(500, "no space left on device")}
        self.fails(self.saving(name="other"))
        self.assertTrue(self.files.of_use)  # that may be for a reason of its own
        for seconds in (SHORTEST_PAUSE, 2 * SHORTEST_PAUSE):
            self.built.llama_server.answers = {SAVE: Refusal(500, "no space left on device")}
            self.fails(self.saving())
            self.built.clock.advance(seconds - 1)
            self.assertFalse(self.files.of_use)
            self.built.clock.advance(1)
            self.assertTrue(self.files.of_use)
        self.fails(self.saving())
        self.assertFalse(self.files.of_use)
        self.files.end_pause()  # an operator's word
        self.assertTrue(self.files.of_use)
        self.server.answers = {}
        self.save()
        self.server.answers = {SAVE: b"nonsense"}
        self.fails(self.saving())
        self.assertTrue(self.files.of_use)

    def test_model_unknown(self) -> None:
        """Nothing is saved while it is unknown which model runs."""
        self.assertTrue(self.files.model_known)
        self.built.identity.current = None
        self.assertFalse(self.files.model_known)
        self.assertIn("llama-server was restarted", self.fails(self.saving()))
        self.assertEqual(1, self.server.paths().count(SAVE))

    def test_speed(self) -> None:
        """Each save tells how long the next will take, and how large it will be."""
        self.server.pause_at = {SAVE}
        saving = self.saving()
        self.built.clock.advance(len(TOKENS) * 0.5)
        self.server.go_on()
        self.built.settle()
        self.successResultOf(saving)
        self.assertEqual((50.0, 1000), (self.built.speed.save_seconds(100), self.built.speed.bytes_of(100)))

    def test_record_cannot_be_written(self) -> None:
        """A save that cannot be recorded fails, and the old file is still recorded."""
        before = self.recorded()
        block(self.built.settings.state_dir)
        self.fails(self.saving())
        unblock(self.built.settings.state_dir)
        self.assertEqual(before, self.recorded())
        self.is_restored(TOKENS)


class Limited(SlotFilesTest):
    """Saves to a folder whose files have limits."""

    def setUp(self) -> None:
        """Show the folder."""
        super().setUp()
        self.slots = self.slots_folder()
        self.use(self.warm_world(state_dir=self.folder / "other", slot_save_path=self.slots))
        self.shelf = self.built.parts.shelf
        self.size = 10 * len(TOKENS)

    def test_makes_place(self) -> None:
        """A new conversation takes the place of an older one, a template's prompt stays."""
        self.shelf.conversations_limit = self.size
        for name in ("auto-0123456789ab", "code"):
            self.successResultOf(self.saving(CHAT, name=name))
            self.assertEqual({f"{name}.chat.bin", "code.bin"}, set(os.listdir(self.slots)))
        self.assertEqual(0, self.built.files.tell_shelf()["prompt"]["files"])
        self.assertEqual(1, self.built.sample("shelf_removed_total", kind="conversation"))

    def test_given_up(self) -> None:
        """What llama-server wrote for a client that hung up is removed after the next save, unless it is recorded."""
        for name in ("auto-0123456789ab", "code"):
            self.server.pause_at = {SAVE}
            saving = self.saving(CHAT, name=name)
            saving.cancel()
            self.built.settle()
            self.failureResultOf(saving, CancelledError)
            self.server.pause_at = set()
            # As llama-server does, which finishes each save.
            (self.slots / f"{name}.chat.bin").write_bytes(MAGIC)
        self.save(CHAT)
        self.assertEqual(["code.bin", "code.chat.bin"], sorted(os.listdir(self.slots)))
        self.assertEqual(self.size, (self.slots / "code.chat.bin").stat().st_size)

    def test_label(self) -> None:
        """Learned prompts are one in the metrics."""
        entry = self.successResultOf(self.saving(CHAT, name="auto-0123456789ab"))
        self.assertTrue(self.run_now(lambda: self.files.load("auto-0123456789ab", CHAT, entry)))
        for metric in ("saves", "restores"):
            self.assertEqual(1, self.built.sample(f"slot_{metric}_total", template="auto", result="ok"))

    def test_too_large(self) -> None:
        """What could never stay is not begun, removes nothing, and causes no pause."""
        self.save(CHAT)
        self.shelf.conversations_limit = self.size - 1
        before = self.server.paths().count(SAVE)
        for name in ("auto-0123456789ab", "auto-0123456789ac", "auto-0123456789ad"):
            text = self.fails(self.saving(CHAT, name=name))
            self.assertIn("are more than the limit", text)
        self.assertEqual(before, self.server.paths().count(SAVE))
        self.assertTrue(self.files.of_use)
        self.assertEqual(["code.bin", "code.chat.bin"], sorted(os.listdir(self.slots)))

    def test_too_large_after_all(self) -> None:
        """Where the size is known only afterwards, the file is removed again, and nothing else."""
        self.save(CHAT)
        self.built.speed._bytes_per_token = 0.0
        self.shelf.conversations_limit = self.size - 1
        self.assertIn("are more than the limit", self.fails(self.saving(CHAT, name="auto-0123456789ab")))
        self.assertEqual(["code.bin", "code.chat.bin"], sorted(os.listdir(self.slots)))
        self.assertTrue(self.files.of_use)

    def test_full_disk(self) -> None:
        """Where the disk is full, conversations make room; where they cannot, nothing is saved or removed."""
        self.save(CHAT)
        self.built.free = RESERVE
        # The folder in memory does not get emptier by itself.
        self.assertIn("too little is free", self.fails(self.saving(name="auto-0123456789ab")))
        self.assertEqual(["code.bin"], sorted(os.listdir(self.slots)))

    def test_pinned(self) -> None:
        """A file that replaces a pinned one is pinned."""
        for kind in (PREFIX, PART, CHAT):
            self.save(kind)
        self.assertTrue(self.built.parts.shelf.pin("code", True))
        self.assertTrue(all(self.save(kind).pinned for kind in (PREFIX, PART, CHAT)))
        self.built.parts.shelf.pin("code", False)
        self.assertFalse(any(self.save(kind).pinned for kind in (PREFIX, PART, CHAT)))

    def test_used(self) -> None:
        """Restoring is a use; a file that could not be restored has none."""
        self.is_restored(TOKENS)
        uses = self.built.snapshots.uses("code", PREFIX)
        self.assertEqual(1, uses and uses.hits)


class Crashing(SlotFilesTest):
    """Whatever breaks off a save, at whatever step, the old file stays recorded and good."""

    def steps(self) -> list[tuple[str, Callable[[], Deferred[Snapshot]]]]:
        """Return ways to begin a save that pauses at one of its steps."""

        def pauses(*paths: str) -> Callable[[], Deferred[Snapshot]]:
            def begin() -> Deferred[Snapshot]:
                self.server.pause_at = {paths[0]}
                saving = self.saving(tokens=len(TOKENS) + 1)
                for path in paths[1:]:
                    self.server.pause_at = {path}
                    self.server.go_on()
                    self.built.settle()
                return saving

            return begin

        return [("witness", pauses("/slots")), ("save", pauses(SAVE)), ("witness after", pauses(SAVE, "/slots"))]

    def ends(self, saving: Deferred[Snapshot], end: str) -> None:
        """End it."""
        if end == "cancelled":
            saving.cancel()
            self.built.settle()
            self.failureResultOf(saving, CancelledError)
        else:
            self.server.break_off()
            self.built.settle()
            self.fails(saving)

    def check(self) -> None:
        """Break saves off at each step."""
        old = self.recorded()
        for step, begin in self.steps():
            for end in ("cancelled", "broken off"):
                self.evaluate([*TOKENS, 5])
                saving = begin()
                self.assertEqual(1, self.server.paused, step)
                self.ends(saving, end)
                self.server.pause_at = set()
                self.assertEqual(old, self.recorded(), (step, end))
                self.assertEqual(old, self.files.usable("code", PREFIX), (step, end))
                self.is_restored(TOKENS)
        self.evaluate([*TOKENS, 5])
        self.save(tokens=len(TOKENS) + 1)
        self.is_restored([*TOKENS, 5])

    def test_unseen_folder(self) -> None:
        """In a folder that the proxy does not see."""
        self.check()

    def test_seen_folder(self) -> None:
        """In one that it sees; there nothing is left over in the end."""
        self.use(self.warm_world(state_dir=self.folder / "other", slot_save_path=self.slots_folder()))
        self.check()
        self.assertEqual(["code.bin"], os.listdir(self.slots_folder()))

    def test_without_witness(self) -> None:
        """With `--no-slots`, also where the model is asked for afterwards."""
        old = self.recorded()
        self.server.slots_shown = False
        for path in ("/slots", SAVE, "/props"):
            for end in ("cancelled", "broken off"):
                self.evaluate(TOKENS)
                self.server.pause_at = {path}
                saving = self.saving()
                self.assertEqual(1, self.server.paused, path)
                self.ends(saving, end)
                self.server.pause_at = set()
                self.assertEqual(old, self.recorded(), (path, end))
