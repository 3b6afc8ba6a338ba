"""A network in the test's hands: no sockets, both ends of each connection byte by byte.

A `Wire` is where bioproxy's connections to llama-server arrive when a test wants to be llama-server itself.  A `Call`
is a client's connection to one of bioproxy's ports.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http.client import HTTPMessage, HTTPResponse, IncompleteRead, RemoteDisconnected
from io import BytesIO
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import CannotListenError, ConnectionDone, ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.server import Site

from bioproxy.llama.connections import Agents


class Wire:
    """A network in the test's hands: the other ends of the connections to llama-server, byte by byte."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.stood_still = 0.0  # seconds that passed without the reactor's noticing

    def agents(self, url: str = "http://llama") -> Agents:
        """Return real agents on this network."""
        return Agents.over_network(self.reactor, url, now=lambda: self.reactor.seconds() + self.stood_still)

    @property
    def asked(self) -> list[tuple[str, int, float]]:
        """Host, port and time limit of each connection that waits for being accepted or refused."""
        self._drop_cancelled()
        return [(host, port, timeout) for host, port, _, timeout, _ in self.reactor.tcpClients]

    def accept(self) -> Line:
        """Accept the connection that was asked for first."""
        protocol = self._next()[0].buildProtocol(IPv4Address("TCP", "127.0.0.1", 8080))
        assert protocol is not None
        return Line(protocol)

    def refuse(self, error: Exception) -> None:
        """Refuse it."""
        factory, connector = self._next()
        factory.clientConnectionFailed(connector, Failure(error))
        self.reactor.advance(1)  # Twisted waits a moment for more addresses to try

    def _next(self) -> tuple[Any, Any]:
        self._drop_cancelled()
        return self.reactor.tcpClients.pop(0)[2], self.reactor.connectors.pop(0)

    def _drop_cancelled(self) -> None:
        both = list(zip(self.reactor.tcpClients, self.reactor.connectors, strict=True))
        kept = [(client, connector) for client, connector in both if not connector.stoppedConnecting]
        self.reactor.tcpClients[:] = [client for client, _ in kept]
        self.reactor.connectors[:] = [connector for _, connector in kept]


class _Transport(StringTransport):
    """A connection's end that, like a real one, takes more calls after its end than `StringTransport` does."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Called by Twisted's client."""

    def write(self, data: bytes) -> None:
        """Send, unless the connection was aborted."""
        if not self.disconnected:
            super().write(data)

    def resumeProducing(self) -> None:
        """Go on receiving, unless the connection is being closed."""
        if not self.disconnecting:
            super().resumeProducing()


class Reactor(MemoryReactorClock):
    """A reactor without network, threads and processes: it notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[int] = set()  # ports that somebody else listens on
        self.processes: list[tuple[Any, list[str], dict[str, str]]] = []

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Listen, unless the port is taken."""
        if port in self.taken:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))
        return super().listenTCP(port, factory, backlog, interface)

    def getThreadPool(self) -> Reactor:
        """Be the pool of threads, too."""
        return self

    def callInThreadWithCallback(self, done: Callable[[bool, Any], None], work: Callable[[], Any]) -> None:
        """Do the work at once."""
        done(True, work())

    def callFromThread(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function at once."""
        function(*arguments)

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], env: dict[str, str]) -> StringTransport:
        """Note what to start."""
        self.processes.append((protocol, args, env))
        transport = _Pipes()
        protocol.makeConnection(transport)
        return transport


class _Pipes(StringTransport):
    """The ends of a child's pipes."""

    stdin_closed = False
    killed = False

    def closeStdin(self) -> None:
        """Close its input."""
        self.stdin_closed = True

    def signalProcess(self, signal: str) -> None:
        """Kill it."""
        assert signal == "KILL"
        self.killed = True


class Line:
    """llama-server's end of one connection."""

    def __init__(self, protocol: Any) -> None:
        self.transport = _Transport()
        self._protocol = protocol
        protocol.makeConnection(self.transport)

    @property
    def received(self) -> bytes:
        """What came here so far."""
        value: bytes = self.transport.value()
        return value

    @property
    def closed(self) -> bool:
        """Whether the other end has hung up."""
        return self.transport.disconnecting

    def send(self, data: bytes) -> None:
        """Answer."""
        self._protocol.dataReceived(data)

    def lose(self, error: Exception | None = None) -> None:
        """End the connection, without an error cleanly."""
        self._protocol.connectionLost(Failure(error or ConnectionDone()))


class Call:
    """A client's connection to a port of bioproxy, with one request on it."""

    def __init__(self, site: Site, request: bytes) -> None:
        self.transport = _Transport(IPv4Address("TCP", "127.0.0.1", 1), IPv4Address("TCP", "127.0.0.1", 2))
        protocol = site.buildProtocol(self.transport.getPeer())
        assert protocol is not None
        self._protocol: Any = protocol
        self._method = request.split(b" ")[0].decode("latin-1")
        self._gone = False
        protocol.makeConnection(self.transport)
        if request:
            protocol.dataReceived(request)

    def send(self, data: bytes) -> None:
        """Send more, unless bioproxy has closed the connection."""
        if not (self.transport.disconnecting or self.transport.disconnected):
            self._protocol.dataReceived(data)

    @property
    def between(self) -> bool:
        """Whether bioproxy has read all that came, and no request is unfinished or unanswered."""
        return not (self._protocol.requests or self._protocol._buffer)

    def hang_up(self) -> None:
        """Close the connection.  What Twisted's sockets do then: first the producer is told, then the protocol."""
        if self._gone:
            return
        self._gone = True
        if self.transport.producer is not None:
            self.transport.producer.stopProducing()
        self._protocol.connectionLost(Failure(ConnectionLost()))

    @property
    def received(self) -> bytes:
        """What came back so far, byte for byte."""
        value: bytes = self.transport.value()
        return value

    @property
    def aborted(self) -> bool:
        """Whether bioproxy ended the connection uncleanly."""
        return self.transport.disconnected

    @property
    def status(self) -> int:
        """The answer's status; 0 while there is none."""
        return int(self.received.split(b" ", 2)[1]) if self.received else 0

    @property
    def headers(self) -> HTTPMessage:
        """The answer's headers."""
        return self._parsed().headers

    @property
    def body(self) -> bytes:
        """The answer's body, as far as it is here."""
        try:
            return self._parsed().read()
        except IncompleteRead as error:
            return error.partial

    @property
    def whole(self) -> bool:
        """Whether the answer is complete, as far as a client can see."""
        try:
            self._parsed().read()
        except (IncompleteRead, RemoteDisconnected):
            return False
        return True

    def json(self) -> Any:
        """Return the body, which must be whole, as JSON."""
        return json.loads(self._parsed().read())

    def _parsed(self) -> HTTPResponse:
        result = HTTPResponse(_Socket(self.received), method=self._method)  # type: ignore[arg-type]
        result.begin()
        return result


class _Socket:
    """What `HTTPResponse` reads from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> BytesIO:
        """Return the data as a file."""
        return BytesIO(self._data)
