"""The connections to llama-server.

Twisted's HTTP client is called an `Agent`: it opens a connection, or takes one from a *pool* of those kept open, and
sends a request over it.  There are four of them here, two by two.

All of them connect to one *endpoint*, the object that knows how to reach llama-server, whatever a request says.  What
the proxy asks for itself goes through ordinary Agents, with treq on top.  What is relayed goes through a `ProxyAgent`,
made for talking to proxies, because of what it does *not* do: it sends a request's target as it is, odd slashes and
all.

And a connection that is used twice has a catch.  llama-server closes each one after five idle seconds, and right
after each streamed answer, whatever its headers say.  A request that is just then on its way is lost, and nobody
knows whether it was carried out.  A GET may be sent again (Twisted does so by itself), so GETs share connections;
everything that uses the slot gets a fresh connection, and is never repeated.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import platformTrust
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, ProxyAgent
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

from bioproxy.llama.http_client import Factory
from bioproxy.runtime.errors import ConfigError

CONNECT_TIMEOUT = 5.0
"""Seconds.  A llama-server that listens accepts at once, however busy it is."""

IDLE = 3
"""Seconds that an unused connection is kept: less than llama-server's five."""


@implementer(IAgentEndpointFactory)
class _Always:
    """Gives an Agent the same endpoint for every address."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Called by the Agent for each new connection."""
        return self._endpoint


@dataclass(frozen=True)
class Agents:
    """What sends requests: relayed ones and the proxy's own, over fresh connections and over shared ones."""

    relay_fresh: IAgent
    relay_shared: IAgent
    own_fresh: IAgent
    own_shared: IAgent

    @classmethod
    def over_network(cls, reactor: Any, url: str, ca_file: Path | None = None) -> Agents:
        """Make them for the llama-server at `url`.

        Where that is https, its certificate must be for the host's name, and from somebody whom the system trusts or
        whose certificate is in `ca_file` (see `check_ca_file`).
        """
        trust = BrowserLikePolicyForHTTPS(trusted(ca_file))
        fresh = HTTPConnectionPool(reactor, persistent=False)
        shared = HTTPConnectionPool(reactor, persistent=True)
        shared.cachedConnectionTimeout = IDLE
        fresh._factory = shared._factory = Factory
        parts = urlsplit(url)
        assert parts.hostname is not None  # `config.url` made sure
        port = parts.port or (443 if parts.scheme == "https" else 80)
        # For an address there is nothing to look up, and the endpoint that can look up takes half a millisecond longer.
        kind: Any = HostnameEndpoint
        if isIPAddress(parts.hostname):
            kind = TCP4ClientEndpoint
        elif isIPv6Address(parts.hostname):
            kind = TCP6ClientEndpoint
        endpoint = kind(reactor, parts.hostname, port, timeout=CONNECT_TIMEOUT)
        if parts.scheme == "https":
            endpoint = wrapClientTLS(trust.creatorForNetloc(parts.hostname.encode(), port), endpoint)
        return cls(
            ProxyAgent(endpoint, reactor, fresh),
            ProxyAgent(endpoint, reactor, shared),
            Agent.usingEndpointFactory(reactor, _Always(endpoint), fresh),
            Agent.usingEndpointFactory(reactor, _Always(endpoint), shared),
        )


@implementer(IOpenSSLTrustRoot)
class _Also:
    """Whom the system trusts, and some certificates."""

    def __init__(self, ca_file: Path) -> None:
        self._ca_file = ca_file

    def _addCACertsToContext(self, context: Any) -> None:
        """Called by Twisted, which has no public way to trust both."""
        platformTrust()._addCACertsToContext(context)
        context.load_verify_locations(str(self._ca_file))


def trusted(ca_file: Path | None) -> Any:
    """Return the trusted certificates: the system's list, and those in `ca_file`, which is read when needed."""
    return platformTrust() if ca_file is None else _Also(ca_file)


def check_ca_file(ca_file: Path | None) -> None:
    """Raise `ConfigError` if there is a file to take certificates from and no certificate in it."""
    if ca_file is None:
        return
    try:
        ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"llama_ca_file: {ca_file}: {error.strerror or error}") from None
