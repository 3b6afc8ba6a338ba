"""What a request asks the slot for: the prompt that it begins with, and its conversation.

There are two kinds of requests that the slot is prepared for: those that name a template, and chats that name none.
Everything behind this module treats them alike.  A third kind, all other requests, has no `Asked`.

Pure values.
"""

from __future__ import annotations

from dataclasses import dataclass

from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.filling import FilledRequest
from bioproxy.prompts.learned_prompts import LearnedPrompt, whole_key
from bioproxy.prompts.prompt_shape import Key, Shape


@dataclass(frozen=True)
class Asked:
    """What a request asks the slot for."""

    prompt: str
    """The id of the prompt that it begins with: a template's name, ``auto-...``, or empty if none is known."""

    key: Key
    """What that prompt is made of.  Where none is known, the key of all that stands before the first message."""

    shape: Shape
    """What stands before the template's text or before the first user message."""

    conversation: ConversationChain
    """The conversation, to recognise earlier requests that it goes on with."""

    reusable: bool
    """Whether tokens computed earlier may serve it."""

    first_question: bool = False
    """Whether a template is named in the last message, so that no answer on it precedes the question."""

    chat: ChatRequest | None = None
    """The request, if it names no template."""

    learned: LearnedPrompt | None = None
    """The prompt, if it was learned."""

    @property
    def pinned(self) -> bool:
        """Whether the request names slot 0.  Those with templates do; all others go on as they came."""
        return self.chat is None


def asked_by_template(filled: FilledRequest) -> Asked:
    """Return what a request with templates asks for."""
    return Asked(
        filled.template.name,
        filled.key,
        filled.shape,
        filled.conversation,
        filled.reusable,
        first_question=filled.first_question,
    )


def asked_by_chat(chat: ChatRequest, learned: LearnedPrompt | None) -> Asked:
    """Return what a chat without templates asks for; `learned` is the prompt that it begins with, if one is known."""
    id, key = ("", whole_key(chat.beginning)) if learned is None else (learned.id, learned.key)
    return Asked(id, key, chat.beginning, chat.conversation, chat.reusable, chat=chat, learned=learned)
