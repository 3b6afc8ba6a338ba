"""Where a port listens, and the service that opens and closes it.

An *endpoint* is Twisted's word for an object that knows how to listen (or connect).  It is made from a text, such as
``tcp:8081``, ``unix:/run/bioproxy.sock`` or ``ssl:8443:privateKey=key.pem:certKey=cert.pem``, so the operator can
choose among all kinds that Twisted has, systemd's sockets included, and no code here changes.

A *service* is an object that twistd starts and stops with the process.  `strports.service` makes one from an endpoint's
text.  It opens the port before twistd gives up root's rights, so a port below 1024 works.  It also raises an error if
the port is taken; Twisted's plainer `StreamServerEndpointService` would log that and keep running without a listener.

A port that other machines can reach, on which no key is asked for, deserves a warning.  Only an open port knows its
address, so the endpoint is wrapped to report it.

This module does not know HTTP: what speaks on a connection is the factory that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from OpenSSL import SSL
from twisted.application import strports
from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import IAddress, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from bioproxy.http.site import CheckedSite
from bioproxy.runtime.errors import CannotStart

BACKLOG = 511
"""Connections that the operating system keeps until they are accepted.

Further ones are dropped, and the client's kernel tries again after a second.  Twisted's default is 50, which a burst of
clients after a restart exceeds.  Linux itself limits it to `net.core.somaxconn`.  Halved, bursts of some hundred
connections see that second; doubled, nothing changes but some memory of the kernel.
"""


def port_service(endpoint: str, site: CheckedSite, reactor: Any, opened: Callable[[IAddress], None]) -> Service:
    """Return a service that listens at an endpoint, given as text, and calls `opened` with its address once it does.

    `site` makes the protocol for each connection.  Stopping the service closes the port only: connections that are open
    stay, so that running answers can be completed (`bioproxy.proxy.shutdown`).

    Raises `CannotStart` if there is no such endpoint.  A port that is taken, or a number that is none of a port, raises
    only when the service starts.
    """
    try:
        service = strports.service(endpoint, site, reactor=reactor)
    except Exception as error:  # each kind of endpoint has its own
        # Twisted parses the text here and loads certificates.  Some of its errors have a text that explains nothing, so
        # these get one; the operator sees a single line.
        # systemd passes open sockets by number or name, which Twisted looks up.  OpenSSL's errors are lists of codes.
        if isinstance(error, LookupError):
            reason = "systemd has passed no such socket"
        elif isinstance(error, SSL.Error):
            reason = "its files have no usable key and certificate"
        else:
            reason = str(error) or type(error).__name__
        raise CannotStart(f"bioproxy: cannot listen on {endpoint}: {reason}") from None
    # `strports.service` wants a text and makes the endpoint itself, so it can be wrapped only afterwards.
    service.endpoint = ReportingEndpoint(service.endpoint, endpoint, opened)
    # The name is what tests and `twistd`'s tree of services call it.
    service.setName(site.logPrefix())
    return service


def tcp_endpoint(host: str, number: int) -> str:
    """Return the endpoint of a TCP port, as text.  An IPv6 address has colons, which must be quoted there."""
    return f"tcp:{number}:interface={quoteStringArgument(host)}:backlog={BACKLOG}"


@implementer(IStreamServerEndpoint)
class ReportingEndpoint:
    """An endpoint that calls `opened` with the address at which it listens, and else does what `endpoint` does.

    `text` is what the operator called it.
    """

    def __init__(self, endpoint: IStreamServerEndpoint, text: str, opened: Callable[[IAddress], None]) -> None:
        self._endpoint = endpoint
        self._text = text
        self._opened = opened

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Listen.  Called by the service when it starts.

        Returns a Deferred that fires with the open port, fails with what the endpoint fails with, such as
        `CannotListenError`, or with `CannotStart`, and whose cancelling is the endpoint's.
        """

        def listening(port: Any) -> Any:
            # The address is asked of the port, not of the settings: port 0 means "any free one", and a socket that
            # systemd has opened is only a number in the settings.
            self._opened(port.getHost())
            return port  # a callback's result is what the next callback gets; the service needs the port to close it

        def impossible(failure: Failure) -> None:
            # Before it asks for the port, Python refuses a number over 65,535, or a name with odd characters; and the
            # folder of a Unix socket may be missing.  `trap` lets all other failures pass, such as `CannotListenError`.
            failure.trap(OSError, OverflowError, ValueError)
            reason = getattr(failure.value, "strerror", None) or failure.value
            raise CannotStart(f"bioproxy: cannot listen on {self._text}: {reason}")

        listens: Deferred[Any] = self._endpoint.listen(factory)
        return listens.addCallbacks(listening, impossible)


class OpenPortWarning:
    """Logs a warning while a port can be reached by other machines and nothing keeps strangers out.

    `name` is what the log calls the port.  `is_protected` tells whether something, such as a key, keeps strangers out
    now; it is asked each time, because a reload may change it.
    """

    log = Logger()

    def __init__(self, name: str, is_protected: Callable[[], bool]) -> None:
        self._name = name
        self._is_protected = is_protected
        self._address: IAddress | None = None  # until the port is open

    def port_opened(self, address: IAddress) -> None:
        """Remember where the port listens, and check it."""
        self._address = address
        self.check()

    def check(self) -> None:
        """Log a warning if there is reason to.  Before the port is open there is none.

        Called when the port opens, and again after a reload has changed the keys: it warns each time, because a log is
        read from its end.
        """
        if self._address is not None and is_reachable(self._address) and not self._is_protected():
            self.log.warn(
                "{name} is open to everyone who can reach {address}: no key is required",
                name=self._name,
                address=self._address,
            )


def is_reachable(address: IAddress) -> bool:
    """Return whether programs on other machines can reach an address.

    The loopback addresses cannot be reached from outside.  Neither can a Unix socket, which has the permissions of its
    file instead.  An IPv6 address may have a zone (``fe80::1%eth0``), which `ip_address` of old Pythons refuses.
    """
    if isinstance(address, IPv4Address | IPv6Address):
        return not ip_address(address.host.partition("%")[0]).is_loopback
    return False
