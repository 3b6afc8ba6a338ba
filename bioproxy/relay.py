"""Passes an answer on from llama-server to the client: head, then body, piece by piece as it comes.

What comes from llama-server goes out as it is, but for the headers that belong to one connection.  What the proxy
itself has to say, an error before the answer began, has its form here too; an error after that is `bioproxy.outlet`'s.
"""

from __future__ import annotations

from typing import cast

from twisted.internet.interfaces import IPushProducer
from twisted.web.http import NO_BODY_CODES
from twisted.web.iweb import IResponse
from twisted.web.server import Request

from bioproxy.body import OnData, receive
from bioproxy.dialects import error_body, message_of
from bioproxy.errors import ProxyError, TemplateError, TooLate
from bioproxy.headers import end_to_end
from bioproxy.outlet import Outlet
from bioproxy.upstream import Upstream

LONGEST_ERROR = 64 * 1024
"""Bytes that an error of llama-server's may have which is to be told in another form."""


def send_head(response: IResponse, request: Request) -> None:
    """Give the client the status and the headers of llama-server's answer, beside those set for it already."""
    request.setResponseCode(response.code, response.phrase)
    # Twisted has put in its own Server, Date and Content-Type: llama-server's stand, and none that it left out.
    keep_only_ours(request)
    request.defaultContentType = None
    pairs = [(name, value) for name, values in response.headers.getAllRawHeaders() for value in values]
    for name, value in end_to_end(pairs):
        request.responseHeaders.addRawHeader(name, value)
    length = content_length(response, request)
    if length is not None:
        request.responseHeaders.setRawHeaders(b"content-length", [length])


def send_stream_head(outlet: Outlet) -> None:
    """Begin a stream of events before llama-server has said anything."""
    request = outlet.request
    keep_only_ours(request)
    request.setResponseCode(200)
    request.setHeader(b"content-type", b"text/event-stream")
    request.setHeader(b"cache-control", b"no-cache")
    allow_origin(request)
    outlet.begin()


async def only_stream(response: IResponse, upstream: Upstream) -> None:
    """Fail unless this answer is a stream of events, because the client was told already that one comes.

    Fails with `TooLate`, which says what llama-server says, or with `UpstreamError` or `UpstreamTimeout` if that is too
    long, or takes too long.
    """
    content_type = response.headers.getRawHeaders(b"content-type", [b""])[0]
    if response.code == 200 and content_type.startswith(b"text/event-stream"):
        return
    said = await upstream.content(response, "a request for a stream", LONGEST_ERROR)
    raise TooLate(response.code, *message_of(said))


def keep_only_ours(request: Request) -> None:
    """Drop all headers of the answer but those that say what the proxy did, and whether the connection ends."""
    for name, _ in list(request.responseHeaders.getAllRawHeaders()):
        if not name.lower().startswith(b"x-bioproxy-") and name.lower() != b"connection":
            request.responseHeaders.removeHeader(name)


def content_length(response: IResponse, request: Request) -> bytes | None:
    """Return the length to announce, or `None` where Twisted is to send chunks."""
    if request.method == b"HEAD" or response.code in NO_BODY_CODES:
        # There is no body.  The header, if there is one, says how long it would be.
        values = response.headers.getRawHeaders(b"content-length")
        return values[0] if values else None
    return b"%d" % response.length if isinstance(response.length, int) else None


async def send_body(response: IResponse, outlet: Outlet, upstream: Upstream, on_data: OnData) -> None:
    """Relay the body; `on_data` sees each piece too.

    Fires when llama-server has sent all of it; the client may have yet to read some.  Fails with `UpstreamError` or
    `UpstreamTimeout` if llama-server breaks off or falls silent; cancelling closes the connection to it.
    """

    def deliver(data: bytes) -> None:
        upstream.heard()
        on_data(data)
        outlet.write(data)

    outlet.begin()
    done, body = receive(response, deliver)
    if body.done is not None:  # else it was here whole, in memory
        outlet.connect(cast(IPushProducer, body.transport))
    await upstream.waited_for(done)
    outlet.end()


def refuse(request: Request, path: str, error: ProxyError, for_pages: bool = True) -> None:
    """Answer with an error of the proxy's own, which web pages may read, unless it is not `for_pages`."""
    # llama-server may have broken off after the head of its answer: nothing of that head belongs to this one.
    keep_only_ours(request)
    if for_pages and request.method == b"OPTIONS" and request.getHeader(b"access-control-request-method"):
        return allow_page(request)
    request.setResponseCode(error.status)
    request.setHeader(b"content-type", b"application/json; charset=utf-8")
    if error.status == 401:
        request.setHeader(b"www-authenticate", b"Bearer")
    if isinstance(error, TemplateError):
        request.setHeader(b"x-should-retry", b"false")  # else OpenAI's and Anthropic's clients ask twice more
    if error.retry_after is not None:
        request.setHeader(b"retry-after", str(error.retry_after).encode())
    if for_pages:
        allow_origin(request)
    body = error_body(path, error)
    request.setHeader(b"content-length", b"%d" % len(body))
    request.write(body)
    request.finish()


def allow_page(request: Request) -> None:
    """Answer a browser that asks whether a page may ask, in llama-server's words, who cannot be asked now.

    What is wrong, the page can read then in the answer to its own request.
    """
    allow_origin(request)
    request.setResponseCode(204)
    request.setHeader(b"access-control-allow-credentials", b"true")
    request.setHeader(b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS")
    request.setHeader(b"access-control-allow-headers", b"*")
    request.finish()


def allow_origin(request: Request) -> None:
    """Let web pages read an answer of the proxy's own, as llama-server lets them read all of its."""
    origin = request.getHeader(b"origin")
    if origin is not None:
        request.setHeader(b"access-control-allow-origin", origin)
