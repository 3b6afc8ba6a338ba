"""The errors that the proxy itself answers with."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from bioproxy import errors

# Class, status, type, and whether asking again later may help.
TABLE: list[tuple[type[errors.ProxyError], int, str, bool]] = [
    (errors.BadTarget, 400, "invalid_request_error", False),
    (errors.BodyTooLarge, 413, "invalid_request_error", False),
    (errors.TooDeep, 400, "invalid_request_error", False),
    (errors.TemplateError, 500, "template_error", False),
    (errors.UpstreamError, 502, "upstream_error", False),
    (errors.UpstreamTimeout, 504, "timeout_error", False),
    (errors.Unavailable, 503, "unavailable_error", True),
]


class Errors(SynchronousTestCase):
    """Statuses, types and bodies."""

    def test_table(self) -> None:
        """Each error has its status and type, in OpenAI's shape; only a full queue says when to come again."""
        for cls, status, kind, again in TABLE:
            error = cls('why "é" \n')
            self.assertEqual(status, error.status)
            self.assertEqual(again, error.retry_after is not None, cls)
            self.assertEqual(
                {"error": {"message": 'why "é" \n', "type": kind, "code": status}}, json.loads(error.body())
            )
            # One line: it also goes out as an event of a stream, where a line end would cut it.
            self.assertNotIn(b"\n", error.body())

    def test_table_is_complete(self) -> None:
        """No error is missing in the table."""
        self.assertEqual({cls for cls, *_ in TABLE}, set(errors.ProxyError.__subclasses__()))

    def test_not_for_clients(self) -> None:
        """Errors of the configuration and of the proxy's own calls are no answers to clients."""
        for cls in (errors.ConfigError, errors.LlamaError):
            self.assertFalse(issubclass(cls, errors.ProxyError))
        error = errors.LlamaError(501, "no slots")
        self.assertEqual((501, "501: no slots"), (error.status, str(error)))
