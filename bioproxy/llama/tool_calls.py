"""Finds out from an answer that passes by whether it ended with tool calls.

An agent that gets such an answer runs the tools and goes on with the same conversation, mostly within a second.  The
gate waits for that request for a moment (`bioproxy.gate.order`), so it has to know how the answer has ended.  Each API
says it in its own words (llama.cpp b11549, tools/server/server-task.cpp):

* OpenAI's chat completions have a `finish_reason`, also in the last chunk of a stream;
* Anthropic's messages have a `stop_reason`, also in the last but one event of a stream;
* OpenAI's responses have an item of the type `function_call` for each call.

On Twisted: as for `bioproxy.llama.timings`, an answer is a series of calls, one for each piece as it arrives from the
network, cut anywhere.  Nothing is parsed and only a few bytes are kept.  The words are searched as bytes, with their
quotation marks.  In a JSON text these would have a backslash before them, so what a model writes is never taken for the
end of an answer.

A wrong result would be harmless: the gate would wait for `linger` seconds too often, or not at all.

Pure: knows neither the request nor its client.
"""

from __future__ import annotations

ENDINGS = (b'"finish_reason":"tool_calls"', b'"stop_reason":"tool_use"', b'"type":"function_call"')
"""What an answer contains if it ends with tool calls.  llama.cpp writes JSON without spaces."""

LONGEST_ENDING = max(map(len, ENDINGS))


class ToolCalls:
    """Is fed with an answer, piece by piece.

    Invariant: `found` does not depend on where the answer was cut into pieces.
    """

    found: bool
    """Whether the answer has tool calls, as far as it has been fed."""

    def __init__(self) -> None:
        self.found = False
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Search the next piece of the body, together with the end of what came before."""
        if self.found:
            return
        text = self._tail + data
        # Three fast searches.  Most pieces are one token of a stream, a few hundred bytes, for which `any` with its
        # generator would take longer than the searches.
        for ending in ENDINGS:
            if ending in text:
                self.found = True
        # One byte less than the longest: a whole one was found already.
        self._tail = text[1 - LONGEST_ENDING :]
