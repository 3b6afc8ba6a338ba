"""Which requests are ambiguous and therefore refused.

HTTP is old, and servers accept many requests that the standard forbids, each server in its own way.  If a proxy and the
server behind it read the same bytes differently, an attacker can show the proxy one request and the server another one:
for example a second request inside what the proxy takes for a body ("request smuggling", RFC 9112, section 11.2).  The
second one has then passed by all checks of the proxy.

The proxy writes every request anew, which prevents most of this.  It refuses the rest: whatever is not plainly valid,
even where its meaning could be guessed.  No client library of today sends such requests.

Twisted already refuses much: two lengths, a length and chunks, names that are not tokens.  Here is what it accepts.

Everything here is pure; of Twisted it knows only `Headers`, a dictionary of lists whose keys ignore case.
"""

from __future__ import annotations

import re

from twisted.web.http_headers import Headers

from bioproxy.http.headers import TOKEN
from bioproxy.runtime.errors import BadRequest, ProxyError

HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")
"""What `Host` may be: an address in brackets or a name, then perhaps a port (RFC 9110, section 7.2; RFC 3986,
3.2.2)."""

CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Characters that a header's value must not have (RFC 9110, section 5.5).  The tab, 0x09, is allowed."""

MAX_LENGTH_DIGITS = 18
"""Digits of a `Content-Length`.  More would not fit into 64 bits, where some servers keep it and silently overflow.

Python, for its part, raises an unexpected error for thousands of digits.
"""


def is_ambiguous_header(line: bytes) -> bool:
    """Return whether a header, a line without its end, is one that other servers may read differently.

    Only two headers decide where a body ends, so only these are checked by name.  The one transfer encoding allowed is
    ``chunked``: servers disagree about lists, about unknown ones and about ``identity``.
    """
    name, _, value = line.partition(b":")
    name, value = name.lower(), value.strip(b" \t")
    return bool(
        CONTROL.search(value)
        or (name == b"content-length" and len(value) > MAX_LENGTH_DIGITS)
        or (name == b"transfer-encoding" and value.lower() != b"chunked")
    )


def is_ambiguous_trailer(line: bytes) -> bool:
    """Return whether a line after the last chunk is anything but a plain header.

    Twisted checks headers for a colon and a valid name, but not trailers, so that is checked here, too.
    """
    name, colon, _ = line.partition(b":")
    return not colon or not TOKEN.fullmatch(name) or is_ambiguous_header(line)


def head_error(version: bytes, headers: Headers) -> ProxyError | None:
    """Return what is wrong with a request's head as a whole, or `None`.  `version` is ``HTTP/1.0`` or ``HTTP/1.1``."""
    # A server chooses a site by `Host`.  With two of them, the next server may choose another site than the proxy has
    # checked.  HTTP/1.1 demands exactly one; HTTP/1.0 did not know it.
    hosts = headers.getRawHeaders(b"host", [])
    if len(hosts) > 1 or (not hosts and version != b"HTTP/1.0"):
        return BadRequest(f"the request must have one Host header, but has {len(hosts)}")
    if hosts and not HOST.fullmatch(hosts[0]):
        return BadRequest("the Host header must be a name or an address")
    # HTTP/1.0 did not know chunks either: a server that goes by the version takes them for the body itself.
    if version == b"HTTP/1.0" and headers.hasHeader(b"transfer-encoding"):
        return BadRequest("HTTP/1.0 has no Transfer-Encoding")
    return None
