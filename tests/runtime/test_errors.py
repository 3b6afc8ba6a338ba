"""The errors that the proxy itself answers with."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.runtime import errors

# Class, status, type, and whether asking again later may help.
TABLE: list[tuple[type[errors.ProxyError], int, str, bool]] = [
    (errors.BadTarget, 400, "invalid_request_error", False),
    (errors.BadRequest, 400, "invalid_request_error", False),
    (errors.NotAuthenticated, 401, "authentication_error", False),
    (errors.Forbidden, 403, "permission_error", False),
    (errors.TooSlow, 408, "timeout_error", False),
    (errors.BodyTooLarge, 413, "invalid_request_error", False),
    (errors.TooDeep, 400, "invalid_request_error", False),
    (errors.TooComplex, 413, "invalid_request_error", False),
    (errors.TemplateError, 500, "template_error", False),
    (errors.UpstreamError, 502, "upstream_error", False),
    (errors.UpstreamTimeout, 504, "timeout_error", False),
    (errors.Unavailable, 503, "unavailable_error", True),
]
"""`TooLate` is not in the table: it says what llama-server said."""


def told(error: errors.ProxyError) -> tuple[int, str, str]:
    """Return what a client learns."""
    return error.status, error.kind, error.message


class Errors(SynchronousTestCase):
    """Statuses and types."""

    def test_table(self) -> None:
        """Each error has its status and type; only a full queue says when to come again."""
        for cls, status, kind, again in TABLE:
            error = cls('why "é" \n')
            self.assertEqual((status, kind, 'why "é" \n'), (error.status, error.kind, error.message))
            self.assertEqual(again, error.retry_after is not None, cls)

    def test_table_is_complete(self) -> None:
        """No error is missing in the table."""
        self.assertEqual({errors.TooLate, *(cls for cls, *_ in TABLE)}, set(errors.ProxyError.__subclasses__()))

    def test_too_late(self) -> None:
        """What llama-server said is told with its own status and type; an answer of another kind is an error too."""
        self.assertEqual((400, "x", "no"), told(errors.TooLate(400, "x", "no")))
        status, kind, message = told(errors.TooLate(200, None, None))
        self.assertEqual((502, "upstream_error"), (status, kind))
        self.assertIn("without a stream", message)

    def test_not_for_clients(self) -> None:
        """Errors of the configuration and of the proxy's own calls are no answers to clients."""
        for cls in (errors.ConfigError, errors.LlamaError):
            self.assertFalse(issubclass(cls, errors.ProxyError))
        error = errors.LlamaError(501, "no slots")
        self.assertEqual((501, "501: no slots"), (error.status, str(error)))
