"""One process with llama.cpp, piece by piece."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.child.process_output import ENDING, LAST_LINES, LINE_LIMIT, ProcessOutput
from tests.support.network import Reactor
from tests.support.world import logged


class Output(SynchronousTestCase):
    """`ProcessOutput`."""

    def make(self, aloud: bool = True) -> tuple[ProcessOutput, Any]:
        """Return one that is connected, and its transport."""
        self.clock = Clock()
        process = ProcessOutput(self.clock, aloud)
        transport = Reactor().spawnProcess(process, "", [], {})
        return process, transport

    def test_lines(self) -> None:
        """Pieces become lines in the log, in order, without control characters, and the process id is found."""
        process, _ = self.make()
        with capturedLogs() as events:
            process.outReceived(b"process 12")
            self.assertIsNone(process.pid)
            process.outReceived(b"34\n\n  a {b}\r\nx\x1b[31m\xff")
            process.errReceived(b"process 5\nend")
            process.processEnded(Failure(ProcessDone(0)))
        self.assertEqual(["process 1234", "  a {b}", "x [31m\\xffprocess 5", "end"], logged(events))
        self.assertEqual((1234, True, 0, None), (process.pid, process.ended, process.code, process.killed_by))
        self.successResultOf(process.gone)

    def test_long(self) -> None:
        """A line without an end does not grow; only the last lines are kept."""
        process, _ = self.make()
        process.outReceived(b"y" * (LINE_LIMIT + 1) + b"z")
        self.assertEqual(["y" * LINE_LIMIT], list(process.last_lines))
        process.outReceived(b"".join(b"%d\n" % number for number in range(100)))
        self.assertEqual([str(number) for number in range(100 - LAST_LINES, 100)], list(process.last_lines))

    def test_quiet(self) -> None:
        """A repeated try says nothing before it is known to work, and then all of it."""
        process, _ = self.make(aloud=False)
        with capturedLogs() as events:
            process.outReceived(b"one\n")
            self.assertEqual([], logged(events))
            process.heard()
            process.heard()
            process.outReceived(b"two\n")
        self.assertEqual(["one", "two"], logged(events))

    def test_end(self) -> None:
        """Its input is closed; a process that stays is killed, which is told; one that goes is not."""
        process, transport = self.make()
        process.end()
        process.end()
        self.assertTrue(transport.stdin_closed)
        with capturedLogs() as events:
            self.clock.advance(ENDING)
        self.assertTrue(transport.killed)
        self.assertEqual(["llama.cpp has not ended 10 s after it was asked to, and is killed"], logged(events))
        process.processEnded(Failure(ProcessTerminated(None, 9)))
        self.assertEqual((None, 9), (process.code, process.killed_by))
        process, transport = self.make()
        process.end()
        process.processEnded(Failure(ProcessTerminated(1)))
        self.clock.advance(ENDING)
        self.assertEqual((1, False, []), (process.code, transport.killed, self.clock.getDelayedCalls()))
        # Nothing is left to do, and nothing goes wrong.
        process.end()
        process.kill()

    def test_gone_already(self) -> None:
        """A process that is gone without having been reported cannot be killed; one that never ran need not end."""
        process, transport = self.make()

        def gone(signal: str) -> None:
            raise ProcessExitedAlready()

        transport.signalProcess = gone
        process.kill()
        never = ProcessOutput(Clock(), True)
        never.end()
        never.kill()
