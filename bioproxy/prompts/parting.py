"""Tells whether the next prompt of a conversation goes on from what the slot holds, or parts from it before.

After an answer the slot holds the prompt and what the model wrote behind it.  The next prompt has the answer as well,
but as the chat template writes an earlier message, which may be without its reasoning, without white space at its ends,
or with tool calls in other JSON.  Where nothing is changed, the slot is right as it is, and must be left alone: a
request with a beginning of what the slot holds would cut the slot down to that beginning.

The comparison is of texts, because what the model wrote is known as text only.  Of an answer with reasoning or tool
calls not even that is known exactly: llama-server has taken it apart.  Then the answer here is "unsure", and experience
decides (`bioproxy.warmup.client_kinds`).

Pure.
"""

from __future__ import annotations

from enum import Enum

from bioproxy.prompts.parsed_request import Object, list_items, objects


class Parting(Enum):
    """How the next prompt begins, compared with what the slot holds."""

    NONE = "the slot holds what the next prompt begins with"
    UNSURE = "the slot probably holds what the next prompt begins with"
    PARTS = "the next prompt parts from what the slot holds"


def parting(prompt: str, following: str, answer: Object) -> Parting:
    """Compare the text of the prompt that was answered with the beginning of the next one.

    `following` is the next prompt up to its new messages, and `answer` the message that was answered with, complete.
    """
    if not following.startswith(prompt):
        return Parting.PARTS
    # Only the place of the answer is looked at: the same words may stand anywhere before.
    tail, content, thoughts = following[len(prompt) :], text_of(answer), answer.get("reasoning_content", "").strip()
    if not thoughts and not answer.get("tool_calls"):
        return Parting.NONE if tail.startswith(content) else Parting.PARTS
    # The reasoning stands before the words.  Searched one behind the other, because a short answer may repeat what was
    # thought.
    at = tail.find(thoughts)
    there = at >= 0 and content.strip() in tail[at + len(thoughts) :]
    return Parting.UNSURE if there else Parting.PARTS


def text_of(message: Object) -> str:
    """Return the text of a message of chat completions."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in objects(list_items(content)))
