"""Reads requests of Anthropic's messages API, and converts what precedes a template into chat completions.

The conversion repeats what llama-server does (llama.cpp, tools/server/server-chat.cpp), as far as the beginning of the
prompt depends on it: the system prompt becomes a first message, tools and the choice between them get the names of chat
completions.  This request of Anthropic's API::

    {"system": [{"type": "text", "text": "Be brief."}],
     "tools": [{"name": "search", "description": "...", "input_schema": {"type": "object"}}],
     "messages": [{"role": "user", "content": "@code why?"}]}

gets the shape of this one of chat completions::

    {"tools": [{"type": "function", "function": {"name": "search", "description": "...", "parameters": {...}}}],
     "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "@code why?"}]}

This API alone has *marks*: with ``cache_control`` a client says that the prompt up to there is worth keeping in a
cache.  llama-server ignores them.  bioproxy takes those on tools and system prompt for what they say, and removes all
of them where requests are compared.

A difference to llama-server costs time, never correctness: llama-server itself compares the tokens of
the prompt with those in the slot, and reuses only what is equal.

This module is pure and never fails, whatever a client sends.
"""

from __future__ import annotations

import re
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
from bioproxy.prompts.prompt_shape import Shape

TOOL_CHOICES = {"auto": "auto", "any": "required", "tool": "required"}
"""Anthropic's types of ``tool_choice``, and what llama-server makes of them; the name of a single tool is dropped."""


def parse_messages(request: Object) -> ParsedRequest:
    """Read a request of Anthropic's messages.

    The system prompt is a field of its own, not a message.  A user's message may contain tool results and images beside
    its texts; only the parts of type ``text`` are the user's own words.
    """
    messages = list_items(request.get("messages"))
    tools = tools_of(request)
    first = first_user_message(messages)

    # The conversion is done in functions, because most requests are passed on without it.  Both shapes share them: the
    # one around a template's text and that of the beginning must be equal wherever the text is all that stands between
    # them, or a template and a learned prompt could not share a KV cache.
    def before(index: int | None) -> list[Any]:
        """Return the messages of chat completions before the message at `index`; all of them for `None`."""
        # The messages themselves are not converted.  Before a first user message there usually are none.
        #
        # A system prompt that is null is the same as none.  (In the responses API it is not.)
        system = request.get("system")
        return [*([] if system is None else [system_message(system_text(system))]), *messages[:index]]

    def shape_around(text: UserText) -> Shape:
        return shape_in_message(messages[text.message_index], text, before(text.message_index), prompt_fields(request))

    return ParsedRequest(
        tuple(user_texts_in("messages", messages, "text")),
        messages,
        shape_around,
        beginning=lambda: Shape.of(before(first), {}, [], prompt_fields(request)),
        first_user_message=first,
        has_tools=bool(tools),
        # Marks on messages say nothing of the beginning, and may not tell two turns of a conversation apart.
        in_prompt=without_marks,
        # At the top level the mark means "the last block that can be cached", and so the beginning before it, too.
        marked=any(map(is_marked, (request, *tools, *objects(list_items(request.get("system")))))),
    )


def tools_of(request: Object) -> list[Object]:
    """Return the tools of a request.  What is no object is no tool, and llama-server will refuse the request."""
    return objects(list_items(request.get("tools")))


def prompt_fields(request: Object) -> Object:
    """Return the fields of a request that can change the prompt, as chat completions call them."""
    # Of `PROMPT_FIELDS` only these three have a meaning in this API.  The others are left out.
    fields: Object = {"chat_template_kwargs": request.get("chat_template_kwargs")}
    if isinstance(request.get("tools"), list):
        fields["tools"] = [chat_tool(tool) for tool in tools_of(request)]
    # llama-server knows whether a tool must be called, and not which.  Some chat templates have another text for each
    # of these cases.
    choice = request.get("tool_choice")
    if isinstance(choice, dict):
        fields["tool_choice"] = TOOL_CHOICES.get(str(choice.get("type")))
    return fields


def is_marked(block: Object) -> bool:
    """Tell whether a block, a tool or a request says that the prompt up to its end is worth keeping in a cache.

    The mark is an object with a type and a time to live, such as ``{"type": "ephemeral", "ttl": "1h"}``.  Both are
    ignored: which files are kept, and for how long, is decided by the space that they may take.
    """
    return isinstance(block.get("cache_control"), dict)


def without_mark(block: Any) -> Any:
    """Return a block of a message's content without its mark."""
    # Most blocks have none, and are not copied.
    if not isinstance(block, dict) or "cache_control" not in block:
        return block
    return {name: value for name, value in block.items() if name != "cache_control"}


def without_marks(message: Any) -> Any:
    """Return a message without marks on the blocks of its content, and a single text block as the text alone.

    Clients mark the end of the conversation, so the mark moves on with each turn: a message that was the last one is
    sent again without it.  A text with a mark has to be written as a block, because only blocks can have one, and a
    client may write the same text without a mark as a text.  Both give the same prompt.  (If a chat template should
    treat them differently, that costs time only: llama-server compares the tokens.)
    """
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    blocks = [without_mark(block) for block in content]
    match blocks:
        case [{"type": "text", "text": str(text), **rest}] if not rest:
            return {**message, "content": text}
    return {**message, "content": blocks}


def system_text(system: Any) -> Any:
    """Return a system prompt as one text; it may be a text or a list of text blocks.

    Returns ``None`` for anything else.  The blocks are joined without a separator, as llama-server does.
    """
    if not isinstance(system, list):
        return without_billing_stamp(system) if isinstance(system, str) else None
    blocks = [block for block in objects(system) if block.get("type") == "text"]
    return "".join(without_billing_stamp(str(block.get("text", ""))) for block in blocks)


def without_billing_stamp(text: str) -> str:
    """Return a system prompt with the changing part of Claude Code's billing header replaced by a fixed one.

    Claude Code puts a header in front of its system prompt whose value ``cch`` is different in each request.
    llama-server replaces that value in the same way: otherwise no two prompts would begin alike, and no KV cache could
    ever be reused.
    """
    # The replacement must be exactly the one of llama-server: warm-ups send the shape as it is stored here.
    if not text.startswith("x-anthropic-billing-header:"):
        return text
    return re.sub(r"(cch=).{5};", r"\1fffff;", text, count=1, flags=re.DOTALL)


def chat_tool(tool: Object) -> Object:
    """Convert a tool of Anthropic's API into one of chat completions."""
    # An object without a name is not a tool and stays as it is.  Otherwise a list of empty objects, three bytes each,
    # would take three hundred times its size in memory.
    if "name" not in tool:
        return tool
    # A name or description that is not a text counts as empty, as in llama-server.
    name, description = (text if isinstance(text := tool.get(key), str) else "" for key in ("name", "description"))
    # Other fields of the tool (``cache_control``, say) are dropped: they do not reach the prompt.
    # The order of the keys matters: chat templates write a tool as it comes.
    function = {"name": name, "description": description, "parameters": tool.get("input_schema", {})}
    return {"type": "function", "function": function}
