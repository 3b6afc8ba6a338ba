"""Keeps web pages of other sites away from the operator's port.

The port has no password: it listens on the operator's own machine, where every program may use it.  A browser on that
machine is such a program, and so any web page that it shows could use the port.  Two attacks are possible:

* **DNS rebinding.**  A page's own host name may resolve to 127.0.0.1.  To the browser, bioproxy then is that page's own
  server, and the page may read everything.  But the browser sends the name in `Host`, so only requests with a known
  name are answered: `localhost`, addresses (which no DNS server can redirect), and `admin_hosts`.
* **Cross-site requests.**  A page may send a POST to any address, although it cannot read the answer.  But the browser
  sends the page's origin in `Origin`, so actions are accepted only from pages of this port itself.

Programs that are no browsers, such as ``curl``, send no `Origin`; their actions are accepted.

Pure functions over values.  Called for each request before its body is read (`bioproxy.http.ports`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from twisted.web.http_headers import Headers

from bioproxy.runtime.errors import Forbidden, ProxyError

READING = frozenset({b"GET", b"HEAD"})
"""Methods that change nothing.  A page of another site may use them, since the browser hides the answer from it."""


class HostCheck:
    """Knows which names the operator's port answers to: some hosts, `localhost`, and all addresses."""

    def __init__(self, hosts: Iterable[str]) -> None:
        """Answer to `hosts`, names without ports."""
        self.know(hosts)

    def know(self, hosts: Iterable[str]) -> None:
        """Answer to these `hosts` instead of those before; called by a reload."""
        # DNS ignores case, and a dot at the end only says that the name is complete.
        self._hosts = {"localhost", *(host.lower().rstrip(".") for host in hosts)}

    def judge(self, method: bytes, _target: bytes, headers: Headers) -> ProxyError | None:
        """Return the error that a request is to be refused with, or `None` if it is allowed."""
        # HTTP/1.0 has no `Host`.  No browser uses it, so such a request is taken for a local program's.
        host = headers.getRawHeaders(b"host", [b"localhost"])[0].decode("ascii", "replace")
        if not self._knows(name_in(host)):
            return Forbidden(f"this port does not answer to the name {name_in(host)!r}; admin_hosts can add it")
        origin = headers.getRawHeaders(b"origin", [b""])[0].decode("ascii", "replace")
        # Name and port are compared: another port of this machine is another site.
        if method not in READING and origin and address_in(origin) != host.lower():
            return Forbidden("this action was requested by a page of another site")
        return None

    def _knows(self, name: str) -> bool:
        """Tell whether requests to this name are answered."""
        try:
            # An address is not looked up, so no DNS server can give it another meaning.
            ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


def address_in(origin: str) -> str | None:
    """Return host and port of an `Origin`, or `None` if it has none.

    Browsers send ``null`` for a page that has no site, such as a local file.
    """
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def name_in(host: str) -> str:
    """Return the name or address in a `Host`: without its port, an IPv6 address's brackets, and upper case."""
    return re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
