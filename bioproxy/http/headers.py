"""Which headers cross the proxy, in both directions.

Most headers are meant for the other end, client or llama-server, and pass unchanged: unknown ones, repeated ones, in
their order.  Some are about *one connection* ("close it after this answer", "this body comes in chunks").  A proxy has
two connections, one on each side, which may be closed or chunked independently of each other.  So HTTP calls these
headers hop-by-hop and forbids a proxy to forward them (RFC 9110, section 7.6.1); Twisted writes new ones on each side.
Forwarding them is a classic way to let two servers disagree about where a request ends.

`Content-Length` is about the message, not about the connection.  It is left out as well, because Twisted writes it
where it knows the length of a body, and two of them make a request that servers refuse.

Everything here is pure; of Twisted it knows only `Headers`, a dictionary of lists whose keys ignore case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from twisted.web.http_headers import Headers

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""What the name of a header may consist of (RFC 9110, section 5.6.2)."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Names, in small letters, of the headers that are about one connection."""


def end_to_end(headers: Headers) -> Headers:
    """Return a copy of the headers that cross the proxy, in order.

    Left out are the hop-by-hop ones, `Content-Length`, and those whose names are in `Connection`: a sender may declare
    any header as hop-by-hop by naming it there.
    """
    crossing = headers.copy()
    for name in HOP_BY_HOP | connection_options(headers.getRawHeaders(b"connection", [])) | {b"content-length"}:
        crossing.removeHeader(name)
    return crossing


def connection_options(values: Iterable[bytes]) -> set[bytes]:
    """Return the options in the values of all `Connection` headers of a message, in small letters.

    An option is ``close``, ``keep-alive`` or the name of a header.  The header may occur several times, each with a
    list.  What cannot be a name is ignored, as it cannot name a header.
    """
    tokens = {token.strip().lower() for value in values for token in value.split(b",")}
    return {token for token in tokens if TOKEN.fullmatch(token)}
