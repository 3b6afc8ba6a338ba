"""Sends requests to llama-server and waits for the answers.

There are two kinds of calls:

* The proxy's *own* calls ("what is in the slot?") are small JSON requests.  They are made with treq, an HTTP client on
  top of Twisted's `Agent` that brings the conveniences of the library requests.
* A client's request is *relayed* and must arrive as it was sent.  treq would unpack gzip, keep cookies and
  normalize the URL.  So relayed requests use the `Agent` below treq (`bioproxy.llama.connections`).

Each call goes through the same phases, and can fail or be cancelled in each of them: connecting (at most 5 seconds),
sending, waiting for the head of the answer (as long as it takes), and reading its body.

The Twisted idea here is *cancelling*.  `Agent.request` returns a `Deferred`, an object for a result that comes later.
Its `cancel` method tells the code that made it that the result is no longer wanted; for a request that means: close the
connection, and fail with `CancelledError`.  A coroutine passes `cancel` on to the `Deferred` that it is awaiting.  So
when a client hangs up, its coroutine is cancelled, the connection to llama-server closes, and llama-server, which
watches its connections, stops computing.

How a call is waited for, and how all of them are ended at once, is in `bioproxy.llama.pending_calls`.  This module does
not know what the calls mean; `bioproxy.llama.api` does.
"""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import urlsplit

from treq.client import HTTPClient
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from bioproxy.child.supervisor import LlamaChild
from bioproxy.http.request_body import BytesProducer, RequestBody
from bioproxy.http.response_body import collect
from bioproxy.http.targets import has_dot_segments
from bioproxy.llama.connections import Agents
from bioproxy.llama.pending_calls import PendingCalls
from bioproxy.runtime.errors import BadTarget, LlamaError, LlamaNotRunning, UpstreamError, UpstreamTimeout
from bioproxy.runtime.expect import decoded, shown
from bioproxy.settings.api_keys import ApiKeys

SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that change nothing, so that a request lost with its connection may be sent again (RFC 9110, 9.2.2).

PUT and DELETE are idempotent in that RFC and could be repeated too.  They are left out because nobody can promise what
an endpoint of a later llama-server does with them.
"""

SMALL = 1 << 20
"""Bytes that an answer to one of the proxy's own calls may have, at most, if the question gives no reason for more.

Mostly they are a few thousand; `/props` has the chat template in it, `/slots` the parameters of each slot.  Halved,
nothing that was ever seen is rejected; doubled, a broken server may take twice the memory of this process for each
call.
"""

SLOWEST = 1 << 18
"""Bytes a second, at least, at which the body of an answer must come: 256 KiB/s.

The longest answer allowed gets its size divided by this, so 4 s for `SMALL`.  Halved, an answer that stops in the
middle occupies the gate for twice as long; doubled, a slow network between both hosts could break honest answers.
"""


class Upstream:
    """One llama-server, as something that answers HTTP requests.

    Invariant: whatever is awaited of llama-server is awaited through `pending`, so that one call there ends all of it.
    """

    def __init__(self, url: str, agents: Agents, clock: IReactorTime, keys: ApiKeys) -> None:
        """Prepare calls to the llama-server at `url`, through `agents`, with the api key of `keys`, if there is one."""
        self.url = url
        """`llama_url`, as configured."""
        self.pending = PendingCalls(clock)
        """The calls that somebody waits for, and whether llama-server is regarded as unresponsive."""
        self.child: LlamaChild | None = None
        """The llama-server that bioproxy starts itself; `None` if an operator does.  Assigned once, by the wiring."""
        self._agents = agents
        self._own_fresh = HTTPClient(agents.own_fresh, data_to_body_producer=BytesProducer)
        # Two clients of treq, because a client keeps its Agent.  `BytesProducer` writes a body at once; treq's own
        # producer would copy it in pieces, over several turns of the reactor.
        self._own_shared = HTTPClient(agents.own_shared, data_to_body_producer=BytesProducer)
        self._clock = clock
        self._keys = keys
        parts = urlsplit(url)
        self._host = parts.netloc.encode()
        # llama-server may run below a path (``--api-prefix``, or behind another proxy); it precedes each target.
        self._path = parts.path.encode()

    async def relay(self, method: bytes, target: bytes, headers: Headers, body: RequestBody) -> IResponse:
        """Send a client's request to llama-server.

        `target` is path and query as the client wrote them; it begins with a slash.  Whatever it says, the request goes
        to `url`.  `headers` are those to send; what llama-server needs is added there.  Fires with the response as soon
        as its head is here; the body comes later, see `bioproxy.proxy.relay`.  Fails with `UpstreamError` or
        `UpstreamTimeout`, and with `BadTarget` for a target or method that cannot be sent.  Cancelling closes the
        connection.
        """
        # Where llama-server is below a path, ".." could lead to a neighbour on the same host that clients may not
        # reach.  Elsewhere such a target goes on unchanged: what it means is llama-server's business.
        if self._path and has_dot_segments(target):
            raise BadTarget("a path with . or .. in it is refused, because it could lead out of llama_url")
        # Only what changes nothing and has no body may be repeated, which is Twisted's doing.  What uses the slot is a
        # POST.
        repeatable = method in SAFE and not body.size
        agent = self._agents.relay_once if method == b"POST" else self._agents.relay_fresh
        if repeatable:
            agent = self._agents.relay_shared
        self._keys.give(headers)
        # HTTP/1.0 clients need not send `Host`, but HTTP/1.1, which is spoken from here on, demands it.
        if not headers.hasHeader(b"host"):
            headers.addRawHeader(b"host", self._host)
        # A *producer* is what Twisted asks to write the body, and to pause while the network is slower: a large body is
        # never in memory twice.  With a producer Twisted sends `Content-Length`, without one it does not.
        # A POST with an empty body says so with `Content-Length: 0` (RFC 9110, 8.6); a GET or DELETE without a body has
        # nothing to say.
        sending = None if repeatable or (method == b"DELETE" and not body.size) else body.producer(self._clock)
        try:
            answer = agent.request(method, self._path + target, headers, sending)
        except ValueError as error:
            # Twisted checks method and target before it connects, and raises instead of returning a `Deferred`.
            raise BadTarget(f"this request cannot be relayed: {error}") from None
        # This fires when the head is here.  Twisted then stops reading from the connection until somebody takes the
        # body (`IResponse.deliverBody`), so nothing piles up in memory while the client's side is being prepared.
        return cast(IResponse, await self.pending.waited_for(answer))

    async def ask(
        self, method: str, path: str, question: Any = None, *, fresh: bool = False, growth: int = 0
    ) -> object:
        """Make one of the proxy's own calls; question and answer are JSON.

        `fresh` gives the call a connection of its own: for calls that must not be carried out twice, and for those that
        take long, whose connection would be missing in the pool.  The answer may have `SMALL` bytes, and `growth` more
        for each byte of the question.  Fires with the decoded answer, which may be any JSON value.  Fails with
        `LlamaError` for an error status, `UpstreamError` or `UpstreamTimeout`; cancelling closes the connection.
        """
        # Small questions share connections: the watch alone asks twice every two seconds, and over TLS a new connection
        # each time would cost more than the question.
        client = self._own_fresh if fresh else self._own_shared
        # The host here only makes the URL complete: the agents connect to `url` in any case, and the header `Host` is
        # set below.  The real host would not always do, because treq rejects an IPv6 address as an invalid name.
        url = f"http://llama-server{self._path.decode()}{path}"
        # The api key is read from `keys` for each call, because a reload may change it.
        headers = Headers({b"Host": [self._host]})
        for name, value in self._keys.own:
            headers.addRawHeader(name, value)
        body = None if question is None else json.dumps(question, separators=(",", ":")).encode()
        if body is not None:
            headers.addRawHeader(b"Content-Type", b"application/json; charset=UTF-8")
        # `unbuffered`: treq would keep the whole body a second time, for callers that read it twice.  No redirects:
        # llama-server sends none, so whatever does is not llama-server, and its 302 is an error like any other status.
        call = client.request(method, url, headers=headers, data=body, allow_redirects=False, unbuffered=True)
        response = await self.pending.waited_for(call)
        content = await self.content(response, f"{method} {path}", SMALL + growth * len(body or b""))
        # An error status decides, whatever the body says: a proxy in between may explain its 502 in HTML.  With 200 a
        # body that is not JSON means that something else listens there.
        try:
            answer = decoded(content)
        except ValueError as fault:
            if response.code == 200:
                raise UpstreamError(f"llama-server's answer to {method} {path} is {fault}") from None
            answer = None
        # llama-server writes its errors in OpenAI's shape; anything else is told by its status alone.  `shown` makes
        # the text safe for the log, because the program that listens there may send control characters.  `LlamaError`
        # has the status as a number, so that callers can tell "still loading" (503) from "not supported" (501).
        if response.code != 200:
            error = answer.get("error") if isinstance(answer, dict) else None
            message = error.get("message") if isinstance(error, dict) else None
            told = shown(message) if isinstance(message, str) and message else "no reason given"
            raise LlamaError(response.code, told)
        return answer

    async def content(self, response: IResponse, what: str, longest: int) -> bytearray:
        """Read an answer's body into memory, at most `longest` bytes; `what` names the call in error messages.

        llama-server sends an answer that is not a stream all at once, when its work is done.  So the wait for the head
        is unlimited (a long prompt), and the time for the body is short.  Fires with the body.  Fails with
        `UpstreamError` if it breaks off or is too long, with `UpstreamTimeout` if it is too slow; cancelling closes the
        connection.
        """

        # `addTimeout` cancels the Deferred after that time, which closes the connection, and then lets this function
        # decide what the failure is called.
        def late(_result: object, seconds: float) -> None:
            raise UpstreamTimeout(f"llama-server did not finish its answer to {what} within {seconds:.0f} s")

        body = collect(response, what, longest)
        body.addTimeout(max(longest, SMALL) / SLOWEST, self._clock, late)
        return cast(bytearray, await self.pending.waited_for(body))

    async def ready(self, seconds: float) -> None:
        """Wait, for so many seconds at most, until a llama-server of bioproxy's own has started; called at the gate.

        Fails with `LlamaNotRunning` if it does not start, and as `PendingCalls.check`.  Cancelling ends the waiting.
        """
        if self.child is not None:
            await self.child.ready(seconds)
        self.pending.check()

    def not_running(self) -> str | None:
        """Return why no answer can be expected: that llama-server is loading, or has failed; otherwise `None`."""
        return None if self.child is None else self.child.not_running()

    def refuse_while_starting(self) -> None:
        """Raise `LlamaNotRunning` while that llama-server does not run: for requests that need not wait."""
        if (reason := self.not_running()) is not None:
            raise LlamaNotRunning(reason)
