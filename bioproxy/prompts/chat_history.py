"""Converts whole conversations of all chat APIs into chat completions, as llama-server does.

The modules of the APIs (`anthropic_messages`, `openai_responses`) convert what precedes the first user message, which
is all that many requests have in common.  Here the rest follows: answers with their reasoning, calls of tools and what
came of them, as llama.cpp's tools/server/server-chat.cpp converts them.  This message of Anthropic's API::

    {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "So."},
                                      {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": 1}}]}

becomes this one of chat completions::

    {"role": "assistant", "content": [{"type": "text", "text": "So."}], "reasoning_content": "hm",
     "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{...}"}}]}

What a chat template makes of a message depends on details: whether the content is a text or a list of parts, whether
an empty field is there or missing, and how JSON inside a text is spaced.  So each of these is as llama-server has it.

A difference to llama-server costs time, never a wrong answer: the prompts that are made of this are only compared.
Where the right conversion is not known, as for images, `NotUnderstood` ends it.

This module is pure.  It runs in the second process for large bodies.  Does not know answers, only what clients send,
and neither checks a request nor changes it: llama-server gets the request as its client wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from bioproxy.prompts import anthropic_messages, openai_responses
from bioproxy.prompts.parsed_request import Object, list_items, objects, system_message
from bioproxy.prompts.prompt_shape import PROMPT_FIELDS

Converted = tuple[Object, list[Object], bool]
"""The fields of a request, its messages, and whether clients of its API usually send the reasoning back.

The last is only used for the first answer of a conversation.  Later the history shows what its client does.
"""


class NotUnderstood(Exception):
    """The conversation has something of which no prompt can be guessed.

    This is no error of the request's: llama-server may understand more than this module.  There is no head start then.
    """


def from_chat(request: Object) -> Converted:
    """Convert a request of chat completions: nothing to do."""
    # Only the fields that can change the prompt: the others say how to generate, and `/apply-template` may refuse them.
    # Most programs show the reasoning to their user and forget it.
    return {name: request.get(name) for name in PROMPT_FIELDS}, all_objects(request.get("messages")), False


def from_messages(request: Object) -> Converted:
    """Convert a request of Anthropic's messages.  Raises `NotUnderstood` for images, and for what is no message."""
    # As for the beginning of a prompt: one text, in which what changes with each request is replaced.  The system
    # message has a field of its own in this API, and is the first message of chat completions.
    system = request.get("system")
    history = [] if system is None else [system_message(anthropic_messages.system_text(system))]
    for message in all_objects(request.get("messages")):
        history.extend(chat_messages(message))
    # The official client has thinking blocks sent back with the message that they are a part of.  The chat template may
    # drop them anyway.
    return anthropic_messages.prompt_fields(request), history, True


def chat_messages(message: Object) -> Iterator[Object]:
    """Yield the messages of chat completions that a message of Anthropic's becomes.

    There, results of tools are blocks in a message of the user, and a message may have several of them, with words
    around.  In chat completions each result is a message of its own, with the role ``tool``.  So one message becomes
    several: the user's words first, then the results.  Raises `NotUnderstood` for images.
    """
    content = message.get("content")
    if not isinstance(content, list):
        # A plain text is in the right form already.  A message without any content is dropped if it is the assistant's.
        if "content" in message or message.get("role") != "assistant":
            yield message
        return
    # The order of blocks of different types is lost in chat completions; within a type it stays.  So what the model has
    # written between two calls of tools comes back before both: there the next prompt parts from what the slot holds.
    texts, thoughts, calls, results = [], "", [], []
    for block in all_objects(content):
        match block:
            case {"type": "text"}:
                # As it is, with marks for caching: llama-server looks at type and text only.
                texts.append(block)
            case {"type": "thinking"}:
                thoughts += str(block.get("thinking", ""))
            case {"type": "tool_use"}:
                # As llama-server writes JSON: without white space, and characters as they are.  Python keeps the order
                # of the keys as well.
                arguments = json.dumps(block.get("input", {}), separators=(",", ":"), ensure_ascii=False)
                function = {"name": block.get("name", ""), "arguments": arguments}
                calls.append({"id": block.get("id", ""), "type": "function", "function": function})
            case {"type": "tool_result"}:
                text = result_text(block.get("content"))
                results.append({"role": "tool", "tool_call_id": block.get("tool_use_id", ""), "content": text})
            case {"type": "image" | "document"}:
                # An image becomes other tokens than its place in the prompt shows.
                raise NotUnderstood
            # llama-server drops all others,
    # Behind a message with results of tools there may be nothing left of the user's own.  An empty message would be one
    # more turn in the prompt.
    if texts or calls or thoughts:
        converted: Object = {"role": message.get("role", ""), "content": texts or ""}
        yield {**converted, **({"tool_calls": calls} if calls else {}), **reasoning(thoughts)}
    yield from results


def result_text(content: Any) -> str:
    """Return the text of a tool's result.  Raises `NotUnderstood` for images."""
    # A result is a text, or a list of parts as a message's content is.
    if isinstance(content, str):
        return content
    # Several texts become one, without anything between them.  Nothing at all (a tool that has only done something) is
    # an empty text.
    parts = objects(list_items(content))
    if any(part.get("type") == "image" for part in parts):
        raise NotUnderstood
    return "".join(str(part.get("text", "")) for part in parts if part.get("type") == "text")


def from_responses(request: Object) -> Converted:
    """Convert a request of OpenAI's responses.

    Its ``input`` is a text, or a list of items: messages, reasoning, calls of tools and their results.  Raises
    `NotUnderstood` where the server would have to know more than the request says: an earlier response, for example.
    """
    # Instructions that are ``null`` still become a system message, an empty one.  Where the field is missing there is
    # none, so the two must be told apart.
    history: list[Object] = []
    if "instructions" in request:
        history.append(system_message(request["instructions"]))
    given = request.get("input")
    # The short form of a single message of the user is a text.  All other items are objects.
    # `add_item` may change the last message of `history`, which is made here and is not a part of the request.
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else all_objects(given):
        add_item(history, item)
    # Clients add the output of a response to the next input as a whole, with the items that have the reasoning.  A
    # client that lets the server keep the conversation sends none of it, but llama-server keeps no conversations.
    return openai_responses.prompt_fields(request), history, True


def add_item(history: list[Object], item: Object) -> None:
    """Add an item of a response's input to the messages.

    Items of one answer are merged into one message: the last one in `history`, if that is the assistant's.  Raises
    `NotUnderstood` for items whose content is not in the request.
    """
    # The model's reasoning, its words and its calls of tools are items of their own, and belong to one answer.  What
    # ends an answer is an item of somebody else's: a message of the user, or the result of a tool.
    last = history[-1] if history and history[-1].get("role") == "assistant" else None
    kind, content = item.get("type"), item.get("content")
    if kind == "function_call":
        function = {"arguments": item.get("arguments", ""), "name": item.get("name", "")}
        call = {"function": function, "id": item.get("call_id", ""), "type": "function"}
        # A call without words before it is a message of its own, and further calls join it.  A new list each time,
        # as the request's own objects are not changed.
        if last is None:
            history.append({"role": "assistant", "tool_calls": [call]})
        else:
            last["tool_calls"] = [*last.get("tool_calls", []), call]
    elif kind == "function_call_output":
        # A text, or a list of text parts, which stays a list.
        output = item.get("output")
        if not isinstance(output, str):
            output = text_parts(output)
        history.append({"content": output, "role": "tool", "tool_call_id": item.get("call_id", "")})
    elif kind == "reasoning":
        # llama-server takes the first part only.  Reasoning stands before the words that it led to: if there is no
        # answer yet that it could be a part of, it opens one, and the words follow.
        thoughts = "".join(str(part.get("text", "")) for part in objects(list_items(content))[:1])
        if last is None:
            history.append({"role": "assistant", "content": [], **reasoning(thoughts)})
        else:
            last.update(reasoning(thoughts))
    elif isinstance(item.get("role"), str):
        # A message, with or without its type.  Its texts are a list afterwards, also a single one.  Several messages of
        # the assistant in a row become one with a longer list.
        parts = [{"text": content, "type": "text"}] if isinstance(content, str) else text_parts(content)
        if item["role"] == "assistant" and last is not None:
            last["content"] = [*list_items(last.get("content")), *parts]
        else:
            history.append({"role": item["role"], "content": parts})
    else:
        # References to items that only the server knows (``item_reference``), and whatever later versions bring.  A
        # guess that leaves them out would be wrong each time.
        raise NotUnderstood


def text_parts(content: Any) -> list[Object]:
    """Return text parts of the responses API as chat completions have them.  Raises `NotUnderstood` for others."""
    # ``input_text`` is what a user says, and ``output_text`` what the model said.  In chat completions the role tells.
    parts = all_objects(content)
    if not all(part.get("type") in ("input_text", "output_text") for part in parts):
        raise NotUnderstood
    return [{"text": part.get("text", ""), "type": "text"} for part in parts]


def reasoning(thoughts: str) -> Object:
    """Return the field that has these thoughts, or nothing where there are none."""
    # A chat template may test whether the field is there, and then an empty one would open a block of reasoning.
    return {"reasoning_content": thoughts} if thoughts else {}


def all_objects(value: Any) -> list[Object]:
    """Return a list of objects.  Raises `NotUnderstood` if the value is anything else."""
    # Stricter than `objects`, which leaves out what is no object: a message that is left out changes the prompt.
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise NotUnderstood
    return value


CONVERTERS: dict[str, Callable[[Object], Converted]] = {
    "/v1/chat/completions": from_chat,
    "/chat/completions": from_chat,
    "/v1/messages": from_messages,
    "/v1/responses": from_responses,
    "/responses": from_responses,
}
"""The paths whose conversations are understood, and how each is converted.

A conversation on any other path, such as a plain prompt, has no messages: what its next prompt will be is unknown.
"""
