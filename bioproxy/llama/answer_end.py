"""Finds out whether the end of a stream's answer has passed, before the stream itself has ended.

Behind the last event of an answer a stream may have another one, and the end of its body.  Some clients (Codex, for
one) do not wait for these: they have all they need, and hang up.  To them it was an answer like any other, and so it is
to the slot: llama-server has generated all of it.

The words are searched as bytes, with their quotation marks.  In a JSON text these would have a backslash before them,
so what a model writes is never taken for the end of an answer (llama.cpp b11549, tools/server/server-task.cpp):

* OpenAI's chat completions and completions have a `finish_reason`, as text, in the last chunk only;
* Anthropic's messages have a `stop_reason`, as text, in the last but one event;
* OpenAI's responses end with `response.completed`;
* llama-server's own completions say ``"stop":true``.

Nothing is searched before it is asked, which happens only when a client hangs up.

Pure: knows neither the request nor its client.
"""

from __future__ import annotations

ENDS = (b'"finish_reason":"', b'"stop_reason":"', b'"type":"response.completed"', b'"stop":true')
"""What the last events of an answer contain.  llama.cpp writes JSON without spaces."""


class AnswerEnd:
    """Is fed with an answer, piece by piece.

    Invariant: it holds the last two pieces.  An event may be cut in two, but llama-server sends each as a whole.
    """

    def __init__(self) -> None:
        self._last = self._one_before = b""

    def feed(self, data: bytes) -> None:
        """Note the next piece of the body."""
        self._one_before, self._last = self._last, data

    @property
    def passed(self) -> bool:
        """Whether these pieces have the end of the answer in them."""
        text = self._one_before + self._last
        return any(end in text for end in ENDS)
