"""What a request contains, in terms that are the same for all APIs; and helpers to read untrusted JSON.

llama-server speaks four APIs, and each has the user's texts in another place.  For each API a function turns a request
into a `ParsedRequest` (`bioproxy.prompts.api_formats` lists them), and the rest of bioproxy works with that alone.

The request is whatever a client sent.  llama-server judges whether it is valid, not bioproxy.  So no function here
fails on a surprising value: a list that is not a list counts as empty, and what is not understood contains no text.

This module is pure.  It knows no API and no template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bioproxy.prompts.json_positions import Path
from bioproxy.prompts.prompt_shape import Shape

Object = dict[str, Any]
"""A JSON object."""


def unchanged(message: Any) -> Any:
    """Return a message as it is, for the APIs in which everything in a message may reach the prompt."""
    return message


@dataclass(frozen=True)
class UserText:
    """A text that the user wrote, and where it stands in the request.

    Invariant: the value at `path` is the string `text`.
    """

    path: Path
    """The keys and indices that lead to the text."""
    text: str
    """The text, decoded."""
    message_index: int
    """Index in `ParsedRequest.messages` of the message that contains the text."""


@dataclass(frozen=True)
class ParsedRequest:
    """A request, read by the rules of its API."""

    user_texts: tuple[UserText, ...]
    """The user's texts in the order of the conversation.  Templates are filled in these and nowhere else."""
    messages: tuple[Any, ...]
    """The conversation, message by message, with those of the assistant.  Prompts, where a request has several."""
    shape_around: Callable[[UserText], Shape]
    """Returns the shape around one of `user_texts`.

    A function, not a value: the shape is needed for one text only, and in most requests for none.
    """
    beginning: Callable[[], Shape]
    """Returns the shape of everything before the first user message, without anything of that message itself.

    It has all messages where no user message is among them, and it is the shape of a plain prompt where the API has no
    messages.  A function for the same reason as `shape_around`, and made of the same conversion: a request whose first
    message is nothing but a user's text has the same shape around that text as its beginning has.
    """
    first_user_message: int | None = None
    """Index in `messages` of the first message that a user wrote; `None` if there is none, as in a plain prompt."""
    has_tools: bool = False
    """Whether llama-server gets any tools from this request, after the conversion of its API."""
    marked: bool = False
    """Whether the client marks the beginning as worth keeping.  Only Anthropic's API has such marks."""
    in_prompt: Callable[[Any], Any] = unchanged
    """Returns one of `messages` without what never reaches the prompt.  Conversations are recognised by the result.

    A client may change such a thing in a message that it sends again, and it is still the same conversation.
    """
    self_contained: bool = True
    """Whether the request contains its one prompt completely.

    False if llama-server puts an earlier conversation in front that only it knows, and if there are several prompts.
    Then nothing is known about the tokens, and no KV cache computed earlier is promised to fit.
    """


def first_user_message(messages: Sequence[Any]) -> int | None:
    """Return the index of the first message that a user wrote, `None` if there is none."""
    # The role alone decides, whatever the content is: an image begins a conversation as well as a text does.
    indices = (index for index, each in enumerate(messages) if isinstance(each, dict) and each.get("role") == "user")
    return next(indices, None)


def user_texts_in(field: str, messages: Sequence[Any], part_type: str) -> Iterator[UserText]:
    """Yield the user's texts in the messages of the request's `field`.

    A message's content is a string or a list of parts.  A part is a text if its ``type`` is `part_type`.
    """
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            yield UserText((field, index, "content"), content, index)
        for number, part in enumerate(list_items(content)):
            if isinstance(part, dict) and part.get("type") == part_type and isinstance(part.get("text"), str):
                yield UserText((field, index, "content", number, "text"), part["text"], index)


def shape_in_message(message: Object, text: UserText, before: Sequence[Any], fields: Mapping[str, Any]) -> Shape:
    """Return the shape around a text in a message that was converted into a message of chat completions.

    `before` are the messages before that one, and `fields` the request's fields, both converted as well.
    """
    content = message.get("content")
    if isinstance(content, list):
        number = text.path[3]  # see `user_texts_in`
        assert isinstance(number, int)
        # Messages and responses are converted part by part, and the message's other fields are left out.
        return Shape.of(before, {}, content[:number], fields)
    return Shape.of(before, {name: value for name, value in message.items() if name != "content"}, [], fields)


def system_message(text: Any) -> Object:
    """Return the system message that a system prompt becomes; a prompt that is not a text counts as an empty one."""
    return {"role": "system", "content": text if isinstance(text, str) else ""}


def list_items(value: Any) -> tuple[Any, ...]:
    """Return the items of a list; none, if the value is not a list."""
    return tuple(value) if isinstance(value, list) else ()


def objects(values: Any) -> list[Object]:
    """Return those of some values that are objects."""
    return [value for value in values if isinstance(value, dict)]
