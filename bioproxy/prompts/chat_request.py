"""A chat request that names no template, reduced to what decides which KV cache can serve it.

A client that knows nothing of templates still sends the same beginning again and again: its system message and its
tools.  And with each question it sends the whole conversation so far.  So there are two things that a KV cache
computed earlier may fit to, and a `ChatRequest` has a digest for each:

* The **beginning** is everything before the first message of the user.  It is a `Shape`, the same form that stands
  around a template's text, and the three chat APIs are converted into it in the same way.  A client that uses two APIs,
  or two clients with the same instructions and tools, have the same beginning.
* The **conversation** is a chain of digests of all messages (`bioproxy.prompts.conversation`).  It is seeded with the
  digest of the beginning: the same messages behind another system message make another prompt.

Where the beginning ends is a choice.  The first user message is the first thing that is certainly different in the next
conversation.  Everything before it was written by the client's programmer, and is the same for all of its users.

The request's bytes are not part of this.  They are sent on as they arrived, and nothing here can refuse a request.  For
the same reason a result of `None` is no error: it means that bioproxy has nothing to offer for this request.

This module is pure and does not know the APIs.  It runs in the second process for large bodies, so a `ChatRequest` can
be pickled, and is small: texts of the conversation are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.digests import digest
from bioproxy.prompts.parsed_request import ParsedRequest
from bioproxy.prompts.prompt_shape import Shape

LONGEST_CONVERSATION = 4096
"""Messages of a conversation that is recognised again, at most.

Each message costs one digest of 64 characters.  A longer conversation is still answered, and its templates are filled.
But only its template is found in the slot, not the conversation, and a request without a template is not read at all.
Doubled, a request may cost 0.5 MB more while it waits; halved, conversations of over 2048 messages are evaluated from
the template on.
"""


@dataclass(frozen=True)
class ChatRequest:
    """A chat request that names no template, reduced to what decides which KV cache can serve it.

    Can be pickled.  Has at most some hundred kilobytes, however large the request is: a beginning of more than
    `LARGEST_SHAPE` characters is only a digest.

    Invariant: two requests with equal beginnings have the same prompt tokens up to the first user message, on the same
    model.  `message_digests` is not empty.
    """

    beginning: Shape
    """Everything before the first user message: system and developer messages, tools, and the fields that change the
    prompt.  Nothing of the user message is in it, not even its other fields, such as ``name``.

    `Shape.may_be_kept` tells whether it consists of instructions only: an assistant's greeting may stand there, too.
    """

    message_digests: tuple[str, ...]
    """A digest of each beginning of the conversation, seeded with the digest of `beginning`; see `digest_messages`."""

    marked: bool
    """Whether the client marks the beginning as worth keeping, by Anthropic's ``cache_control``."""

    has_tools: bool
    """Whether the beginning has tools.  Clients with tools are agents: they send many requests with this beginning."""

    reusable: bool
    """Whether a KV cache computed earlier, in slot 0, may serve this request; see `may_reuse`.

    Unlike a request with a template, this one is not moved to slot 0: its bytes stay as they are.  So it may not reuse
    anything either if it asks for another slot.
    """

    instructions: int = 0
    """How many of the messages stand before the first one of a user."""

    adapters: bool = False
    """Whether the request has LoRA adapters of its own; see `has_adapters`."""

    @property
    def conversation(self) -> ConversationChain:
        """The conversation, to recognise the earlier requests that this one continues."""
        return ConversationChain(self.message_digests, instructions=self.instructions)


def read_chat(request: Mapping[str, Any], parsed: ParsedRequest) -> ChatRequest | None:
    """Return what decides about reuse for a request that names no template.

    `request` is the request as Python values, and `parsed` is what its API says about it.  Returns `None` if there is
    nothing to go by: no user message, too many messages, or values that nest too deep to be written again.
    """
    # Without a user message it is unknown where the beginning ends.  A conversation of too many messages would have no
    # digests, and so no identity that a file could be recorded under.
    if parsed.first_user_message is None or len(parsed.messages) > LONGEST_CONVERSATION:
        return None
    # From some versions on Python can parse values that are nested deeper than those that it can write.  A request that
    # names no template need not be understood, so this is no reason to refuse it.
    try:
        beginning = parsed.beginning()
        # Both digests are computed here, in the second process if the body is large, and not where they are used: a
        # `cached_property` is pickled with its object, once it was asked for.
        digests = digest_messages(beginning, parsed)
    except RecursionError:
        return None
    # -1 means any slot.  With one slot that is slot 0, and with several llama-server takes the most similar one.
    # `json` gives `True` for a true, which is 1 for Python and for llama-server.
    here = request.get("id_slot") in (None, 0, -1)
    reusable = here and may_reuse(request, parsed)
    return ChatRequest(
        beginning,
        digests,
        parsed.marked,
        parsed.has_tools,
        reusable,
        instructions=parsed.first_user_message,
        adapters=has_adapters(request),
    )


def may_reuse(request: Mapping[str, Any], parsed: ParsedRequest) -> bool:
    """Tell whether a KV cache computed earlier may serve a request.

    It may not if the client forbids that (``"cache_prompt": false``), if the request changes the model (``"lora"``), or
    if the request does not contain its one prompt completely (`ParsedRequest.self_contained`).
    """
    return parsed.self_contained and request.get("cache_prompt") is not False and not has_adapters(request)


def has_adapters(request: Mapping[str, Any]) -> bool:
    """Tell whether a request has LoRA adapters of its own: it computes other keys and values for the same tokens."""
    return bool(request.get("lora"))


def digest_messages(beginning: Shape, parsed: ParsedRequest) -> tuple[str, ...]:
    """Return a digest of each beginning of the conversation: of the first message, the first two, and so on.

    Each digest covers the one before, and the first one covers what precedes the first user message: another system
    message makes another conversation, although its messages are the same.  Empty if there are more messages than
    `LONGEST_CONVERSATION`.
    """
    # The seed must not depend on which messages name templates: a conversation whose second question names the first
    # template would get another chain than its own first question had.  What stands around a template's text in its
    # message, and the messages before, are in the chain as messages.
    chain: list[str] = []
    if len(parsed.messages) > LONGEST_CONVERSATION:
        return ()
    # The digests are kept for as long as the request waits, and of the last conversation for longer.
    #
    # `json.dumps` gives equal texts for equal messages, whatever white space and escapes the client used.  A client
    # that sends an earlier message with other keys, or in another order, begins another conversation: it may be one.
    # Only what certainly never reaches the prompt is left out, which depends on the API.
    for message in parsed.messages:
        # The digest before stands for all earlier messages, so the time is linear: each message is read once.
        chain.append(digest(chain[-1] if chain else beginning.digest, json.dumps(parsed.in_prompt(message))))
    return tuple(chain)
