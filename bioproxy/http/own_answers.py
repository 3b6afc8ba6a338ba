"""Answers that the proxy writes itself: errors, CORS preflights, and the head of a stream that has to begin early.

llama-server's answers pass through unchanged.  The proxy's own ones have the same form, so that a client need not know
which of the two has answered: an error is JSON in the shape of the API that was called (`bioproxy.http.error_formats`).

A web page may read an answer from another server only if a header of that answer allows it (CORS).  Browsers ask before
some requests, with `OPTIONS`, whether the page may send them (a *preflight*).  llama-server allows everything to every
page, and so does the proxy for its own answers; otherwise a page would see "network error" where there is a reason.

A Twisted request is also the object that the answer is written to: `setResponseCode` and `setHeader` prepare the head,
the first `write` sends it, and `finish` ends the answer.  Nothing is sent before that first `write`, so until then an
answer can still become another one.  Twisted itself puts `Server` and `Date` into every answer, before bioproxy sees
the request.

This module does not decide when something is an error.
"""

from __future__ import annotations

from twisted.web.server import Request

from bioproxy.http.client_output import ClientOutput
from bioproxy.http.error_formats import error_body
from bioproxy.runtime.errors import ProxyError, TemplateError


def send_error(request: Request, path: str, error: ProxyError, cross_origin: bool = True) -> None:
    """Answer a request, to which nothing was sent yet, with an error of the proxy's own.

    `path` decides the shape of the body.  With `cross_origin` web pages from other servers may read it.
    """
    # llama-server may have failed after the head of its answer arrived, and those headers are in the request already:
    # its content type and length would describe another body than this one.
    keep_only_proxy_headers(request)
    # An error as the answer to a preflight is invisible: the browser tells the page only that it failed.
    if cross_origin and request.method == b"OPTIONS" and request.getHeader(b"access-control-request-method"):
        return answer_preflight(request)
    request.setResponseCode(error.status)
    request.setHeader(b"content-type", b"application/json; charset=utf-8")
    # HTTP demands this header with a 401 (RFC 9110, section 15.5.2).
    if error.status == 401:
        request.setHeader(b"www-authenticate", b"Bearer")
    # OpenAI's and Anthropic's client libraries send a request that got a 500 twice more, unless this header is there.
    # A template that cannot be read is still unreadable a second later.
    if isinstance(error, TemplateError):
        request.setHeader(b"x-should-retry", b"false")
    if error.retry_after is not None:
        request.setHeader(b"retry-after", str(error.retry_after).encode())
    if cross_origin:
        allow_cross_origin(request)
    # Without a length Twisted would send the body in chunks, or to a client of HTTP/1.0 without any sign of its end but
    # that of the connection.
    body = error_body(path, error)
    request.setHeader(b"content-length", b"%d" % len(body))
    request.write(body)
    request.finish()


def send_stream_head(output: ClientOutput) -> None:
    """Begin a stream of events before llama-server has answered.  The head goes out with the first write.

    Only for a client that has asked for a stream.  Headers that are set later are lost.
    """
    request = output.request
    keep_only_proxy_headers(request)
    request.setResponseCode(200)
    request.setHeader(b"content-type", b"text/event-stream")
    # A cache on the way might keep the stream or collect it before it passes anything on.
    request.setHeader(b"cache-control", b"no-cache")
    allow_cross_origin(request)
    output.begin()


def keep_only_proxy_headers(request: Request) -> None:
    """Remove all headers of the answer but those that the proxy adds to every answer.

    These are the `X-Bioproxy-` ones and `Connection`, which tells the client that its connection ends after this
    answer.
    """
    # A list, because removing headers changes what is iterated over.
    for name, _ in list(request.responseHeaders.getAllRawHeaders()):
        if not name.lower().startswith(b"x-bioproxy-") and name.lower() != b"connection":
            request.responseHeaders.removeHeader(name)


def answer_preflight(request: Request) -> None:
    """Answer a CORS preflight with what llama-server would answer, because it cannot be asked now.

    The page then sends its real request, gets the same error for it, and can read that.
    """
    allow_cross_origin(request)
    request.setResponseCode(204)
    request.setHeader(b"access-control-allow-credentials", b"true")
    request.setHeader(b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS")
    request.setHeader(b"access-control-allow-headers", b"*")
    request.finish()


def allow_cross_origin(request: Request) -> None:
    """Allow the web page that sends the request to read the answer, as llama-server does for all of its answers.

    A browser names the page's server in `Origin`.  The answer repeats that name, not ``*``, which browsers do not
    accept together with credentials.
    """
    origin = request.getHeader(b"origin")
    if origin is not None:
        request.setHeader(b"access-control-allow-origin", origin)
