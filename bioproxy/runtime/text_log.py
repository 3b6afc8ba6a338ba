"""The log as text, for people: time, level, the part that speaks, and the sentence.

::

    2026-03-01T12:00:00+0000 info  requests: 843b94bb7916 /v1/chat/completions 200 template=code cache=restored ...
    2026-03-01T12:00:07+0000 warn  llama: llama-server at http://127.0.0.1:8080: it refuses connections ...

Twisted's own text observer writes ``[bioproxy.proxy.request_log.RequestLog#info]`` in the middle: the *namespace*,
which is the module and class that own the `Logger`.  Programmers look for that, and the JSON format has it as
``system``.  A user gets the name of the part instead: the module's name, or the more usual word in `PARTS`.  Events
from outside bioproxy have the name of the package that they come from, mostly ``twisted``.

Only public pieces of `twisted.logger` are used.  Where the lines go is decided in `bioproxy.runtime.log_output`.
"""

from __future__ import annotations

from functools import cache

from twisted.logger import LogEvent, LogLevel, eventAsText, formatTime

PARTS = {
    "child": "llama",
    "child.process_output": "llama.cpp",
    "llama.process_watch": "llama",
    "operator.inspection": "llama",
    "prompts.template_poller": "templates",
    "proxy.request_log": "requests",
    "runtime.spool": "requests",
    "slot": "slot",
    "slot_files": "slot",
    "warmup.attempts": "warmer",
    "warmup.warmup": "warmer",
}
"""Names of parts that a user knows better than the module's name: of one module, or of all modules in a folder.

A module that is missing here is called by its own name.
"""

LEGACY = "log_legacy"
"""The namespace of events from `twisted.python.log`, Twisted's older way to log, which some of Twisted still uses."""

WIDTH = 5
"""Characters that a level is padded to, so that most sentences begin in about the same column."""


def text_line(event: LogEvent) -> str | None:
    """Return an event as one line, and more for a traceback; `None` for an event without text.

    Further lines begin with a tab, also those of a text with line ends in it: what begins without one is an event.
    """
    # Time and system are left out here because Twisted's own have another form.  It appends a traceback.
    text = eventAsText(event, includeTimestamp=False, includeSystem=False).rstrip("\n")
    if not text:
        return None
    # `log_level` is an object with a name; `log_time` is in seconds since 1970.
    # Legacy events are dicts that anybody may have filled: some have neither a time nor a level.
    level = event.get("log_level") or LogLevel.info
    head = f"{formatTime(event.get('log_time'))} {level.name:{WIDTH}} {part(event.get('log_namespace') or LEGACY)}: "
    return (head + text).replace("\n", "\n\t") + "\n"


@cache
def part(namespace: str) -> str:
    """Return the short name of the part that has a `Logger` of this namespace.

    A namespace is a module's name, mostly with that of a class behind it: ``bioproxy.proxy.request_log.RequestLog``.
    """
    # Each line of the log needs it, so it is found once for each namespace.  There are as many of these as there are
    # loggers in the code, so the cache does not grow.
    package, *inner = namespace.split(".")
    if package == LEGACY:
        return "twisted"
    # A `Logger` in a class has module and class as its namespace, one in a module only the module.
    modules = [each for each in inner if each.islower()]
    if package != "bioproxy" or not modules:
        return package
    # The module's own entry comes before that of its folder.
    return PARTS.get(".".join(modules)) or PARTS.get(modules[0], modules[-1])
