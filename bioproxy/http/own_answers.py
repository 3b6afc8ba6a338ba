"""What the proxy itself answers: errors, and the head of a stream whose answer is not here yet.

llama-server's answers pass through as they are.  These are in the same forms, so that a client need not know which of
the two it is that speaks: an error is JSON in the words of the API that was asked (`bioproxy.http.error_formats`), and
web pages may read it where they may read llama-server's answers (CORS).
"""

from __future__ import annotations

from twisted.web.server import Request

from bioproxy.http.client_output import ClientOutput
from bioproxy.http.error_formats import error_body
from bioproxy.runtime.errors import ProxyError, TemplateError


def send_error(request: Request, path: str, error: ProxyError, cross_origin: bool = True) -> None:
    """Answer with an error of the proxy's own, which web pages may read, unless it is not `cross_origin`."""
    # llama-server may have broken off after the head of its answer: nothing of that head belongs to this one.
    keep_only_proxy_headers(request)
    if cross_origin and request.method == b"OPTIONS" and request.getHeader(b"access-control-request-method"):
        return answer_preflight(request)
    request.setResponseCode(error.status)
    request.setHeader(b"content-type", b"application/json; charset=utf-8")
    if error.status == 401:
        request.setHeader(b"www-authenticate", b"Bearer")
    if isinstance(error, TemplateError):
        request.setHeader(b"x-should-retry", b"false")  # else OpenAI's and Anthropic's clients ask twice more
    if error.retry_after is not None:
        request.setHeader(b"retry-after", str(error.retry_after).encode())
    if cross_origin:
        allow_cross_origin(request)
    body = error_body(path, error)
    request.setHeader(b"content-length", b"%d" % len(body))
    request.write(body)
    request.finish()


def send_stream_head(output: ClientOutput) -> None:
    """Begin a stream of events before llama-server has said anything."""
    request = output.request
    keep_only_proxy_headers(request)
    request.setResponseCode(200)
    request.setHeader(b"content-type", b"text/event-stream")
    request.setHeader(b"cache-control", b"no-cache")
    allow_cross_origin(request)
    output.begin()


def keep_only_proxy_headers(request: Request) -> None:
    """Drop all headers of the answer but those that say what the proxy did, and whether the connection ends."""
    for name, _ in list(request.responseHeaders.getAllRawHeaders()):
        if not name.lower().startswith(b"x-bioproxy-") and name.lower() != b"connection":
            request.responseHeaders.removeHeader(name)


def answer_preflight(request: Request) -> None:
    """Answer a browser that asks whether a page may ask, in llama-server's words, who cannot be asked now.

    What is wrong, the page can read then in the answer to its own request.
    """
    allow_cross_origin(request)
    request.setResponseCode(204)
    request.setHeader(b"access-control-allow-credentials", b"true")
    request.setHeader(b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS")
    request.setHeader(b"access-control-allow-headers", b"*")
    request.finish()


def allow_cross_origin(request: Request) -> None:
    """Let web pages read an answer of the proxy's own, as llama-server lets them read all of its."""
    origin = request.getHeader(b"origin")
    if origin is not None:
        request.setHeader(b"access-control-allow-origin", origin)
