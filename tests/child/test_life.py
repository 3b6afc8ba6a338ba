"""One process after the other: crashes, starts that fail, the pauses after them, and other settings in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.logger import LogLevel, capturedLogs

from bioproxy.child.earlier_starts import FIRST_PAUSE, STEADY
from bioproxy.child.startup import START_LIMIT
from tests.child.support import PAUSE, ChildTest
from tests.support.world import logged


class Lives(ChildTest):
    """`Life`, as part of a `LlamaChild`, with processes in the test's hands."""

    def test_crash(self) -> None:
        """After a crash it is started again, and those that wait go on waiting."""
        self.child.startService()
        self.answer()
        with capturedLogs() as events:
            self.end("0.1 E no way", code=3)
        (line,) = [event for event in events if event["log_level"] is LogLevel.warn]
        self.assertIn("exit code 3: no way", logged([line])[0])
        self.assertEqual((None, "pausing", None), (self.child.pid, self.child.state, self.child.trouble))
        waiting = self.ready()
        self.reactor.advance(PAUSE)
        self.assertEqual((2, "starting"), (len(self.reactor.processes), self.child.state))
        self.assertNoResult(waiting)
        self.answer()
        self.successResultOf(waiting)
        self.assertEqual(1, self.child.restarts)
        self.assertEqual(1, self.metrics.registry.get_sample_value("bioproxy_llama_restarts_total"))

    def test_pauses_grow(self) -> None:
        """Crashes one after the other are followed by longer pauses; a long quiet time between them counts."""
        self.child.startService()
        for pause in (1, 2, 4, 1):
            self.answer()
            self.reactor.advance(STEADY if len(self.reactor.processes) == 4 else 0)
            started = len(self.reactor.processes)
            self.end()
            self.reactor.advance(FIRST_PAUSE * pause * 0.99)
            self.assertEqual(started, len(self.reactor.processes), pause)
            self.reactor.advance(FIRST_PAUSE * pause * 0.3)
            self.assertEqual(started + 1, len(self.reactor.processes), pause)

    def test_start_fails(self) -> None:
        """A start that fails is told to all, once in the log, and tried again."""
        self.child.startService()
        waiting = [self.ready(), self.ready()]
        line = "0.1 E llama_model_load: error loading model: tensor 'x' data is not within the file bounds"
        with capturedLogs() as events:
            self.end(line)
            errors = [self.failure(each) for each in waiting]
            self.assertIsNot(errors[0], errors[1])
            self.assertEqual((503, 1), (errors[0].status, errors[0].retry_after))
            reason = "llama.cpp does not start: the model's file is incomplete: was its download interrupted?"
            self.assertEqual({reason}, {str(errors[0]), self.child.trouble, self.child.not_running()})
            # From now on nobody need wait to learn it.
            self.failure(self.ready())
            for _ in range(3):
                self.reactor.advance(100)
                again = self.ready()
                self.assertNoResult(again)
                self.end(line)
                self.failure(again)
        self.assertEqual(1, len([event for event in events if event["log_level"] is LogLevel.error]))
        self.assertEqual(1, logged(events).count(line), "the lines of a repeated try are left out")
        self.reactor.advance(100)
        with capturedLogs() as events:
            self.process.outReceived(b"at last\n")
            self.answer()
        self.assertIn("at last", logged(events))
        self.assertIsNone(self.child.trouble)

    def test_never_ready(self) -> None:
        """A process that does not answer in time is killed, and its start has failed."""
        self.child.startService()
        waiting = self.ready(10_000)
        self.reactor.pump([1] * int(START_LIMIT))
        self.assertTrue(self.process.transport.killed)
        self.assertNoResult(waiting)
        self.end()
        self.assertIn("it did not get ready within 900 s", str(self.failure(waiting)))

    def test_cannot_be_started(self) -> None:
        """Where the system refuses a process, that is the reason of the failure."""

        def refuse(*args: Any, **more: Any) -> None:
            raise OSError(11, "Resource temporarily unavailable")

        self.patch(self.reactor, "spawnProcess", refuse)
        self.child.startService()
        self.assertIn("it could not be started: [Errno 11] Resource", self.child.trouble or "")
        self.assertIsNone(self.child.stopService())

    def test_other_settings_during_a_start(self) -> None:
        """A process that is still starting is replaced at once, and what it says does not count."""
        self.child.startService()
        self.child.use(replace(self.settings, llama_args=("-c", "1")))
        waiting = self.ready()
        self.answer()
        self.assertNoResult(waiting)
        self.end()
        self.answer()
        self.successResultOf(waiting)

    def test_other_settings_in_a_pause(self) -> None:
        """Other settings end the pause after a failure: they may be right."""
        self.child.startService()
        self.end()
        self.assertIsNotNone(self.child.trouble)
        self.child.use(replace(self.settings, llama_args=("-c", "1")))
        waiting = self.ready()
        self.assertEqual(2, len(self.reactor.processes))
        self.answer()
        self.successResultOf(waiting)

    def test_a_bug(self) -> None:
        """A bug of ours is logged, and not kept quiet."""

        async def broken() -> None:
            raise ZeroDivisionError

        self.child.look = broken
        self.child.startService()
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
