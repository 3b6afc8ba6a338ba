"""Requests while the llama.cpp that bioproxy starts is loading, has failed, or is replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.error import ProcessTerminated
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.web.server import Site

from bioproxy.child.supervisor import LlamaChild
from bioproxy.operator.options import Options
from bioproxy.proxy.shutdown import FLUSHING
from bioproxy.service import makeService
from tests.support.network import Call, Reactor
from tests.support.world import logged
from tests.test_service import ServiceTest

CHAT = b'{"stream": true, "messages": [{"role": "user", "content": "hello"}]}'


class Requests(ServiceTest):
    """A whole bioproxy with the setting `model`, and a network in the test's hands: nobody answers there."""

    reactor: Reactor

    def setUp(self) -> None:
        """Start it."""
        super().setUp()
        self.model = self.folder / "model.gguf"
        self.model.write_bytes(b"GGUF")
        self.root = self.start("--model", str(self.model), "--ping-interval", "1", "--queue-timeout", "60")
        self.stopped: Any = None
        child = self.root.getServiceNamed("llama.cpp")
        assert isinstance(child, LlamaChild)
        self.child = child

    def tearDown(self) -> None:
        """Stop it: first the requests, then the process."""
        if self.stopped is None:
            self.stopped = self.root.stopService()
        self.reactor.advance(FLUSHING)
        self.end()
        self.successResultOf(self.stopped)

    def end(self) -> None:
        """End the process with a broken model."""
        process = self.reactor.processes[-1][0]
        if not process.ended:
            process.outReceived(b"0.1 E x: data is not within the file bounds\n")
            process.processEnded(Failure(ProcessTerminated(1)))

    def ask(self, line: str, body: bytes = b"") -> Call:
        """Send a request to the clients' port."""
        site = next(factory for port, factory, *_ in self.reactor.tcpServers if port == 8081)
        assert isinstance(site, Site)
        head = f"{line} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        return Call(site, head.encode() + body)

    def test_told(self) -> None:
        """A stream is told what it waits for; other requests are refused; when the start fails, all learn why."""
        stream = self.ask("POST /v1/chat/completions", CHAT)
        other = self.ask("GET /v1/models")
        self.assertEqual(503, other.status)
        self.assertIn(b"llama-server is starting", other.body)
        self.reactor.advance(1)
        self.assertIn(b": llama-server is starting\n", stream.received)
        self.end()
        self.assertIn(b"the model's file is incomplete", stream.received)
        again = self.ask("POST /v1/chat/completions", CHAT)
        self.assertEqual(503, again.status)
        self.assertIn(b"the model's file is incomplete", again.body)

    def test_queue_timeout(self) -> None:
        """A request waits for the start no longer than for its turn."""
        call = self.ask("POST /v1/chat/completions", CHAT.replace(b"true", b"false"))
        self.reactor.pump([1] * 61)
        self.assertEqual(503, call.status)
        self.assertIn(b"did not answer in time", call.body)

    def test_shutdown(self) -> None:
        """At a stop, a request that waits for the start is turned away at once."""
        call = self.ask("POST /v1/chat/completions", CHAT.replace(b"true", b"false"))
        self.stopped = self.root.stopService()
        self.assertEqual(503, call.status)
        self.assertIn(b"shutting down", call.body)

    def test_reload(self) -> None:
        """Other settings of the child are taken over together; the restart waits for nobody if nobody is there."""
        options = Options()
        options.parseOptions(["--model", str(self.model)])
        self.child.use(replace(options.settings, llama_args=("-c", "1")))
        self.ask("POST /v1/chat/completions", CHAT)
        self.assertTrue(self.reactor.processes[-1][0].transport.stdin_closed)

    def test_status(self) -> None:
        """The watch tells why nobody answers, and does not warn of what the child tells already."""
        with capturedLogs() as events:
            self.reactor.pump([1] * 5)
            self.end()
            self.reactor.pump([1] * 5)
        warnings = [line for line in logged(events) if "llama-server at" in line]
        self.assertEqual([], warnings)


class NoModel(ServiceTest):
    """Starts that end at once."""

    def test_missing(self) -> None:
        """A model that is missing, and a port of `llama_args` that makes no sense, end the start with one line."""
        missing = str(self.folder / "none.gguf")
        error = self.assertRaises(SystemExit, self.start, "--model", missing)
        self.assertEqual(f"bioproxy: model: {missing}: No such file or directory", str(error))
        error = self.assertRaises(SystemExit, self.make, "--model", missing, "--llama-args", "--port 0")
        self.assertIn("llama_args: --port: must be a number", str(error))

    def test_port(self) -> None:
        """A port in `llama_args` is where bioproxy looks for it."""
        root = makeService(self.options("--model", "m", "--llama-args", "--port 4321"), self.reactor)
        child = root.getServiceNamed("llama.cpp")
        assert isinstance(child, LlamaChild)
        self.assertEqual(4321, child.port)

    def options(self, *arguments: str) -> Options:
        """Return parsed options."""
        options = Options()
        options.parseOptions(list(arguments))
        return options
