"""What a request asks for: its target, its path, and whether it uses the slot.

The *target* is the second word of a request's first line: mostly a path and a query, but clients may write other things
there.  Only a path may be forwarded, and it is forwarded exactly as it was written.  To decide what kind of request it
is, the proxy has to read the path as llama-server will read it.  If the two read it differently, a request could use
the slot without waiting for its turn, or overwrite a slot file without the proxy's knowing.

llama-server decodes ``%2F`` and the like before it looks the path up, and it decodes once.  A target that it may decode
in an unexpected way is refused.

Everything here is pure: functions over bytes and text.  This module knows nothing of Twisted, nor what the paths do.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from bioproxy.runtime.errors import BadTarget

GATED = frozenset(
    """
    /completion /completions /v1/completions /chat/completions /v1/chat/completions /v1/responses /responses
    /v1/messages /infill /embedding /embeddings /v1/embeddings /rerank /reranking /v1/rerank /v1/reranking
    /audio/transcriptions /v1/audio/transcriptions
    """.split()
)
"""Paths of llama-server that use the slot when something is posted to them."""

SLOT_ACTIONS = "/slots/"
"""Beginning of the paths that save, restore and erase a slot.  The number of the slot follows."""

ADAPTERS = "/lora-adapters"
"""Path that switches adapters on and off.  That changes the model, so slot files made before are useless."""

BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
"""A % without two hexadecimal digits after it (RFC 3986, section 2.1)."""


def uses_slot(method: bytes, path: str) -> bool:
    """Return whether a request has to wait at the gate.

    Only POST computes something on these paths.  `OPTIONS`, for example, is a browser that asks for permission, and
    must not wait for minutes.
    """
    return method == b"POST" and (path in GATED or path.startswith(SLOT_ACTIONS))


def origin_form(uri: bytes) -> bytes:
    """Return path and query of a request's target, the form that an HTTP server is sent.  Raises `BadTarget`.

    Clients that believe to talk to a proxy write a whole address there (RFC 9112, section 3.2.2).  The server that it
    names does not matter: the request goes to llama-server in any case.  Other targets are refused: ``*``, the host and
    port of `CONNECT`, and whatever does not begin with a slash.
    """
    # Servers read characters beyond ASCII, and control characters, in different ways.
    if re.search(rb"[^!-~]", uri):
        raise BadTarget("the request's target must be ASCII; other characters must be encoded with %")
    # Without scheme and server.  An address may have an empty path, which means "/".
    target = uri
    if address := re.match(rb"https?://[\w.:-]+|https?://\[[\w.:]+\](:\d+)?", uri, re.IGNORECASE):
        target = uri[address.end() :]
        if target[:1] in (b"", b"?"):
            target = b"/" + target
    if not target.startswith(b"/"):
        raise BadTarget("the request's target must be a path")
    path, _, query = target.partition(b"?")
    # llama-server decodes more after a % than the standard has (`%u0073` is an "s" there), so it is uncertain what it
    # would read.  A query matters only where it says what to do with a slot.
    if BROKEN_ESCAPE.search(path) or (path_of(path).startswith(SLOT_ACTIONS) and BROKEN_ESCAPE.search(query)):
        raise BadTarget("a % in the request's target must be followed by two hexadecimal digits")
    return target


def path_of(target: bytes) -> str:
    """Return the path of a target as llama-server reads it: without query and fragment, with %2F decoded to a slash.

    Bytes that are not UTF-8 become replacement characters: no path that the proxy knows has any.
    """
    return unquote_to_bytes(target.partition(b"?")[0].partition(b"#")[0]).decode("utf-8", "replace")


def has_dot_segments(target: bytes) -> bool:
    """Return whether a path has segments ``.`` or ``..``, "here" and "one up" (RFC 3986, section 5.2.4).

    Where llama-server has a path of its own in `llama_url`, two dots would lead out of that.
    """
    return not {".", ".."}.isdisjoint(path_of(target).split("/"))
