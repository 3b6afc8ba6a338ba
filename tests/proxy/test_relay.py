"""Passing an answer on."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web._newclient import TransportProxyProducer
from twisted.web.client import ResponseDone

from bioproxy.http import buffer_budget
from bioproxy.http import client_output as output
from bioproxy.http.deadlines import CLIENT_STALL_SECONDS
from bioproxy.http.response_body import receive
from bioproxy.runtime.errors import UpstreamError
from tests.support.network import Call, Line, Wire
from tests.support.world import World, WorldTest, logged

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"


class Backpressure(WorldTest):
    """A client that reads more slowly than llama-server writes."""

    def begin(self) -> tuple[World, Call, Line]:
        """Begin an answer of nine bytes."""
        wire = Wire()
        world = self.world({}, wire.agents())
        call = world.send("GET", "/")
        line = wire.accept()
        line.send(HEAD + b"abc")
        return world, call, line

    def test_pause_and_resume(self) -> None:
        """When the client's buffer is full and enough is held, llama-server has to wait, until there is room again."""
        self.patch(output, "OTHER_BUFFER_BYTES", 2)
        _, call, line = self.begin()
        producer: Any = call.transport.producer
        producer.pauseProducing()
        line.send(b"de")
        self.assertEqual("producing", line.transport.producerState)
        line.send(b"f")
        self.assertEqual("paused", line.transport.producerState)
        self.assertEqual(b"abc", call.body)
        producer.resumeProducing()
        self.assertEqual("producing", line.transport.producerState)
        line.send(b"ghi")
        self.assertEqual((b"abcdefghi", True), (call.body, call.whole))

    def test_not_over_while_full(self) -> None:
        """An answer is not over while the client's buffer is full: the next on this connection has to wait."""
        wire = Wire()
        world = self.world({}, wire.agents())
        call = world.send("GET", "/")
        line = wire.accept()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
        producer: Any = call.transport.producer
        write = call.transport.write

        def write_and_fill(data: bytes) -> None:
            write(data)
            producer.pauseProducing()

        self.patch(call.transport, "write", write_and_fill)
        line.send(b"abc")
        self.assertEqual((b"abc", 1), (call.body, len(world.proxy.running.exchanges)))
        producer.resumeProducing()
        self.assertEqual((b"abc", 0), (call.body, len(world.proxy.running.exchanges)))

    def test_full_again_at_once(self) -> None:
        """A client with room for one piece gets one piece; llama-server goes on waiting while too much is held."""
        self.patch(output, "OTHER_BUFFER_BYTES", 1)
        _, call, line = self.begin()
        producer: Any = call.transport.producer
        producer.pauseProducing()
        line.send(b"d")
        line.send(b"ef")
        write = call.transport.write

        def write_and_fill(data: bytes) -> None:
            write(data)
            producer.pauseProducing()

        self.patch(call.transport, "write", write_and_fill)
        producer.resumeProducing()
        self.assertEqual((b"abcd", "paused"), (call.body, line.transport.producerState))
        producer.resumeProducing()
        self.assertEqual((b"abcdef", "producing"), (call.body, line.transport.producerState))

    def test_held_in_all(self) -> None:
        """What is held for all clients has a limit too; who has something held waits then, until it is read or gone."""
        self.patch(buffer_budget, "TOTAL_BUFFER_BYTES", 4)
        wire = Wire()
        world = self.world({}, wire.agents())
        calls, lines = [], []
        producers: list[Any] = []
        for _ in range(2):
            calls.append(world.send("GET", "/"))
            lines.append(wire.accept())
            lines[-1].send(HEAD + b"abc")
            producers.append(calls[-1].transport.producer)
            producers[-1].pauseProducing()
        lines[0].send(b"def")
        self.assertEqual("producing", lines[0].transport.producerState)
        lines[1].send(b"de")
        self.assertEqual("paused", lines[1].transport.producerState)
        calls[0].hang_up()
        producers[1].resumeProducing()
        self.assertEqual((b"abcde", "producing"), (calls[1].body, lines[1].transport.producerState))
        producers[1].pauseProducing()
        lines[1].send(b"fgh")
        self.assertEqual("producing", lines[1].transport.producerState)

    def test_more_is_held_in_the_gate(self) -> None:
        """For who uses the slot much is held, so that it is free soon; for others a buffer's worth."""
        wire = Wire()
        world = self.world({}, wire.agents())
        for method, path, held in (("POST", "/v1/chat/completions", 4 << 20), ("GET", "/", 64 << 10)):
            call = world.send(method, path, b"{}" if method == "POST" else b"")
            line = wire.accept()
            line.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
            producer: Any = call.transport.producer
            producer.pauseProducing()
            line.send(b"x" * held)
            self.assertEqual("producing", line.transport.producerState, path)
            line.send(b"x")
            self.assertEqual("paused", line.transport.producerState, path)
            call.hang_up()

    def test_slow_client_outside_the_gate(self) -> None:
        """Once llama-server is through with an answer, a client that reads slowly keeps nobody waiting."""
        world = self.ready_world()
        world.llama_server.pause_at = {"stream"}
        slow = world.chat("@code slow", stream=True)
        producer: Any = slow.transport.producer
        producer.pauseProducing()
        world.go_on()
        self.assertIsNone(world.gate.busy)
        self.assertFalse(slow.whole)
        self.assertEqual(200, world.chat("@code quick").status)
        producer.resumeProducing()
        self.assertTrue(slow.whole)
        self.assertIn(b"[DONE]", slow.body)

    def test_client_that_takes_nothing(self) -> None:
        """A client that takes nothing for a minute is ended; taking something starts the minute again."""
        world, call, line = self.begin()
        producer: Any = call.transport.producer
        producer.pauseProducing()
        world.clock.advance(CLIENT_STALL_SECONDS - 1)
        producer.resumeProducing()
        world.clock.advance(CLIENT_STALL_SECONDS)
        producer.pauseProducing()
        world.clock.advance(CLIENT_STALL_SECONDS - 1)
        self.assertFalse(call.aborted)
        world.clock.advance(1)
        self.assertTrue(call.aborted)
        call.hang_up()  # as an aborted connection does
        self.assertTrue(line.closed)
        self.assertEqual([], world.clock.getDelayedCalls())

    def test_broken_while_held(self) -> None:
        """What was held of a stream that breaks off goes out before the error does, and the end after both."""
        wire = Wire()
        world = self.world({}, wire.agents())
        call = world.send("GET", "/")
        line = wire.accept()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        line.send(head + b"9\r\ndata: 1\n\n\r\n")
        producer: Any = call.transport.producer
        producer.pauseProducing()
        line.send(b"9\r\ndata: 2\n\n\r\n")
        line.lose()
        producer.resumeProducing()
        self.assertEqual([b"1", b"2"], [event[6:] for event in call.body.split(b"\n\n")[:2]])
        self.assertIn(b"upstream_error", call.body)
        self.assertTrue(call.whole)
        self.assertEqual([], world.clock.getDelayedCalls())

    def test_broken_stream_with_a_length(self) -> None:
        """A stream that announced its length has no room for an error event: it ends without a proper end."""
        wire = Wire()
        world = self.world({}, wire.agents())
        call = world.send("GET", "/")
        line = wire.accept()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\ndata: 1\n\n")
        line.lose()
        self.assertEqual((b"data: 1\n\n", False, True), (call.body, call.whole, call.aborted))

    def test_gone_while_held(self) -> None:
        """A client that goes while something is held for it leaves nothing behind."""
        world, call, line = self.begin()
        producer: Any = call.transport.producer
        producer.pauseProducing()
        line.send(b"defghi")
        call.hang_up()
        self.assertEqual([], world.clock.getDelayedCalls())
        self.assertEqual([], self.flushLoggedErrors())

    def test_let_go(self) -> None:
        """After the answer the client's connection has nothing to do with llama-server's any more."""
        _, call, line = self.begin()
        line.send(b"defghi")
        line.lose()
        producer: Any = call.transport.producer
        line.transport.producerState = "untouched"
        producer.pauseProducing()
        producer.resumeProducing()
        self.assertEqual("untouched", line.transport.producerState)

    def test_late_data(self) -> None:
        """What still comes from llama-server after the client hung up is dropped, and no error."""
        _, call, line = self.begin()
        before = call.received
        call.hang_up()
        self.assertTrue(line.closed)
        line.send(b"def")
        line.lose()
        self.assertEqual(before, call.received)
        self.assertEqual([], self.flushLoggedErrors())

    def test_late_data_of_a_broken_answer(self) -> None:
        """So too when it is the proxy that gave up."""
        world, call, line = self.begin()
        before = call.received
        world.upstream.pending.give_up()
        self.assertTrue(line.closed)
        line.send(b"defghi")
        line.lose()
        self.assertEqual((before, True, False), (call.received, call.aborted, call.whole))
        self.assertEqual([], self.flushLoggedErrors())


class Ends(WorldTest):
    """How an answer may end."""

    def test_until_the_connection_ends(self) -> None:
        """An answer without a length ends with its connection, as in HTTP/1.0; the client gets it in chunks."""
        wire = Wire()
        world = self.world({}, wire.agents())
        call = world.send("GET", "/")
        line = wire.accept()
        line.send(b"HTTP/1.0 200 OK\r\n\r\nabc")
        self.assertEqual((b"abc", False), (call.body, call.whole))
        line.lose()
        self.assertEqual((b"abc", True, False), (call.body, call.whole, call.aborted))

    def test_broken_off(self) -> None:
        """An answer that ends before its length, or without its last chunk, is broken: the client can see it."""
        for head, piece in (
            (HEAD, b"abc"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n"),
        ):
            wire = Wire()
            world = self.world({}, wire.agents(), state_dir=self.folder / str(len(head)))
            call = world.send("GET", "/")
            line = wire.accept()
            line.send(head + piece)
            with capturedLogs() as events:
                line.lose()
            self.assertEqual((b"abc", False, True), (call.body, call.whole, call.aborted))
            # Nor does Twisted say that the client was too slow.
            self.assertEqual([], [text for text in logged(events) if "Forcibly" in text])

    def test_whole_at_once(self) -> None:
        """An answer that comes in one piece is passed on as well."""
        wire = Wire()
        world = self.world({}, wire.agents())
        call = world.send("GET", "/")
        wire.accept().send(HEAD + b"abcdefghi")
        self.assertEqual((b"abcdefghi", True), (call.body, call.whole))


class Received(SynchronousTestCase):
    """A body, received."""

    class Response:
        """An answer whose body the test delivers."""

        def deliverBody(self, protocol: Any) -> None:
            """Note the protocol."""
            self.protocol = protocol
            protocol.makeConnection(TransportProxyProducer(self))
            self.closed = False

        def abortConnection(self) -> None:
            """Note the end, and tell it at once."""
            self.closed = True
            self.protocol.connectionLost(Failure(ResponseDone()))

    def test_ends(self) -> None:
        """It fires at the end, fails when it breaks off, and cancelling closes the connection."""
        for end, error in ((ResponseDone(), None), (ZeroDivisionError(), UpstreamError)):
            response: Any = self.Response()
            pieces: list[bytes] = []
            done, body = receive(response, pieces.append)
            response.protocol.dataReceived(b"a")
            response.protocol.dataReceived(b"b")
            self.assertIsNotNone(body.done)
            response.protocol.connectionLost(Failure(end))
            self.assertEqual([b"a", b"b"], pieces)
            self.assertIsNone(body.done)
            if error is None:
                self.assertIsNone(self.successResultOf(done))
            else:
                self.failureResultOf(done, error)

    def test_cancelled(self) -> None:
        """Cancelling closes the connection, and late pieces go nowhere."""
        response: Any = self.Response()
        pieces: list[bytes] = []
        done, _ = receive(response, pieces.append)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertTrue(response.closed)
        response.protocol.dataReceived(b"late")
        self.assertEqual([], pieces)
