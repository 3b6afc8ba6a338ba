"""Who may talk to the operator's port: programs that know where it is, and not the web pages they show.

A browser on the operator's machine reaches that port, and with it any page that it shows.  Two things keep pages out:

* **Another name for this address.**  A page may have its own host name lead to 127.0.0.1, and then read everything as
  if it were its own ("DNS rebinding").  But the browser says that name in `Host`.  So only names that are known are
  answered: those of this machine, addresses themselves, and `admin_hosts`.
* **Actions from elsewhere.**  A page may send a POST to any address, it merely cannot read the answer.  But the browser
  says in `Origin` which page it was.  So whoever sends one must be at home here.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from twisted.web.http_headers import Headers

from bioproxy.runtime.errors import Forbidden, ProxyError

READING = frozenset({b"GET", b"HEAD"})
"""Methods that change nothing."""


class HostCheck:
    """Knows the names in `hosts`, `localhost`, and all addresses."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self.know(hosts)

    def know(self, hosts: Iterable[str]) -> None:
        """Know these names instead."""
        self._hosts = {"localhost", *(host.lower().rstrip(".") for host in hosts)}

    def judge(self, method: bytes, _target: bytes, headers: Headers) -> ProxyError | None:
        """Return why a request is refused, if it is."""
        host = headers.getRawHeaders(b"host", [b"localhost"])[0].decode("ascii", "replace")
        if not self._knows(name_in(host)):
            return Forbidden(f"this port does not answer to the name {name_in(host)!r}; admin_hosts can add it")
        origin = headers.getRawHeaders(b"origin", [b""])[0].decode("ascii", "replace")
        if method not in READING and origin and address_in(origin) != host.lower():
            return Forbidden("actions are not taken from other sites' pages")
        return None

    def _knows(self, name: str) -> bool:
        try:
            # An address leads nowhere else, whatever name server a page may have.
            ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


def address_in(origin: str) -> str | None:
    """Return host and port of an origin, `None` if it has none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def name_in(host: str) -> str:
    """Return the name or address in what `Host` says: without port, brackets and case."""
    return re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
