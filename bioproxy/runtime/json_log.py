"""The log as JSON, for programs: each event is one object on a line of its own.

Twisted has a JSON formatter too (`eventAsJSON`).  It writes all that an event carries, so that the event can be read
back into Python: dozens of keys with names that only Twisted uses.  Here an object has what somebody searches for:
``time``, ``level``, ``system`` and ``message``, the event's own values under plain names, and a failure's
``traceback``.

An event's values are those that a part passed as ``fields``; `bioproxy.proxy.request_log` does so for each request.
Nothing that a client sends can break a line: JSON escapes line ends, and `json.dumps` escapes all that is not ASCII.

Does not know where the lines go; that is decided in `bioproxy.runtime.log_output`.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from twisted.logger import LogEvent, LogLevel, formatEvent


def json_line(event: LogEvent) -> str:
    """Return an event as one line: ``time`` (ISO 8601, UTC), ``level``, ``system``, ``message`` and its `fields`.

    ``system`` is the module and class that logged.  A failure has its ``traceback``, too.
    """
    # Legacy events are dicts that anybody may have filled: some have neither a time nor a level.
    when = datetime.fromtimestamp(event.get("log_time", 0), timezone.utc)
    level = event.get("log_level", LogLevel.info)
    line: dict[str, Any] = {
        "time": when.isoformat(timespec="milliseconds"),
        "level": level.name,
        # `log_system` is what legacy events have instead of a namespace.
        "system": event.get("log_system") or event.get("log_namespace", "-"),
        "message": formatEvent(event),
        **event.get("fields", {}),
    }
    # In the same line, with escaped line ends, so that a program finds it with the event that it belongs to.
    if "log_failure" in event:
        line["traceback"] = event["log_failure"].getTraceback()
    return json.dumps({key: plain(value) for key, value in line.items()}) + "\n"


def plain(value: Any) -> Any:
    r"""Return numbers, booleans and `None` as they are, and anything else as text that can be encoded in UTF-8.

    Python keeps bytes of a file name that are no UTF-8 as halves of surrogate pairs.  JSON can spell those, but many
    readers reject them, so they become escapes like ``\udcff``.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode(errors="backslashreplace").decode()
