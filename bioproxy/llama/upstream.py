"""The way to llama-server: sending, waiting, and one language for everything that fails on it.

Two kinds of calls go this way:

* The proxy's own questions ("what is in the slot?") are small JSON calls made with treq, an HTTP client on top of
  Twisted's `Agent` that knows JSON, text encodings and the like.
* A client's request is *relayed*, and must arrive as it was sent.  treq means well and would unpack gzip, keep
  cookies and tidy up the URL.  So these calls use an `Agent` below it.

Cancelling any call here closes its connection, which is how llama-server learns that nobody waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from bioproxy.http.headers import Pair
from bioproxy.http.request_body import Bytes, RequestBody
from bioproxy.http.response_body import collect
from bioproxy.http.targets import climbs
from bioproxy.llama.connections import Agents
from bioproxy.llama.failures import translated
from bioproxy.runtime.errors import BadTarget, LlamaError, ProxyError, UpstreamError, UpstreamTimeout
from bioproxy.runtime.expect import decoded, shown
from bioproxy.settings.api_keys import ApiKeys

SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that change nothing, so that a request lost with its connection may be sent again (RFC 9110, 9.2.2)."""


SMALL = 1 << 20
"""Bytes that an answer to one of the proxy's own calls may have.  Mostly they are a few thousand."""

SLOWEST = 1 << 18
"""Bytes a second: the longest answer that is allowed has so much time, and at least 4 s."""


class Waiting(Protocol):
    """Something that waits for llama-server and can be told that there is no more hope."""

    def cancel(self) -> None:
        """End the waiting; it then fails with `CancelledError`."""


class Upstream:
    """One llama-server, seen as something that answers HTTP requests."""

    def __init__(self, url: str, agents: Agents, clock: IReactorTime, keys: ApiKeys) -> None:
        self.url = url
        self.last_heard = clock.seconds()
        self._agents = agents
        self._own_fresh = HTTPClient(agents.own_fresh, data_to_body_producer=Bytes)
        self._own_shared = HTTPClient(agents.own_shared, data_to_body_producer=Bytes)
        self._clock = clock
        self._keys = keys
        parts = urlsplit(url)
        self._host = parts.netloc.encode()
        self._path = parts.path.encode()
        self._given_up = False
        self._waiting: set[Waiting] = set()
        self._hopeless: dict[Waiting, ProxyError] = {}

    async def relay(self, method: bytes, target: bytes, headers: Iterable[Pair], body: RequestBody) -> IResponse:
        """Send a client's request on.

        `target` is path and query as the client wrote them; it begins with a slash.  Whatever it says, the request goes
        to `url`.  Fires with the response as soon as its head is here; the body comes later, see
        `bioproxy.proxy.relay`.  Fails with `UpstreamError`, `UpstreamTimeout`, or `BadTarget` for what cannot be sent;
        cancelling closes the connection.
        """
        if self._path and climbs(target):
            raise BadTarget("a path may not have . or .. in it here: it would lead out of llama_url")
        repeatable = method in SAFE and not body.size
        agent = self._agents.relay_shared if repeatable else self._agents.relay_fresh
        sent = Headers()
        for name, value in headers:
            sent.addRawHeader(name, value)
        if not sent.hasHeader(b"host"):  # HTTP/1.0 does without
            sent.addRawHeader(b"host", self._host)
        # A POST without a body still says so, with `Content-Length: 0`; a GET has nothing to say.
        sending = None if repeatable or (method == b"DELETE" and not body.size) else body.producer(self._clock)
        try:
            answer = agent.request(method, self._path + target, sent, sending)
        except ValueError as error:
            raise BadTarget(f"this request cannot be sent on: {error}") from None
        return cast(IResponse, await self.waited_for(answer))

    async def ask(
        self, method: str, path: str, question: Any = None, *, fresh: bool = False, growth: int = 0
    ) -> object:
        """Make one of the proxy's own calls; both sides speak JSON.

        `fresh` gives the call a fresh connection: for calls that must not be made twice, and those that take
        long.  The answer may have `SMALL` bytes, and `growth` more for each byte of the question.  Fires with the
        decoded answer, which may be anything.  Fails with `LlamaError` for an error status, `UpstreamError` or
        `UpstreamTimeout`; cancelling closes the connection.
        """
        client = self._own_fresh if fresh else self._own_shared
        # The host here only makes the URL complete: the connection goes to `url` in any case.  (treq would read an
        # IPv6 address as a name that is not allowed.)
        url = f"http://llama-server{self._path.decode()}{path}"
        headers = Headers({b"Host": [self._host]})
        for name, value in self._keys.own:
            headers.addRawHeader(name, value)
        body = None if question is None else json.dumps(question, separators=(",", ":")).encode()
        if body is not None:
            headers.addRawHeader(b"Content-Type", b"application/json; charset=UTF-8")
        # `unbuffered`: treq would keep the whole body a second time, for callers that read it twice.
        call = client.request(method, url, headers=headers, data=body, allow_redirects=False, unbuffered=True)
        response = await self.waited_for(call)
        content = await self.content(response, f"{method} {path}", SMALL + growth * len(body or b""))
        try:
            answer = decoded(content)
        except ValueError as fault:
            if response.code == 200:
                raise UpstreamError(f"llama-server's answer to {method} {path} is {fault}") from None
            answer = None
        if response.code != 200:
            error = answer.get("error") if isinstance(answer, dict) else None
            message = error.get("message") if isinstance(error, dict) else None
            told = shown(message) if isinstance(message, str) and message else "no reason given"
            raise LlamaError(response.code, told)
        return answer

    async def content(self, response: IResponse, what: str, longest: int) -> bytearray:
        """Take an answer's body into memory, in which it may have `longest` bytes; `what` was asked.

        llama-server sends an answer that is no stream all at once, when its work is done: so from the head on time is
        short.  Fails with `UpstreamError` or `UpstreamTimeout`; cancelling closes the connection.
        """

        def late(_result: object, seconds: float) -> None:
            raise UpstreamTimeout(f"llama-server did not finish its answer to {what} within {seconds:.0f} s")

        body = collect(response, what, longest)
        body.addTimeout(max(longest, SMALL) / SLOWEST, self._clock, late)
        return cast(bytearray, await self.waited_for(body))

    async def waited_for(self, deferred: Deferred[Any]) -> Any:
        """Wait for something from llama-server, in a way that `give_up` can end; translate what goes wrong."""
        self._waiting.add(deferred)
        try:
            with translated():
                result = await deferred
        except CancelledError:
            if deferred in self._hopeless:
                raise self._hopeless[deferred] from None
            raise
        finally:
            self._waiting.discard(deferred)
            self._hopeless.pop(deferred, None)
        self.heard()
        return result

    def heard(self) -> None:
        """Note that llama-server showed signs of life."""
        self.last_heard = self._clock.seconds()
        self._given_up = False

    def check(self) -> None:
        """Raise `UpstreamTimeout` if llama-server was given up, and was not heard of since."""
        if self._given_up:
            raise self._timeout()

    def _timeout(self) -> UpstreamTimeout:
        silence = self._clock.seconds() - self.last_heard
        return UpstreamTimeout(f"llama-server has not answered for {silence:.0f} s")

    def give_up(self) -> None:
        """End all waiting with `UpstreamTimeout`: llama-server has been dumb for too long."""
        self._given_up = True
        self.end_all(self._timeout)

    def end_all(self, error: Callable[[], ProxyError]) -> None:
        """End all waiting with an error, which is made anew for each."""
        waiting = list(self._waiting)
        self._hopeless.update((each, error()) for each in waiting)
        for each in waiting:
            each.cancel()
