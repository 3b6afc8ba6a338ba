"""Leases: one holder at a time, and none that is dead for long."""

from __future__ import annotations

from unittest import TestCase

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.shared.leases import BEAT, DEAD_AFTER, Leases

KEY = "code.model"
ROUND = 2
"""Seconds between two looks of a process."""


class Process:
    """A bioproxy with leases, whose clock begins somewhere, and the files that all of them share."""

    def __init__(self, name: str, files: dict[str, bytes], offset: float = 0.0) -> None:
        self.clock = Clock()
        self.clock.advance(offset)
        self.leases = Leases(name, self.clock)
        self.files = files
        self.alive = True

    def look(self) -> None:
        """See all leases, and write the beats that are due."""
        self.leases.saw(dict(self.files), self.clock.seconds() + 0.001)
        for file, content in self.leases.to_renew():
            if self.files.get(file, b"").startswith(self.leases.holder.encode() + b" "):
                self.files[file] = content
            else:
                self.leases.lost(file)

    def take(self) -> bool:
        """Take the lease if that is possible."""
        file = self.leases.file_to_create(KEY)
        if file is None or KEY in self.leases.mine or file in self.files:
            return KEY in self.leases.mine
        self.files[file] = self.leases.content(0)
        self.leases.got(KEY, file)
        return True

    def give_up(self) -> None:
        """Give the lease up."""
        for file in self.leases.give_up(KEY):
            self.files.pop(file, None)

    @property
    def holds(self) -> bool:
        """Whether it believes that it holds the lease."""
        return self.alive and KEY in self.leases.mine


class Two(SynchronousTestCase):
    """Two processes."""

    def setUp(self) -> None:
        """Make them; their clocks differ by a minute."""
        self.files: dict[str, bytes] = {}
        self.a, self.b = Process("a", self.files), Process("b", self.files, 60)

    def advance(self, seconds: float, *alive: Process) -> None:
        """Let time pass; those that are alive look every two seconds."""
        for _ in range(int(seconds / ROUND)):
            for each in (self.a, self.b):
                each.clock.advance(ROUND)
            for each in alive:
                each.look()

    def test_one(self) -> None:
        """One has it for as long as it lives, and the other one then."""
        self.assertTrue(self.a.take())
        self.b.look()
        self.assertEqual("a 0\n", self.b.leases.holder_of(KEY))
        self.assertFalse(self.b.take())
        self.advance(10 * DEAD_AFTER, self.a, self.b)
        self.assertFalse(self.b.take())
        self.assertIsNone(self.a.leases.holder_of(KEY))
        self.a.give_up()
        self.b.look()
        self.assertTrue(self.b.take())
        self.assertEqual([], self.a.leases.give_up(KEY))

    def test_dead(self) -> None:
        """A dead holder keeps it for `DEAD_AFTER` seconds; its files go with those of the next holder."""
        self.a.take()
        self.advance(DEAD_AFTER, self.b)
        self.assertFalse(self.b.take())
        self.advance(ROUND, self.b)
        self.assertTrue(self.b.take())
        self.assertEqual({f"{KEY}.1", f"{KEY}.2"}, set(self.files))
        # Back to life, it finds that it has lost the lease.
        self.a.look()
        self.assertFalse(self.a.holds)
        self.b.give_up()
        self.assertEqual({}, self.files)

    def test_same_name(self) -> None:
        """A holder that was away finds a file of the same name by somebody else, and knows that it is not its own."""
        self.a.take()
        self.advance(DEAD_AFTER + ROUND, self.b)
        self.b.take()
        self.b.give_up()
        self.b.look()
        self.b.take()
        self.assertEqual({f"{KEY}.1": b"b 0\n"}, self.files)
        self.a.look()
        self.assertFalse(self.a.holds)
        self.assertEqual("b 0\n", self.a.leases.holder_of(KEY))

    def test_overlap(self) -> None:
        """A look that began before a lease was created does not end it; one that began later does."""
        before = self.a.clock.seconds()
        self.a.take()
        self.a.leases.saw({}, before)
        self.assertTrue(self.a.holds)
        self.a.leases.saw({}, before + 1)
        self.assertFalse(self.a.holds)

    def test_own_leftover(self) -> None:
        """A lease of one's own that could not be removed keeps one from nothing."""
        self.a.take()
        self.a.leases.give_up(KEY)
        self.a.look()
        self.assertIsNone(self.a.leases.holder_of(KEY))
        self.assertTrue(self.a.take())

    def test_beats(self) -> None:
        """A beat is due every `BEAT` seconds, and says something new each time."""
        self.a.take()
        self.assertEqual([], self.a.leases.to_renew())
        self.a.clock.advance(BEAT)
        self.assertEqual([(f"{KEY}.1", b"a 1\n")], self.a.leases.to_renew())
        self.assertEqual([], self.a.leases.to_renew())

    def test_foreign_files(self) -> None:
        """Other files in the folder are no leases."""
        self.files.update({f"{KEY}.x": b"", f"{KEY}.\u00b2": b"", "probe-1": b"", "other.model.1": b"c 0\n"})
        self.a.look()
        self.assertIsNone(self.a.leases.holder_of(KEY))
        self.assertTrue(self.a.take())


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["take", "take", "give up", "stop", "go on", "die", "wait", "wait"])),
    max_size=60,
)


class Properties(TestCase):
    """What holds for three processes, whatever they do and whenever they stop."""

    @settings(max_examples=200, deadline=None)
    @given(STEPS, st.lists(st.floats(0, 120), min_size=3, max_size=3))
    def test_any_order(self, steps: list[tuple[int, str]], offsets: list[float]) -> None:
        """Two never believe for over `DEAD_AFTER` that they hold it; after 60 s without deaths nobody is blocked."""
        files: dict[str, bytes] = {}
        all_of_them = [Process(name, files, offset) for name, offset in zip("abc", offsets, strict=True)]
        stopped: set[Process] = set()
        together = 0
        for index, step in steps:
            each = all_of_them[index]
            if step == "die":
                each.alive = False
            elif step == "stop":
                stopped.add(each)
            elif step == "go on":
                stopped.discard(each)
            elif each.alive and each not in stopped and step != "wait":
                each.look()
                each.take() if step == "take" else each.give_up()
            # A process that is stopped does not know anything: only those that run count.
            together = self.pass_by(all_of_them, stopped, together)
        # The dead keep nobody away, nor do those that are stopped.
        alive = [each for each in all_of_them if each.alive and each not in stopped]
        for _ in range(60 // ROUND):
            self.pass_by(all_of_them, stopped, 0)
        if alive:
            self.assertTrue(any([each.take() for each in alive]))

    def pass_by(self, all_of_them: list[Process], stopped: set[Process], together: int) -> int:
        """Let a round pass; return for how many seconds more than one has held the lease."""
        for each in all_of_them:
            each.clock.advance(ROUND)
        for each in all_of_them:
            if each.alive and each not in stopped:
                each.look()
        holders = [each for each in all_of_them if each.holds and each not in stopped]
        together = together + ROUND if len(holders) > 1 else 0
        self.assertLessEqual(together, DEAD_AFTER)
        return together
