"""The life of the llama.cpp that bioproxy starts: starts, ends, pauses, and what those who wait are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure

from bioproxy.child.attempts import FIRST_PAUSE, STEADY
from bioproxy.child.command_line import adapted, free_port
from bioproxy.child.startup import LOOK, START_LIMIT
from bioproxy.child.supervisor import IS_STARTING, LlamaChild
from bioproxy.runtime.errors import ConfigError, LlamaNotRunning, ShuttingDown
from bioproxy.runtime.metrics import Metrics
from bioproxy.settings.configuration import Settings
from tests.support.folders import FolderTest
from tests.support.network import Reactor
from tests.support.world import logged

PAUSE = FIRST_PAUSE * 1.3
"""Longer than the first pause, with its random part."""


class Child(FolderTest):
    """`LlamaChild`, with processes in the test's hands."""

    def setUp(self) -> None:
        """Make one that was not started."""
        super().setUp()
        model = self.folder / "model.gguf"
        model.write_bytes(b"GGUF")
        port = free_port()
        self.settings = adapted(Settings(model=model, state_dir=self.folder), port)
        self.reactor = Reactor()
        self.child = LlamaChild(self.settings, port, self.reactor)
        self.metrics = Metrics()
        self.up = False
        self.looks = 0
        self.child.look, self.child.is_up, self.child.count_restart = (
            self.look,
            lambda: self.up,
            self.metrics.llama_restarts,
        )

    async def look(self) -> None:
        """Count the look."""
        self.looks += 1

    @property
    def process(self) -> Any:
        """The protocol of the latest process."""
        return self.reactor.processes[-1][0]

    def answer(self) -> None:
        """Let llama.cpp answer from now on, and be looked at."""
        self.up = True
        self.reactor.advance(LOOK)

    def end(self, *lines: str, code: int = 1) -> None:
        """End the process, after these lines."""
        self.up = False
        self.process.outReceived("".join(f"{line}\n" for line in lines).encode())
        self.process.processEnded(Failure(ProcessTerminated(code) if code else ProcessDone(0)))

    def ready(self, seconds: float = 100.0) -> Deferred[None]:
        """Wait for it."""
        return Deferred.fromCoroutine(self.child.ready(seconds))

    def failure(self, waiting: Deferred[None]) -> LlamaNotRunning:
        """Return the error with which a wait ended."""
        value = self.failureResultOf(waiting, LlamaNotRunning).value
        assert isinstance(value, LlamaNotRunning)
        return value

    def test_start(self) -> None:
        """Those that wait go on when it answers; from then on nobody waits."""
        self.assertEqual("stopped", self.child.state)
        self.child.startService()
        waiting = self.ready()
        self.process.outReceived(b"process 77\n")
        self.assertEqual({"pid": 77, "restarts": 0, "state": "starting"}, self.child.told())
        self.assertEqual(IS_STARTING, self.child.not_running())
        self.reactor.advance(LOOK)
        self.assertNoResult(waiting)
        self.answer()
        self.successResultOf(waiting)
        self.successResultOf(self.ready())
        self.assertEqual((None, "running"), (self.child.not_running(), self.child.state))
        looks = self.looks
        self.reactor.advance(LOOK)
        self.assertEqual(looks, self.looks, "it is looked at by the watch alone")

    def test_waiting_ends(self) -> None:
        """Who waits may hang up, or run out of time."""
        self.child.startService()
        gone, late, spent = self.ready(), self.ready(3), self.ready(-1)
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.reactor.advance(0)
        self.assertIn("did not answer in time", str(self.failure(spent)))
        self.reactor.advance(3)
        self.assertIn("did not answer in time", str(self.failure(late)))
        self.answer()

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

    def test_wrong_from_the_start(self) -> None:
        """What is seen to be wrong before ends the start."""
        (self.folder / "model.gguf").unlink()
        self.assertRaises(ConfigError, self.child.startService)
        self.assertEqual([], self.reactor.processes)
        self.assertIsNone(self.child.stopService())

    def test_stop(self) -> None:
        """A stop ends the process and all waiting, and fires when the process is gone; nothing is started again."""
        for starting in (True, False):
            self.setUp()
            self.child.startService()
            waiting = self.ready() if starting else None
            if not starting:
                self.answer()
            stopped = self.child.stopService()
            assert stopped is not None
            self.assertTrue(self.process.transport.stdin_closed)
            if waiting is not None:
                self.assertIn("shutting down", str(self.failure(waiting)))
            self.assertNoResult(stopped)
            with capturedLogs() as events:
                self.end(code=0)
            self.successResultOf(stopped)
            self.assertEqual([], logged(events))
            self.reactor.advance(1000)
            self.assertEqual((1, "stopped"), (len(self.reactor.processes), self.child.state))
            self.assertEqual([], self.reactor.getDelayedCalls())

    def test_stop_in_a_pause(self) -> None:
        """A stop between two tries has nothing to wait for."""
        self.child.startService()
        self.end()
        self.assertIsNone(self.child.stopService())
        self.reactor.advance(1000)
        self.assertEqual(1, len(self.reactor.processes))

    def test_turned_away(self) -> None:
        """Before a stop, those that wait can be told another error."""
        self.child.startService()
        waiting = self.ready()
        self.child.turn_away(lambda: ShuttingDown("bye"))
        self.failureResultOf(waiting, ShuttingDown)

    def test_other_settings(self) -> None:
        """Other settings are put into force by whoever is ready next; those of other parts change nothing."""
        self.child.startService()
        self.answer()
        self.child.use(replace(self.settings, warmup=False))
        self.successResultOf(self.ready())
        self.assertFalse(self.process.transport.stdin_closed)
        self.child.use(replace(self.settings, llama_args=("-c", "1")))
        self.assertFalse(self.process.transport.stdin_closed, "the request in progress goes on")
        waiting = self.ready()
        self.assertTrue(self.process.transport.stdin_closed)
        self.assertEqual("starting", self.child.state)
        # Until the old process is gone, what answers is that.
        self.reactor.advance(LOOK)
        self.assertNoResult(waiting)
        self.end(code=0)
        self.assertEqual(["-c", "1"], self.reactor.processes[-1][1][-2:])
        self.answer()
        self.successResultOf(waiting)
        self.assertEqual((1, None), (self.child.restarts, self.child.trouble))

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
