"""What a request asks the slot for: the prompt that it begins with, and its conversation.

There are two kinds of requests that the slot is prepared for: those that name a template, and chats that name none.
Everything behind this module treats them alike: the slot, the explanation of misses, the headers.  A third kind, all
other requests (embeddings, plain prompts without a template), has no `Asked`.

An `Asked` is made inside the gate and not when the request arrives.  A template's text may change while the request
waits, and the prompt that a chat begins with may be learned then.  Once made it never changes, so the proxy can keep it
over each ``await`` until the answer has ended.

Pure values; does not know HTTP, nor what the slot holds.
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
    """What a request asks the slot for.

    Invariant: `learned` is only set where `chat` is, and `prompt` is then its id.
    """

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

    adapters: bool = False
    """Whether the request has LoRA adapters of its own."""

    @property
    def pinned(self) -> bool:
        """Whether the request names slot 0.  Those with templates do; all others go on as they came."""
        # A llama-server with several slots may choose another one for those that do not.  What slot 0 holds afterwards
        # has to be looked up then (`SlotContent.as_it_is`).
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
        adapters=filled.adapters,
    )


def asked_by_chat(chat: ChatRequest, learned: LearnedPrompt | None) -> Asked:
    """Return what a chat without templates asks for; `learned` is the prompt that it begins with, if one is known."""
    # The key of a whole prompt is that of each request on it, so a prompt that is learned between two requests of one
    # conversation does not make the second one look like another conversation's.
    id, key = ("", whole_key(chat.beginning)) if learned is None else (learned.id, learned.key)
    return Asked(
        id,
        key,
        chat.beginning,
        chat.conversation,
        chat.reusable,
        chat=chat,
        learned=learned,
        adapters=chat.adapters,
    )
