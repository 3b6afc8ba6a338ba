"""The APIs whose requests may name templates: which path belongs to which, and how to read its requests.

llama-server speaks four: OpenAI's chat completions, OpenAI's responses, Anthropic's messages, and plain prompts.  The
two that need no conversion are read here; `openai_responses` and `anthropic_messages` read the others.

Internally llama-server knows only chat completions.  It converts messages and responses into that form first
(llama.cpp, tools/server/server-chat.cpp).  The same conversion is done here for everything that stands before a
template, as far as the prompt depends on it.  So a template that was warmed up for one API is warm for the others: with
the same instructions and tools they give the same prompt.  Answers and tool calls of earlier turns are not converted.
Where such a history precedes the template, the shape is only compared with shapes of the same API.

Each function returns closures and values only.  It does not copy texts, and it does the conversion only when somebody
asks for a shape, because most requests name no template.  Two shapes can be asked for.  One is around a user's text
that names a template.  The other is the *beginning*: everything before the first user message, which is what
conversations of the same client have in common where no template is named.  Both are made by the same conversion, so
that a template that stands alone in the first user message can share a KV cache with that beginning.

The functions are pure and never fail: what is not understood contains no user texts, and is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable

from bioproxy.prompts.anthropic_messages import parse_messages
from bioproxy.prompts.json_positions import Path
from bioproxy.prompts.openai_responses import parse_responses
from bioproxy.prompts.parsed_request import (
    Object,
    ParsedRequest,
    UserText,
    first_user_message,
    list_items,
    user_texts_in,
)
from bioproxy.prompts.prompt_shape import PLAIN_PROMPT, Shape


def parse_chat(request: Object) -> ParsedRequest:
    """Read a request of OpenAI's chat completions, the form into which the other two APIs are converted.

    Nothing is converted: llama-server hands these messages and tools to the chat template as they are.
    """
    # Nothing is known about the types in the request; a value of another type counts as an empty list.
    messages = list_items(request.get("messages"))
    # Where the beginning ends.  `None` slices like the end of the list: then all messages are before it.
    first = first_user_message(messages)

    # A closure: it keeps the request, so that code that asks for a shape later does not have to know the API.
    def shape_around(text: UserText) -> Shape:
        return Shape.of_chat_request(request, text.path)

    # The beginning is a shape like the one around a text, with nothing of the user's message in it.  `Shape.of` takes
    # those of the request's fields that can change the prompt.
    return ParsedRequest(
        tuple(user_texts_in("messages", messages, "text")),
        messages,
        shape_around,
        beginning=lambda: Shape.of(messages[:first], {}, [], request),
        first_user_message=first,
        # What is no list is not written into a prompt as tools.
        has_tools=bool(list_items(request.get("tools"))),
    )


def parse_prompt(request: Object) -> ParsedRequest:
    """Read a request with a plain prompt: a text, an object with a text (``prompt_string``), or a list of these.

    A prompt may also be a list of tokens, or of tokens and texts.  Those are written by programs, which know nothing of
    templates, and a text between tokens need not begin where a word begins.  They contain no user texts, but a text
    that stands beside such a prompt, in a list of several prompts, is one.
    """
    given = request.get("prompt")
    prompts = given if isinstance(given, list) else [given]
    # One number in the list is enough to make it a single prompt of tokens.
    if any(isinstance(each, int | float) for each in prompts):
        prompts = []
    # The path mirrors how the client wrote the prompt, because the text is replaced right there.
    texts = []
    for index, each in enumerate(prompts):
        path: Path = ("prompt", index) if isinstance(given, list) else ("prompt",)
        # The object's other fields are images or sounds, to which markers in the text refer.
        if isinstance(each, dict):
            path, each = (*path, "prompt_string"), each.get("prompt_string")
        if isinstance(each, str):
            texts.append(UserText(path, each, index))
    # A plain prompt has no messages and no chat template, so its shape is always the same.  It has no beginning of its
    # own either: nothing in the text tells where the part ends that another request may share.
    # Several prompts in one request become several tasks, and llama-server chooses the order and the slots.
    return ParsedRequest(
        tuple(texts),
        tuple(prompts),
        shape_around=lambda text: PLAIN_PROMPT,
        beginning=lambda: PLAIN_PROMPT,
        self_contained=len(prompts) == 1,
    )


# Most paths occur twice in this table, since llama-server's older names have no version in front.  A path is compared
# as a whole and without its query, as `bioproxy.http.targets.path_of` gives it.
#
# To support another path, add it here; if it uses the slot, also to `bioproxy.http.targets.GATED`.
FORMATS: dict[str, Callable[[Object], ParsedRequest]] = {
    "/v1/chat/completions": parse_chat,
    "/chat/completions": parse_chat,
    "/v1/messages": parse_messages,
    "/v1/responses": parse_responses,
    "/responses": parse_responses,
    "/completion": parse_prompt,
    "/completions": parse_prompt,
    "/v1/completions": parse_prompt,
    # These compute nothing.  They show a request's prompt or count its tokens, so they have to see the filled one.
    "/apply-template": parse_chat,
    "/v1/chat/completions/input_tokens": parse_chat,
    "/chat/completions/input_tokens": parse_chat,
    "/v1/messages/count_tokens": parse_messages,
    "/v1/responses/input_tokens": parse_responses,
    "/responses/input_tokens": parse_responses,
}
"""The paths whose requests may name templates, and the function that reads these requests.

llama-server serves most of them with and without ``/v1``.  A path that is missing here is a mistake that users notice:
their prefix reaches the model unfilled.
"""

UNGATED = frozenset(path for path in FORMATS if path == "/apply-template" or path.endswith("_tokens"))
"""Those of the paths that do not use the slot.

Their requests are filled without waiting at the gate, and get no ``id_slot``.
"""

GATED_CHATS = frozenset(path for path, parse in FORMATS.items() if parse is not parse_prompt) - UNGATED
"""Those of the paths that take a conversation and use the slot.

Only their requests have a beginning that can be learned: a plain prompt has nothing that tells where its beginning
ends, and a request that uses no slot has no KV cache.  Counting paths would teach the same beginnings once more, and
their clients' requests are no use of a prompt.
"""
