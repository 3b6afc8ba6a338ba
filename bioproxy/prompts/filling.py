"""Which templates a request names, and the request with them filled in.

Two steps, because waiting and reading template files lie between them.  `read` looks for known prefixes in the user's
messages, and says which templates are needed and where; `Found.fill` takes their texts and gives the new body.

*Every* user message that begins with a prefix is filled, in every turn.  A chat client sends the whole
conversation each time, with the messages as they were typed; if only the last one were filled, the first turn
would lose its long text in the second turn, and the KV cache with it.

A request may wait for long between the two steps, and there may be many that do.  So what `read` finds has no text in
it, only positions in the body, which lies where it always lay.  And the filled body is a list of *pieces*: parts of the
body as it came, and the templates' texts, which all requests share.  Nothing is copied before it is sent.

A filled request also says which *key* its beginning has (`bioproxy.prompts.prompt_shape`).  Two requests with the same
key have the same prompt up to the message, so what llama-server computed for the one can be reused for the other.  And
it says which conversations it goes on with (`bioproxy.prompts.conversation`).

Pure: bytes in, values out; `read` may run in another process (`bioproxy.runtime.worker`).  Its time and memory are
linear in the size of the body.  Knows nothing of Twisted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap

from bioproxy.prompts import json_positions
from bioproxy.prompts.api_formats import FORMS, UNGATED, Form, Said
from bioproxy.prompts.conversation import Turns
from bioproxy.prompts.digests import digest
from bioproxy.prompts.json_positions import Span
from bioproxy.prompts.prompt_shape import Key, Shape
from bioproxy.prompts.templates import Template, Text
from bioproxy.runtime.errors import BodyTooLarge, TemplateError, TooDeep

Piece = bytes | slice
"""A part of a body: bytes, or those of the body as it came that a slice (with both ends) takes."""

MOST_FILLED = 1000
"""Places that are filled in one request, at most.  Each costs some microseconds, in which nobody else is served."""

LONGEST_CONVERSATION = 4096
"""Messages of a conversation that is told from others, at most.  Each costs a fingerprint, and room for that."""


FIRST_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Match:
    """One text in the request that begins with a prefix.

    `text` is the span of the whole text, inside its quotation marks, and `message` that of what stands behind the
    prefix and the white space; both in bytes of the body, with the message spelled as JSON.  `turn` is the index of the
    message in the conversation.
    """

    template: Template
    text: Span
    message: Span
    turn: int


@dataclass(frozen=True)
class Filled:
    """A request ready to be sent.

    `pieces` make up the new body, `template` is the first template in it, `key` that of the request's beginning,
    `turns` its conversation, `shape` that of the request.  `first` tells whether the template's message is the last
    one, and not one of an earlier turn.  `reuse` is as in `Found`.
    """

    pieces: tuple[Piece, ...]
    template: Template
    key: Key
    turns: Turns
    shape: Shape
    first: bool
    reuse: bool


@dataclass(frozen=True)
class Found:
    """A request that names templates.

    `matches` is never empty, and in the order of the conversation; `size` is that of the body in bytes.  `slot` is what
    is to be put in to have the request use slot 0, and the span that it replaces; `None` for a request that uses none.
    `chain` has a fingerprint of each beginning of the conversation as it was typed, or nothing if that is too long.
    `last` is whether the first match stands in the last message.  `reuse` is false if nothing computed before is of use
    (``"cache_prompt": false``, ``"lora"``, several prompts in one request).
    """

    size: int
    matches: tuple[Match, ...]
    slot: tuple[Span, bytes] | None
    shape: Shape
    chain: tuple[str, ...]
    last: bool
    reuse: bool

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates needed, each one once."""
        return tuple(dict.fromkeys(match.template for match in self.matches))

    def fill(self, texts: Mapping[str, Text], limit: int) -> Filled:
        """Put the templates in; `texts` has one for each name in `templates`.

        Raises `BodyTooLarge` where that makes the body longer than `limit` bytes.  Copies no text.
        """
        edits: list[tuple[Span, list[Piece]]] = [
            (match.text, list(between(texts[match.template.name].spelled, slice(*match.message))))
            for match in self.matches
        ]
        if self.slot is not None:
            span, value = self.slot
            edits.append((span, [value]))
        pieces: list[Piece] = []
        done = 0
        for (begin, end), new in sorted(edits, key=lambda edit: edit[0]):
            pieces += [slice(done, begin), *new]
            done = end
        pieces.append(slice(done, self.size))
        size = sum(piece.stop - piece.start if isinstance(piece, slice) else len(piece) for piece in pieces)
        if size > limit:
            raise BodyTooLarge(f"with its templates filled the request has {size} bytes, more than {limit}")
        template = self.matches[0].template
        key = self.shape.key(texts[template.name].prefix_digest)
        turns = Turns(
            self.chain, tuple((match.turn, texts[match.template.name].digest) for match in self.matches if self.chain)
        )
        return Filled(tuple(pieces), template, key, turns, self.shape, self.last, self.reuse)


def between(parts: Sequence[bytes], message: slice) -> Iterator[Piece]:
    """Yield a template's parts with the message between each two."""
    yield parts[0]
    for part in parts[1:]:
        yield message
        yield part


def read(body: bytes | mmap, path: str, templates: Sequence[Template]) -> Found | None:
    """Look for known prefixes in what the user wrote, in the body of a request to this path.

    Returns `None` where there is none, and for a body that has not the form of such a request at all: judging it is
    llama-server's business, so it goes there as it is.  Raises `TooDeep` for JSON that Python cannot read,
    `BodyTooLarge` for one that names templates too often, and `TemplateError` for one that names a template in a form.
    """
    if path not in FORMS or not mentions(body, templates):
        return None
    found = find(path, body[:], templates)
    if found is None:
        refuse_form(body, templates)
    return found


def mentions(body: bytes | mmap, templates: Iterable[Template]) -> bool:
    """Tell whether a body may name one of the templates.  Costs little, and says no of most requests.

    It may if it has a prefix in it, as such or as JSON spells it, or one of JSON's escapes that can stand for any
    character, or for a slash: with those the same text can be spelled in many ways.
    """
    prefixes = [template.prefix for template in templates]
    spelled = {each for prefix in prefixes for each in (prefix, json.dumps(prefix, ensure_ascii=False)[1:-1])}
    looked_for = (*(each.encode("utf-8", "surrogatepass") for each in spelled), rb"\u", rb"\/")
    return bool(prefixes) and any(body.find(each) >= 0 for each in looked_for)


def refuse_form(body: bytes | mmap, templates: Iterable[Template]) -> None:
    """Raise `TemplateError` if a part of a form begins with a prefix.

    llama-server takes multipart forms for JSON, field by field, so a text in one would reach the model unfilled.
    """
    if body.find(b"form-data") < 0:
        return
    for template in templates:
        if body.find(b"\r\n\r\n" + template.prefix.encode()) >= 0:
            raise TemplateError(f"template {template.name}: can be filled in JSON only, not in a form")


def find(path: str, body: bytes, templates: Iterable[Template]) -> Found | None:
    """Read a request that may name a template; see `read`."""
    known = {template.prefix: template for template in templates}
    try:
        # llama.cpp takes a null character for the end of the JSON.
        source = body.partition(b"\0")[0].decode("utf-8-sig")
        request = json.loads(source, parse_int=json_positions.parse_int)
        if not known or not isinstance(request, dict):
            return None
        form = FORMS[path](request)
        named = [(said, template) for said in form.said if (template := named_by(said.text, known))]
        if not named:
            return None
        if len(named) > MOST_FILLED:
            raise BodyTooLarge(f"the request names templates {len(named)} times, and {MOST_FILLED} are filled at most")
        paths = [said.place for said, _ in named]
        spans = json_positions.find(source, [*paths, ("id_slot",)])
        # Slot 0 is the one whose content bioproxy cares for.
        slot = None if path in UNGATED else slot_edit(source, spans.get(("id_slot",)))
        in_bytes = Positions(source, len(body) - len(body.removeprefix(b"\xef\xbb\xbf")))
        matches = tuple(match(source, said, template, spans[said.place], in_bytes) for said, template in named)
        first = named[0][0]
        shape = form.around(first)
        # With adapters of its own a request's KV cache is not that of the model as it runs.
        reuse = form.whole and request.get("cache_prompt") is not False and not request.get("lora")
        return Found(
            len(body),
            matches,
            slot and ((in_bytes(slot[0][0]), in_bytes(slot[0][1])), slot[1]),
            shape,
            fingerprints(shape, form),
            first.turn == len(form.turns) - 1,
            reuse,
        )
    except ValueError:  # not UTF-8, or not JSON
        return None
    except RecursionError:
        raise TooDeep("the request's JSON nests too deep") from None


def named_by(text: str, known: Mapping[str, Template]) -> Template | None:
    """Return the template that a text names: a known prefix, then white space or the end.

    There is no white space in a prefix, so it is the text's first word that names one, or none.
    """
    word = FIRST_WORD.match(text)
    return known.get(word[0]) if word is not None else None


def match(source: str, said: Said, template: Template, span: Span, in_bytes: Positions) -> Match:
    """Return where a text that names a template stands, and where in it the message."""
    behind = said.text[len(template.prefix) :]
    message = behind.strip()
    # Of nothing but white space all is left out at the right.
    right = len(behind) - len(behind.rstrip())
    left = len(said.text) - right - len(message)
    begin, end = json_positions.trimmed(source, span, said.text, left, right)
    return Match(
        template,
        (in_bytes(span[0] + 1), in_bytes(span[1] - 1)),
        (in_bytes(begin), in_bytes(end)),
        said.turn,
    )


def slot_edit(source: str, span: Span | None) -> tuple[Span, bytes]:
    """Return the span of a request's source to be replaced, and by what, for it to use slot 0."""
    if span is not None:
        return span, b"0"
    at, empty = json_positions.first_member(source)
    return (at, at), b'"id_slot": 0' if empty else b'"id_slot": 0, '


def fingerprints(shape: Shape, form: Form) -> tuple[str, ...]:
    """Return a fingerprint of each beginning of a conversation, or nothing if it is too long."""
    chain: list[str] = []
    if len(form.turns) > LONGEST_CONVERSATION:
        return ()
    for message in form.turns:
        chain.append(digest(chain[-1] if chain else shape.digest, json.dumps(message)))
    return tuple(chain)


class Positions:
    """Tells where characters of a text begin in its UTF-8 bytes, in front of which there are `before` bytes more."""

    def __init__(self, text: str, before: int) -> None:
        self._text = text
        self._before = before
        self._ascii = text.isascii()
        self._known = (0, 0)

    def __call__(self, index: int) -> int:
        """Return the byte at which the character begins.  Quick if they are asked for in about their order."""
        if self._ascii:
            return self._before + index
        character, byte = self._known
        if index >= character:
            byte += len(self._text[character:index].encode())
        else:
            byte -= len(self._text[index:character].encode())
        self._known = index, byte
        return self._before + byte
