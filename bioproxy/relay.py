"""Passes an answer on from llama-server to the client, piece by piece as it comes.

Two things need care:

* **Backpressure.**  A fast sender and a slow reader make the proxy's memory grow with everything in between.
  Twisted's answer is called *producers and consumers*: the connection that data comes from is registered as the
  producer of the connection that it goes to, which then pauses and resumes it as its buffer fills and empties.
* **A broken answer must not look whole.**  Once the head is out, no error status can be sent any more.  An event
  stream gets one last event that says what happened; everything else ends without a proper end.
"""

from __future__ import annotations

import json

from twisted.web.http import NO_BODY_CODES
from twisted.web.iweb import IResponse
from twisted.web.server import Request

from bioproxy.body import OnData, receive
from bioproxy.errors import ProxyError
from bioproxy.headers import end_to_end
from bioproxy.upstream import Upstream


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


def keep_only_ours(request: Request) -> None:
    """Drop all headers of the answer but those that say what the proxy did."""
    for name, _ in list(request.responseHeaders.getAllRawHeaders()):
        if not name.lower().startswith(b"x-bioproxy-"):
            request.responseHeaders.removeHeader(name)


def content_length(response: IResponse, request: Request) -> bytes | None:
    """Return the length to announce, or `None` where Twisted is to send chunks."""
    if request.method == b"HEAD" or response.code in NO_BODY_CODES:
        # There is no body.  The header, if there is one, says how long it would be.
        values = response.headers.getRawHeaders(b"content-length")
        return values[0] if values else None
    return b"%d" % response.length if isinstance(response.length, int) else None


async def send_body(response: IResponse, request: Request, upstream: Upstream, on_data: OnData) -> None:
    """Relay the body; `on_data` sees each piece too.

    Fires when all of it is written.  Fails with `UpstreamError` or `UpstreamTimeout` if llama-server breaks off or
    falls silent; cancelling closes the connection to it.
    """

    def deliver(data: bytes) -> None:
        upstream.heard()
        on_data(data)
        request.write(data)

    done, body = receive(response, deliver)
    if body.done is not None:  # else it was here whole, in memory
        request.registerProducer(body.transport, True)
    try:
        await upstream.waited_for(done)
    finally:
        # A request that has lost its client has no channel any more, and nobody to unregister from.
        if request.producer is not None and request.channel is not None:
            request.unregisterProducer()


def fail(request: Request, error: ProxyError) -> None:
    """End an answer that has begun and cannot be completed, so that it does not look complete."""
    content_type = request.responseHeaders.getRawHeaders(b"content-type", [b""])[0]
    if content_type.startswith(b"text/event-stream"):
        # The empty line first: the last event may have been cut in the middle.
        request.write(b"\n\ndata: " + error.body() + b"\n\n")
        request.finish()
    else:
        # Whatever is still written, by Klein's `finish` for example, goes nowhere: the mark of a whole answer too.
        request.channel.forceAbortClient()


def refuse(request: Request, error: ProxyError) -> None:
    """Answer with an error of the proxy's own."""
    # llama-server may have broken off after the head of its answer: nothing of that head belongs to this one.
    keep_only_ours(request)
    request.setResponseCode(error.status)
    request.setHeader(b"content-type", b"application/json; charset=utf-8")
    if error.retry_after is not None:
        request.setHeader(b"retry-after", str(error.retry_after).encode())
    # llama-server lets any web page read its answers, errors too; without this header a browser would hide ours.
    origin = request.getHeader(b"origin")
    if origin is not None:
        request.setHeader(b"access-control-allow-origin", origin)
    body = error.body()
    request.setHeader(b"content-length", b"%d" % len(body))
    request.write(body)
    request.finish()


class Timings:
    """Finds llama-server's `timings` in an answer that passes by in pieces, streamed or not.

    They are one flat JSON object near the answer's end: how many prompt tokens came from the cache (`cache_n`),
    how many were computed (`prompt_n`) and how long that took (`prompt_ms`).  Looking for the key as bytes is
    safe: inside any JSON *text* its quotation marks would have a backslash before them.
    """

    KEY = b'"timings":{'
    LONGEST = 2048

    def __init__(self) -> None:
        self._tail = b""
        self._found: bytes | None = None

    def feed(self, data: bytes) -> None:
        """Look at the next piece of the body; any cuts will do."""
        text = self._tail + data
        start = text.rfind(self.KEY)
        if start >= 0 and (end := text.find(b"}", start)) >= 0:
            self._found = text[start + len(self.KEY) - 1 : end + 1]
        # Enough for the whole object, if it began in this piece and ends in the next.
        self._tail = text[-self.LONGEST :]

    @property
    def values(self) -> dict[str, float]:
        """The timings, empty where there were none."""
        try:
            found = json.loads(self._found or b"{}")
        except ValueError:
            return {}
        # None of them can be negative or without end; whoever sends such a number is no llama-server.
        return {key: value for key, value in found.items() if isinstance(value, int | float) and 0 <= value < 1e15}
