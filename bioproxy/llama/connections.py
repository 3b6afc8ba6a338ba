"""The connections to llama-server, and which call may use which.

Twisted's HTTP client is called an `Agent`.  For a request it gets a connection from a *pool*, which either has one that
was kept open or opens a new one through an *endpoint*, the object that knows an address and how to connect to it.
There are five Agents here, for relayed requests and for the proxy's own calls, for what may be repeated and for what
may not.  All of them have the same endpoint, so whatever a request says, it goes to llama-server.

Why relayed requests have another class of Agent: `Agent` reads a request's URL and sends what it understood of it.
`ProxyAgent`, made for talking to a proxy, sends the target exactly as it got it, double slashes and all.

When a connection is used again: llama-server closes each one after five idle seconds, after its hundredth answer (with
``Connection: close``), and right after each *streamed* answer, although its header ``Keep-Alive: timeout=5, max=100``
promises otherwise.  A request that is on its way at that moment is lost, and nobody can tell whether it was carried
out.  (Measured: of 300 streamed requests one after another, 150 failed over kept connections.  Of 250 with answers that
have a length, none.)  So nothing follows a streamed answer on its connection (`bioproxy.llama.http_client` ensures
that), and nothing follows any answer after `IDLE` seconds.  These are measured by timers, for which time stands still
while this process does, but llama-server goes on counting: after a standstill all kept connections are closed.  A new
connection for each request would be simpler, but a fifth of what the proxy adds to a small request is connecting and
closing.

Only a body that llama-server has surely read may be followed.  What it answers without reading the body, such as an
OPTIONS, it would find behind the answer, and take it for the next request: one that came past the gate, or whose answer
another client gets.  So only POSTs follow each other, and only after a success.  Every other method with a body, and
DELETE, has a connection of its own, and says ``Connection: close`` on it.

When a request is repeated: Twisted repeats one whose connection was lost before anything of the answer came, once, if
its method is idempotent and it has no body.  For harmless GETs that is welcome.  What may change something, above all
what goes through the gate, must never be carried out twice: for those it is switched off, and the client is told.

If a pool's connection is cancelled or breaks in the middle of an answer, it is closed and never goes back to the pool,
so no request ever reads the rest of another one's answer.

This module does not know what is sent; `bioproxy.llama.upstream` chooses the Agent.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import Service
from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import platformTrust
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, ProxyAgent
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from bioproxy.llama.http_client import Factory
from bioproxy.runtime.clock import elapsed
from bioproxy.runtime.errors import ConfigError
from bioproxy.runtime.regular_file import read_regular
from bioproxy.settings.kinds import port_of

CONNECT_TIMEOUT = 5.0
"""Seconds that connecting may take.

A llama-server that listens is connected at once, however busy it is, because the operating system accepts for it.
Halved, a lost packet on a slow network may fail a request; doubled, users wait longer for the news that the host is
gone.
"""

IDLE = 3
"""Seconds that an unused connection is kept in the pool.

Must be less than llama-server's five.  Halved, the watch, which asks every two seconds, would open a connection each
time; doubled, requests would be lost on connections that llama-server is closing.
"""

STANDSTILL = 1.0
"""Seconds that this process may have stood still without the kept connections being closed.

With `IDLE` and the half second that no standstill explains, must stay below llama-server's five.  Halved, a few more
connections are opened on a busy machine; doubled, requests could meet connections that llama-server is closing.
"""


class KeptConnections(HTTPConnectionPool):
    """A pool that closes its idle connections when the process has stood still since they were kept.

    While a process is stopped, or its machine sleeps, llama-server may close connections.  When the process runs again,
    the request of a client and the news that a connection is closed are there at the same time, and the request may be
    read first.  So the pool does not wait for the news.

    Invariant: no connection is handed out that was idle for more than `IDLE` + `STANDSTILL` seconds and a half.
    """

    def __init__(self, reactor: Any, now: Callable[[], float]) -> None:
        """Keep connections by the timers of `reactor`; `now` returns seconds, in which no standstill is left out."""
        super().__init__(reactor, persistent=True)
        self._clock = reactor
        self._now = now
        # By how much the reactor's time is behind `now`.  It grows when the process stands still, and only then.
        self._behind = now() - reactor.seconds()

    def getConnection(self, key: Hashable, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        """Fire with a connection, kept or new; fail as Twisted's method.  Called by an Agent for each request."""
        behind = self._now() - self._clock.seconds()
        if abs(behind - self._behind) > STANDSTILL:
            self._behind = behind
            # Fires when they are closed; nobody needs to wait for that, because none is in the pool any more.
            self.closeCachedConnections()
        return super().getConnection(key, endpoint)


@implementer(IAgentEndpointFactory)
class _SameEndpoint:
    """Gives an Agent the same endpoint for each URL, so that no URL leads anywhere but to llama-server."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint.  Called by the Agent for each request."""
        return self._endpoint


@dataclass(frozen=True)
class Agents:
    """What sends requests to llama-server.

    Invariant: nothing that is sent through `relay_once` or one of the fresh ones is ever repeated.
    """

    relay_once: IAgent
    """For clients' POSTs, above all those that use the slot."""
    relay_fresh: IAgent
    """For clients' other requests that change something, or that have a body."""
    relay_shared: IAgent
    """For clients' requests that change nothing and have no body."""
    own_fresh: IAgent
    """For the proxy's own calls that must not be carried out twice, or that take long.

    Each has a new connection: they are few beside clients' requests, and each connection that is kept idle occupies a
    thread of an older llama-server.
    """
    own_shared: IAgent
    """For the proxy's own small questions, such as `/health`, whose answers come within milliseconds.

    They use the same pool as relayed requests, but never the same connection: the pool keeps each kind under another
    key.
    """
    pools: tuple[HTTPConnectionPool, ...] = ()
    """Where connections are kept for another request."""

    def close(self) -> None:
        """Close the connections that no request uses.

        Left alone, each would end by itself after `IDLE` seconds.
        """
        # Their end is not waited for: over TLS, llama-server would have to agree to it.
        for pool in self.pools:
            pool.closeCachedConnections()

    @classmethod
    def over_network(
        cls, reactor: Any, url: str, ca_file: Path | None = None, now: Callable[[], float] = elapsed
    ) -> Agents:
        """Return the Agents for the llama-server at `url`.  Nothing is connected yet.

        `now` returns seconds, standstills included, as `elapsed` does.  With https, llama-server's certificate must be
        for the host's name, and signed by an authority that the system trusts or whose certificate is in `ca_file` (see
        `check_ca_file`).
        """
        # The policy decides how a certificate is verified: as browsers do, by name and by a chain of signatures.
        trust = BrowserLikePolicyForHTTPS(trusted(ca_file))
        # A pool that is not persistent keeps nothing: each request gets a new connection, which is closed after the
        # answer.  The others keep idle connections, two of each kind (Twisted's default) or one, since one request at a
        # time is at the gate, and open more when all are in use.
        fresh = HTTPConnectionPool(reactor, persistent=False)
        once, shared = KeptConnections(reactor, now), KeptConnections(reactor, now)
        once.maxPersistentPerHost = 1
        once.retryAutomatically = False
        once.cachedConnectionTimeout = shared.cachedConnectionTimeout = IDLE
        # `_factory` makes the protocol for each connection.  Ours has limits that Twisted's has not.
        fresh._factory = once._factory = shared._factory = Factory
        parts = urlsplit(url)
        assert parts.hostname is not None  # `bioproxy.settings.kinds` made sure
        port = port_of(url)
        # For a host name, `HostnameEndpoint` tries all of its addresses, IPv6 and IPv4, a moment apart, and takes the
        # first that answers ("happy eyeballs").  For an address that only takes half a millisecond longer.
        kind: Any = HostnameEndpoint
        if isIPAddress(parts.hostname):
            kind = TCP4ClientEndpoint
        elif isIPv6Address(parts.hostname):
            kind = TCP6ClientEndpoint
        endpoint = kind(reactor, parts.hostname, port, timeout=CONNECT_TIMEOUT)
        # TLS here is an endpoint around an endpoint: the Agents do not know whether there is any.
        if parts.scheme == "https":
            endpoint = wrapClientTLS(trust.creatorForNetloc(parts.hostname.encode(), port), endpoint)
        return cls(
            ProxyAgent(endpoint, reactor, once),
            ProxyAgent(endpoint, reactor, fresh),
            ProxyAgent(endpoint, reactor, shared),
            Agent.usingEndpointFactory(reactor, _SameEndpoint(endpoint), fresh),
            Agent.usingEndpointFactory(reactor, _SameEndpoint(endpoint), shared),
            (once, shared),
        )


class IdleConnections(Service):
    """Closes the connections that wait for another request, when bioproxy stops.

    A *service* is what Twisted starts and stops with the process.  This one has nothing to start.
    """

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self.setName("connections")

    def stopService(self) -> None:
        """Close them.  Called by Twisted at the stop."""
        super().stopService()
        self._agents.close()


@implementer(IOpenSSLTrustRoot)
class _SystemAndFile:
    """Trusts the certificate authorities that the system trusts, and those in a file."""

    def __init__(self, ca_file: Path) -> None:
        self._ca_file = ca_file

    def _addCACertsToContext(self, context: Any) -> None:
        """Add both to OpenSSL's settings.  Called by Twisted, which has no public way to trust both."""
        platformTrust()._addCACertsToContext(context)
        context.load_verify_locations(str(self._ca_file))


def trusted(ca_file: Path | None) -> Any:
    """Return the trusted authorities: the system's, and those in `ca_file`, which is read when the first connects."""
    return platformTrust() if ca_file is None else _SystemAndFile(ca_file)


def check_ca_file(ca_file: Path | None) -> None:
    """Raise `ConfigError` if `ca_file` is given and has no certificate.

    Called at the start and by ``--check``, so that a mistake is reported there, and not by the first request that
    fails.
    """
    if ca_file is None:
        return
    try:
        # OpenSSL, which reads the file by its name, would wait for a named pipe.
        read_regular(ca_file, 0)
        ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"llama_ca_file: {ca_file}: {error.strerror or error}") from None
