"""How a request reaches the coroutine that answers it, and what ends that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.incoming_request import IncomingRequest
from bioproxy.http.resources import CatchAllResource, Serve
from bioproxy.http.site import CheckedSite
from tests.support.network import Call

REQUEST = b"GET /%ff//x HTTP/1.1\r\nHost: x\r\n\r\n"


class CatchAll(SynchronousTestCase):
    """`CatchAllResource`."""

    def call(self, serve: Serve) -> Call:
        """Send a request to a port where `serve` answers."""
        check_head: Callable[..., None] = lambda *_: None  # noqa: E731
        site = CheckedSite("x", CatchAllResource(serve), Clock(), check_head, ConnectionLimits(1000, 3))
        return Call(site, REQUEST)

    def test_answer(self) -> None:
        """The function gets the request whatever its path is, and may answer at once or later."""
        waiting: Deferred[None] = Deferred()

        async def at_once(request: IncomingRequest) -> None:
            request.write(request.uri)
            request.finish()

        async def later(request: IncomingRequest) -> None:
            await waiting
            await at_once(request)

        calls = [self.call(at_once), self.call(later)]
        self.assertEqual(b"", calls[1].received)
        waiting.callback(None)
        for call in calls:
            self.assertEqual((200, b"/%ff//x"), (call.status, call.body))
            self.assertTrue(call.between)

    def test_hang_up(self) -> None:
        """A hang-up cancels it, and nothing is logged."""
        ended: list[Any] = []

        async def serve(request: IncomingRequest) -> None:
            try:
                await Deferred[None]()
            except CancelledError as error:
                ended.append(error)
                raise

        self.call(serve).hang_up()
        self.assertEqual(1, len(ended))
        self.assertEqual([], self.flushLoggedErrors())

    def test_hang_up_afterwards(self) -> None:
        """A hang-up after the end cancels nothing."""

        async def serve(request: IncomingRequest) -> None:
            request.finish()

        self.call(serve).hang_up()
        self.assertEqual([], self.flushLoggedErrors())

    def test_failure(self) -> None:
        """If it fails, before or in the middle of the answer, the connection is reset and the failure is logged."""

        async def fail(request: IncomingRequest) -> None:
            raise ValueError("mistake")

        async def begin_and_fail(request: IncomingRequest) -> None:
            request.write(b"half")
            raise ValueError("mistake")

        for serve in (fail, begin_and_fail):
            with capturedLogs() as events:
                call = self.call(serve)
            # Nor does Twisted say that the client was too slow.
            self.assertEqual(["a request was not answered"], [event["log_format"] for event in events])
            self.assertTrue(call.transport.disconnected)
            self.assertFalse(call.received.endswith(b"0\r\n\r\n"))
            self.assertEqual(1, len(self.flushLoggedErrors(ValueError)))
