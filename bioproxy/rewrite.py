"""Which templates a request names, and the request with them filled in.

Two steps, because reading template files lies between them: `find` looks for known prefixes in the user's
messages and says which templates are needed; `Found.fill` takes their texts and gives the new body.  Before both stands
`mentions`, which tells of most requests, at little cost, that they name none.

*Every* user message that begins with a prefix is filled, in every turn.  A chat client sends the whole
conversation each time, with the messages as they were typed; if only the last one were filled, the first turn
would lose its long text in the second turn, and the KV cache with it.

A filled request also says which *key* its beginning has (`bioproxy.shape`).  Two requests with the same key have the
same prompt up to the message, so what llama-server computed for the one can be reused for the other.  And it says
which conversations it goes on with (`bioproxy.conversation`).

Pure: bytes in, bytes out.  Knows nothing of Twisted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from bioproxy import jsonedit
from bioproxy.conversation import Turns
from bioproxy.digests import digest
from bioproxy.errors import BodyTooLarge, TemplateError, TooDeep
from bioproxy.forms import FORMS, Said
from bioproxy.shape import Key, Shape
from bioproxy.templates import Template, Text


@dataclass(frozen=True)
class Match:
    """One text in the request that begins with a prefix, and the message behind the prefix."""

    said: Said
    template: Template
    message: str


@dataclass(frozen=True)
class Filled:
    """A request ready to be sent.

    `body` is the new body, `template` the first template in it, `key` that of the request's beginning, `turns` its
    conversation, `shape` that of the request.  `first` tells whether the template's message is the last one, and not
    one of an earlier turn.  `reuse` is as in `Found`.
    """

    body: bytes
    template: Template
    key: Key
    turns: Turns
    shape: Shape
    first: bool
    reuse: bool


@dataclass(frozen=True)
class Found:
    """A request that names templates.

    `matches` is never empty, and in the order of the conversation; `messages` has a fingerprint of each message as it
    was typed; `reuse` is false if nothing computed before is of use (``"cache_prompt": false``, ``"lora"``, several
    prompts in one request).
    """

    source: str
    matches: tuple[Match, ...]
    shape: Shape
    messages: tuple[str, ...]
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
            match.said.place: texts[match.template.name].fill(match.message) for match in self.matches
        }
        # Slot 0 is the one whose content bioproxy cares for.
        values["id_slot",] = 0
        template = self.matches[0].template
        try:
            body = jsonedit.replace(self.source, values).encode()
        except RecursionError:
            raise TooDeep("the request's JSON nests too deep") from None
        first = self.matches[0].said.turn == len(self.messages) - 1
        key = self.shape.key(texts[template.name].prefix_digest)
        return Filled(body, template, key, self._turns(texts), self.shape, first, self.reuse)

    def _turns(self, texts: Mapping[str, Text]) -> Turns:
        """Return the fingerprints of the conversation: of its messages and of the texts that they are filled with."""
        chain, link = [], self.shape.digest
        for index, message in enumerate(self.messages):
            filled_with = [texts[match.template.name].digest for match in self.matches if match.said.turn == index]
            link = digest(link, message, *filled_with)
            chain.append(link)
        return Turns(tuple(chain))


def mentions(body: bytes | mmap, templates: Iterable[Template]) -> bool:
    """Tell whether a body may name one of the templates.

    It may if it has a prefix in it, as such or as JSON spells it, or one of JSON's escapes that can stand for any
    character, or for a slash: with those the same text can be spelled in many ways.
    """
    prefixes = [template.prefix for template in templates]
    spelled = {each for prefix in prefixes for each in (prefix, json.dumps(prefix, ensure_ascii=False)[1:-1])}
    looked_for = (*(each.encode("utf-8", "surrogatepass") for each in spelled), rb"\u", rb"\/")
    return bool(prefixes) and any(body.find(each) >= 0 for each in looked_for)


def refuse_form(body: bytes, templates: Iterable[Template]) -> None:
    """Raise `TemplateError` if a part of a form begins with a prefix.

    llama-server takes multipart forms for JSON, field by field, so a text in one would reach the model unfilled.
    """
    for template in templates:
        if b"\r\n\r\n" + template.prefix.encode() in body and b"form-data" in body:
            raise TemplateError(f"template {template.name}: can be filled in JSON only, not in a form")


def find(path: str, body: bytes, templates: Iterable[Template]) -> Found | None:
    """Look for known prefixes in what the user wrote, in a request to this path.

    Returns `None` where there is none, and for a body that has not the form of such a request at all: judging it is
    llama-server's business, so it goes there as it is.  Raises `TooDeep` for JSON that Python cannot read.
    """
    known = tuple(templates)
    if not known or path not in FORMS:
        return None
    try:
        # llama.cpp takes a null character for the end of the JSON.
        source = body.decode("utf-8-sig").partition("\0")[0]
        request = json.loads(source, parse_int=jsonedit.parse_int)
        if not isinstance(request, dict):
            return None
        form = FORMS[path](request)
        candidates = (match_prefix(said, known) for said in form.said)
        matches = tuple(match for match in candidates if match is not None)
        if not matches:
            return None
        messages = tuple(digest(json.dumps(message)) for message in form.turns)
        shape = form.around(matches[0].said)
        # With adapters of its own a request's KV cache is not that of the model as it runs.
        reuse = form.whole and request.get("cache_prompt") is not False and not request.get("lora")
        return Found(source, matches, shape, messages, reuse)
    except ValueError:  # not UTF-8, or not JSON
        return None
    except RecursionError:
        raise TooDeep("the request's JSON nests too deep") from None


def match_prefix(said: Said, known: Iterable[Template]) -> Match | None:
    """Return what the text names: a known prefix, then white space or the end.

    There is no white space in a prefix, so of ``@code`` and ``@code-review`` at most one matches: the longest that can.
    """
    for template in known:
        rest = said.text.removeprefix(template.prefix)
        if said.text.startswith(template.prefix) and (not rest or rest[0].isspace()):
            return Match(said, template, rest.strip())
    return None
