"""How each API spells an error, in a body and in a stream of events.

llama-server offers three APIs: OpenAI's chat completions (its own endpoints look alike), OpenAI's responses, and
Anthropic's messages.  The client libraries of each look for an error in one shape only.  An error has two places: the
body of an answer with an error status, and, once a stream has begun with status 200, an *event* in it.  In server-sent
events, an event is some lines such as ``event: NAME`` and ``data: JSON``, and an empty line ends it.

Sources: the API references of OpenAI (errors; streaming events of responses) and of Anthropic (errors; streaming), and
llama.cpp's server, which decides where these leave a choice.

Everything here is pure: functions from values to bytes and back, without Twisted and without state.  Which error
happened, and which of the two places is left for it, is decided elsewhere (`bioproxy.proxy.exchange`).
"""

from __future__ import annotations

import json
import re
from mmap import mmap
from typing import Any

from bioproxy.runtime.errors import ProxyError, UpstreamError
from bioproxy.runtime.expect import Table, decoded

STREAMING = frozenset(
    {
        *("/completion", "/completions", "/v1/completions", "/chat/completions", "/v1/chat/completions", "/infill"),
        *("/responses", "/v1/responses", "/v1/messages"),
    }
)
"""Paths of llama-server that answer with a stream of events if the request asks for one."""


STREAM = re.compile(rb'"stream"\s*:\s*true')
"""Finds requests that may ask for a stream.  It may find too many, for example in the text of a message."""


def error_body(path: str, error: ProxyError) -> bytes:
    """Return an error as the JSON body of an answer from this path.

    Any path but Anthropic's gets OpenAI's shape, as from llama-server: its own endpoints, unknown paths, and the empty
    path of a request that could not be parsed.
    """
    if is_anthropic(path):
        return to_json({"type": "error", "error": {"type": error.kind, "message": error.message}})
    return to_json({"error": {"message": error.message, "type": error.kind, "code": error.status}})


def error_event(path: str, error: ProxyError) -> bytes:
    """Return an error as the last event of a stream from this path, with the empty line that ends the event.

    A client must not take what it got before that for a whole answer.  Each API has its own mark for a whole one, which
    this is not followed by.
    """
    # Anthropic's events have names, and this one's data is what a body would be.
    if is_anthropic(path):
        return b"event: error\ndata: " + error_body(path, error) + b"\n\n"
    # OpenAI's responses describe errors as flat events.  llama-server adds the object `error`, and so does this:
    # without it OpenAI's client library takes the event for an ordinary one, and its user never sees the error.
    if path.endswith("/responses"):
        event = {"type": "error", "code": error.kind, "message": error.message, "param": None, "sequence_number": 0}
        details = {"message": error.message, "type": error.kind, "code": error.status}
        return b"event: error\ndata: " + to_json({**event, "error": details}) + b"\n\n"
    # The events of all others have no names.
    return b"data: " + error_body(path, error) + b"\n\n"


def is_anthropic(path: str) -> bool:
    """Return whether a path belongs to Anthropic's API, also where that only counts tokens."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def wants_stream(body: bytes | mmap) -> bool:
    """Return whether a request, to a path of `STREAMING`, asks for its answer as a stream of events.

    A large body is a map of its file and is read by the worker process, see `bioproxy.proxy.request_reader`.
    """
    # Parsing a large body takes long, and most bodies that ask for no stream do not have these bytes anywhere.  The
    # search alone would not do: the bytes may also stand in a message, or deeper in the request.
    if not STREAM.search(body):
        return False
    try:
        request = json.loads(body[:])
    except (ValueError, RecursionError):
        # Not JSON, or nested too deeply.  llama-server will refuse it, with a body and not with a stream.
        return False
    return isinstance(request, dict) and request.get("stream") is True


def error_details(body: bytes | bytearray) -> tuple[str | None, str | None]:
    """Return type and message of an error that llama-server has written, in any of the shapes, or twice `None`.

    All shapes of a body have an object `error` with these two texts.  This is needed where an error came too late to be
    passed on as it is: a stream has begun, and the error has to become an event.
    """
    try:
        error = Table(decoded(body)).table("error")
        return error.text("type"), error.text("message")
    except (ValueError, UpstreamError):
        return None, None


def to_json(value: Any) -> bytes:
    """Return a value as JSON in one line.  `json` escapes line ends, which would end an event's ``data:`` line."""
    return json.dumps(value).encode()
