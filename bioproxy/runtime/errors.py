"""What can go wrong, as exceptions that know how to be told to a client.

Every error that bioproxy itself answers with is one of these, so there is one place that says which status and which
`type` a fault has; how it is written is `bioproxy.http.error_formats`' business.  Errors of llama-server are not here:
they pass through as llama-server wrote them.

`Cancelled` deserves a word.  In Twisted "the client hung up" arrives as an exception too: the waiting
coroutine is *cancelled*, its `await` raises `twisted.internet.defer.CancelledError`.  That is nobody's
fault and has nobody to be told to, so it has no class here; it passes through every function untouched.

Knows nothing of HTTP libraries.
"""

from __future__ import annotations


class ProxyError(Exception):
    """A fault that a client is told about.

    `status` is the HTTP status, `kind` the `type` in OpenAI's error object, `retry_after` the seconds after
    which asking again may help, or `None`.
    """

    status = 500
    kind = "server_error"
    retry_after: int | None = None

    @property
    def message(self) -> str:
        """What went wrong, for a person."""
        return str(self)


class BadRequest(ProxyError):
    """The request is not HTTP as it should be."""

    status = 400
    kind = "invalid_request_error"


class NotAuthenticated(ProxyError):
    """The request shows no valid key."""

    status = 401
    kind = "authentication_error"


class Forbidden(ProxyError):
    """The operator's port is not asked in this way."""

    status = 403
    kind = "permission_error"


class TooSlow(ProxyError):
    """The request's body comes too slowly."""

    status = 408
    kind = "timeout_error"


class BodyTooLarge(ProxyError):
    """The request's body is larger than `max_body`."""

    status = 413
    kind = "invalid_request_error"


class BadTarget(ProxyError):
    """The request line names something that cannot be a path on llama-server."""

    status = 400
    kind = "invalid_request_error"


class TooDeep(ProxyError):
    """The request's JSON nests thousands deep: it cannot be told whether it names a template."""

    status = 400
    kind = "invalid_request_error"


class TooComplex(ProxyError):
    """Reading the request takes more memory or time than one request may have."""

    status = 413
    kind = "invalid_request_error"


class TemplateError(ProxyError):
    """The template that a message names cannot be used: its text must not go out unfilled."""

    status = 500
    kind = "template_error"


class LlamaCallFailed(Exception):
    """A call to llama-server failed: the base of `UpstreamError`, `UpstreamTimeout` and `LlamaError`."""


class UpstreamError(ProxyError, LlamaCallFailed):
    """llama-server refuses connections, breaks off, or answers with something that is not HTTP."""

    status = 502
    kind = "upstream_error"


class ShuttingDown(UpstreamError):
    """bioproxy stops, and has waited for llama-server as long as it could."""

    status = 503
    kind = "unavailable_error"
    retry_after = 5


class UpstreamTimeout(ProxyError, LlamaCallFailed):
    """llama-server stayed dumb for `upstream_timeout` seconds."""

    status = 504
    kind = "timeout_error"


class TooLate(ProxyError):
    """llama-server answered with an error, to a client that was told already that a stream comes."""

    def __init__(self, status: int, kind: str | None, message: str | None) -> None:
        super().__init__(message or f"llama-server answered with status {status} and without a stream")
        self.status = status if status >= 400 else 502
        self.kind = kind or "upstream_error"


class Unavailable(ProxyError):
    """The queue is full, or the request waited in it for too long."""

    status = 503
    kind = "unavailable_error"

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConfigError(Exception):
    """A setting that cannot be used.  Its text is the one line that the user sees."""


class CannotStart(SystemExit, Exception):
    """The service cannot start; its text is the one line that the user sees, the exit code is 1.

    `SystemExit` alone would do in the foreground.  As a daemon, twistd's first process waits to hear how the start
    went, and twistd tells it about every `Exception`, but not about a `SystemExit`: it would wait for ever.
    """


class LlamaError(LlamaCallFailed):
    """llama-server answered one of the proxy's *own* calls with an error status.

    Unlike a `ProxyError` it is never told to a client: a call that the proxy makes for itself may fail, the
    client's request goes on without what it would have brought.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
