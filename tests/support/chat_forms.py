"""What `FakeLlama` makes of requests of the other two chat APIs: chat completions, as llama-server does.

Written apart from bioproxy's own conversion (`bioproxy.prompts`), which is compared with this one in the tests, and
with the real llama-server in `tests/integration`.  Only what recorded clients send is known: texts and functions.
"""

from __future__ import annotations

import json
from typing import Any


def from_messages(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request of Anthropic's messages as chat completions."""
    system = body.get("system") or []
    blocks = [{"text": system}] if isinstance(system, str) else system
    first = [{"role": "system", "content": "".join(each["text"] for each in blocks)}] if blocks else []
    tools = [
        {
            "type": "function",
            "function": {
                "name": each["name"],
                "description": each.get("description", ""),
                "parameters": each["input_schema"],
            },
        }
        for each in body.get("tools") or ()
    ]
    return {"messages": [*first, *body["messages"]], "tools": tools}


def from_responses(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request of OpenAI's responses as chat completions; tools that are no functions are left out."""
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    first = [{"role": "system", "content": body["instructions"]}] if "instructions" in body else []
    messages = [{"role": each["role"], "content": each["content"]} for each in items if each.get("role")]
    functions = [each for each in body.get("tools") or () if each["type"] == "function"]
    tools = [
        # The order of the keys is what the chat template shows.
        {"type": "function", "function": {**{k: v for k, v in each.items() if k != "type"}, **strict(each)}}
        for each in functions
    ]
    return {"messages": [*first, *messages], "tools": tools}


def strict(function: dict[str, Any]) -> dict[str, Any]:
    """Return the field that llama-server adds to a function without it."""
    return {} if "strict" in function else {"strict": True}


def message_events(says: str, timings: dict[str, float]) -> list[dict[str, Any]]:
    """Return the events of an answer of Anthropic's messages."""
    usage = {"cache_read_input_tokens": timings["cache_n"], "input_tokens": timings["prompt_n"], "output_tokens": 0}
    return [
        {"type": "message_start", "message": {"role": "assistant", "content": [], "usage": usage}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": says}},
        {"type": "message_stop"},
    ]


def response_events(says: str, timings: dict[str, float]) -> list[dict[str, Any]]:
    """Return the events of an answer of OpenAI's responses."""
    tokens = timings["cache_n"] + timings["prompt_n"]
    usage = {"input_tokens": tokens, "output_tokens": 1, "input_tokens_details": {"cached_tokens": timings["cache_n"]}}
    parts = [{"type": "output_text", "text": says}]
    output = [{"type": "message", "role": "assistant", "status": "completed", "content": parts}]
    return [
        {"type": "response.output_text.delta", "delta": says},
        {"type": "response.completed", "response": {"output": output, "usage": usage}, "timings": timings},
    ]


def event(data: dict[str, Any]) -> bytes:
    """Write one of these events, with its type as its name."""
    return f"event: {data['type']}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
