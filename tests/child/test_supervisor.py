"""The llama.cpp that bioproxy starts, as others see it: its state, its stop, a reload, and who waits for it."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs

from bioproxy.child.startup import LOOK
from bioproxy.child.supervisor import IS_STARTING
from bioproxy.child.wheel_flags import KEY_VARIABLE
from bioproxy.runtime.errors import ConfigError, ShuttingDown
from tests.child.support import PAUSE, ChildTest
from tests.support.world import logged


class Child(ChildTest):
    """`LlamaChild`, with processes in the test's hands."""

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

    def test_other_settings_in_a_start(self) -> None:
        """Other settings need not wait for a start that leads to nothing, though somebody waits for it at the gate."""
        self.child.startService()
        waiting = self.ready()
        for words in (("-c", "1"), ("-c", "2")):
            self.child.use(replace(self.settings, llama_args=words))
        self.assertFalse(self.process.transport.stdin_closed)
        self.child.hurry()
        self.assertTrue(self.process.transport.stdin_closed)
        self.end(code=0)
        self.assertEqual(["-c", "2"], self.reactor.processes[-1][1][-2:])
        self.assertNoResult(waiting)
        self.answer()
        self.successResultOf(waiting)
        # A request may be in progress from now on.
        self.child.use(replace(self.settings, llama_args=("-c", "3")))
        self.child.hurry()
        self.assertFalse(self.process.transport.stdin_closed)
        # And after a stop there is nothing to hurry for.
        self.child.stopService()
        self.end(code=0)
        self.child.hurry()
        self.assertEqual(("stopped", 2), (self.child.state, len(self.reactor.processes)))

    def test_other_settings_before_a_pause(self) -> None:
        """Nor for the look after an end; and a stop in the same moment leaves nothing that starts another process."""
        self.child.startService()
        looks: list[Deferred[None]] = []

        async def look() -> None:
            looks.append(Deferred())
            await looks[-1]

        self.child.look = look
        self.end()
        self.child.use(replace(self.settings, llama_args=("-c", "1")))
        self.child.hurry()
        looks[0].callback(None)
        self.assertEqual(["-c", "1"], self.reactor.processes[-1][1][-2:])
        self.child.stopService()
        self.end(code=0)
        self.reactor.advance(PAUSE)
        self.assertEqual(("stopped", 2), (self.child.state, len(self.reactor.processes)))

    def test_other_settings_in_a_pause(self) -> None:
        """Other settings need not wait for the end of a pause."""
        self.child.startService()
        self.end()
        self.child.use(replace(self.settings, llama_args=("-c", "1")))
        self.child.hurry()
        self.assertEqual(["-c", "1"], self.reactor.processes[-1][1][-2:])
        self.child.stopService()

    def test_key(self) -> None:
        """Each process gets the same key, which is not shown; with keys of the user's there is none."""
        self.child.startService()
        self.end()
        self.reactor.advance(PAUSE)
        key = self.child.key()
        assert key is not None
        self.assertEqual([key, key], [environment.get(KEY_VARIABLE) for _, _, environment in self.reactor.processes])
        self.assertNotIn(key, str(self.child.told()))
        self.assertNotIn(key, " ".join(self.reactor.processes[-1][1]))
        self.child.life.replace(replace(self.settings, llama_args=("--api-key", "mine")))
        self.end(code=0)
        self.assertIsNone(self.child.key())
        self.assertNotIn(KEY_VARIABLE, self.reactor.processes[-1][2])
        self.child.stopService()

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
