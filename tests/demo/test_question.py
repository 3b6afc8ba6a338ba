"""One question to bioproxy, and how long its answer takes."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.demo.question import Answer, AnswerReader, QuestionFailed, ask
from tests.support.network import Line, Wire

URL = "http://127.0.0.1:8081/v1/chat/completions"

HEAD = b"HTTP/1.1 200 OK\r\nX-Bioproxy-Cache: restored\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(text: str | None, **more: Any) -> bytes:
    """Return one event of a streamed chat completion."""
    value = {"choices": [{"index": 0, "delta": {"content": text}}], **more}
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


END = event(None, timings={"cache_n": 1536, "prompt_n": 41, "prompt_ms": 3.5}) + b"data: [DONE]\n\n"


class Asking(SynchronousTestCase):
    """`ask`."""

    def setUp(self) -> None:
        """Send a question; the connection is not accepted yet."""
        self.wire = Wire()
        agent = self.wire.agents(URL).own_fresh
        self.answer = Deferred.fromCoroutine(ask(agent, URL, {"max_tokens": 8}, self.wire.reactor))

    def accepted(self) -> Line:
        """Accept it, and let the request be written."""
        line = self.wire.accept()
        self.wire.reactor.advance(0)
        return line

    def test_times(self) -> None:
        """The first word and the end are measured from the sending, and the numbers are those of the answer."""
        line = self.accepted()
        line.send(HEAD + event(None))
        self.wire.reactor.advance(3)
        line.send(b": still waiting\n\n" + event(" An") + event(" old"))
        self.wire.reactor.advance(1)
        line.send(event(" crane.") + END)
        line.lose()
        self.assertEqual(
            Answer("An old crane.", first_word=3.0, total=4.0, reused=1536, computed=41, cache="restored"),
            self.successResultOf(self.answer),
        )
        self.assertTrue(line.received.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n"))
        self.assertIn(b'{"max_tokens": 8, "stream": true}', line.received)

    def test_refused_by_bioproxy(self) -> None:
        """An error status is a failure with what bioproxy says."""
        line = self.accepted()
        line.send(b'HTTP/1.1 401 Unauthorized\r\nContent-Length: 17\r\n\r\n{"error": "a key"')
        error = self.failureResultOf(self.answer, QuestionFailed).value
        self.assertEqual('401 {"error": "a key"', str(error))

    def test_broken_off(self) -> None:
        """An answer that ends with an error, or without any word, is none."""
        for body in (event(" An") + b'data: {"error": {"message": "gone"}}\n\n', event(None) + END):
            self.setUp()
            line = self.accepted()
            line.send(HEAD + body)
            line.lose()
            self.assertIn("broke off", str(self.failureResultOf(self.answer, QuestionFailed).value))

    def test_no_connection(self) -> None:
        """Where nobody listens, and where the answer ends before its end, the failure says so."""
        self.wire.refuse(ConnectionRefusedError())
        self.assertIn(URL, str(self.failureResultOf(self.answer, QuestionFailed).value))
        self.setUp()
        line = self.accepted()
        line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + event(" An"))
        line.lose()
        self.assertIn("no whole answer", str(self.failureResultOf(self.answer, QuestionFailed).value))

    def test_cancelled(self) -> None:
        """Cancelling closes the connection, before the answer and in the middle of it."""
        for begun in (b"", HEAD + event(" An")):
            self.setUp()
            line = self.accepted()
            line.send(begun)
            self.answer.cancel()
            self.failureResultOf(self.answer, CancelledError)
            self.assertTrue(line.closed)


class Reading(SynchronousTestCase):
    """`AnswerReader`."""

    def test_cut_anywhere(self) -> None:
        """The text does not depend on where the answer was cut into pieces, not even within a character."""
        body = event(None) + event(" Über") + event(" 50 €.") + END
        for size in (1, 7, len(body)):
            reader = AnswerReader(Wire().reactor)
            for start in range(0, len(body), size):
                reader.feed(body[start : start + size])
            answer = reader.answer("hot")
            self.assertEqual(
                ("Über 50 €.", 1536, 41, "hot"), (answer.text, answer.reused, answer.computed, answer.cache)
            )
