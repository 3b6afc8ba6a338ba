"""When saving pauses: after failures that the next save would meet as well, of more than one prompt."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.errors import LlamaError, UpstreamError, UpstreamTimeout
from bioproxy.slot_files.save_failures import (
    LONGEST_PAUSE,
    SHORTEST_PAUSE,
    SaveFailed,
    SavePause,
    SlotChanged,
    TooLarge,
)

FULL = OSError(28, "No space left on device")
"""What a full disk gives."""


class Pausing(SynchronousTestCase):
    """`SavePause`, with a clock in the test's hands."""

    def setUp(self) -> None:
        """Begin without a failure."""
        self.clock = Clock()
        self.pause = SavePause(self.clock)

    def broke(self, *names: str, error: Exception = FULL) -> None:
        """Have saves of these prompts fail."""
        for name in names:
            self.pause.failed(name, error)

    def length(self) -> float:
        """Return how many seconds the pause lasts, to a second."""
        began = self.clock.seconds()
        while self.pause.in_force:
            self.clock.advance(1)
        return self.clock.seconds() - began

    def test_two_prompts(self) -> None:
        """One prompt that fails again and again causes no pause, a second one does."""
        self.broke("code", "code", "code")
        self.assertFalse(self.pause.in_force)
        self.broke("notes")
        self.assertTrue(self.pause.in_force)

    def test_bounded(self) -> None:
        """However many conversations cannot be saved, each pauses, and hardly a name is kept."""
        for number in range(10):
            self.broke(f"auto-{number:012x}")
        self.assertTrue(self.pause.in_force)
        self.assertLess(len(self.pause._failed), 3)

    def test_no_fault_of_the_disk(self) -> None:
        """What says nothing about the disk causes no pause, whoever fails; all other errors do."""
        for error in (SlotChanged("x"), TooLarge("x"), UpstreamError("x"), UpstreamTimeout("x")):
            self.broke("code", "notes", error=error)
            self.assertFalse(self.pause.in_force, error)
        for other in (SaveFailed("x"), LlamaError(500, "x"), FULL):
            self.broke("code", "notes", error=other)
            self.assertTrue(self.pause.in_force, other)
            self.pause.succeeded()

    def test_grows(self) -> None:
        """Each pause is twice as long as the one before, up to a limit."""
        self.broke("code")
        lengths = []
        for _ in range(7):
            self.broke("notes")
            lengths.append(self.length())
        self.assertEqual([30, 60, 120, 240, 480, 600, 600], lengths)
        self.assertEqual((30, 600), (SHORTEST_PAUSE, LONGEST_PAUSE))

    def test_succeeded(self) -> None:
        """After a success it takes two prompts again, and the pause is the shortest."""
        self.broke("code", "notes", "notes")
        self.pause.succeeded()
        self.assertFalse(self.pause.in_force)
        self.broke("notes")
        self.assertFalse(self.pause.in_force)
        self.broke("code")
        self.assertEqual(SHORTEST_PAUSE, self.length())

    def test_end(self) -> None:
        """An operator ends a pause; the next failure begins the shortest one."""
        self.broke("code", "notes", "notes")
        self.pause.end()
        self.assertFalse(self.pause.in_force)
        self.broke("notes")
        self.assertEqual(SHORTEST_PAUSE, self.length())
