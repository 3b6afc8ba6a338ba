"""Assembles the assistant's message from an answer of llama-server that passes by, piece by piece.

A client gets an answer byte by byte as llama-server writes it; bioproxy neither holds it back nor changes it.  This
module reads along.

The message is what the client will put into its next request, behind the messages that it has sent already.  From it
`bioproxy.prompts.next_turn` makes the conversation as it will come back.  Three APIs, each streamed or not, tell the
same message in six ways (llama.cpp b11549, tools/server/server-task.cpp):

* chat completions: ``choices[0].message``, or in a stream the pieces ``choices[0].delta``;
* Anthropic's messages: a list of content blocks, or in a stream ``content_block_start`` and ``content_block_delta``;
* OpenAI's responses: a list of ``output`` items; a stream ends with an event that has all of them once more.

The result always has the form of chat completions, because that is what llama-server converts the other two into when
they come back.

On Twisted: an answer is not a value but a series of calls, one for each piece as the network delivers it, cut anywhere,
also in the middle of a character.  So this is a state machine that is fed, as `bioproxy.llama.timings` is.  Text is
kept here for as long as the object lives, and there is a limit to it.  The three streams in short, each event as JSON::

    {"choices": [{"index": 0, "delta": {"content": "So"}}]}                                   chat completions
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "So"}}        messages
    {"type": "response.completed", "response": {"output": [{"type": "message", "content": [...]}]}}  responses

Pure.  Never fails: an answer that is not understood gives no message.  Does not know what the message is used for.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from bioproxy.prompts.parsed_request import Object, list_items, objects

LONGEST_ANSWER = 256 << 10
"""Characters of a message, and of the part of an answer that waits to be parsed, before the answer is given up.

No usual model writes so much in one turn.  Halved, the longest answers with reasoning get no head start; doubled, the
answer of each request takes up to twice the memory, and parsing a plain one stops the reactor for twice as long (some
milliseconds).
"""


class AnswerText:
    """Is fed with the body of one answer.

    Invariant: `message` does not depend on where the body was cut into pieces, and no more than about three times
    `LONGEST_ANSWER` is kept.
    """

    def __init__(self) -> None:
        # Bytes that are not parsed yet: the beginning of a line, or all of a plain answer.
        self._rest = b""
        # Whether it is a stream of events; `None` before the first byte.
        self._streamed: bool | None = None
        # Characters of the message so far.
        self._size = 0
        # `_given_up`: there will be no message, whatever follows.  `_complete`: the answer has said that it is at its
        # end.  A connection that breaks off in the middle leaves both false, and there is no message either.
        self._given_up = self._complete = False
        # The message as it grows.  Texts are lists of pieces, since adding to a string again and again would copy it
        # each time.  Calls of tools are found by their index: with several of them, pieces of one may arrive between
        # pieces of another.
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[Any, Object] = {}
        # Whether the content was ever told.  A chat completion with tool calls alone has ``null`` there.
        self._has_content = False
        # Whether the API has content as a list of parts.
        self._as_parts = False

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body, of any length.

        Called for each piece that is sent to the client, so it costs microseconds, and it never raises: whatever an
        answer looks like, its client gets it.
        """
        if self._given_up:
            return
        self._rest += data
        if self._streamed is None and (begin := self._rest.lstrip()):
            # A plain answer is one JSON object.  A stream begins with a field's name, or with a comment.
            self._streamed = not begin.startswith(b"{")
        if self._streamed:
            # What is behind the last line end is the beginning of the next line.  Bytes are split, not text: a
            # character may be cut in two, but no part of one looks like a line end.
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                # Other fields of an event (``event:``) repeat what its data says.
                if line.startswith(b"data:"):
                    self._read(line[5:])
        # JSON may write a text in more bytes than it has characters, so the raw part may be longer than the text.  A
        # plain answer is one single part, and is only parsed at its end.
        if len(self._rest) > 2 * LONGEST_ANSWER or self._size > LONGEST_ANSWER:
            self._give_up()

    def message(self) -> Object | None:
        """Return the assistant's message in the form of chat completions; `None` if the answer gives none.

        To be called once, at the end of the answer.  ``content`` is a text, ``null``, or a list of text parts where the
        API has these; ``reasoning_content`` and ``tool_calls`` are there if they are not empty.
        """
        if self._streamed is False:
            self._read(self._rest)
        self._rest = b""
        # A part of an answer is not what its client will send back.  Most clients ask once more, without it.
        if self._given_up or not self._complete:
            return None
        text = "".join(self._content)
        content: Any = text if text or self._has_content else None
        if self._as_parts:
            content = [{"type": "text", "text": text}] if text else ""
        message: Object = {"role": "assistant", "content": content}
        if reasoning := "".join(self._reasoning):
            message["reasoning_content"] = reasoning
        if self._calls:
            message["tool_calls"] = [finished_call(call) for call in self._calls.values()]
        return message

    def _give_up(self) -> None:
        """Keep nothing of this answer, and ignore the rest of it."""
        # At once, and not when the object goes: a long answer may go on for minutes.
        self._given_up, self._rest = True, b""
        self._content, self._reasoning, self._calls = [], [], {}

    def _read(self, source: bytes) -> None:
        """Take one JSON value: a whole plain answer, or the data of one event.

        Bytes that are no JSON, and JSON that is no part of a message, are ignored.
        """
        try:
            value = json.loads(source)
        except (ValueError, RecursionError):
            # ``[DONE]``, which ends OpenAI's streams, is no JSON.
            return
        if not isinstance(value, dict):
            return
        try:
            self._take(value)
        except (TypeError, RecursionError):
            # An index that is a list, say, or JSON that can be read and is nested too deeply to be written again.
            self._give_up()

    def _take(self, value: Object) -> None:
        """Take one JSON object.  Raises `TypeError` or `RecursionError` for values that no message has."""
        # Each API has its own words, so the words tell the API.  An error in the middle of a stream has none of them
        # and is ignored: then what completes a message is missing.
        if isinstance(value.get("choices"), list):
            self._read_choices(value["choices"])
        elif isinstance(value.get("response"), dict):
            # The events before the last one of a response tell the same text in small pieces.
            if value.get("type") == "response.completed":
                self._read_output(value["response"].get("output"))
        elif isinstance(value.get("output"), list):
            self._read_output(value["output"])
        elif value.get("type") == "message":
            for number, block in enumerate(objects(list_items(value.get("content")))):
                self._read_block(number, block)
            self._complete = True
        else:
            self._read_event(value)

    # Chat completions.  A plain answer has the whole message where each event of a stream has a piece of one, with the
    # same names inside, so one method reads both.

    def _read_choices(self, choices: list[Any]) -> None:
        """Take the choices of a chat completion, or of one event of a stream.

        The last event of a stream may have none, only numbers.
        """
        for choice in objects(choices):
            if choice.get("index", 0) != 0:
                # The client has asked for several answers and will choose one of them.  Nobody knows which, and the
                # slot holds only one of them.
                return self._give_up()
            # A plain answer is complete, whatever it ended with.  A stream says so in its last choice.  An answer that
            # was cut off at ``max_tokens`` counts: its client has that text, and sends it back.
            self._complete |= choice.get("finish_reason") is not None or "message" in choice
            part = choice.get("message", choice.get("delta"))
            if not isinstance(part, dict):
                continue
            # In a stream the first piece may say ``null``, and later ones have the text.
            self._has_content |= isinstance(part.get("content"), str)
            self._add(self._content, part.get("content"))
            self._add(self._reasoning, part.get("reasoning_content"))
            for number, call in enumerate(objects(list_items(part.get("tool_calls")))):
                # The first piece of a call has its name, and later ones have more of its arguments.  The arguments are
                # a text that contains JSON, and a piece of it is no JSON: they are not parsed here.
                known = self._calls.setdefault(call.get("index", number), {"id": "", "name": "", "arguments": []})
                function = call.get("function")
                if isinstance(call.get("id"), str):
                    known["id"] = call["id"]
                if isinstance(function, dict):
                    if isinstance(function.get("name"), str):
                        known["name"] = function["name"]
                    self._add(known["arguments"], function.get("arguments"))

    # Anthropic's messages.  A message is a list of blocks of different types: words, reasoning, calls of tools.  A
    # stream opens each block with an event, sends its content in further ones, and names the block by its index each
    # time.

    def _read_event(self, event: Object) -> None:
        """Take one event of a stream of messages; all others are of no interest.

        In its order: ``message_start``; for each block ``content_block_start``, some ``content_block_delta`` and
        ``content_block_stop``; then ``message_delta`` and ``message_stop``.  A ``ping`` may be anywhere.
        """
        block, delta, index = event.get("content_block"), event.get("delta"), event.get("index")
        if event.get("type") == "message_stop":
            self._complete = True
        elif event.get("type") == "content_block_start" and isinstance(block, dict):
            # Its input is empty here, and comes as pieces of JSON afterwards.
            self._read_block(index, {**block, "input": None})
        elif event.get("type") == "content_block_delta" and isinstance(delta, dict):
            # Each kind of piece has its text in a field of its own; signatures are of no interest.
            self._add(self._content, delta.get("text"))
            self._add(self._reasoning, delta.get("thinking"))
            if index in self._calls:
                self._add(self._calls[index]["arguments"], delta.get("partial_json"))

    def _read_block(self, index: Any, block: Object) -> None:
        """Take one block of a message's content; `index` is its place in the message."""
        # llama-server gives the chat template a list of parts where a client of this API sends blocks, and some
        # templates write a list in another way than a text.
        self._as_parts = True
        if block.get("type") == "tool_use":
            # An object here and pieces of JSON in a stream: both become one text, which is parsed at the end.  So the
            # same call is written in the same way, however it has arrived.
            given = block.get("input")
            pieces = [] if given is None else [json.dumps(given)]
            self._calls[index] = {"id": block.get("id"), "name": block.get("name"), "arguments": pieces, "parse": True}
        else:
            self._add(self._content, block.get("text"))
            self._add(self._reasoning, block.get("thinking"))

    # OpenAI's responses.  A response is a list of items, where chat completions have one message: the reasoning, the
    # words and each call of a tool are items of their own.

    def _read_output(self, output: Any) -> None:
        """Take the items of a response, all at once: also a stream has them once more in its last event."""
        self._as_parts, self._complete = True, True
        for item in objects(list_items(output)):
            if item.get("type") == "function_call":
                call: Object = {"id": item.get("call_id"), "name": item.get("name"), "arguments": []}
                self._add(call["arguments"], item.get("arguments"))
                self._calls[len(self._calls)] = call
                continue
            # Reasoning has its text in parts as a message has.  Its summary is not sent to the model again.  Calls that
            # the server itself has made (a web search) have no parts.
            into = self._reasoning if item.get("type") == "reasoning" else self._content
            for part in objects(list_items(item.get("content"))):
                self._add(into, part.get("text"))

    def _add(self, into: list[str], text: Any) -> None:
        """Append a piece of text, if it is one, and count its characters for the limit."""
        # Fields that are ``null``, missing, or of another type are the usual case here: most events have one of the
        # texts, and this is called for all of them.
        if isinstance(text, str):
            into.append(text)
            self._size += len(text)


def finished_call(call: Object) -> Object:
    """Return a tool call as chat completions have it.

    `call` has its arguments as a list of pieces.  With ``parse`` these are the JSON of an object.
    """
    arguments = "".join(call["arguments"])
    if call.get("parse"):
        # A client of Anthropic's API sends an object back, and llama-server writes it as JSON without white space.
        # What the model wrote is no JSON sometimes; then it stays as it is, and the guess is as good as can be.
        with suppress(ValueError, RecursionError):
            arguments = json.dumps(json.loads(arguments or "{}"), separators=(",", ":"), ensure_ascii=False)
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}
