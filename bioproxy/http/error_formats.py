"""How each kind of API says that something went wrong.

llama-server speaks three: OpenAI's chat completions (its own endpoints look alike), OpenAI's responses, and Anthropic's
messages.  Their clients look for an error in one shape each: in a body, and, once a stream of events has begun, in an
event.

Sources: the API references of OpenAI (errors; streaming events of responses) and Anthropic (errors; streaming).

Pure.
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
"""Paths that answer with a stream of events where that is asked for."""


STREAM = re.compile(rb'"stream"\s*:\s*true')


def error_body(path: str, error: ProxyError) -> bytes:
    """Return an error as the JSON body of an answer from this path."""
    if is_anthropic(path):
        return to_json({"type": "error", "error": {"type": error.kind, "message": error.message}})
    return to_json({"error": {"message": error.message, "type": error.kind, "code": error.status}})


def error_event(path: str, error: ProxyError) -> bytes:
    """Return an error as the last event of a stream from this path."""
    if is_anthropic(path):
        return b"event: error\ndata: " + error_body(path, error) + b"\n\n"
    if path.endswith("/responses"):
        event = {"type": "error", "code": error.kind, "message": error.message, "param": None, "sequence_number": 0}
        # As llama-server does: without this object OpenAI's client takes it for an event like any other.
        told = {"message": error.message, "type": error.kind, "code": error.status}
        return b"event: error\ndata: " + to_json({**event, "error": told}) + b"\n\n"
    return b"data: " + error_body(path, error) + b"\n\n"


def is_anthropic(path: str) -> bool:
    """Tell whether this is one of Anthropic's endpoints."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def wants_stream(body: bytes | mmap) -> bool:
    """Tell whether a request, to a path of `STREAMING`, asks for its answer as a stream of events."""
    # Most that do not say so nowhere, and need not be parsed.
    if not STREAM.search(body):
        return False
    try:
        request = json.loads(body[:])
    except (ValueError, RecursionError):
        return False
    return isinstance(request, dict) and request.get("stream") is True


def error_details(body: bytes | bytearray) -> tuple[str | None, str | None]:
    """Return type and message of an error that llama-server has written, in whatever dialect; `None`: not told."""
    try:
        error = Table(decoded(body)).table("error")
        return error.text("type"), error.text("message")
    except (ValueError, UpstreamError):
        return None, None


def to_json(value: Any) -> bytes:
    """Return JSON."""
    return json.dumps(value).encode()
