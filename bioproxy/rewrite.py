"""Which templates a chat request names, and the request with them filled in.

Two steps, because reading template files lies between them: `find` looks for known prefixes in the user's
messages and says which templates are needed; `Found.fill` takes their texts and gives the new body.

*Every* user message that begins with a prefix is filled, in every turn.  A chat client sends the whole
conversation each time, with the messages as they were typed; if only the last one were filled, the first turn
would lose its long text in the second turn, and the KV cache with it.

A filled request also says which *key* its beginning has.  Two requests with the same key have the same prompt
up to the message, so what llama-server computed for the one can be reused for the other.  The key is a digest
of the prefix text and of its *shape*: all that the chat template puts before it, such as a system message or
tool definitions.

Pure: bytes in, bytes out.  Knows nothing of Twisted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bioproxy import jsonedit
from bioproxy.errors import BodyTooLarge, TooDeep
from bioproxy.templates import Template, Text, digest

CHAT_PATHS = frozenset({"/v1/chat/completions", "/chat/completions"})
"""Where requests of this form go."""

SHAPING = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "json_schema", "chat_template_kwargs")
"""Fields besides the messages that chat templates put into the prompt (llama.cpp, common/chat.cpp)."""


@dataclass(frozen=True)
class Match:
    """One text in the request that begins with a prefix: where it stands, and the message behind the prefix."""

    place: jsonedit.Path
    template: Template
    message: str


@dataclass(frozen=True)
class Filled:
    """A request ready to be sent.

    `body` is the new body, `template` the first template in it, `key` that of the request's beginning, and `bare_key`
    the key that the same template has in a request with nothing else.  `reuse` is as in `Found`.
    """

    body: bytes
    template: Template
    key: str
    bare_key: str
    reuse: bool


@dataclass(frozen=True)
class Found:
    """A request that names templates.

    `matches` is never empty, and in the order of the conversation; `reuse` is false if the client wants everything
    computed anew (``"cache_prompt": false``).
    """

    source: str
    matches: tuple[Match, ...]
    shape: str
    reuse: bool

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates needed, each one once."""
        return tuple(dict.fromkeys(match.template for match in self.matches))

    def fill(self, texts: Mapping[str, Text], limit: int) -> Filled:
        """Put the templates in; `texts` has one for each name in `templates`.

        Raises `BodyTooLarge` where that would make the body longer than `limit` characters, and `TooDeep`.
        """
        # Counted before it is made: a small request with many turns can name a large template many times.
        filled = sum(texts[match.template.name].length(match.message) for match in self.matches)
        if len(self.source) + filled > limit:
            raise BodyTooLarge(f"with its templates filled the request is larger than {limit} characters")
        values: dict[jsonedit.Path, Any] = {
            match.place: texts[match.template.name].fill(match.message) for match in self.matches
        }
        # Slot 0 is the one whose content bioproxy cares for.
        values["id_slot",] = 0
        first = self.matches[0].template
        try:
            body = jsonedit.replace(self.source, values).encode()
        except RecursionError:
            raise TooDeep("the request's JSON nests too deep") from None
        prefix = texts[first.name].prefix
        return Filled(body, first, prefix_key(prefix, self.shape), prefix_key(prefix), self.reuse)


def find(body: bytes, templates: Iterable[Template]) -> Found | None:
    """Look for known prefixes in the user messages of a chat request.

    Returns `None` where there is none, and for a body that is not a chat request at all: judging it is
    llama-server's business, so it goes there as it is.  Raises `TooDeep` for JSON that Python cannot read.
    """
    known = tuple(templates)
    if not known:
        return None
    try:
        # llama.cpp takes a null character for the end of the JSON.
        source = body.decode("utf-8-sig").partition("\0")[0]
        request = json.loads(source)
        candidates = (match_prefix(place, text, known) for place, text in user_texts(request))
        matches = tuple(match for match in candidates if match is not None)
        if not matches:
            return None
        return Found(source, matches, shape(request, matches[0].place), request.get("cache_prompt") is not False)
    except ValueError:  # not UTF-8, or not JSON
        return None
    except RecursionError:
        raise TooDeep("the request's JSON nests too deep") from None


def user_texts(request: Any) -> Iterator[tuple[jsonedit.Path, str]]:
    """Yield place and text of everything that the user wrote, whatever else is wrong with the request."""
    messages = request.get("messages") if isinstance(request, dict) else None
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            yield ("messages", index, "content"), content
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
                yield ("messages", index, "content", number, "text"), part["text"]


def match_prefix(place: jsonedit.Path, text: str, known: Iterable[Template]) -> Match | None:
    """Return what the text names: a known prefix, then white space or the end.

    There is no white space in a prefix, so of ``@code`` and ``@code-review`` at most one matches: the longest that can.
    """
    for template in known:
        rest = text.removeprefix(template.prefix)
        if text.startswith(template.prefix) and (not rest or rest[0].isspace()):
            return Match(place, template, rest.strip())
    return None


def shape(request: dict[str, Any], place: jsonedit.Path) -> str:
    """Return what reaches the chat template before the text at `place`, as text that can be compared.

    Fields that are absent, null or empty are the same to a chat template, so they look the same here.
    """
    _, index, _, *part = place
    assert isinstance(index, int)
    messages = request["messages"]
    around = {name: value for name, value in messages[index].items() if name not in ("role", "content")}
    before = messages[index]["content"][: part[0]] if part else []
    fields = {name: request[name] for name in SHAPING if request.get(name) not in (None, "", [], {})}
    return json.dumps([messages[:index], around, before, fields], sort_keys=True)


BARE = shape({"messages": [{"role": "user", "content": ""}]}, ("messages", 0, "content"))
"""The shape of a request with nothing but a user's message: the one that warm-ups are made for."""


def prefix_key(prefix: str, shape: str = BARE) -> str:
    """Return the key of a prompt that begins with `shape` and goes on with the text `prefix`."""
    return digest(shape, prefix)
