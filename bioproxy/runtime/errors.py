"""The exceptions of bioproxy, with the HTTP status and error type that each one has for a client.

Every error that bioproxy itself answers with is a `ProxyError`, so this is the one place that says which status and
which `type` an error has.  `bioproxy.http.error_formats` turns it into JSON in the format of the client's API.  Errors
that llama-server answers with are not here: they are passed on as llama-server wrote them.

There are three more kinds.  `LlamaCallFailed` is for bioproxy's own calls of llama-server, `ConfigError` for mistakes
of the operator, and `CannotStart` for a start that fails.

One exception is missing on purpose.  When a client hangs up, Twisted *cancels* the coroutine that serves it: its
`await` raises `twisted.internet.defer.CancelledError`.  Nobody made a mistake, and no client is left to be told, so
that exception passes through every function unchanged.  It is a subclass of `Exception`, so code that catches
`Exception` around an `await` has to let it pass.

Does not know Twisted or HTTP libraries; the child process of `bioproxy.runtime.worker` uses these classes, too.
"""

from __future__ import annotations


class ProxyError(Exception):
    """An error that a client is told about.  Its text is one sentence without secrets: no keys, no text of messages."""

    status = 500
    """The HTTP status of the answer."""

    kind = "server_error"
    """The `type` in OpenAI's error object; Anthropic's types are derived from it."""

    retry_after: int | None = None
    """Seconds after which a client may try again, for the header `Retry-After`; `None` for errors that will stay."""

    @property
    def message(self) -> str:
        """What went wrong, human-readable."""
        return str(self)


class BadRequest(ProxyError):
    """The request is not valid HTTP, or two programs could understand it in two ways."""

    status = 400
    kind = "invalid_request_error"


class NotAuthenticated(ProxyError):
    """The request has no valid API key, and `api_key_file` demands one."""

    status = 401
    kind = "authentication_error"


class Forbidden(ProxyError):
    """The request to the operator's port has an unknown `Host`, or is an action that another site's page asks for."""

    status = 403
    kind = "permission_error"


class TooSlow(ProxyError):
    """The request's body comes with less than a kilobyte a second."""

    status = 408
    kind = "timeout_error"


class BodyTooLarge(ProxyError):
    """The request's body is larger than `max_body`, as it came or with its templates filled in."""

    status = 413
    kind = "invalid_request_error"


class BadTarget(ProxyError):
    """The request's target is not a path on llama-server.

    If such a target were appended to `llama_url`, the result could name another host.
    """

    status = 400
    kind = "invalid_request_error"


class TooDeep(ProxyError):
    """The request's JSON nests thousands of levels deep.

    Python's parser gives up on it, so whether it names a template is unknown, and text with a known prefix must never
    reach llama-server unfilled.
    """

    status = 400
    kind = "invalid_request_error"


class TooComplex(ProxyError):
    """Reading the request takes more memory or time than `bioproxy.runtime.worker` allows for one request."""

    status = 413
    kind = "invalid_request_error"


class TemplateError(ProxyError):
    """The template that a message names cannot be read or has no place for the message.

    The request is refused, because text with a known prefix must never reach llama-server unfilled.
    """

    status = 500
    kind = "template_error"


class LlamaCallFailed(Exception):
    """A call of llama-server failed, for whatever reason.

    The base of `UpstreamError` (no answer, or not HTTP), `UpstreamTimeout` and `LlamaError` (an error as the answer).
    Code that can go on without llama-server's answer catches this one.
    """


class UpstreamError(ProxyError, LlamaCallFailed):
    """llama-server refuses connections, breaks off, or answers with something that is not what was asked for."""

    status = 502
    kind = "upstream_error"


class TlsFailed(UpstreamError):
    """There is no TLS with llama-server: its certificate is not trusted, or what listens there does not speak TLS."""


class NothingListens(UpstreamError):
    """llama-server refuses connections.  That is known at once, for each request anew."""


class ShuttingDown(UpstreamError):
    """bioproxy is stopping, and llama-server's answer did not end within the time that a stop allows."""

    status = 503
    kind = "unavailable_error"
    retry_after = 5


class LlamaNotRunning(UpstreamError):
    """The llama-server that bioproxy starts itself does not answer yet, or cannot be started."""

    status = 503
    kind = "unavailable_error"

    # As `Unavailable` has it: a small model is loaded in such a time.
    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UpstreamTimeout(ProxyError, LlamaCallFailed):
    """llama-server was unresponsive for `upstream_timeout` seconds: neither the answer nor `/health` came."""

    status = 504
    kind = "timeout_error"


class TooLate(ProxyError):
    """llama-server answered with an error after bioproxy had already begun a stream for the client.

    A client that waits at the gate gets the head of a stream, with status 200, and comments
    (`bioproxy.http.keepalive`). An error that comes later can no longer change the status, so it is sent as an event.
    """

    # `status`, `kind` and `message` are those of llama-server's answer, as far as it has them.
    def __init__(self, status: int, kind: str | None, message: str | None) -> None:
        super().__init__(message or f"llama-server answered with status {status} and without a stream")
        self.status = status if status >= 400 else 502
        self.kind = kind or "upstream_error"


class Unavailable(ProxyError):
    """bioproxy cannot serve the request now, but may be able to later.

    The queue is full, the request waited too long in it, a resource is exhausted (disk, processes), or bioproxy stops.
    """

    status = 503
    kind = "unavailable_error"

    # Five seconds are about one short answer: sooner, the queue is hardly shorter; later, the slot may stand idle.
    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConfigError(Exception):
    """A setting that cannot be used: a wrong value, a missing file, a folder without permission.

    Its text is the one line that the operator sees, so it names the setting or the file.
    """


class CannotStart(SystemExit, Exception):
    """The service cannot start.  Its text is the one line that the operator sees; the exit code is 1.

    In the foreground `SystemExit` alone would be enough.  For a daemon, twistd forks: the first process waits until the
    second one reports how the start went.  twistd reports every `Exception`, but not a `SystemExit`, which is none; the
    first process would then wait for ever.  So this is both.
    """


class LlamaError(LlamaCallFailed):
    """llama-server answered one of bioproxy's *own* calls with an error status, which is `status`.

    It is no `ProxyError`, because no client is told: if a call that bioproxy makes for itself fails (a restore, a
    save), the client's request goes on without the result of that call.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
