"""Finds the templates that a request names: which texts of the user begin with a known prefix, and where they are.

`bioproxy.prompts.request_search` asks this module twice for each request:

1. Does the body contain a prefix anywhere, as bytes?  A search at memory speed, without parsing (`may_name_template`).
2. Only if it does, and after the JSON was parsed: which user texts begin with a prefix (`find_templates`)?

For example, in the request ``{"messages": [{"role": "user", "content": "@code why?"}]}`` the text at
``("messages", 0, "content")`` names the template with the prefix ``@code``, and its message is ``why?``.  The result
contains the byte positions of both, which is all that filling needs.

The rule behind the details: a text that names a template never reaches the model unfilled.  So the first answer may be
a yes that turns out to be a no, but never the other way round, however a client spells its JSON.  And what cannot be
filled is refused: more texts than `MOST_FILLED`, and a multipart form with a prefix in it, which is no JSON.

This module is pure: it gets bytes and values and returns a value that can be pickled.  Its time and memory are linear
in the size of the body, also for a body that was made to be slow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from mmap import mmap

from bioproxy.prompts import json_positions
from bioproxy.prompts.api_formats import UNGATED
from bioproxy.prompts.chat_request import digest_messages, has_adapters, may_reuse
from bioproxy.prompts.filling import Match, NamedTemplates
from bioproxy.prompts.json_positions import ByteOffsets, Span
from bioproxy.prompts.parsed_request import ParsedRequest, UserText
from bioproxy.prompts.templates import Template
from bioproxy.runtime.errors import BodyTooLarge, TemplateError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""The bytes that some editors write at the beginning of a UTF-8 text.

Python drops them while decoding (``utf-8-sig``), so all positions in the text are counted from behind them.
"""

MOST_FILLED = 1000
"""Texts that are filled in one request, at most.

Filling one costs some microseconds in the reactor's thread.  Doubled, the worst request delays all others by twice as
much (some milliseconds); halved, a long conversation that names a template in each message is refused after 500
messages.
"""

FIRST_WORD = re.compile(r"\S+")
"""All up to the first white space, which is what may be a prefix.  No match at white space.

White space is what Python and Unicode call so, with the no-break space that some editors and web pages insert.
"""


def may_name_template(body: bytes | mmap, templates: Iterable[Template]) -> bool:
    r"""Tell whether a body may name one of the templates.  Quick, and false for most requests that name none.

    In a JSON string a prefix stands as it is, or with JSON's short escapes (``\"`` for a quotation mark).  There are
    two more ways to write it, which this function does not decode: ``\u0040`` can stand for any character, and ``\/``
    for a slash.  A body with one of these *may* name a template, and parsing it decides.
    """
    # Prefixes are printable, so JSON has no other short escapes for their characters, and two spellings are enough:
    # the prefix itself, and the prefix with `"` and `\` escaped.  `bytes.find` needs no copy of the body.
    prefixes = [template.prefix for template in templates]
    written = {each for prefix in prefixes for each in (prefix, json.dumps(prefix, ensure_ascii=False)[1:-1])}
    needles = (*(each.encode("utf-8", "surrogatepass") for each in written), rb"\u", rb"\/")
    return bool(prefixes) and any(body.find(each) >= 0 for each in needles)


def refuse_multipart_form(body: bytes | mmap, templates: Iterable[Template]) -> None:
    """Raise `TemplateError` if a field of a multipart form begins with a prefix.

    llama-server accepts multipart forms and turns them into JSON, field by field.  Templates are not filled there, so
    the prefix would reach the model as it is.  An empty line separates a field's headers from its value.
    """
    if body.find(b"form-data") < 0:
        return
    # The body is not parsed as a form.  The search may find the same bytes in the middle of a field's value, and then
    # it refuses a request that it could have passed on.  That is the safe side, and forms are rare.
    for template in templates:
        if body.find(b"\r\n\r\n" + template.prefix.encode()) >= 0:
            raise TemplateError(f"template {template.name}: can be filled in JSON only, not in a form")


def find_templates(
    path: str,
    body: bytes,
    source: str,
    request: dict[str, object],
    parsed: ParsedRequest,
    templates: Iterable[Template],
) -> NamedTemplates | None:
    """Return the templates that a parsed request names, or `None` if it names none.

    `source` is the body as text, `request` the same as Python values, and `parsed` what its API says about it.  Raises
    `BodyTooLarge` if templates are named more than `MOST_FILLED` times, and `RecursionError` as `json` does.
    """
    by_prefix = {template.prefix: template for template in templates}
    named = [(text, template) for text in parsed.user_texts if (template := named_by(text.text, by_prefix))]
    if not named:
        return None
    # Refused, not filled partly: a prefix that stays in the text would reach the model.
    if len(named) > MOST_FILLED:
        raise BodyTooLarge(f"the request names templates {len(named)} times, and {MOST_FILLED} are filled at most")
    return locate(path, body, source, request, parsed, named)


def locate(
    path: str,
    body: bytes,
    source: str,
    request: dict[str, object],
    parsed: ParsedRequest,
    named: Sequence[tuple[UserText, Template]],
) -> NamedTemplates:
    """Return where in the body each text that names a template stands, and what else filling it needs.

    `source` is the body as text, `request` the same as Python values, `parsed` what its API says about it, and `named`
    the texts with their templates.
    """
    # All positions are looked up in one pass.  One pass for each message would make the time quadratic in their number.
    # ``id_slot`` is looked up as well, because an existing value has to be replaced; a second key would be ambiguous.
    spans = json_positions.find(source, [*(text.path for text, _ in named), ("id_slot",)])
    to_bytes = ByteOffsets(source, len(body) - len(body.removeprefix(BYTE_ORDER_MARK)))
    matches = tuple(locate_match(source, text, template, spans[text.path], to_bytes) for text, template in named)

    # A request that computes nothing gets no `id_slot`, so that it is changed as little as possible.
    # bioproxy saves and restores slot 0 only, so a filled request must run there, whatever slot it asks for.
    slot_edit = None
    if path not in UNGATED:
        span, value = use_slot_0(source, spans.get(("id_slot",)))
        slot_edit = to_bytes.span(span), value

    # Only the first text decides about reuse.  A KV cache can be reused up to the first different token, and the first
    # template's text is the longest beginning that requests on it have in common.
    # The prompt's beginning is that of the first text: what follows it has no influence on the tokens before.
    first, _ = named[0]
    return NamedTemplates(
        size=len(body),
        matches=matches,
        slot_edit=slot_edit,
        shape=parsed.shape_around(first),
        message_digests=digest_messages(parsed.beginning(), parsed),
        instructions=parsed.first_user_message or 0,
        first_question=first.message_index == len(parsed.messages) - 1,
        reusable=may_reuse(request, parsed),
        adapters=has_adapters(request),
    )


def named_by(text: str, by_prefix: Mapping[str, Template]) -> Template | None:
    """Return the template that a text names, or `None`.

    A text names a template if it begins with the prefix, followed by white space or the end.  A prefix contains no
    white space.  So the first word of the text is the prefix, or there is none; one look into a dict decides, and the
    longest prefix wins without any sorting (``@code-review`` is another word than ``@code``).
    """
    # `match` looks at the beginning only.  White space there means that the text does not begin with a prefix.
    word = FIRST_WORD.match(text)
    return by_prefix.get(word[0]) if word is not None else None


def locate_match(source: str, text: UserText, template: Template, span: Span, to_bytes: ByteOffsets) -> Match:
    """Return where a text and the message in it stand, in bytes; `span` is the text's in `source`, in characters."""
    # The decoded text tells how many characters to skip at both ends, and `trimmed` translates that into positions in
    # the source, where a character may be written as an escape of up to twelve characters.
    behind_prefix = text.text[len(template.prefix) :]
    message = behind_prefix.strip()
    # If there is nothing but white space behind the prefix, all of it counts as the white space at the right.
    right = len(behind_prefix) - len(behind_prefix.rstrip())
    left = len(text.text) - right - len(message)
    message_span = json_positions.trimmed(source, span, text.text, left, right)
    inside_quotes = (span[0] + 1, span[1] - 1)
    return Match(template, to_bytes.span(inside_quotes), to_bytes.span(message_span), text.message_index)


def use_slot_0(source: str, span: Span | None) -> tuple[Span, bytes]:
    """Return what to replace, in characters of a request's `source`, and by what, so that the request uses slot 0.

    `span` is that of the value of ``id_slot``, or `None` if the request has none; then the field is inserted in front.
    Without this field llama-server takes the slot whose content is most similar to the prompt, or the one that was used
    least recently.  With a restored slot 0 that would usually be slot 0 too, but not certainly.
    """
    # An existing value is replaced whatever it is: ``-1`` means any slot, and slot 3 has not been restored.
    if span is not None:
        return span, b"0"
    at, empty = json_positions.first_member(source)
    return (at, at), b'"id_slot": 0' if empty else b'"id_slot": 0, '
