"""What is plainly right in a request's head, and what is not.

HTTP is old, and programs read it generously: each in its own way.  Where two of them, a proxy and the server behind it,
read one text in two ways, an attacker can say one thing to the first and another to the second.  So what leaves room
for that is refused, even where it could be understood.

Pure.
"""

from __future__ import annotations

import re

from twisted.web.http_headers import Headers

from bioproxy.http.headers import TOKEN
from bioproxy.runtime.errors import BadRequest, ProxyError

HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")
"""What `Host` may say (RFC 9110, section 7.2, and RFC 3986, section 3.2.2)."""

CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Characters that no header's value may have (RFC 9110, section 5.5)."""

MAX_LENGTH_DIGITS = 18
"""Digits of a `Content-Length`.  (Python refuses to read thousands of them.)"""


def is_ambiguous_header(line: bytes) -> bool:
    """Tell whether a header, a line without its end, is one that others may read differently."""
    name, _, value = line.partition(b":")
    name, value = name.lower(), value.strip(b" \t")
    return bool(
        CONTROL.search(value)
        or (name == b"content-length" and len(value) > MAX_LENGTH_DIGITS)
        or (name == b"transfer-encoding" and value.lower() != b"chunked")
    )


def is_ambiguous_trailer(line: bytes) -> bool:
    """Tell whether a line behind the last chunk is not plainly a header."""
    name, colon, _ = line.partition(b":")
    return not colon or not TOKEN.fullmatch(name) or is_ambiguous_header(line)


def head_error(version: bytes, headers: Headers) -> ProxyError | None:
    """Return what is wrong with a request's head as a whole, if anything is."""
    hosts = headers.getRawHeaders(b"host", [])
    if len(hosts) > 1 or (not hosts and version != b"HTTP/1.0"):
        return BadRequest(f"a request needs one Host header, this one has {len(hosts)}")
    if hosts and not HOST.fullmatch(hosts[0]):
        return BadRequest("the Host header must be a name or an address")
    if version == b"HTTP/1.0" and headers.hasHeader(b"transfer-encoding"):
        return BadRequest("HTTP/1.0 knows no chunks")
    return None
