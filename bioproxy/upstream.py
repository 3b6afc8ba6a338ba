"""The way to llama-server: sending, waiting, and one language for everything that fails on it.

Two kinds of calls go this way:

* The proxy's own questions ("what is in the slot?") are small JSON calls made with treq, an HTTP client on top of
  Twisted's `Agent` that knows JSON, text encodings and the like.
* A client's request is *relayed*, and must arrive as it was sent.  treq means well and would unpack gzip, keep
  cookies and tidy up the URL.  So these calls use an `Agent` below it.

Failures.  Twisted names a fault after the moment in which it happened: connecting, waiting for the head of the
answer, reading its body, each again different when it was *cancelled*.  `translated` turns all of them into two
things: `CancelledError` (somebody no longer wants the answer) and `UpstreamError` (llama-server is to blame).

Cancelling any call here closes its connection, which is how llama-server learns that nobody waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from OpenSSL import SSL
from service_identity import VerificationError
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from bioproxy.body import receive
from bioproxy.connections import CONNECT_TIMEOUT, Agents
from bioproxy.errors import BadTarget, LlamaError, ProxyError, UpstreamError, UpstreamTimeout
from bioproxy.headers import Pair
from bioproxy.keys import Keys
from bioproxy.request_body import Bytes, RequestBody
from bioproxy.targets import climbs

SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods that change nothing, so that a request lost with its connection may be sent again (RFC 9110, 9.2.2)."""


class Waiting(Protocol):
    """Something that waits for llama-server and can be told that there is no more hope."""

    def cancel(self) -> None:
        """End the waiting; it then fails with `CancelledError`."""


class Upstream:
    """One llama-server, seen as something that answers HTTP requests."""

    def __init__(self, url: str, agents: Agents, clock: IReactorTime, keys: Keys) -> None:
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
        `bioproxy.relay`.  Fails with `UpstreamError`, `UpstreamTimeout`, or `BadTarget` for what cannot be sent;
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

    async def ask(self, method: str, path: str, question: Any = None, *, alone: bool = False) -> Any:
        """Make one of the proxy's own calls; both sides speak JSON.

        `alone` gives the call a fresh connection: for calls that must not be made twice, and those that take
        long.  Fires with the decoded answer.  Fails with `LlamaError` for an error status, `UpstreamError` or
        `UpstreamTimeout`; cancelling closes the connection.
        """
        client = self._own_fresh if alone else self._own_shared
        body = {} if question is None else {"json": question}
        # `unbuffered`: treq would keep the whole body a second time, for callers that read it twice.
        # The host here only makes the URL complete: the connection goes to `url` in any case.  (treq would read an
        # IPv6 address as a name that is not allowed.)
        url = f"http://llama-server{self._path.decode()}{path}"
        headers = Headers({b"Host": [self._host]})
        for name, value in self._keys.own:
            headers.addRawHeader(name, value)
        call = client.request(method, url, headers=headers, allow_redirects=False, unbuffered=True, **body)
        response = await self.waited_for(call)
        pieces: list[bytes] = []
        done, _ = receive(response, pieces.append)
        await self.waited_for(done)
        try:
            answer = json.loads(b"".join(pieces))
        except (ValueError, RecursionError):
            if response.code == 200:
                raise UpstreamError("llama-server answered with something that is not JSON") from None
            answer = None
        if response.code != 200:
            error = answer.get("error") if isinstance(answer, dict) else None
            message = error.get("message") if isinstance(error, dict) else None
            raise LlamaError(response.code, str(message or "no reason given"))
        return answer

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


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever Twisted raises for a failed or cancelled call into `UpstreamError` or `CancelledError`."""
    try:
        yield
    except (CancelledError, ConnectingCancelledError):
        raise CancelledError() from None
    except (ResponseNeverReceived, ResponseFailed, RequestGenerationFailed, RequestTransmissionFailed) as error:
        # These wrap what really happened, as a list of Failures (Twisted's exceptions that can be kept).
        if any(Failure.check(reason, CancelledError) for reason in error.reasons):
            raise CancelledError() from None
        trouble = next(filter(None, (tls_trouble(reason.value) for reason in error.reasons)), None)
        raise UpstreamError(trouble or "llama-server broke off before its answer was complete") from None
    except ConnectionRefusedError:
        raise UpstreamError("llama-server refuses connections: is it running?") from None
    except TimeoutError:
        raise UpstreamError(f"llama-server did not accept a connection within {CONNECT_TIMEOUT:g} s") from None
    except UpstreamError:  # of `bioproxy.body`, which speaks this language already
        raise
    except Exception as error:  # TLS, name resolution, and whatever else a network has
        raise UpstreamError(f"llama-server cannot be reached: {error}") from None


def tls_trouble(error: object) -> str | None:
    """Return what is wrong with llama-server's certificate, or with TLS, if that is what an error says."""
    if isinstance(error, VerificationError):
        return "llama-server's certificate is not for the host in llama_url"
    if isinstance(error, SSL.Error):
        # A list of what OpenSSL had to complain of: library, function, reason.
        reasons = ", ".join(str(entry[-1]) for entry in (error.args[0] if error.args else ()))
        return f"there is no TLS to llama-server: {reasons or 'the connection broke off'}"
    return None
