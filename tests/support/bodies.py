"""Bodies of requests, as tests make and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

from bioproxy.http.request_body import RequestBody, portions
from bioproxy.prompts import request_search
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.prompts.templates import Template, TemplateText


def body(content: bytes) -> RequestBody:
    """Return a body that has come."""
    return RequestBody(BytesIO(content))


def named_templates(path: str, source: bytes, templates: Sequence[Template]) -> NamedTemplates | None:
    """Return the templates that a request names; nothing is learned from those that name none."""
    found = request_search.search_json(path, source, templates)
    assert not isinstance(found, ChatRequest)
    return found


def filled_body(
    source: bytes, found: NamedTemplates, texts: Mapping[str, TemplateText], limit: int = 1_000_000
) -> bytes:
    """Return the body that filling the templates makes of a request's."""
    return b"".join(portions(source, found.fill(texts, limit).pieces))
