"""Reads requests of OpenAI's responses API, and converts what precedes a template into chat completions.

The conversion repeats what llama-server does (llama.cpp, tools/server/server-chat.cpp), as far as the beginning of the
prompt depends on it: the instructions become a first message, and functions and instruction items get the form that
they have in chat completions.  This request of the responses API::

    {"instructions": "Be brief.",
     "tools": [{"type": "function", "name": "search", "parameters": {...}}],
     "reasoning": {"effort": "low"},
     "input": [{"role": "user", "content": [{"type": "input_text", "text": "@code why?"}]}]}

gets the shape of this one of chat completions::

    {"tools": [{"type": "function", "function": {"name": "search", "parameters": {...}, "strict": true}}],
     "reasoning_effort": "low",
     "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "@code why?"}]}

The beginning of such a request, everything before its first user message, is converted in the same way.  A client of
this API and one of chat completions, with equal instructions and tools, share it.

Items of a history (answers, function calls and their outputs) are left as they are: a shape with a history is only
compared with shapes of this API.

This module is pure and never fails, whatever a client sends.
"""

from __future__ import annotations

from typing import Any

from bioproxy.prompts.parsed_request import (
    Object,
    ParsedRequest,
    UserText,
    first_user_message,
    list_items,
    objects,
    shape_in_message,
    system_message,
    user_texts_in,
)
from bioproxy.prompts.prompt_shape import PROMPT_FIELDS, Shape


def parse_responses(request: Object) -> ParsedRequest:
    """Read a request of OpenAI's responses.

    Its conversation is a list of *items*.  Messages are only one type of item; function calls, their outputs and the
    model's reasoning are others.  User texts are in messages only.
    """
    given = request.get("input")
    if isinstance(given, str):
        # The short form of a single user message.  The text then stands directly at ``input``, so its path is shorter.
        items: tuple[Any, ...] = ({"role": "user", "content": given},)
        texts: tuple[UserText, ...] = (UserText(("input",), given, 0),)
    else:
        # Also for a single object, which is no valid input: then there are no items.
        items = list_items(given)
        texts = tuple(user_texts_in("input", items, "input_text"))

    # Where the beginning ends.  Calls of functions and their outputs have no role, and so never end it.
    first = first_user_message(items)

    # The conversion is done in functions, because most requests are passed on without it.  Both shapes share them: the
    # one around a template's text and that of the beginning must be equal wherever the text is all that stands between
    # them, or a template and a learned prompt could not share a KV cache.
    def before(index: int | None) -> list[Any]:
        """Return the messages of chat completions before the item at `index`; all of them for `None`."""
        messages = [chat_message(item) for item in items[:index]]
        # Instructions may be given in both places, as a field and as items.  The field comes first in the prompt.
        # Not `request.get(...)`: instructions that are null still become a system message, an empty one.
        if "instructions" in request:
            messages.insert(0, system_message(request["instructions"]))
        return messages

    def shape_around(text: UserText) -> Shape:
        message = chat_message(items[text.message_index])
        return shape_in_message(message, text, before(text.message_index), prompt_fields(request))

    # There are no marks in this API: `prompt_cache_key` only tells which requests may share a beginning, which the
    # beginnings themselves tell as well.
    #
    # A client may send only its newest message, and name the response that it continues.
    # With a previous response, the conversation before this request is stored at llama-server.
    return ParsedRequest(
        texts,
        items,
        shape_around,
        beginning=lambda: Shape.of(before(first), {}, [], prompt_fields(request)),
        first_user_message=first,
        has_tools=bool(functions_of(request)),
        self_contained=not request.get("previous_response_id"),
    )


def functions_of(request: Object) -> list[Object]:
    """Return the tools of a request that reach the prompt: llama-server drops all others, such as a web search."""
    return [tool for tool in objects(list_items(request.get("tools"))) if tool.get("type") == "function"]


def prompt_fields(request: Object) -> Object:
    """Return the fields of a request that can change the prompt, as chat completions call them."""
    # llama-server passes on all fields that it does not convert, so those of chat completions work here, too.  Two of
    # them have another form.
    fields: Object = {name: request.get(name) for name in PROMPT_FIELDS}
    if isinstance(request.get("tools"), list):
        # Without any function there must be no list at all: a template may ask only whether there is one.
        fields["tools"] = [chat_tool(tool) for tool in functions_of(request)] or None
    # The same switch, one level deeper than in chat completions.
    reasoning = request.get("reasoning")
    if isinstance(reasoning, dict):
        fields["reasoning_effort"] = reasoning.get("effort")
    return fields


def chat_tool(tool: Object) -> Object:
    """Convert a function of the responses API into a tool of chat completions.

    There a function's fields lie one level deeper.  ``strict`` is added if it is absent, as llama-server does.
    """
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": {**function, **({} if "strict" in function else {"strict": True})}}


def chat_message(item: Any) -> Any:
    """Convert an item of the responses API into a message of chat completions, if it is an instruction of texts only.

    Any other item only loses the fields that llama-server ignores.
    """
    # An item that is not an object is an error, which llama-server will report.
    if not isinstance(item, dict):
        return item
    # Codex gives each item an id, also its instructions, and the ids are others in each session: with them, no two
    # sessions would begin alike.
    message = {name: value for name, value in item.items() if name not in ("type", "status", "id")}
    parts = list_items(item.get("content"))
    texts = [part.get("text") for part in objects(parts) if part.get("type") == "input_text"]
    # Only if every part is such a text.  An instruction with an image, say, is compared as it is.
    if item.get("role") in ("system", "developer") and len(texts) == len(parts) > 0:
        # A list with one text is written like the text alone: both give the same prompt, so they get the same shape.
        message["content"] = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
    return message
