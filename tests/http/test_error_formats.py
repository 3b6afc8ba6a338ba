"""Errors in the three dialects."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.http.error_formats import STREAMING, error_body, error_details, error_event, wants_stream
from bioproxy.http.targets import GATED
from bioproxy.runtime.errors import Unavailable

ERROR = Unavailable('why "é" \n')
KIND = "unavailable_error"
MESSAGE = ERROR.message


class Dialects(SynchronousTestCase):
    """What clients look for."""

    def test_bodies(self) -> None:
        """OpenAI's shape everywhere but under Anthropic's path."""
        openai = {"error": {"message": MESSAGE, "type": KIND, "code": 503}}
        anthropic = {"type": "error", "error": {"type": KIND, "message": MESSAGE}}
        for path in ("/v1/chat/completions", "/completion", "/v1/responses", "/health", "*", "/v1/messagesx"):
            self.assertEqual(openai, json.loads(error_body(path, ERROR)), path)
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            self.assertEqual(anthropic, json.loads(error_body(path, ERROR)), path)

    def test_events(self) -> None:
        """An event has the dialect's shape and its name where the dialect has names; it is one line, and ends."""
        for path, name, place in (
            ("/v1/chat/completions", None, ("error", "message")),
            ("/completion", None, ("error", "message")),
            ("/v1/responses", "error", ("message",)),
            ("/responses", "error", ("message",)),
            ("/v1/messages", "error", ("error", "message")),
        ):
            event = error_event(path, ERROR)
            *names, data = event.decode().removesuffix("\n\n").split("\n")
            self.assertEqual([f"event: {name}"] if name else [], names, path)
            found = json.loads(data.removeprefix("data: "))
            for key in place:
                found = found[key]
            self.assertEqual(MESSAGE, found)
            self.assertTrue(event.endswith(b"}\n\n"))

    def test_wants_stream(self) -> None:
        """Only where it says so, in JSON."""
        for body, expected in (
            (b'{"stream": true}', True),
            (b'{"stream":false}', False),
            (b'{"stream": 1}', False),
            (b'{"messages": ["\\"stream\\": true"]}', False),
            (b'["stream", true]', False),
            (b'{"stream": true', False),
            (b'"stream"' + b"[" * 100_000, False),
            (b"", False),
        ):
            self.assertEqual(expected, wants_stream(body), body[:40])
        self.assertTrue(GATED > STREAMING)

    def test_message_of(self) -> None:
        """What llama-server says is found in each of its dialects, and nothing in anything else."""
        for path in ("/v1/chat/completions", "/v1/messages"):
            self.assertEqual((KIND, MESSAGE), error_details(error_body(path, ERROR)))
        for body in (b"", b"x", b"[]", b"{}", b'{"error": 1}', b'{"error": {"type": 1}}', b"[" * 100_000):
            self.assertEqual((None, None), error_details(body), body[:20])
