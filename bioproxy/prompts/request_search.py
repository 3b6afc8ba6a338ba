"""Reads a request's body: which templates it names, or else what decides which KV cache can serve it.

There are three answers.  A request that names templates is a `NamedTemplates`: it will be filled, so it must be
understood.  Another chat request may be a `ChatRequest`: it is sent on byte for byte, and reading it only tells what
can be reused.  Everything else is `None`.  The steps are ordered by cost, because most requests must not pay for the
last:

1. Is the path one whose requests are read at all?  A look into a dict.
2. Does the body contain a prefix anywhere, or is it a chat that is long enough to be learned from?  A search at memory
   speed and a comparison, without parsing.
3. Only then the JSON is parsed, once for both purposes.

What the two kinds owe to the client is different.  **A text that names a template never reaches the model unfilled.**
llama-server accepts some bodies that Python's JSON parser rejects, so this module has to understand them as well, or to
refuse them:

* a byte-order mark in front of the JSON, or a null character behind it: understood;
* whole numbers with thousands of digits: understood;
* a key that is given twice: the last one counts, as in llama.cpp;
* values that nest deeper than Python can parse: refused;
* multipart forms: refused if they name a template.

**A body that cannot name a template is never refused**, whatever is in it.  A body that is not a request at all is
passed on unchanged as well: llama-server's own error message is the best one.

Parsing JSON holds Python's global interpreter lock, so in a thread it would stop Twisted's reactor just the same.
Therefore large bodies are read in a second *process* (`bioproxy.runtime.worker`).  That is possible because this module
is pure: it gets bytes and values and returns a value that can be pickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from mmap import mmap

from bioproxy.prompts import json_positions
from bioproxy.prompts.api_formats import FORMATS, GATED_CHATS
from bioproxy.prompts.chat_request import ChatRequest, read_chat
from bioproxy.prompts.filling import NamedTemplates
from bioproxy.prompts.template_search import find_templates, may_name_template, refuse_multipart_form
from bioproxy.prompts.templates import Template
from bioproxy.runtime.errors import TooDeep


def read_request(
    body: bytes | mmap, path: str, templates: Sequence[Template], least: int | None
) -> NamedTemplates | ChatRequest | None:
    """Return what is known about a request: the templates that it names, or a chat without any.

    `body` is the request's body, in memory or as a mapped file; `path` is the request's path; `templates` are those
    that the operator has configured.  `least` is the number of bytes below which a chat that names no template is not
    read; `None` if no such chat is read.

    Returns `None` for everything else, and for a body that is not a request of this API.  Only for a body that may name
    a template this raises `TooDeep` for JSON that Python cannot parse, `BodyTooLarge` for a request that names
    templates more than `MOST_FILLED` times, and `TemplateError` for a multipart form that names one.
    """
    if not may_be_read(path, len(body), templates, least):
        return None
    # A body without any prefix is searched for none: then nothing in it can be a reason to refuse the request.
    known = templates if may_name_template(body, templates) else ()
    learn = is_learned_from(path, len(body), least)
    if not known and not learn:
        return None
    # The worker process gets a large body as a mapped file, which the operating system reads page by page.
    # `body[:]` copies a mapped file into memory.  Only needed from here on: the search above reads the mapping itself.
    found = search_json(path, body[:], known, learn)
    if not isinstance(found, NamedTemplates):
        refuse_multipart_form(body, known)
    return found


def may_be_read(path: str, size: int, templates: Sequence[Template], least: int | None) -> bool:
    """Tell whether `read_request` may find anything in a body of `size` bytes, without looking into it.

    For the reactor: a body for which this is false need not be handed to another process at all.
    """
    return path in FORMATS and (bool(templates) or is_learned_from(path, size, least))


def is_learned_from(path: str, size: int, least: int | None) -> bool:
    """Tell whether a chat without a template, whose body has `size` bytes, is read.  `least` is as in `read_request`.

    A token stands for one byte at least.  So a body of fewer bytes than the number of tokens that are worth a file
    cannot contain so many, and need not be parsed for that.
    """
    return least is not None and size >= least and path in GATED_CHATS


def search_json(
    path: str, body: bytes, templates: Sequence[Template], learn: bool = False
) -> NamedTemplates | ChatRequest | None:
    """Parse a request, and return the templates that it names; or, if `learn`, the chat that it is.

    Raises as `read_request`.  All errors of parsing are handled here, because Python's parser raises them from several
    places: while decoding the bytes, while parsing, and, from some versions on, first when the deeply nested values are
    written again.
    """
    try:
        # llama.cpp ignores a byte-order mark in front, and takes a null character for the end of the JSON.
        # `parse_int`: a number with thousands of digits is an error in Python, but not in llama.cpp.
        source = body.partition(b"\0")[0].decode("utf-8-sig")
        request = json.loads(source, parse_int=json_positions.parse_int)
        if not isinstance(request, dict):
            return None
        parsed = FORMATS[path](request)
        found = find_templates(path, body, source, request, parsed, templates) if templates else None
    except ValueError:
        # Not UTF-8, or not JSON.  `UnicodeDecodeError` and `JSONDecodeError` are both a `ValueError`.
        return None
    except RecursionError:
        # llama.cpp parses deeper nesting than Python does.  So the request cannot be passed on as if it named nothing,
        # unless it certainly names nothing.
        if templates:
            raise TooDeep("the request's JSON nests too deep") from None
        return None
    # Behind the `try`: that a chat cannot be read must not look like a template that cannot be filled.
    return read_chat(request, parsed) if found is None and learn else found
