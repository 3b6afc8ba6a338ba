"""Where the log goes, and in which of the two formats.

In Twisted, a part that logs makes an *event*: a dict with a sentence and the values in it.  *Observers* get every event
of the process, Twisted's own included, and write them where they like.  twistd brings an observer for text.  An
application may name another one, as its *component* `ILogObserver`, and then twistd leaves everything to that observer:
what a line looks like, and also which file the lines go to.

So this module repeats twistd's rules for the file: ``--logfile`` if given, rotated at 1 MB and at SIGUSR1, and standard
output in the foreground.  What a line looks like is decided in `bioproxy.runtime.text_log` and
`bioproxy.runtime.json_log`; when an observer is installed, in `bioproxy.runtime.root_service`.

Does not know what the events say.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from typing import Any

from twisted.logger import FileLogObserver
from twisted.python.logfile import LogFile

from bioproxy.runtime.json_log import json_line
from bioproxy.runtime.text_log import text_line

FORMATS = {"text": text_line, "json": json_line}
"""The values of the setting `log_format`, with the function that turns an event into what is written."""

DAEMONS_FILE = "twistd.log"
"""The log file of a daemon without ``--logfile``, in the working folder: the same as twistd's own default."""


def leaves_it_to_us(twistd: Mapping[str, Any]) -> bool:
    """Tell whether the application may choose the observer.

    `twistd` are the options before the word ``bioproxy``.  With ``--syslog`` and ``--logger`` the user has chosen one,
    and that choice wins.  ``python -m twisted`` (the command ``twist``) has other options, no daemons, and a
    ``--log-format`` of its own, and asks no application for an observer: it has no option ``nodaemon``.
    """
    return "nodaemon" in twistd and not twistd.get("syslog") and not twistd.get("logger")


def log_observer(log_format: str, twistd: Mapping[str, Any], reactor: Any) -> FileLogObserver:
    """Return an observer that writes in `log_format` to where twistd's options say.

    To be called before the process becomes a daemon, because a daemon may have another working folder and a relative
    file name means the present one.  Raises `SystemExit` for a daemon that is to log to standard output, and for a file
    that cannot be written.
    """
    formatter = FORMATS[log_format]
    name = twistd.get("logfile")
    if twistd.get("nodaemon") and name in (None, "", "-"):
        return FileLogObserver(sys.stdout, formatter)
    if name == "-":
        raise SystemExit("bioproxy: a daemon cannot log to standard output")
    # The folder may be missing, or belong to another user.
    try:
        file = LogFile.fromFullPath(name or DAEMONS_FILE)
    except OSError as error:
        raise SystemExit(f"bioproxy: the log file {error.filename} cannot be written: {error.strerror}") from None
    # A signal interrupts the main thread anywhere, also in the middle of writing a line.  `callFromThread` has the
    # reactor rotate the file between two events instead.  A handler that somebody else installed is left alone.
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
    return FileLogObserver(file, formatter)
