"""The log as JSON: with ``log_format`` ``json`` each event is one object on a line of its own, for programs.

In Twisted whoever has something to say makes an *event*, a dict with a text and the values in it.  *Observers* get
every event, whoever said it, and write it where they like.  twistd brings an observer that writes text.  An application
may name another one, as its *component* `ILogObserver`; `bioproxy.service` does so, and then twistd leaves to it where
the log goes, too.  So that is here as well, with the same rules: what ``--logfile`` says, rotated at its size and at
SIGUSR1, and in the foreground standard output.

Twisted has a JSON observer of its own.  It writes all that an event carries, so that it can be read back into Python;
here are the few things that somebody looks for.  Nothing a client sends can break a line: JSON has escapes for line
ends, and all that is not ASCII is written as escapes too.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from twisted.logger import FileLogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.logfile import LogFile

DAEMONS_FILE = "twistd.log"
"""Where a daemon's log goes that was told nothing else, as with twistd's own."""


def leaves_it_to_us(twistd: Mapping[str, Any]) -> bool:
    """Tell whether these options are twistd's, and do not say themselves how to log.

    Its sister ``twist`` knows no daemons, and asks no application how to log.
    """
    return "nodaemon" in twistd and not twistd.get("syslog") and not twistd.get("logger")


def json_observer(twistd: Mapping[str, Any], reactor: Any) -> FileLogObserver:
    """Return an observer that writes JSON to where twistd's options say.

    Called before the process becomes a daemon: relative names start at the working folder.
    """
    name = twistd.get("logfile")
    if twistd.get("nodaemon") and name in (None, "", "-"):
        return FileLogObserver(sys.stdout, json_line)
    if name == "-":
        raise SystemExit("bioproxy: a daemon cannot log to standard output")
    file = LogFile.fromFullPath(name or DAEMONS_FILE)
    if not signal.getsignal(signal.SIGUSR1):
        # A signal comes in the middle of anything, a line that is being written too; the reactor finds a good moment.
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return FileLogObserver(file, json_line)


def json_line(event: LogEvent) -> str:
    """Return an event as one line: when, how serious, who says it, what, and the `fields` that it has.

    A failure has its `traceback`, too.
    """
    when = datetime.fromtimestamp(event.get("log_time", 0), timezone.utc)
    level = event.get("log_level", LogLevel.info)
    line: dict[str, Any] = {
        "time": when.isoformat(timespec="milliseconds"),
        "level": level.name,
        "system": event.get("log_system") or event.get("log_namespace", "-"),
        "message": formatEvent(event),
        **event.get("fields", {}),
    }
    if "log_failure" in event:
        line["traceback"] = event["log_failure"].getTraceback()
    # Half of a surrogate pair, of a file name that is not UTF-8, would be an escape that not every reader accepts.
    return json.dumps({key: plain(value) for key, value in line.items()}) + "\n"


def plain(value: Any) -> Any:
    """Return numbers as they are, anything else as text that has a place in UTF-8."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode(errors="backslashreplace").decode()
