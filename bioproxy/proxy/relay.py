"""Passes an answer on from llama-server to the client: head, then body, piece by piece as it comes.

What comes from llama-server goes out as it is, but for the headers that belong to one connection.  The body is neither
unpacked nor parsed, and no piece waits for the next one: a stream of tokens must arrive at the speed at which they are
generated.

On Twisted: a body does not come as a value that can be awaited but as calls, one for each piece that the network
delivers.  `receive` gives a `Deferred` that fires after the last one, and a coroutine awaits that while the pieces pass
beside it.  The connection of llama-server is a *producer*: it can be told to pause, and then stops reading its socket.
`ClientOutput` does that when a client reads too slowly and too much has been kept for it.

What the proxy itself has to say is in `bioproxy.http.own_answers`.  This module does not know the queue, the slot or
what an answer means.
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
"""Bytes that an error of llama-server may have if it has to be told in another form.

Such errors are a sentence or two.  Halved, nothing that was ever seen is too long; doubled, a broken server may take
twice the memory for each client that waits for a stream.
"""


def send_head(response: IResponse, request: Request) -> None:
    """Give the client the status and the headers of llama-server's answer, beside those that bioproxy has set already.

    Nothing is sent before the first piece of the body, or its end.
    """
    request.setResponseCode(response.code, response.phrase)
    # Twisted has put in its own Server, Date and Content-Type.  Those of llama-server are the right ones, and where it
    # sends none, there must be none.
    keep_only_proxy_headers(request)
    request.defaultContentType = None
    # Added and not set, because a header may come several times.
    for name, values in end_to_end(response.headers).getAllRawHeaders():
        for value in values:
            request.responseHeaders.addRawHeader(name, value)
    # Twisted's client takes the length out of the headers, so it has to be put back.
    length = content_length(response, request)
    if length is not None:
        request.responseHeaders.setRawHeaders(b"content-length", [length])


def takes_comments(response: IResponse) -> bool:
    """Return whether comments may be sent behind the head of this answer, as long as nothing of its body has come.

    llama-server sends the head of a stream at once and the first event when it has read the prompt, minutes later
    perhaps (measured with b11549).  The silence between the two is the one that clients give up in.
    """
    # In a body with a length, or that is packed, a comment would be wrong bytes.
    plain = not response.headers.hasHeader(b"content-encoding") and not isinstance(response.length, int)
    return plain and is_stream(response)


def is_stream(response: IResponse) -> bool:
    """Return whether an answer is a stream of events."""
    content_type: bytes = response.headers.getRawHeaders(b"content-type", [b""])[0]
    return response.code == 200 and content_type.startswith(b"text/event-stream")


async def only_stream(response: IResponse, upstream: Upstream) -> None:
    """Fail unless this answer is a stream of events, because the client was told already that one comes.

    Fires at once for a stream.  Fails with `TooLate`, which says what llama-server says, or with `UpstreamError` or
    `UpstreamTimeout` if that is too long, or takes too long.  Cancelling closes the connection to llama-server.
    """
    if is_stream(response):
        return
    # The client has a head with status 200 and expects events.  An error of llama-server (a context that is too small,
    # say) cannot be passed on as it is, so its text is read and becomes an event.
    said = await upstream.content(response, "a request for a stream", LONGEST_ERROR)
    raise TooLate(response.code, *error_details(said))


def content_length(response: IResponse, request: Request) -> bytes | None:
    """Return the length to announce, or `None` where Twisted is to send chunks."""
    # There is no body here.  The header, if there is one, says how long it would be.
    if request.method == b"HEAD" or response.code in NO_BODY_CODES:
        values = response.headers.getRawHeaders(b"content-length")
        return values[0] if values else None
    # Otherwise `length` is a number, or Twisted's mark for a length that is not known, as that of a stream.
    return b"%d" % response.length if isinstance(response.length, int) else None


async def send_body(response: IResponse, output: ClientOutput, upstream: Upstream, on_data: OnData) -> None:
    """Relay the body; `on_data` sees each piece before the client gets it.

    Fires when llama-server has sent all of it; the client may have yet to read some.  Fails with `UpstreamError` or
    `UpstreamTimeout` if llama-server breaks off or falls silent; cancelling closes the connection to it.
    """

    def deliver(data: bytes) -> None:
        """Pass on one piece.  Called by Twisted's client, in the middle of reading from llama-server's connection."""
        # Each piece is a sign of life: a long answer must not look like an unresponsive llama-server.
        upstream.pending.heard()
        on_data(data)
        output.write(data)

    # In this order: `output` must be the client's producer before the first piece comes, and pieces may come as soon as
    # `receive` is called.
    output.begin()
    done, body = receive(response, deliver)
    # If the whole body was there with the head, it has been delivered by now, and there is nothing to pause.
    if body.done is not None:
        output.connect(cast(IPushProducer, body.transport))
    await upstream.pending.waited_for(done)
    # Not reached after an error: an answer that was broken off must not get the proper end that makes it look complete.
    output.end()
