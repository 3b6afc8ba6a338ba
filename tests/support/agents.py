"""Coding agents, as clients: what they send, in three dialects, and what they read in an answer.

An agent's request begins with thousands of tokens that are the same each time: definitions of tools, and a system
message.  Behind them comes the whole conversation, which grows with each turn: the user's words, the model's answers as
they came, the calls of tools and their results.  Beside each new session an agent asks for a title, with another, short
system message and no tools.  A sub-agent has the agent's tools and another system message.

The models of the tests write random words, and never call a tool.  So the agent takes an answer for a text followed by
a call, and adds that call to the conversation itself (`Session.use_tool`).

Everything is generated from seeds.  Nothing is sent here: `Session.body` returns a request, and `Session.hear` takes
the body of the answer, so the same agent works over sockets, in memory, with Twisted and without.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bioproxy.demo.vocabulary import COMMON_WORDS

TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\nYou may call:\\n' }}"
    "{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}{{ '\\ncall ' + (call['function'] | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A chat template that writes tools before the messages, then each message with its tool calls."""

PREDICT = 12
"""Tokens of an answer."""

TITLE = "Write a title of three words for this."
"""The system message of a request for a title."""


def prose(words: int, seed: object) -> str:
    """Return a text of about so many tokens, another one for each seed."""
    return " ".join(random.Random(str(seed)).choices(COMMON_WORDS, k=words)) + "."


def tool(number: int, seed: object) -> dict[str, Any]:
    """Return the definition of a tool, about 120 tokens: its name, description, and parameters as a JSON schema."""
    words = random.Random(f"{seed} {number}").sample(COMMON_WORDS, k=4)
    properties = {words[2]: {"type": "string"}, words[3]: {"type": "number"}}
    return {
        "name": f"{words[0]}_{words[1]}",
        "description": prose(8, f"{seed} {number}"),
        "parameters": {"type": "object", "properties": properties, "required": [words[2]]},
    }


@dataclass(frozen=True)
class Reply:
    """What an answer said, and how many tokens of its prompt were reused and computed."""

    text: str
    reused: int
    computed: int

    @property
    def prompt(self) -> int:
        """Tokens of the prompt in all."""
        return self.reused + self.computed


@dataclass(frozen=True)
class Said:
    """A piece of a conversation: a message of `role`.

    With a `call`, it is that call of a tool (role ``assistant``), or the result of the call (role ``tool``).
    """

    role: str
    text: str
    call: str = ""


@dataclass(frozen=True)
class Dialect:
    """An API: its path, and how a conversation is written and an answer read there."""

    name: str
    path: str
    write: Callable[[Client, Sequence[Said]], dict[str, Any]]
    read: Callable[[list[dict[str, Any]]], Reply]


@dataclass(frozen=True)
class Client:
    """Who asks: a dialect, a system message, and tools (none in a request for a title)."""

    dialect: Dialect
    system: str
    tools: tuple[dict[str, Any], ...] = ()

    def session(self) -> Session:
        """Begin a conversation."""
        return Session(self)


@dataclass
class Session:
    """A conversation of a client, all of which is sent each time."""

    client: Client
    said: list[Said] = field(default_factory=list)
    whole: int = 0
    """Tokens of the prompt of the last answered request."""

    def ask(self, text: str) -> None:
        """Add a message of the user."""
        self.said.append(Said("user", text))

    def use_tool(self, text: str) -> None:
        """Add a call of a tool to the model's last answer, and its result."""
        call = f"call_{len(self.said)}"
        self.said += [Said("assistant", "", call), Said("tool", text, call)]

    def body(self, stream: bool = False, **more: Any) -> dict[str, Any]:
        """Return the request."""
        return {**self.client.dialect.write(self.client, self.said), "temperature": 0, "stream": stream, **more}

    def hear(self, answer: bytes) -> Reply:
        """Read an answer, streamed or not, and add it to the conversation."""
        reply = read(self.client.dialect, answer)
        self.said.append(Said("assistant", reply.text))
        self.whole = reply.prompt
        return reply

    @property
    def path(self) -> str:
        """Where requests go."""
        return self.client.dialect.path


def read(dialect: Dialect, answer: bytes) -> Reply:
    """Read the body of an answer: JSON, or the events of a stream."""
    events = re.findall(r"^data: (.*)$", answer.decode(), re.MULTILINE)
    return dialect.read([json.loads(each) for each in events if each != "[DONE]"] or [json.loads(answer)])


def tool_name(client: Client) -> str:
    """Return the name of the tool that is called: always the first in alphabetical order."""
    return min(str(each["name"]) for each in client.tools)


ARGUMENTS = {"word": "file"}
"""Of each call."""


# OpenAI's chat completions.


def write_chat(client: Client, said: Sequence[Said]) -> dict[str, Any]:
    """Write a conversation as messages, in which an answer and its tool call are one message."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": client.system}]
    for each in said:
        if each.role == "assistant" and each.call:
            function = {"name": tool_name(client), "arguments": json.dumps(ARGUMENTS)}
            messages[-1]["tool_calls"] = [{"id": each.call, "type": "function", "function": function}]
        elif each.role == "tool":
            messages.append({"role": "tool", "tool_call_id": each.call, "content": each.text})
        else:
            messages.append({"role": each.role, "content": each.text})
    tools = [{"type": "function", "function": each} for each in client.tools]
    return {"messages": messages, "max_tokens": PREDICT, **({"tools": tools} if tools else {})}


def read_chat(values: list[dict[str, Any]]) -> Reply:
    """Read an answer or its chunks; `timings` are in the last one."""
    choices = [choice for value in values for choice in value.get("choices", ())]
    text = "".join((choice.get("delta") or choice.get("message") or {}).get("content") or "" for choice in choices)
    timings = [value["timings"] for value in values if "timings" in value][-1]
    return Reply(text, timings["cache_n"], timings["prompt_n"])


# Anthropic's messages.


def write_messages(client: Client, said: Sequence[Said]) -> dict[str, Any]:
    """Write a conversation as blocks, with the marks of what is worth caching where Claude Code puts them."""
    mark = {"cache_control": {"type": "ephemeral"}}
    messages: list[dict[str, Any]] = []
    for each in said:
        role = "user"
        block: dict[str, Any] = {"type": "text", "text": each.text}
        if each.role == "tool":
            block = {"type": "tool_result", "tool_use_id": each.call, "content": each.text}
        elif each.role == "assistant":
            role = "assistant"
            if each.call:
                block = {"type": "tool_use", "id": each.call, "name": tool_name(client), "input": ARGUMENTS}
        # The answer and its tool call are blocks of one message; two messages in a row never have one role.
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"].append(block)
        else:
            messages.append({"role": role, "content": [block]})
    messages[-1]["content"][-1] = {**messages[-1]["content"][-1], **mark}
    system: list[dict[str, Any]] = [{"type": "text", "text": client.system}]
    tools: list[dict[str, Any]] = [
        {"name": each["name"], "description": each["description"], "input_schema": each["parameters"]}
        for each in client.tools
    ]
    if tools:
        system[-1] = {**system[-1], **mark}
        tools[-1] = {**tools[-1], **mark}
    body = {"model": "any", "max_tokens": PREDICT, "system": system, "messages": messages}
    return {**body, **({"tools": tools} if tools else {})}


def read_messages(values: list[dict[str, Any]]) -> Reply:
    """Read an answer or its events; the counts of tokens are in the first of them."""
    usage = values[0].get("message", values[0])["usage"]
    blocks = [block for value in values for block in (value.get("content", ()) if "content" in value else ())]
    deltas = [value["delta"] for value in values if value.get("type") == "content_block_delta"]
    text = "".join(str(each.get("text", "")) for each in [*blocks, *deltas])
    return Reply(text, usage["cache_read_input_tokens"], usage["input_tokens"])


# OpenAI's responses.


def write_responses(client: Client, said: Sequence[Said]) -> dict[str, Any]:
    """Write a conversation as items."""
    items: list[dict[str, Any]] = []
    for each in said:
        if each.role == "tool":
            items.append({"type": "function_call_output", "call_id": each.call, "output": each.text})
        elif each.call:
            function = {"name": tool_name(client), "arguments": json.dumps(ARGUMENTS)}
            items.append({"type": "function_call", "call_id": each.call, **function})
        elif each.role == "assistant":
            parts = [{"type": "output_text", "text": each.text}]
            items.append({"type": "message", "role": "assistant", "status": "completed", "content": parts})
        else:
            items.append({"role": "user", "content": [{"type": "input_text", "text": each.text}]})
    tools = [{"type": "function", **each} for each in client.tools]
    body = {"model": "any", "instructions": client.system, "input": items, "max_output_tokens": PREDICT}
    return {**body, **({"tools": tools} if tools else {})}


def read_responses(values: list[dict[str, Any]]) -> Reply:
    """Read an answer, or that in the last event of a stream."""
    response = values[-1].get("response", values[-1])
    usage = response["usage"]
    parts = [part for item in response["output"] for part in item.get("content") or ()]
    cached = usage["input_tokens_details"]["cached_tokens"]
    return Reply("".join(part.get("text", "") for part in parts), cached, usage["input_tokens"] - cached)


CHAT = Dialect("chat", "/v1/chat/completions", write_chat, read_chat)
MESSAGES = Dialect("messages", "/v1/messages", write_messages, read_messages)
RESPONSES = Dialect("responses", "/v1/responses", write_responses, read_responses)
DIALECTS = (CHAT, MESSAGES, RESPONSES)


def agent(dialect: Dialect, seed: object = 1, tools: int = 12, words: int = 400) -> Client:
    """Return a coding agent: so many tools, about 120 tokens each, and a system message of so many words."""
    return Client(dialect, prose(words, f"{seed} system"), tuple(tool(number, seed) for number in range(tools)))


def sub_agent(of: Client, seed: object = 1, words: int = 300) -> Client:
    """Return a sub-agent: the tools of its agent and another system message."""
    return Client(of.dialect, prose(words, f"{seed} sub-agent"), of.tools)


def title_writer(dialect: Dialect) -> Client:
    """Return the client that asks for titles: another, short system message, and no tools."""
    return Client(dialect, TITLE)
