"""Makes the conversation as its client will send it back after an answer, as chat completions.

An agent or a chat client sends its whole conversation with each request.  So the next request is known but for its end:
the messages of this one, then the answer, then something new: a message of the user, or the results of the tools that
the answer has called.  What is new is left open by *stand-ins*: several conversations that differ only there.  What
their prompts have in common is what the next prompt begins with.

llama-server converts all APIs into chat completions before it applies the chat template (llama.cpp,
tools/server/server-chat.cpp), and ``POST /apply-template`` takes that form only.  So the history is converted here in
the same way: thinking blocks and reasoning items become ``reasoning_content``, calls and results of tools get the form
of chat completions.

A wrong guess costs computing time while nobody waits, and never a wrong answer: llama-server compares the tokens.  What
is not understood, or cannot be told by its text (images, audio), gives no guess.

Pure, and runs in the second process for large bodies: a `NextTurn` can be pickled.  Does not know what a chat template
makes of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from mmap import mmap

from bioproxy.prompts.chat_history import CONVERTERS, NotUnderstood
from bioproxy.prompts.parsed_request import Object

STAND_INS = ("a", "7 b", "(c")
"""What stands for the next message: different first characters, as in `bioproxy.llama.prefix_tokens`."""


@dataclass(frozen=True)
class NextTurn:
    """The next request of a conversation, but for what is new in it.

    Invariant: all parts are in the form of chat completions, and consist of text only.
    """

    fields: Object
    """The fields of the request that can change the prompt, its tools for example."""

    history: list[Object]
    """The messages of the request that was answered."""

    answer: Object
    """The assistant's message as its client will send it back."""

    def before(self) -> Object:
        """Return the request that was answered."""
        return {**self.fields, "messages": self.history}

    def after(self) -> list[Object]:
        """Return the next request, once for each stand-in."""
        return [{**self.fields, "messages": [*self.history, self.answer, *self._new(text)]} for text in STAND_INS]

    def _new(self, text: str) -> list[Object]:
        """Return the new messages: a result of each tool that was called, or a message of the user."""
        # An agent runs the tools and sends what they gave, and the user says nothing in between.  The same stand-in for
        # all: what is behind the first difference does not matter.
        calls = self.answer.get("tool_calls")
        if not calls:
            return [{"role": "user", "content": text}]
        return [{"role": "tool", "tool_call_id": call["id"], "content": text} for call in calls]


def next_turn(body: bytes | mmap, path: str, answer: Object) -> NextTurn | None:
    """Return the next request of the conversation in `body`, a request for `path` that was answered by `answer`.

    `answer` is a message of chat completions (`bioproxy.prompts.answer_text`).  Returns `None` where no guess can be
    made.
    """
    try:
        # A copy of a mapped file, since JSON is parsed in one piece.  This is the second process, if the body is large.
        request = json.loads(body[:])
        convert = CONVERTERS.get(path)
        if convert is None or not isinstance(request, dict):
            return None
        fields, history, returns_reasoning = convert(request)
    except (ValueError, RecursionError, NotUnderstood):
        # llama-server may understand more than this module does, and has answered the request: there is just no guess.
        return None
    # If the last message is the assistant's, the answer went on with that message: how a client puts both together
    # cannot be known.
    if not history or history[-1].get("role") == "assistant" or not all(map(is_text, history)):
        return None
    # Most clients of chat completions show the reasoning and drop it, some send it back.  A client that has sent
    # earlier answers shows what it does.
    earlier = [message for message in history if message.get("role") == "assistant"]
    if earlier:
        returns_reasoning = any("reasoning_content" in message for message in earlier)
    # What the chat template makes of reasoning that comes back is not known here: some templates drop it in any case,
    # some keep it until the next message of the user.
    if not returns_reasoning:
        answer = {name: value for name, value in answer.items() if name != "reasoning_content"}
    # A field that is ``null`` is the same as none, and llama-server may refuse it.
    return NextTurn({name: value for name, value in fields.items() if value is not None}, history, answer)


def is_text(message: Object) -> bool:
    """Tell whether a message of chat completions consists of text only."""
    content = message.get("content")
    if isinstance(content, list):
        # Parts of other types are images and sounds, whose tokens a text cannot tell.
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return content is None or isinstance(content, str)
