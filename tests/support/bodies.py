"""Bodies of requests, as tests make and read them."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

from bioproxy.http.request_body import RequestBody, portions
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.prompts.templates import TemplateText


def body(content: bytes) -> RequestBody:
    """Return a body that has come."""
    return RequestBody(BytesIO(content))


def filled_body(
    source: bytes, found: NamedTemplates, texts: Mapping[str, TemplateText], limit: int = 1_000_000
) -> bytes:
    """Return the body that filling the templates makes of a request's."""
    return b"".join(portions(source, found.fill(texts, limit).pieces))
