"""Which headers may cross the proxy.

Most headers speak between the two ends, client and llama-server, and pass as they are: unknown ones,
repeated ones, in their order.  A few speak about *one connection* ("keep this one open", "this body comes in
chunks"), and a proxy has two of those.  HTTP calls them hop-by-hop (RFC 9110, section 7.6.1); each side of
the proxy makes its own.

`Content-Length` is a special case: it describes the body, but Twisted writes it itself where it sends a body
whose length it knows, so it must not be copied as well.

Pure functions over lists of pairs; knows nothing of Twisted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

Pair = tuple[bytes, bytes]

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""What a header's name may be (RFC 9110, section 5.6.2)."""

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


def end_to_end(headers: Iterable[Pair]) -> Iterator[Pair]:
    """Yield the headers that may cross, in order.

    Left out are the hop-by-hop ones, those that `Connection` names (a sender may declare any header as
    meant for the next hop only), and `Content-Length`.
    """
    pairs = list(headers)
    named = connection_options(value for name, value in pairs if name.lower() == b"connection")
    dropped = HOP_BY_HOP | named | {b"content-length"}
    return ((name, value) for name, value in pairs if name.lower() not in dropped)


def connection_options(values: Iterable[bytes]) -> set[bytes]:
    """Return the headers that `Connection`, with these values, names, in lower case; nothing that could not be one."""
    tokens = {token.strip().lower() for value in values for token in value.split(b",")}
    return {token for token in tokens if TOKEN.fullmatch(token)}
