"""What a request asks for: its target, its path, and whether it uses the slot.

The target is the second word of a request's first line, and clients are free to write odd things there.  Only a path
goes on to llama-server, exactly as it was written.  For deciding what it is, it is read as llama-server will read it.

Pure functions; knows nothing of Twisted.
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
"""Where the paths begin that save, restore and erase a slot."""

ADAPTERS = "/lora-adapters"
"""Where adapters are switched on and off, which makes another model of it."""

BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
"""A % that means nothing (RFC 3986, section 2.1)."""


def uses_slot(method: bytes, path: str) -> bool:
    """Tell whether a request has to wait at the gate.  OPTIONS, say, has not: a browser only asks whether it may."""
    return method == b"POST" and (path in GATED or path.startswith(SLOT_ACTIONS))


def origin_form(uri: bytes) -> bytes:
    """Return path and query of a request's target.  Raises `BadTarget`.

    Clients may write a whole address (RFC 9112, section 3.2.2); which server it names does not matter here, it is
    always llama-server that is asked.  Anything else that does not begin with a slash is not for us.
    """
    if re.search(rb"[^!-~]", uri):
        raise BadTarget("the request's target must be ASCII; other characters are spelled with %")
    target = uri
    if address := re.match(rb"https?://[\w.:-]+|https?://\[[\w.:]+\](:\d+)?", uri, re.IGNORECASE):
        target = uri[address.end() :]
        if target[:1] in (b"", b"?"):
            target = b"/" + target
    if not target.startswith(b"/"):
        raise BadTarget("the request's target must be a path")
    path, _, query = target.partition(b"?")
    # llama-server reads more behind a % than there is to it (`%u0073` is an "s" there), so what it will understand
    # cannot be told.  The query matters only where it says what to do with a slot.
    if BROKEN_ESCAPE.search(path) or (path_of(path).startswith(SLOT_ACTIONS) and BROKEN_ESCAPE.search(query)):
        raise BadTarget("a % in a path must be followed by two hexadecimal digits")
    return target


def path_of(target: bytes) -> str:
    """Return the path in a target, as llama-server will understand it: without its query, and with %2F as a slash."""
    return unquote_to_bytes(target.partition(b"?")[0].partition(b"#")[0]).decode("utf-8", "replace")


def has_dot_segments(target: bytes) -> bool:
    """Tell whether a target has segments that mean "here" or "one up" (RFC 3986, section 5.2.4)."""
    return not {".", ".."}.isdisjoint(path_of(target).split("/"))
