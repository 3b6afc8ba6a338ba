"""Calls of a disk that may fail or hang."""

from __future__ import annotations

import errno
import threading
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime.daemon_thread import in_daemon_thread
from bioproxy.shared.disk import HANGING, SHORTEST_PAUSE, Disk, Unusable
from tests.shared.support import Threads, no_space
from tests.support.world import logged


class Calls(SynchronousTestCase):
    """What becomes of a call, and of the next ones."""

    def setUp(self) -> None:
        """Make a disk."""
        self.clock, self.threads = Clock(), Threads()
        self.disk = Disk(self.threads, self.clock)

    def call(self, patience: float = 5, copies: bool = False) -> Deferred[str]:
        """Begin a call."""
        return Deferred.fromCoroutine(self.disk.call(lambda: "done", patience, copies))

    def failed(self, call: Deferred[Any]) -> str:
        """Return why a call has failed."""
        return str(self.failureResultOf(call, Unusable).value)

    def test_works(self) -> None:
        """A call fires with what the function returns."""
        self.assertEqual("done", self.successResultOf(self.call()))
        self.assertTrue(self.disk.usable and self.disk.may_try)
        self.assertIsNone(self.disk.trouble)

    def test_trouble(self) -> None:
        """After an error nothing is tried for a while, and nobody waits until a call has succeeded; logged once."""
        self.threads.error = OSError(errno.EIO, "Input/output error")
        with capturedLogs() as events:
            self.assertEqual("Input/output error", self.failed(self.call()))
            self.threads.error = None
            self.assertEqual("Input/output error", self.failed(self.call()))
            self.assertFalse(self.disk.usable or self.disk.may_try)
            self.clock.advance(SHORTEST_PAUSE * 1.2)
            self.assertEqual((False, True), (self.disk.usable, self.disk.may_try))
            # A copy says nothing about the rest.
            self.successResultOf(self.call(copies=True))
            self.assertFalse(self.disk.usable)
            self.successResultOf(self.call())
            self.assertTrue(self.disk.usable)
        self.assertEqual(
            [
                "the shared shelf cannot be used, going on without it: Input/output error",
                "the shared shelf can be used again",
            ],
            logged(events),
        )

    def test_full(self) -> None:
        """A disk that takes nothing more can still be read, so that is no trouble."""
        self.threads.error = no_space()
        self.assertEqual("No space left on device", self.failed(self.call()))
        self.assertTrue(self.disk.usable)

    def test_without_number(self) -> None:
        """An error without a number says what is wrong in its text."""
        self.threads.error = OSError("not good enough")
        self.assertEqual("not good enough", self.failed(self.call()))
        self.assertEqual("not good enough", self.disk.trouble)

    def test_hangs(self) -> None:
        """A call that hangs is given up, and noted; a copy may merely be slow."""
        self.threads.hangs = True
        copy, look = self.call(copies=True), self.call(patience=6)
        self.clock.advance(5)
        self.assertEqual("no answer within 5 s", self.failed(copy))
        self.assertTrue(self.disk.usable)
        self.clock.advance(1)
        self.assertEqual("no answer within 6 s", self.failed(look))
        self.assertFalse(self.disk.usable)
        self.threads.go_on()
        self.assertFalse(self.disk.usable)

    def test_few_hang(self) -> None:
        """While some calls hang no further ones are made; when they return there are."""
        released, begun = threading.Event(), threading.Semaphore(0)
        self.disk = Disk(self.in_thread, self.clock)

        def hang() -> None:
            begun.release()
            released.wait()

        for _ in range(HANGING):
            call = Deferred.fromCoroutine(self.disk.call(hang, 5))
            begun.acquire()
            call.cancel()
            self.failureResultOf(call, CancelledError)
        self.assertEqual("earlier calls have not returned", self.failed(self.call()))
        released.set()
        for thread in self.running:
            thread.join()
        # The next one is made: it gets a thread.
        self.assertNoResult(self.call())
        self.assertEqual(HANGING + 1, len(self.running))
        for thread in self.running:
            thread.join()

    running: tuple[threading.Thread, ...] = ()

    def in_thread(self, work: Any) -> Deferred[Any]:
        """Call a function in a thread whose result nobody hears of."""
        thread = threading.Thread(target=work)
        self.running += (thread,)
        thread.start()
        return Deferred()


class Now:
    """A reactor that calls at once what a thread gives it."""

    def __init__(self) -> None:
        self.called = threading.Event()

    def callFromThread(self, function: Any, *args: Any) -> None:
        """Call it."""
        function(*args)
        self.called.set()


class DaemonThread(SynchronousTestCase):
    """A function in a thread that keeps no process alive."""

    def call(self, work: Any) -> Deferred[Any]:
        """Call it and wait for the thread."""
        reactor = Now()
        result = in_daemon_thread(reactor, work)  # type: ignore[arg-type]  # it has what is needed
        self.assertTrue(reactor.called.wait(10))
        return result

    def test_result(self) -> None:
        """Fires with what the function returns, which ran in a daemon thread of its own."""
        thread = self.successResultOf(self.call(threading.current_thread))
        self.assertTrue(thread.daemon)
        self.assertIsNot(threading.current_thread(), thread)

    def test_error(self) -> None:
        """Fails with what it raises."""
        self.failureResultOf(self.call(lambda: 1 / 0), ZeroDivisionError)

    def test_no_thread(self) -> None:
        """Where there can be no further thread, it fails as a disk does."""

        def refuse(self: Any) -> None:
            raise RuntimeError("can't start new thread")

        self.patch(threading.Thread, "start", refuse)
        failure = self.failureResultOf(in_daemon_thread(Now(), lambda: 1), OSError)  # type: ignore[arg-type]
        self.assertIn("can't start new thread", str(failure.value))
