"""Why llama.cpp ended, in one sentence for an operator.

llama.cpp tells its reasons in its log only: it has one exit code for all of them, and a line such as "failed to load
model" follows each.  So the last lines are searched for the phrases below, in order of how much a phrase explains: the
first that is found anywhere wins.  Where none is found, the last line that llama.cpp itself calls an error is quoted;
without such a line, only the exit code or the signal is left.

The phrases were collected from real failures (build b11549 in the wheel; ``tests/child/test_failure_reasons.py`` has
the lines), and llama-server prints the same ones, since both have them from the same code.

Such a list is never complete, and the next version of llama.cpp may word its errors in another way.  That costs only
the quality of one sentence: whether a start has failed, and when the next try comes, is decided by what the process
does (`bioproxy.child.life`), and never by its words.

Pure: a function of lines.  Does not know when or how the process was started.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

PHRASES = (
    # llama-server's own reader of flags, and ours for the wheel.  Both end before anything else is tried.
    (r"error: (?:invalid argument: |unrecognized arguments: )(\S+)", "llama_args: llama.cpp does not know {0}"),
    (r"error while handling argument \"(\S+)\": (.*)", "llama_args: {0}: {1}"),
    # The port is opened before the model is loaded, so this comes within a moment.  bioproxy looks at the port before,
    # but another program may be faster.
    (
        r"couldn't bind HTTP server socket, hostname: (\S+), port: (\d+)",
        "port {1} is in use by another program; bioproxy chooses another one when it is restarted without --port",
    ),
    # What is wrong with the file.  These come before the lines about memory, because llama.cpp tries to fit a model
    # into memory first, and reports any failure of that, too.
    (r"invalid magic characters", "the model is not a GGUF file"),
    (r"data is not within the file bounds", "the model's file is incomplete: was its download interrupted?"),
    (r"this GGUF file is version (\d+) but .* supports up to version (\d+)", "the model's GGUF version is not known"),
    (r"unknown model architecture: '?([^']+)'?", "this llama.cpp does not know the model's architecture {0}"),
    (r"failed to open GGUF file|failed to open (?:model )?file", "the model's file cannot be opened"),
    # Not enough memory.  For the context, the next line is the one that says so, and lines about memory in general
    # stand before it; hence the order here.  A graphics card has messages of its own, with the same words.
    (
        r"failed to allocate buffer for kv cache",
        'the context does not fit in memory: a smaller one is set by llama_args ["-c", "8192"], for example',
    ),
    (
        r"failed to allocate compute (?:pp )?buffers|insufficient memory|failed to allocate .*buffer|out of memory"
        r"|bad_alloc|[Cc]annot allocate memory",
        'there is not enough memory: take a smaller model, or a smaller context (llama_args ["-c", "8192"])',
    ),
    (r"error loading model: (.*)", "the model cannot be loaded: {0}"),
)
"""What llama.cpp writes, as regular expressions, and what that means.  In a meaning, {0} is the first group."""

ERROR = re.compile(r"^(?:[\d.]+ E |error: |.*\berror:)\s*(.*)")
"""A line that llama.cpp marks as an error; before the letter it writes the time since its start.

The other two forms are those of our own processes (`bioproxy.child.wheel_server`, `bioproxy.child.lifeline`) and of
builds whose log has no such letter.
"""

ENDING = re.compile(r"exiting due to|Failed to init server|cleaning up before exit")
"""Lines that follow each failure and explain none.

Without this list, each unknown failure would be told as "exiting due to model loading error".
"""


def failure_reason(lines: Sequence[str], code: int | None, killed_by: int | None) -> str:
    """Return why a process ended.

    `lines` are the last ones that it wrote, oldest first.  `code` is its exit code, `None` if a signal ended it, whose
    number is `killed_by`; both are `None` if there was no process at all.
    """
    # A shell's way to say that a signal ended a program; `bioproxy.child.lifeline` does the same.
    if killed_by is None and code is not None and code > 128:
        killed_by = code - 128
    # Before anything that was written: no process can hinder this signal or say anything about it, so its last lines
    # are about something else.  Mostly the system has sent it.
    if killed_by == signal.SIGKILL:
        return "it was killed (SIGKILL): the system does that if memory runs out"
    # As one text: each phrase is searched in all lines before the next phrase, since order is importance here.
    text = "\n".join(lines)
    for phrase, meaning in PHRASES:
        if found := re.search(phrase, text):
            return meaning.format(*found.groups())
    # Nothing that is known.  The last error is the nearest to the end, but for those that follow each failure.  It is
    # in llama.cpp's own words, which are better than none.
    said = [found[1] for line in lines if (found := ERROR.match(line)) and not ENDING.search(line)]
    last = f": {said[-1]}" if said else ""
    if killed_by is not None:
        return f"it was ended by the signal {signal_name(killed_by)}{last}"
    return f"it could not be started{last}" if code is None else f"it ended with exit code {code}{last}"


def signal_name(number: int) -> str:
    """Return a signal's name, such as SIGABRT; its number if this system has no such signal."""
    # Most of llama.cpp's own failures are SIGABRT, from a failed assertion in C++.
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
