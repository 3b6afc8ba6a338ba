"""The start of a process: what comes first decides, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessTerminated
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.child.process_output import ProcessOutput
from bioproxy.child.startup import LOOK, START_LIMIT, Start, until_up
from tests.support.network import Reactor


class Startup(SynchronousTestCase):
    """`until_up`, with a process in the test's hands."""

    def setUp(self) -> None:
        """Start a process that does not answer yet."""
        self.reactor = Reactor()
        self.process = ProcessOutput(self.reactor, True)
        self.pipes: Any = self.reactor.spawnProcess(self.process, "", [], {})
        self.up, self.looks = False, 0

    def start(self) -> Deferred[Start]:
        """Wait for it."""
        return Deferred.fromCoroutine(until_up(self.process, self.look, lambda: self.up, START_LIMIT, self.reactor))

    async def look(self) -> None:
        """Count the look."""
        self.looks += 1

    def end(self) -> None:
        """End the process."""
        self.process.processEnded(Failure(ProcessTerminated(1)))

    def nothing_left(self) -> None:
        """See that no timer runs, and nobody looks any more."""
        looks = self.looks
        self.assertEqual([], self.reactor.getDelayedCalls())
        self.reactor.advance(START_LIMIT)
        self.assertEqual(looks, self.looks)

    def test_answers(self) -> None:
        """It is looked at again and again until it answers; its end afterwards is no matter here."""
        starting = self.start()
        self.reactor.pump([LOOK] * 3)
        self.assertEqual(4, self.looks)
        self.assertNoResult(starting)
        self.up = True
        self.reactor.advance(LOOK)
        self.assertEqual(Start.ANSWERS, self.successResultOf(starting))
        self.nothing_left()
        self.end()

    def test_answered_before(self) -> None:
        """What was known before the start does not count: it is looked at once in any case."""
        self.up = True
        self.assertEqual((Start.ANSWERS, 1), (self.successResultOf(self.start()), self.looks))

    def test_ended(self) -> None:
        """A process that ends is not waited for any longer, and not killed."""
        starting = self.start()
        self.end()
        self.assertEqual(Start.ENDED, self.successResultOf(starting))
        self.assertFalse(self.pipes.killed)
        self.nothing_left()

    def test_ended_before(self) -> None:
        """That holds for a process that could not be started, too."""
        self.end()
        self.assertEqual(Start.ENDED, self.successResultOf(self.start()))
        self.nothing_left()

    def test_late(self) -> None:
        """A process that has had its time is killed at once, and not asked to end."""
        starting = self.start()
        self.reactor.pump([LOOK] * int(START_LIMIT / LOOK - 1))
        self.assertNoResult(starting)
        self.reactor.advance(LOOK)
        self.assertEqual(Start.LATE, self.successResultOf(starting))
        self.assertEqual((True, False), (self.pipes.killed, self.pipes.stdin_closed))
        self.nothing_left()

    def test_cancelled(self) -> None:
        """Cancelling ends the waiting, and leaves the process as it is."""
        starting = self.start()
        starting.cancel()
        self.failureResultOf(starting, CancelledError)
        self.assertEqual((False, False), (self.pipes.killed, self.pipes.stdin_closed))
        self.nothing_left()

    def test_look_fails(self) -> None:
        """A look that fails is a fault of ours: it comes out here."""

        async def broken() -> None:
            raise ZeroDivisionError

        starting = Deferred.fromCoroutine(until_up(self.process, broken, lambda: self.up, 1, self.reactor))
        self.failureResultOf(starting, ZeroDivisionError)
        self.nothing_left()
