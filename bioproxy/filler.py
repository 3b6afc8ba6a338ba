"""Finds the templates that a request names, and fills them in.

What is found and how it is filled, `bioproxy.rewrite` says; here is what that takes: the files as they are now, and
memory.  A body may be large (pictures in it, for example), so most are only looked through where they lie; the few that
are taken into memory come one after the other.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import IO

from twisted.internet.defer import DeferredLock

from bioproxy import rewrite
from bioproxy.body import is_large, mapped, whole
from bioproxy.dialects import may_want_stream, wants_stream
from bioproxy.forms import FORMS
from bioproxy.poller import Poller
from bioproxy.rewrite import Filled


class Filler:
    """Fills the templates that a `Poller` knows into bodies, which then have `max_body` bytes at most."""

    def __init__(self, poller: Poller, max_body: int) -> None:
        self.max_body = max_body
        self._poller = poller
        self._one_large = DeferredLock()

    async def fill(self, path: str, body: IO[bytes]) -> Filled | None:
        """Fill the templates that a request names; `None` where it names none.  Raises `ProxyError`.

        The files are looked at now, so the text is never older than they are.
        """
        templates = self._poller.templates.values()
        if path not in FORMS or not mapped(body, lambda view: rewrite.mentions(view, templates)):
            return None
        # A large request takes several times its size while it is looked at: so, one after the other.
        async with self._one_large if is_large(body) else nullcontext():
            found = rewrite.find(path, whole(body), templates)
            if found is None:
                rewrite.refuse_form(whole(body), templates)
                return None
            texts = {template.name: await self._poller.look(template) for template in found.templates}
            return found.fill(texts, self.max_body)


def asks_for_stream(path: str, body: IO[bytes]) -> bool:
    """Tell whether a request asks for a stream.  It is taken into memory only if it may."""
    return mapped(body, lambda view: may_want_stream(path, view)) and wants_stream(path, whole(body))
