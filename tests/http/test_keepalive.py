"""Comments to clients that wait for a stream."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from bioproxy.http.buffer_budget import BufferBudget
from bioproxy.http.client_output import ClientOutput
from bioproxy.http.error_formats import STREAMING, wants_stream
from bioproxy.http.keepalive import Keepalive
from bioproxy.http.waiting_words import waiting
from tests.support.network import Call

CHAT = "/v1/chat/completions"
STREAM = b'{"stream": true}'


class Waiting(Resource):
    """Lets whoever asks wait."""

    isLeaf = True

    def render(self, request: Request) -> int:
        """Keep the request."""
        self.request = request
        return NOT_DONE_YET


class PingsTest(SynchronousTestCase):
    """A client that waits, at place 2 in a queue."""

    def setUp(self) -> None:
        """Let it come."""
        self.clock = Clock()
        self.place = 2
        resource = Waiting()
        self.call = Call(Site(resource, reactor=Clock()), b"POST / HTTP/1.1\r\nHost: x\r\nOrigin: http://page\r\n\r\n")
        self.request = resource.request

    def begin(self, interval: float = 10, path: str = CHAT, body: bytes = STREAM) -> Keepalive:
        """Begin to wait."""
        keepalive = Keepalive(ClientOutput(self.request, self.clock, BufferBudget()), self.clock, interval)

        async def streams() -> bool:
            return path in STREAMING and wants_stream(body)

        keepalive.begin(path, streams, self.words)
        return keepalive

    async def words(self) -> str:
        """Say the place."""
        return waiting(self.place, 3, None) if self.place else "being prepared"

    def test_first(self) -> None:
        """Nothing goes out before the interval is over; then a comment does, with the head of a stream."""
        keepalive = self.begin()
        self.clock.advance(9.9)
        self.assertEqual((0, b""), (keepalive.sent, self.call.received))
        self.request.setHeader("X-Bioproxy-Template", "code")
        self.clock.advance(0.1)
        self.assertEqual((1, b": waiting, 2nd of 3\n\n"), (keepalive.sent, self.call.body))
        self.assertEqual((200, False), (self.call.status, self.call.whole))
        self.assertEqual(
            {
                "x-bioproxy-template": "code",
                "content-type": "text/event-stream",
                "cache-control": "no-cache",
                "access-control-allow-origin": "http://page",
                "transfer-encoding": "chunked",
            },
            {name.lower(): value for name, value in self.call.headers.items()},
        )

    def test_again(self) -> None:
        """One comes in each interval and says the place of that moment, until the end."""
        keepalive = self.begin(interval=7)
        for place in (2, 1, 0, 0):
            self.place = place
            self.clock.advance(7)
        expected = [b": waiting, 2nd of 3", b": waiting, 1st of 3"]
        expected += [b": being prepared", b": being prepared", b""]
        self.assertEqual(expected, self.call.body.split(b"\n\n"))
        keepalive.end()
        self.clock.advance(70)
        self.assertEqual((4, expected), (keepalive.sent, self.call.body.split(b"\n\n")))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_ended_before(self) -> None:
        """Who does not wait for so long gets none; ending twice, or without a beginning, is no mistake."""
        keepalive = self.begin()
        self.clock.advance(9.9)
        keepalive.end()
        keepalive.end()
        Keepalive(ClientOutput(self.request, self.clock, BufferBudget()), self.clock, 10).end()
        self.clock.advance(100)
        self.assertEqual((0, b""), (keepalive.sent, self.call.received))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_not_wanted(self) -> None:
        """With an interval of 0 nobody gets any; nor does who asked for no stream, or cannot have one."""
        for interval, path, body in (
            (0, CHAT, STREAM),
            (10, CHAT, b"{}"),
            (10, CHAT, b'{"stream": false}'),
            (10, CHAT, b"no json"),
            (10, "/v1/embeddings", STREAM),
            (10, "/slots/0", STREAM),
        ):
            keepalive = self.begin(interval, path, body)
            self.clock.advance(100)
            self.assertEqual((0, b""), (keepalive.sent, self.call.received), (interval, path, body))
            self.assertEqual([], self.clock.getDelayedCalls())

    def test_asked_late(self) -> None:
        """Whether it will be a stream is found out only when a comment is due, once."""
        asked: list[bool] = []

        async def streams() -> bool:
            asked.append(True)
            return True

        Keepalive(ClientOutput(self.request, self.clock, BufferBudget()), self.clock, 10).begin(
            CHAT, streams, self.words
        )
        self.clock.advance(9)
        self.assertEqual([], asked)
        self.clock.advance(1)
        self.clock.advance(10)
        self.assertEqual([True], asked)

    def test_ended_while_asking(self) -> None:
        """Nobody reads the request any more once its comments have ended: its file may be closed then."""
        cancelled: list[Deferred[bool]] = []

        async def streams() -> bool:
            return await Deferred(cancelled.append)

        keepalive = Keepalive(ClientOutput(self.request, self.clock, BufferBudget()), self.clock, 10)
        keepalive.begin(CHAT, streams, self.words)
        self.clock.advance(10)
        self.assertEqual([], cancelled)
        keepalive.end()
        keepalive.end()
        self.assertEqual(1, len(cancelled))
        self.clock.advance(100)
        self.assertEqual((0, b""), (keepalive.sent, self.call.received))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_ended_while_words_are_found(self) -> None:
        """Words that come too late are not written: the answer has begun by then.  Nor is a head."""
        late: list[Deferred[str]] = []

        async def streams() -> bool:
            return True

        async def words() -> str:
            late.append(Deferred(lambda _: None))
            return await late[-1]

        for end in (True, False):
            self.setUp()
            keepalive = Keepalive(ClientOutput(self.request, self.clock, BufferBudget()), self.clock, 10)
            keepalive.begin("/v1/messages", streams, words)
            self.clock.advance(10)
            self.assertEqual((0, b""), (keepalive.sent, self.call.received))
            if end:
                keepalive.end()
            else:
                late[-1].callback("hello")
            self.clock.advance(5)
            self.assertEqual((0 if end else 1), keepalive.sent)
            self.assertEqual(not end, b": hello\nevent: ping\n" in self.call.received)
            keepalive.end()
            self.assertEqual([], self.clock.getDelayedCalls())

    def test_each_path(self) -> None:
        """Every kind of stream has them; Anthropic's clients get a ping behind each."""
        ping = b'event: ping\ndata: {"type": "ping"}\n'
        for path, more in (("/completion", b""), ("/v1/responses", b""), ("/v1/messages", ping), ("/infill", b"")):
            self.setUp()
            self.begin(path=path)
            self.clock.advance(10)
            self.assertEqual(b": waiting, 2nd of 3\n" + more + b"\n", self.call.body, path)

    def test_mistake(self) -> None:
        """A mistake of ours is logged, ends the comments, and does no harm beyond."""

        async def streams() -> bool:
            return True

        async def words() -> str:
            raise ZeroDivisionError

        Keepalive(ClientOutput(self.request, self.clock, BufferBudget()), self.clock, 10).begin(CHAT, streams, words)
        self.clock.advance(100)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertEqual([], self.clock.getDelayedCalls())
