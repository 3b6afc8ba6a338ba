"""The process that reads large requests: real ones, over real sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from bioproxy.runtime import worker
from bioproxy.runtime.errors import BodyTooLarge, TooComplex, Unavailable
from bioproxy.runtime.worker import Worker
from tests.support import worker_tasks
from tests.support.world import logged


class Working(TestCase):
    """`Worker.call`."""

    def setUp(self) -> None:
        """Have a worker, and a file for it."""
        self.worker = Worker(reactor)
        self.file = TemporaryFile()  # noqa: SIM115 - closed in `end`
        self.file.write(b"x" * 1000)
        self.file.flush()
        self.addCleanup(self.end)

    def end(self) -> Deferred[Any]:
        """End it; fires when no child is left."""
        self.file.close()
        return self.worker.stopService()

    def call(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Have a function run."""
        return Deferred.fromCoroutine(self.worker.call(function, self.file.fileno(), *args))

    def log_events(self) -> list[LogEvent]:
        """Return a list to which everything that is logged from now on is added."""
        events: list[LogEvent] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return events

    async def child(self) -> int:
        """Return the number of the process that answers."""
        process, length = await self.call(worker_tasks.measure, 3)
        self.assertEqual(3000, length)
        return int(process)

    async def test_elsewhere(self) -> None:
        """A function runs in another process, which is there for the next one, too."""
        first = await self.child()
        self.assertNotEqual(os.getpid(), first)
        self.assertEqual(first, await self.child())

    async def test_one_at_a_time(self) -> None:
        """Of several calls at once each gets its own answer."""
        calls = [self.call(worker_tasks.measure, factor) for factor in range(20)]
        answers = await gatherResults(calls)
        self.assertEqual([1000 * factor for factor in range(20)], [length for _, length in answers])
        self.assertEqual(1, len({process for process, _ in answers}))

    async def test_refused(self) -> None:
        """An error for the client arrives as it was raised, and the child goes on."""
        first = await self.child()
        with self.assertRaises(BodyTooLarge) as caught:
            await self.call(worker_tasks.refuse)
        self.assertEqual("1000 bytes are too many", str(caught.exception))
        self.assertEqual(first, await self.child())

    async def test_too_much_memory(self) -> None:
        """What takes more memory than is allowed is refused."""
        with self.assertRaises(TooComplex) as caught:
            await self.call(worker_tasks.take_memory)
        self.assertIn("memory", str(caught.exception))
        await self.child()

    async def test_too_much_time(self) -> None:
        """What computes for too long is ended, and the next call is served by another child."""
        first = await self.child()
        self.patch(worker, "SECONDS", 0.2)
        events = self.log_events()
        with self.assertRaises(TooComplex) as caught:
            await self.call(worker_tasks.take_time)
        self.assertEqual("reading the request took more than 0.2 s", str(caught.exception))
        self.assertIn("a request was refused: reading it took more than 0.2 s", logged(events))
        self.patch(worker, "SECONDS", 60)
        self.assertNotEqual(first, await self.child())

    async def test_waiting_is_not_computing(self) -> None:
        """Only computing counts: a child that gets no processor for a while still answers."""
        self.patch(worker, "SECONDS", 0.2)
        self.assertEqual(1000, await self.call(worker_tasks.wait, 0.5))

    async def test_hanging(self) -> None:
        """A child that neither computes nor answers is given up after a longer time."""
        first = await self.child()
        self.patch(worker, "HANGING", 0.2)
        with self.assertRaises(TooComplex) as caught:
            await self.call(worker_tasks.wait, 600)
        self.assertEqual("reading the request took more than 0.2 s", str(caught.exception))
        self.patch(worker, "HANGING", 60)
        self.assertNotEqual(first, await self.child())

    async def test_cancelled(self) -> None:
        """Whoever hangs up ends the child; whoever waits behind is served by another one."""
        first = await self.child()
        endless, next_one = self.call(worker_tasks.take_time), self.call(worker_tasks.measure, 1)
        endless.cancel()
        with self.assertRaises(CancelledError):
            await endless
        process, _ = await next_one
        self.assertNotEqual(first, process)

    async def test_cancelled_while_waiting(self) -> None:
        """Whoever hangs up while another one is served takes nothing away."""
        first = await self.child()
        one, other = self.call(worker_tasks.measure, 1), self.call(worker_tasks.measure, 2)
        other.cancel()
        with self.assertRaises(CancelledError):
            await other
        self.assertEqual((first, 1000), await one)

    async def test_killed(self) -> None:
        """If the child is killed, as where memory is short, another one answers, and the log tells of it."""
        events = self.log_events()
        first = await self.child()
        call = self.call(worker_tasks.measure, 3)
        os.kill(first, signal.SIGKILL)
        second, length = await call
        self.assertEqual(3000, length)
        self.assertNotEqual(first, second)
        self.assertEqual(second, await self.child())
        self.assertIn("the process that reads large requests was killed; another one is asked", logged(events))

    async def test_killed_each_time(self) -> None:
        """A request whose second child is killed as well is refused, and the next one served."""
        first = await self.child()
        with self.assertRaises(TooComplex) as caught:
            await self.call(worker_tasks.be_killed)
        self.assertEqual("the process that reads large requests was killed", str(caught.exception))
        self.assertNotEqual(first, await self.child())

    async def test_stopped_while_reading(self) -> None:
        """A call in progress fails when the service stops, and no other child is started for it."""
        first = await self.child()
        call = self.call(worker_tasks.take_time)
        await self.worker.stopService()
        with self.assertRaises(TooComplex):
            await call
        self.assertFalse(Path(f"/proc/{first}").exists())
        self.assertIsNone(self.worker._child)

    async def test_connection_lost(self) -> None:
        """A child whose connection is lost is not asked, even while nothing is known of its end."""
        first, old = await self.child(), self.worker._child
        assert old is not None
        reported: list[Failure] = []
        report, old.processEnded = old.processEnded, reported.append  # type: ignore[method-assign, assignment]
        os.kill(first, signal.SIGKILL)
        while old._line.transport.connected:
            await deferLater(reactor, 0.01)
        self.assertFalse(old.ended)
        self.assertNotEqual(first, await self.child())
        while not reported:
            await deferLater(reactor, 0.01)
        report(reported[0])

    async def test_signalled(self) -> None:
        """What ends bioproxy in an orderly way is often sent to all processes of a group; the child still answers."""
        first = await self.child()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(first, number)
        self.assertEqual(first, await self.child())

    async def test_mistake(self) -> None:
        """A mistake of ours is logged, with what the child says of it; the next call is served."""
        events = self.log_events()
        with self.assertRaises(TooComplex):
            await self.call(worker_tasks.make_a_mistake)
        while not any("ZeroDivisionError" in text for text in logged(events)):
            await deferLater(reactor, 0.01)
        await self.child()

    async def test_complaint(self) -> None:
        """What the child writes to standard error is in the log."""
        events = self.log_events()
        self.assertEqual(1000, await self.call(worker_tasks.complain))
        while not any("something is odd" in text for text in logged(events)):
            await deferLater(reactor, 0.01)

    async def test_stopped(self) -> None:
        """With the service the child ends, and no process is left."""
        process = await self.child()
        await self.worker.stopService()
        self.assertFalse(Path(f"/proc/{process}").exists())

    async def test_no_descriptors_left(self) -> None:
        """Calls leave no files open, here or in the child."""
        process = await self.child()
        folders = [Path("/proc/self/fd"), Path(f"/proc/{process}/fd")]
        before = [len(list(folder.iterdir())) for folder in folders]
        for _ in range(20):
            await self.child()
        self.assertEqual(before, [len(list(folder.iterdir())) for folder in folders])


class NoProcess(TestCase):
    """Where no process can be started."""

    async def test_unavailable(self) -> None:
        """The client is told to come again."""

        class Full(Clock):
            def adoptStreamConnection(self, *_: Any) -> None:
                raise OSError(24, "Too many open files")

        with TemporaryFile() as file, self.assertRaises(Unavailable) as caught:
            await Worker(Full()).call(worker_tasks.measure, file.fileno(), 1)
        self.assertIn("Too many open files", str(caught.exception))
