"""The forms of requests that may name a template: where each API has what its user wrote, and what stands before it.

llama-server speaks four: OpenAI's chat completions, Anthropic's messages, OpenAI's responses, and plain prompts.  For
each there is a function here that reads a request into a `Form`, which says the same things of all of them.

llama-server itself turns messages and responses into chat completions first (llama.cpp, tools/server/server-chat.cpp).
What stands before a template is turned in the same way here, as far as the prompt depends on it; so a question that was
warmed up for one API is warm for the others, if the same stands before it.  Where a conversation stands before it that
is not worth doing: such a beginning is only ever compared with itself.

Pure.  Knows nothing of templates, and never fails: what is not understood has no texts in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bioproxy.prompts.json_positions import Path
from bioproxy.prompts.prompt_shape import FIELDS, PLAIN, Shape

Object = dict[str, Any]
"""An object in JSON."""


@dataclass(frozen=True)
class Said:
    """A text that the user wrote: where it stands, and in which message of the conversation, from 0 on."""

    place: Path
    text: str
    turn: int


@dataclass(frozen=True)
class Form:
    """What a request says.

    `said` are the user's texts, in their order; `turns` the conversation, message by message; `around` gives the shape
    around one of the texts.  `whole` is false if more stands before it than the request tells, or if it is several
    prompts in one: then nothing that was computed before can be said to fit.
    """

    said: tuple[Said, ...]
    turns: tuple[Any, ...]
    around: Callable[[Said], Shape]
    whole: bool = True


def chat(request: Object) -> Form:
    """Read a request of OpenAI's chat completions."""
    messages = listed(request.get("messages"))

    def around(said: Said) -> Shape:
        return Shape.around(request, said.place)

    return Form(tuple(texts("messages", messages, "text")), messages, around)


def anthropic(request: Object) -> Form:
    """Read a request of Anthropic's messages."""
    messages = listed(request.get("messages"))

    def around(said: Said) -> Shape:
        fields = {"chat_template_kwargs": request.get("chat_template_kwargs")}
        if isinstance(request.get("tools"), list):
            fields["tools"] = [anthropic_tool(tool) for tool in objects(request["tools"])]
        choice = request.get("tool_choice")
        if isinstance(choice, dict):
            fields["tool_choice"] = {"auto": "auto", "any": "required", "tool": "required"}.get(str(choice.get("type")))
        before = list(messages[: said.turn])
        if request.get("system") is not None:
            before.insert(0, system_message(system_text(request["system"])))
        return around_text(messages[said.turn], said, before, fields)

    return Form(tuple(texts("messages", messages, "text")), messages, around)


def responses(request: Object) -> Form:
    """Read a request of OpenAI's responses."""
    given = request.get("input")
    if isinstance(given, str):
        items: tuple[Any, ...] = ({"role": "user", "content": given},)
        said: tuple[Said, ...] = (Said(("input",), given, 0),)
    else:
        items = listed(given)
        said = tuple(texts("input", items, "input_text"))

    def around(said: Said) -> Shape:
        fields = {name: request.get(name) for name in FIELDS}
        if isinstance(request.get("tools"), list):
            fields["tools"] = [
                response_tool(tool) for tool in objects(request["tools"]) if tool.get("type") == "function"
            ]
        reasoning = request.get("reasoning")
        if isinstance(reasoning, dict):
            fields["reasoning_effort"] = reasoning.get("effort")
        before = [instruction(item) for item in items[: said.turn]]
        if "instructions" in request:  # also where they are null: an empty system message then
            before.insert(0, system_message(request["instructions"]))
        return around_text(instruction(items[said.turn]), said, before, fields)

    return Form(said, items, around, whole=not request.get("previous_response_id"))


def prompt(request: Object) -> Form:
    """Read a request with a plain prompt: a text, an object with one, or a list of either.

    Lists of tokens, and of tokens and texts, are left alone: nobody wrote them.
    """
    given = request.get("prompt")
    prompts = given if isinstance(given, list) else [given]
    if not all(isinstance(each, str | dict) for each in prompts):
        prompts = []
    said = []
    for turn, each in enumerate(prompts):
        place: Path = ("prompt", turn) if isinstance(given, list) else ("prompt",)
        if isinstance(each, dict):
            place, each = (*place, "prompt_string"), each.get("prompt_string")
        if isinstance(each, str):
            said.append(Said(place, each, turn))
    return Form(tuple(said), tuple(prompts), lambda said: PLAIN, whole=len(prompts) == 1)


FORMS: dict[str, Callable[[Object], Form]] = {
    "/v1/chat/completions": chat,
    "/chat/completions": chat,
    "/v1/messages": anthropic,
    "/v1/responses": responses,
    "/responses": responses,
    "/completion": prompt,
    "/completions": prompt,
    "/v1/completions": prompt,
    # What a request would be: its prompt, or how many tokens that has.
    "/apply-template": chat,
    "/v1/chat/completions/input_tokens": chat,
    "/chat/completions/input_tokens": chat,
    "/v1/messages/count_tokens": anthropic,
    "/v1/responses/input_tokens": responses,
    "/responses/input_tokens": responses,
}
"""The paths whose requests may name templates, and how to read these."""

UNGATED = frozenset(path for path in FORMS if path == "/apply-template" or path.endswith("_tokens"))
"""Those of them that do not use the slot."""


def texts(name: str, messages: tuple[Any, ...], kind: str) -> Iterator[Said]:
    """Yield everything that the user wrote in messages; parts of a content list are of type `kind`."""
    for turn, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            yield Said((name, turn, "content"), content, turn)
        for number, part in enumerate(listed(content)):
            if isinstance(part, dict) and part.get("type") == kind and isinstance(part.get("text"), str):
                yield Said((name, turn, "content", number, "text"), part["text"], turn)


def around_text(message: Object, said: Said, before: list[Any], fields: Object) -> Shape:
    """Return the shape around a text in a message."""
    content = message.get("content")
    if isinstance(content, list):
        number = said.place[3]
        assert isinstance(number, int)
        return Shape.of(before, {}, content[:number], fields)
    return Shape.of(before, {name: value for name, value in message.items() if name != "content"}, [], fields)


def system_message(text: Any) -> Object:
    """Return the system message that stands first; what is no text counts as an empty one."""
    return {"role": "system", "content": text if isinstance(text, str) else ""}


def system_text(system: Any) -> Any:
    """Return the system prompt of Anthropic's messages as one text: it may come in blocks."""
    if not isinstance(system, list):
        return unstamped(system) if isinstance(system, str) else None
    blocks = [block for block in objects(system) if block.get("type") == "text"]
    return "".join(unstamped(str(block.get("text", ""))) for block in blocks)


def unstamped(text: str) -> str:
    """Return a system prompt without the stamp that Claude Code puts into it, another one each time.

    llama-server puts it out of action in the same way, because no prompt with it would be the same twice.
    """
    if not text.startswith("x-anthropic-billing-header:"):
        return text
    return re.sub(r"(cch=).{5};", r"\1fffff;", text, count=1, flags=re.DOTALL)


def anthropic_tool(tool: Object) -> Object:
    """Turn one of Anthropic's tools into one of chat completions."""
    # A text that is none counts as empty.
    name, description = (text if isinstance(text := tool.get(key), str) else "" for key in ("name", "description"))
    function = {"name": name, "description": description, "parameters": tool.get("input_schema", {})}
    return {"type": "function", "function": function}


def response_tool(tool: Object) -> Object:
    """Turn a function of OpenAI's responses into one of chat completions."""
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": {**function, **({} if "strict" in function else {"strict": True})}}


def instruction(item: Any) -> Any:
    """Turn an item of OpenAI's responses into a message, if it is one of texts only."""
    if not isinstance(item, dict):
        return item
    message = {name: value for name, value in item.items() if name not in ("type", "status")}
    parts = listed(item.get("content"))
    texts = [part.get("text") for part in objects(parts) if part.get("type") == "input_text"]
    if item.get("role") in ("system", "developer") and len(texts) == len(parts) > 0:
        message["content"] = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
    return message


def listed(value: Any) -> tuple[Any, ...]:
    """Return what is in a list; nothing, if it is none."""
    return tuple(value) if isinstance(value, list) else ()


def objects(values: Any) -> list[Object]:
    """Return those of some values that are objects."""
    return [value for value in values if isinstance(value, dict)]
