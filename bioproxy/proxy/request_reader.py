"""Finds the templates that a request names, and fills them in.

What is found and how it is filled, `template_search` and `filling` say; here is what that takes: the files as they are
now, and somebody to read the request.  A short one is read at once, a longer one in a process of its own
(`bioproxy.runtime.worker`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from bioproxy.http.error_formats import STREAMING, wants_stream
from bioproxy.http.request_body import RequestBody
from bioproxy.prompts import template_search
from bioproxy.prompts.api_formats import FORMATS
from bioproxy.prompts.filling import FilledRequest, NamedTemplates
from bioproxy.prompts.template_poller import TemplatePoller


class Elsewhere(Protocol):
    """Runs a function of an open file's content somewhere else, as `Worker.call` does."""

    def __call__(
        self, function: Callable[..., Any], descriptor: int, *args: Any
    ) -> Coroutine[Deferred[Any], Any, Any]: ...


class RequestReader:
    """Fills the templates that a `TemplatePoller` knows into bodies, which then have `max_body` bytes at most."""

    def __init__(self, poller: TemplatePoller, elsewhere: Elsewhere, max_body: int) -> None:
        self.max_body = max_body
        self._poller = poller
        self._elsewhere = elsewhere

    async def find(self, path: str, body: RequestBody) -> NamedTemplates | None:
        """Find the templates that a request names; `None` where it names none.  Raises `ProxyError`.

        What could not be filled is refused here already, before it has waited for its turn.
        """
        templates = tuple(self._poller.templates.values())
        if path not in FORMATS or not templates:
            return None
        found: NamedTemplates | None = await self._read(template_search.find_templates, body, path, templates)
        if found is not None:
            texts = {
                template.name: self._poller.text(template.name) or await self._poller.read_current(template)
                for template in found.templates
            }
            found.fill(texts, self.max_body)
        return found

    async def fill(self, found: NamedTemplates) -> FilledRequest:
        """Fill the templates in.  Raises `ProxyError`.

        The files are looked at now, so the text is never older than they are.
        """
        texts = {template.name: await self._poller.read_current(template) for template in found.templates}
        return found.fill(texts, self.max_body)

    async def asks_for_stream(self, path: str, body: RequestBody) -> bool:
        """Tell whether a request asks for a stream.  Raises `ProxyError`."""
        return path in STREAMING and bool(await self._read(wants_stream, body))

    async def _read(self, function: Callable[..., Any], body: RequestBody, *args: Any) -> Any:
        """Have a function read a body, where nobody has to wait for it."""
        if body.is_short:
            return function(body.as_received(), *args)
        return await self._elsewhere(function, body.fileno(), *args)
