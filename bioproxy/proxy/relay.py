"""Passes an answer on from llama-server to the client: head, then body, piece by piece as it comes.

What comes from llama-server goes out as it is, but for the headers that belong to one connection.  What the proxy
itself has to say is in `bioproxy.http.own_answers`.
"""

from __future__ import annotations

from typing import cast

from twisted.internet.interfaces import IPushProducer
from twisted.web.http import NO_BODY_CODES
from twisted.web.iweb import IResponse
from twisted.web.server import Request

from bioproxy.http.client_output import ClientOutput
from bioproxy.http.error_formats import error_details
from bioproxy.http.headers import end_to_end
from bioproxy.http.own_answers import keep_only_proxy_headers
from bioproxy.http.response_body import OnData, receive
from bioproxy.llama.upstream import Upstream
from bioproxy.runtime.errors import TooLate

LONGEST_ERROR = 64 * 1024
"""Bytes that an error of llama-server's may have which is to be told in another form."""


def send_head(response: IResponse, request: Request) -> None:
    """Give the client the status and the headers of llama-server's answer, beside those set for it already."""
    request.setResponseCode(response.code, response.phrase)
    # Twisted has put in its own Server, Date and Content-Type: llama-server's stand, and none that it left out.
    keep_only_proxy_headers(request)
    request.defaultContentType = None
    pairs = [(name, value) for name, values in response.headers.getAllRawHeaders() for value in values]
    for name, value in end_to_end(pairs):
        request.responseHeaders.addRawHeader(name, value)
    length = content_length(response, request)
    if length is not None:
        request.responseHeaders.setRawHeaders(b"content-length", [length])


async def only_stream(response: IResponse, upstream: Upstream) -> None:
    """Fail unless this answer is a stream of events, because the client was told already that one comes.

    Fails with `TooLate`, which says what llama-server says, or with `UpstreamError` or `UpstreamTimeout` if that is too
    long, or takes too long.
    """
    content_type = response.headers.getRawHeaders(b"content-type", [b""])[0]
    if response.code == 200 and content_type.startswith(b"text/event-stream"):
        return
    said = await upstream.content(response, "a request for a stream", LONGEST_ERROR)
    raise TooLate(response.code, *error_details(said))


def content_length(response: IResponse, request: Request) -> bytes | None:
    """Return the length to announce, or `None` where Twisted is to send chunks."""
    if request.method == b"HEAD" or response.code in NO_BODY_CODES:
        # There is no body.  The header, if there is one, says how long it would be.
        values = response.headers.getRawHeaders(b"content-length")
        return values[0] if values else None
    return b"%d" % response.length if isinstance(response.length, int) else None


async def send_body(response: IResponse, output: ClientOutput, upstream: Upstream, on_data: OnData) -> None:
    """Relay the body; `on_data` sees each piece too.

    Fires when llama-server has sent all of it; the client may have yet to read some.  Fails with `UpstreamError` or
    `UpstreamTimeout` if llama-server breaks off or falls silent; cancelling closes the connection to it.
    """

    def deliver(data: bytes) -> None:
        upstream.heard()
        on_data(data)
        output.write(data)

    output.begin()
    done, body = receive(response, deliver)
    if body.done is not None:  # else it was here whole, in memory
        output.connect(cast(IPushProducer, body.transport))
    await upstream.waited_for(done)
    output.end()
