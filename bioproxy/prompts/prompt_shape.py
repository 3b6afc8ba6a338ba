"""What a chat prompt begins with: the shape of a request around the template's text.

A chat template turns a request into one long text, the prompt.  What a system message, tool definitions or a
reasoning switch become stands *before* the user's message there, so with another system message even the same
template is another prompt, from the first difference on.  A `Shape` is all of that: the request without the user's
message, and with nothing in it that the prompt's beginning does not depend on.

It is needed for two things.  Two requests can share what was computed if their `Key` is the same: the digest of their
shape and that of the template's text.  And a warm-up puts the text into the shape that clients use, with
`Shape.request`, so that their questions find just what was computed.

Pure.  Knows nothing of Twisted or of llama-server's calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bioproxy.prompts.digests import digest
from bioproxy.prompts.json_positions import Path

FIELDS = (
    *("tools", "tool_choice", "parallel_tool_calls", "response_format", "json_schema", "chat_template_kwargs"),
    *("reasoning_effort", "reasoning_format", "add_generation_prompt"),
)
"""Fields besides the messages that chat templates put into the prompt (llama.cpp, tools/server and common/chat.cpp)."""

LARGEST = 256 << 10
"""Characters of a shape that can be kept for warm-ups and compared in words.

A longer one is a document, not an instruction; and reading it would hold up everybody else.
"""

DEEPEST = 100
"""How deep a shape may nest that is kept for warm-ups.  Tools' descriptions nest ten levels or so.

How deep JSON may nest depends on the version of Python and on how deep the stack is already; from 3.12 on, what C reads
and writes may be too deep for Python to walk through.
"""

LONGEST_DIFFERENCE = 200
"""Characters of what is said about a difference."""


@dataclass(frozen=True)
class Key:
    """What a prompt's beginning is made of: digests of the template's prefix text and of the shape around it."""

    text: str
    shape: str


@dataclass(frozen=True)
class Shape:
    """A request around the place of a template's text, as JSON.

    `source` is an object: ``messages`` before that of the user, other fields of the user's ``message``, content
    ``parts`` before the text, and ``fields`` of the request.  Of a prompt without a chat template it says only that,
    and of one that is larger than `LARGEST` only its digest.
    """

    source: str

    @classmethod
    def around(cls, request: dict[str, Any], place: Path) -> Shape:
        """Take the shape of a chat request whose template text stands at `place`."""
        _, index, _, *part = place
        assert isinstance(index, int)
        messages = request["messages"]
        parts = messages[index]["content"][: part[0]] if part else []
        return cls.of(messages[:index], messages[index], parts, request)

    @classmethod
    def of(
        cls, before: Sequence[Any], message: Mapping[str, Any], parts: Sequence[Any], fields: Mapping[str, Any]
    ) -> Shape:
        """Make one of the messages before the user's, that message, content parts before the text, and other fields.

        Fields that are absent, null or empty are the same to a chat template, so they look the same here.  The order of
        keys stays: a chat template writes tool definitions as they came.
        """
        shape = {
            "messages": list(before),
            "message": {name: value for name, value in message.items() if name not in ("role", "content")},
            "parts": list(parts),
            "fields": {name: fields[name] for name in FIELDS if fields.get(name) not in (None, "", [], {})},
        }
        source = json.dumps(shape)
        return cls(source if len(source) <= LARGEST else json.dumps({"large": digest(source)}))

    @cached_property
    def digest(self) -> str:
        """A digest of it all."""
        return digest(self.source)

    def key(self, text: str) -> Key:
        """Return the key of a prompt in this shape; `text` is the digest of the template's prefix text."""
        return Key(text, self.digest)

    @property
    def plain(self) -> bool:
        """Whether it is that of a prompt without a chat template."""
        return self.source == PLAIN.source

    @property
    def large(self) -> bool:
        """Whether only its digest is known."""
        return self.source.startswith('{"large": ')

    def difference(self, other: Shape) -> str:
        """Say where another shape first differs from this one, in a request's words and without any of its text."""
        if self.plain != other.plain:
            return "it was a plain prompt, now a chat" if self.plain else "it was a chat, now a plain prompt"
        if self.large or other.large:
            return "what stands before it is too long to be compared"
        try:
            found = first_difference("", json.loads(self.source), json.loads(other.source))
        except RecursionError:
            return "it nests too deep to tell"
        # The names of fields are the client's: whatever is in them, this is one line.
        return ascii(found)[1:-1][:LONGEST_DIFFERENCE] if found else "its fields are in another order"

    def request(self, text: str) -> dict[str, Any]:
        """Return a chat request of this shape, which must not be `plain`, whose user says `text`."""
        shape = json.loads(self.source)
        content = [*shape["parts"], {"type": "text", "text": text}] if shape["parts"] else text
        message = {"role": "user", **shape["message"], "content": content}
        return {**shape["fields"], "messages": [*shape["messages"], message]}

    @cached_property
    def keepable(self) -> bool:
        """Whether it may be kept to warm up in, because the next first question may well have it too.

        Only instructions to the model may stand before the template: what a user or the model said there belongs to one
        conversation, and is not to be kept.  And nothing but text (an image becomes other tokens than its place in the
        prompt says), and no numbers that JSON does not have (``1e400``).
        """
        if self.plain or self.large:
            return self.plain

        def no_number(word: str) -> float:
            raise ValueError(word)

        try:
            shape = json.loads(self.source, parse_constant=no_number)
            messages, kinds = shape["messages"], (shape["message"], shape["fields"])
            contents = [message["content"] for message in messages]
            roles = {message["role"] for message in messages}
            parts = [part["type"] for content in contents if isinstance(content, list) for part in content]
        except (ValueError, LookupError, TypeError, RecursionError):
            return False
        return (
            shape["parts"] == []
            and depth(shape) <= DEEPEST
            and all(isinstance(kind, dict) for kind in kinds)
            and roles <= {"system", "developer"}
            and set(parts) <= {"text"}
        )


BARE = Shape.around({"messages": [{"role": "user", "content": ""}]}, ("messages", 0, "content"))
"""A request with nothing but a user's message."""

PLAIN = Shape('{"plain": true}')
"""A prompt without a chat template: nothing stands before its text."""


def depth(value: Any) -> int:
    """Return how many objects and lists of JSON lie in each other at most."""
    found, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        found += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return found


def first_difference(path: str, one: Any, other: Any) -> str | None:
    """Say where two JSON values first differ: `path` leads to them."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys((*one, *other)):
            # The groups of a shape are no fields of the request.
            below = path if not path and name in ("fields", "message") else f"{path}.{name}".lstrip(".")
            if name not in one or name not in other:
                return f"{below} is {'new' if name in other else 'missing'}"
            if found := first_difference(below, one[name], other[name]):
                return found
        return None
    if isinstance(one, list) and isinstance(other, list):
        for index, (first, second) in enumerate(zip(one, other, strict=False)):
            if found := first_difference(f"{path}[{index}]", first, second):
                return found
        entries = "entry" if len(other) == 1 else "entries"
        return None if len(one) == len(other) else f"{path} has {len(other)} {entries} instead of {len(one)}"
    if isinstance(one, str) and isinstance(other, str) and one != other:
        same = next((at for at, (first, second) in enumerate(zip(one, other, strict=False)) if first != second), None)
        return f"{path} differs from character {(min(len(one), len(other)) if same is None else same) + 1} on"
    return None if one == other and type(one) is type(other) else f"{path} has another value"
