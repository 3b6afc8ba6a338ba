"""Reads requests: finds the templates that they name and fills them in, or tells which chat it is.

How bodies are read and filled is decided by pure functions (`bioproxy.prompts.request_search`, `...filling`).  What is
left for this module is everything around them that waits: reading the request somewhere, and looking at the files.

Why "somewhere": Twisted serves all clients in one thread, so a request that takes a second to parse would stop all
others for a second.  A short request is parsed at once, in well under a millisecond; a longer one is handed to a second
process (`bioproxy.runtime.worker`), and the coroutine awaits its answer while others go on.  Files are looked at in a
thread for the same reason: a network file system may take seconds.

Finding and filling are two calls, because a request waits between them for its turn at the slot.  Found before: a
request that would be refused learns that at once.  Filled after: the text is that of the files as they are then, and
a request that waits keeps a few positions instead of a filled body.

A chat that names no template is read only if `learn_minimum` is set, and then nothing that goes wrong with it is an
error: such a request does not need to be understood to be sent on.

This module does not know the queue, or what a filled request is used for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from bioproxy.http.error_formats import STREAMING, wants_stream
from bioproxy.http.request_body import RequestBody
from bioproxy.prompts import request_search
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.filling import FilledRequest, NamedTemplates
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.prompts.template_search import may_name_template
from bioproxy.prompts.templates import Template
from bioproxy.runtime.errors import TooComplex, Unavailable


class Elsewhere(Protocol):
    """Runs a function of an open file's content in another process, as `Worker.call` does.

    The function gets the content, and `args` behind it; both it and its result must be picklable.  Fires with its
    result, or fails with `ProxyError`; cancelling ends the process that is at work.  Tests run the function here.
    """

    def __call__(
        self, function: Callable[..., Any], descriptor: int, *args: Any
    ) -> Coroutine[Deferred[Any], Any, Any]: ...


class RequestReader:
    """Fills the templates that a `TemplatePoller` knows into the bodies of requests.

    Invariant: no body is parsed in the reactor's thread unless it is short, and none that is in a file is copied.
    """

    max_body: int
    """Bytes of a filled body, at most.  Changes when the configuration is reloaded."""

    learn_minimum: int | None
    """Tokens of the shortest prompt that is worth learning; `None` if nothing is learned.  May be changed at any time.

    A chat without a template whose body has fewer bytes than that is not read, and with `None` no such chat is.
    """

    def __init__(
        self, poller: TemplatePoller, elsewhere: Elsewhere, max_body: int, learn_minimum: int | None = None
    ) -> None:
        """`poller` knows the templates and their texts; `elsewhere` parses large bodies.

        `max_body` (bytes) and `learn_minimum` (tokens) are the first values of the attributes.
        """
        self.max_body = max_body
        self.learn_minimum = learn_minimum
        self._poller = poller
        self._elsewhere = elsewhere

    async def find(self, path: str, body: RequestBody) -> NamedTemplates | ChatRequest | None:
        """Find the templates that a request names, or tell which chat it is.

        Fires with the templates; with a `ChatRequest` for a chat that names none, if `learn_minimum` is set; or else
        with `None`.  Fails with `ProxyError` if the body may name a template and cannot be parsed.  Cancelling gives up
        the worker; what that finds is dropped.
        """
        # As they are now: a reload may change them during the first `await` below, and one request must not see two
        # sets of templates.
        templates, least = tuple(self._poller.templates.values()), self.learn_minimum
        if not request_search.may_be_read(path, body.size, templates, least):
            return None
        found: NamedTemplates | ChatRequest | None
        try:
            found = await self.read(request_search.read_request, body, path, templates, least)
        except (TooComplex, Unavailable):
            # The worker failed, so it is unknown what the body is.  If it cannot name a template, it need not be known:
            # the request is sent on like one that was not read.  Otherwise the client is told what went wrong.
            if await self._may_name_template(body, templates):
                raise
            return None
        return found

    async def try_to_fill(self, found: NamedTemplates) -> None:
        """Refuse a request that cannot be filled, before it has waited for minutes.

        Fires if the templates can be filled in as far as is known now.  Fails and is cancelled as `fill`.
        """
        # The result is dropped.  That costs little, because filling copies no text.  The text that the poller has is
        # good enough for it; only a file that was never read is read now.
        texts = {
            template.name: self._poller.text(template.name) or await self._poller.read_current(template)
            for template in found.templates
        }
        found.fill(texts, self.max_body)

    async def fill(self, found: NamedTemplates) -> FilledRequest:
        """Fill the templates in.

        Fires with the filled request; fails with `ProxyError` if a file cannot be read any more, or is too large by
        now.  Cancelling gives up the thread that looks at the files.
        """
        # The files are looked at now, and read again if they have changed, so the text is never older than they are.
        texts = {template.name: await self._poller.read_current(template) for template in found.templates}
        return found.fill(texts, self.max_body)

    async def asks_for_stream(self, path: str, body: RequestBody) -> bool:
        """Tell whether a request asks for its answer as a stream of events.

        Fails with `ProxyError` if the body cannot be parsed; cancelling gives up the worker.
        """
        # Some APIs have no streams at all, and their bodies need not be parsed for that.
        return path in STREAMING and bool(await self.read(wants_stream, body))

    async def _may_name_template(self, body: RequestBody, templates: Sequence[Template]) -> bool:
        """Tell whether a body may name a template, without parsing it.

        Fails and is cancelled as `find`.
        """
        # Asked of the worker once more.  This question takes no memory and little time, but in the reactor's thread it
        # would stop everything for some 50 ms with a body of 64 MiB, which may have to be read from the disk first.
        # If no worker can be started at all, this fails as well, and so does the request: text with a prefix must never
        # be sent unfilled.  Without templates there is nothing to ask.
        return bool(templates) and bool(await self.read(may_name_template, body, templates))

    async def read(self, function: Callable[..., Any], body: RequestBody, *args: Any) -> Any:
        """Have a function read a body, where no other request has to wait for it.

        Fires with its result; fails and is cancelled as `find`.
        """
        # A large body is in a temporary file.  The other process gets the open file itself, so nothing large is copied.
        if body.is_short:
            return function(body.as_received(), *args)
        with body.open_elsewhere() as descriptor:
            return await self._elsewhere(function, descriptor, *args)
