"""Which slot file a client's own call to ``POST /slots/...`` may have llama-server write.

llama-server reads such a request in ways of its own (measured with b11549):

* Of several values of ``action`` the last one counts, and those in a body of type `application/x-www-form-urlencoded`
  come after those in the target.  The same body is read as JSON, too.
* A null character ends the JSON; whatever is behind it does not matter, as JSON.
* A multipart form is taken for JSON, field by field.
* JSON may nest as deep as it likes, where Python gives up after some thousands.

So whatever is not plainly a restore or an erase is taken for a save, and a save whose file cannot be
told for certain may have written any file.  Being wrong on this side costs a warm-up; being wrong on
the other would have a file restored that is not what the record says.

Pure functions.  Not known here: what is recorded, and what becomes of the call.
"""

from __future__ import annotations

import json
from urllib.parse import parse_qsl

from twisted.web.http_headers import Headers

from bioproxy.http.request_body import RequestBody
from bioproxy.runtime.spool import SMALL

HARMLESS = frozenset({b"restore", b"erase"})
"""Actions that write no file."""


def saved_to(target: bytes, headers: Headers, body: RequestBody) -> str | None:
    """Return the file that a request to ``/slots/...`` may have llama-server write.

    Empty where it writes none; `None` where it cannot be told whether and which.
    """
    types = b" ".join(headers.getRawHeaders(b"content-type", [])).lower()
    if body.size > SMALL:
        return None  # a name is short
    content = body.as_received()
    if is_harmless(target, content if b"urlencoded" in types else b""):
        return ""
    if b"form-data" in types or headers.hasHeader(b"content-encoding"):
        return None
    return named_in(content)


def is_harmless(target: bytes, form: bytes) -> bool:
    """Tell whether a request plainly restores or erases a slot; `form` is its body where that is a form."""
    # Not `urlsplit`: with a "#" it would read the query as it should be read, and there is no need to know who does so.
    actions = {value for key, value in parse_qsl(target.partition(b"?")[2], keep_blank_values=True) if key == b"action"}
    # JSON without an "&" is one field of a form, and the field's name is the whole JSON: no action.
    return bool(actions) and actions <= HARMLESS and b"&" not in form


def named_in(content: bytes) -> str | None:
    """Return the file that a body names, empty where it surely names none, `None` where it may name any."""
    source = content.partition(b"\0")[0]
    try:
        said = json.loads(source.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        # llama-server may still be able to read it.  But to name a file it must contain this
        # word, and only an escape with \u could hide that.
        return None if b"filename" in source or rb"\u" in source else ""
    name = said.get("filename") if isinstance(said, dict) else None
    return name if isinstance(name, str) else ""
