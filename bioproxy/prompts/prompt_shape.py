"""The shape of a request: everything around the template's text that the beginning of its prompt depends on.

**What decides about reuse.**  llama-server keeps the keys and values that the model computed for each token of a prompt
(the KV cache, in a *slot*).  In a causal language model the keys and values of a token depend on all tokens before
it, and on no token behind it.  So they can be reused for another prompt exactly as far as both prompts begin with the
same tokens.  From the first different token on, everything is computed anew, even if the same text follows.

Tokens decide, not characters.  A tokenizer combines characters into tokens by what stands next to them: the last token
of a text may be another one as soon as something follows.  And the tokens are those of the *prompt*, which is not
the client's text: a chat template (a program inside the model file) writes system message, tool definitions and
reasoning switches in front of the user's text, with markers between them.  With another system message the prompt
differs long before the template's text begins, and a slot file of the same template is useless.

An example: with ``{"role": "system", "content": "It is 12:01."}`` before the user's message, ``@code why?`` gives a
prompt such as::

    <|system|>It is 12:01.<|user|>(the text of the template)why?<|assistant|>

A minute later one of the first tokens is different, and the 6000 tokens of the template, although unchanged, are
evaluated again.  The shape shows that before anything is computed, and `Shape.difference` shows the operator why.

A `Shape` is the part of the request that can cause such a difference.  Comparing shapes is an approximation on the safe
side: equal shapes give equal tokens before the message; different shapes may or may not.  An error would cost time, but
never give a wrong answer: llama-server itself compares the tokens and reuses only what is equal.  Shapes have two uses:

* Two requests can share a KV cache if their `Key` is equal: the digest of the template's text and that of the shape.
* A warm-up evaluates the template's text in the shape that clients use (`Shape.request`), before a client asks.

This module is pure.  It does not know which APIs there are (`api_formats` converts them all into chat completions), how
tokens are computed, or which shapes clients use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bioproxy.prompts.digests import digest
from bioproxy.prompts.json_positions import Path
from bioproxy.prompts.shape_difference import first_difference

PROMPT_FIELDS = (
    *("tools", "tool_choice", "parallel_tool_calls", "response_format", "json_schema", "chat_template_kwargs"),
    *("reasoning_effort", "reasoning_format", "add_generation_prompt"),
)
"""Fields, besides the messages, that can change the prompt (llama.cpp, tools/server and common/chat.cpp).

A field that is missing here makes two different prompts look equal: a restored slot is less useful than expected.  A
field too many (``temperature``) makes equal prompts look different: the template is evaluated again without need.
"""

LARGEST_SHAPE = 256 << 10
"""Characters of a shape that is stored as it is.  Of a larger one only the digest is stored.

A larger one is a document, not an instruction, and seldom used twice.  Doubled, parsing it for a warm-up or an
explanation blocks the reactor for up to twice as long (some milliseconds); halved, clients with very many tools
get no warm-ups in their shape.
"""

DEEPEST_SHAPE = 100
"""Levels of nesting in a shape that may be used for warm-ups.  Tool descriptions have about ten.

How deep JSON may nest before Python raises `RecursionError` depends on Python's version and on how deep the stack is
already.  From Python 3.12 on, `json` (in C) can read and write values that are too deep for a recursive function in
Python.  This limit is far below all of those; doubled or halved, no real request is concerned.
"""

LONGEST_DIFFERENCE_TEXT = 200
"""Characters of the description of a difference.  It is sent as an HTTP header, and field names may have any length."""


@dataclass(frozen=True)
class Key:
    """Identifies the beginning of a prompt up to the first message of the template.

    Invariant: two requests with equal keys have the same prompt tokens up to there, on the same model.
    """

    text: str
    """Digest of the template's prefix text.  Changes when the file is edited."""
    shape: str
    """Digest of the shape around that text.  Changes when a client has another system message or other tools."""


@dataclass(frozen=True)
class Shape:
    """A request without the template's text, reduced to what the prompt's beginning depends on.

    Invariant: two shapes are equal if and only if their `source` is equal.  A text instead of nested objects, because a
    text is immutable and hashable, is compared quickly, and is what goes into the file of learned shapes.
    """

    source: str
    """JSON, one of three kinds of object:

    * ``messages`` before the user's message, the other fields of that ``message`` (such as ``name``), the content
      ``parts`` in it before the text, and the ``fields`` of the request that are among `PROMPT_FIELDS`;
    * ``{"plain": true}`` for a plain prompt, to which no chat template is applied;
    * ``{"large": DIGEST}`` for a shape that has more than `LARGEST_SHAPE` characters.
    """

    @classmethod
    def of_chat_request(cls, request: dict[str, Any], path: Path) -> Shape:
        """Return the shape of a chat completions request around the text at `path`.

        `path` is ``("messages", index, "content")``, or that with ``number, "text"`` for a part of a content list.
        """
        # The text is the first thing in the message, unless it is a part of a content list with other parts before it.
        _, index, _, *part = path
        assert isinstance(index, int)
        # The messages behind the text are left out.  They stand behind it in the prompt as well, so they cannot change
        # the tokens before them; and a conversation that goes on must not get another shape with each turn.
        messages = request["messages"]
        parts = messages[index]["content"][: part[0]] if part else []
        return cls.of(messages[:index], messages[index], parts, request)

    @classmethod
    def of(
        cls, before: Sequence[Any], message: Mapping[str, Any], parts: Sequence[Any], fields: Mapping[str, Any]
    ) -> Shape:
        """Return the shape of a request in the form of chat completions.

        `before` are the messages before the user's `message`, `parts` the content parts in that message before the
        text, and `fields` the request's fields, from which those in `PROMPT_FIELDS` are taken.
        """
        # A chat template treats a field that is absent, null or empty in the same way, so the shape does, too.
        # Keys are not sorted: a chat template writes tool definitions in the order in which they came, so another order
        # gives other tokens.
        shape = {
            "messages": list(before),
            "message": {name: value for name, value in message.items() if name not in ("role", "content")},
            "parts": list(parts),
            "fields": {name: fields[name] for name in PROMPT_FIELDS if fields.get(name) not in (None, "", [], {})},
        }
        # One JSON text with a fixed order of the four groups, so that equal shapes have equal sources.
        source = json.dumps(shape)
        return cls(source if len(source) <= LARGEST_SHAPE else json.dumps({"large": digest(source)}))

    @cached_property
    def digest(self) -> str:
        """A digest of the shape.  Computed once: a shape of 256 KiB takes a millisecond."""
        return digest(self.source)

    def key(self, text: str) -> Key:
        """Return the key of a prompt with this shape; `text` is the digest of the template's prefix text.

        Two digests instead of one over both: then a miss can be explained.  It was either the text or the shape.
        """
        return Key(text, self.digest)

    @property
    def is_plain_prompt(self) -> bool:
        """Whether this is the shape of a plain prompt, to which no chat template is applied."""
        return self.source == PLAIN_PROMPT.source

    # Both properties look at the source instead of a field of their own, so that a shape that was read from a file is
    # complete with its source alone.
    @property
    def is_too_large(self) -> bool:
        """Whether only the digest of the shape is known."""
        return self.source.startswith('{"large": ')

    def difference(self, other: Shape) -> str:
        """Describe where `other` first differs from this shape, with the names of a request's fields.

        The description contains positions and field names, but none of the texts, which are private.
        """
        if self.is_plain_prompt != other.is_plain_prompt:
            return "it was a plain prompt, now a chat" if self.is_plain_prompt else "it was a chat, now a plain prompt"
        if self.is_too_large or other.is_too_large:
            return "what stands before it is too long to be compared"
        # The sources differ, but not necessarily their values: the order of keys is part of the source only.
        try:
            found = first_difference("", json.loads(self.source), json.loads(other.source))
        except RecursionError:
            return "it nests too deep to tell"
        # Field names come from the client and go into a header and the log.  `ascii` escapes line ends and everything
        # else that could end a header there.
        return ascii(found)[1:-1][:LONGEST_DIFFERENCE_TEXT] if found else "its fields are in another order"

    def request(self, text: str) -> dict[str, Any]:
        """Return a chat completions request with this shape in which the user writes `text`.

        Not for a plain prompt or for a shape that is too large.  The result has this very shape again, which is what
        makes a warm-up useful: its tokens are those of the clients' prompts.
        """
        # A content list only where the client had one.  Chat templates may treat a list and a text differently.
        shape = json.loads(self.source)
        content = [*shape["parts"], {"type": "text", "text": text}] if shape["parts"] else text
        # The order of these keys and fields does not matter: a chat template accesses them by name.
        message = {"role": "user", **shape["message"], "content": content}
        return {**shape["fields"], "messages": [*shape["messages"], message]}

    @cached_property
    def may_be_kept(self) -> bool:
        """Whether the shape may be stored in a file and used for warm-ups.

        Everything in it has to be an instruction to the model that the next conversation may begin with as well:

        * Only system and developer messages stand before the template.  What a user or the model said there belongs to
          one conversation.  It is private, and it will not occur again.
        * The messages consist of text only.  An image becomes other tokens than its place in the prompt shows.
        * All numbers are valid JSON.  ``1e400`` was read as infinity and cannot be written again.
        """
        # A plain prompt has nothing around its text, so there is nothing private in it.  A shape that is too large
        # cannot be kept: only its digest is left.
        if self.is_plain_prompt or self.is_too_large:
            return self.is_plain_prompt

        # `json.loads` calls this for `Infinity` and `NaN`, which `json.dumps` has written for such numbers.
        def refuse_constant(word: str) -> float:
            raise ValueError(word)

        # The shape is what a client sent, so nothing is certain about the types inside.  Any surprise means no.
        try:
            shape = json.loads(self.source, parse_constant=refuse_constant)
            messages, objects = shape["messages"], (shape["message"], shape["fields"])
            contents = [message["content"] for message in messages]
            roles = {message["role"] for message in messages}
            part_types = [part["type"] for content in contents if isinstance(content, list) for part in content]
        except (ValueError, LookupError, TypeError, RecursionError):
            return False
        # Content parts in front of the template's text are the user's own, like earlier messages of the user.
        return (
            shape["parts"] == []
            and depth(shape) <= DEEPEST_SHAPE
            and all(isinstance(each, dict) for each in objects)
            and roles <= {"system", "developer"}
            and set(part_types) <= {"text"}
        )


USER_MESSAGE_ONLY = Shape.of_chat_request({"messages": [{"role": "user", "content": ""}]}, ("messages", 0, "content"))
"""The shape of a request that has nothing but the user's message.

Templates are warmed up in this shape until it is known what their clients send.
"""

# Not made by `Shape.of`: without a chat template there are no messages and no fields that could matter.
PLAIN_PROMPT = Shape('{"plain": true}')
"""The shape of a plain prompt (``/completion``): no chat template is applied, and nothing precedes the text."""


def depth(value: Any) -> int:
    """Return how deep objects and lists nest in a JSON value.

    Goes through the value level by level.  A recursive function would fail on just those values that it has to detect.
    """
    # `level` contains the values at the present depth.  Each round replaces them by the values inside them.
    found, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        found += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return found
