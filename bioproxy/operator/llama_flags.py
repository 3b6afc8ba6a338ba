"""Finds llama-server's flags, if it runs on this machine and Linux shows its command line.

Over HTTP llama-server reports little about how it was started: not the size of its batches, and not whether it keeps
the whole past of a sliding window.  On the same machine, every user can read its command line under ``/proc``, and the
beginning of its model's file says whether the model has a sliding window.

Some flags stay unknown: those from its environment (``LLAMA_ARG_...``), and those of a llama-server in a container,
which may have another port inside.  Then these functions return `None`, and no advice is given.

Plain functions that block for a few milliseconds, without Twisted.  Does not know what a flag means for bioproxy;
`bioproxy.operator.advice` does.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
"""Hosts in `llama_url` that are known to mean this machine.

Others may lead here, too, such as the machine's own name.  Then llama-server's flags are not looked for.
"""

PROGRAM = "llama-server"
"""What the program's file name contains."""

USUAL_PORT = "8080"
"""The port that llama-server listens on without ``--port``."""

HEAD = 1 << 20
"""Bytes at the beginning of a model's file that are searched.

The keys that describe a model come before the vocabulary and the weights, in the first kilobytes.  Half of it would
still be enough; twice as much takes longer to read and finds nothing more.
"""

UINT32 = 4
"""GGUF's number for the type of a plain whole number."""


def leads_here(url: str) -> bool:
    """Tell whether the address of a llama-server is known to lead to this machine."""
    return urlsplit(url).hostname in THIS_MACHINE


def command_line(port: int, model: str | None, proc: Path = Path("/proc")) -> tuple[str, ...] | None:
    """Return the arguments of the llama-server on this machine that listens on `port` and runs `model`.

    `model` is the path that llama-server reports, `None` if it reports none.  Returns `None` if no such process is
    seen, or more than one: then it is unknown which of them answers.
    """
    # Linux shows each process as a folder with its id as the name; in `cmdline` the arguments are separated by zeros.
    found = []
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            program, *arguments = file.read_bytes().decode(errors="surrogateescape").rstrip("\0").split("\0")
        except OSError:  # the process has just ended
            continue
        # Only the file's name is compared: llama-server may have been given a relative path or a link.
        theirs = value(arguments, "-m", "--model")
        other_model = theirs is not None and model is not None and Path(theirs).name != Path(model).name
        its_port = value(arguments, "--port") or USUAL_PORT
        if PROGRAM in Path(program).name and its_port == str(port) and not other_model:
            found.append(tuple(arguments))
    return found[0] if len(found) == 1 else None


def value(arguments: Sequence[str], *names: str) -> str | None:
    """Return the word behind the last of the options `names`, or `None`.

    The last one, because for llama-server it wins over those before it.
    """
    places = [place for place, word in enumerate(arguments[:-1]) if word in names]
    return arguments[places[-1] + 1] if places else None


def sliding_window(model: str | None) -> int | None:
    """Return how many tokens a model's sliding window has; `None` if it has none, or its file cannot be read."""
    # The path comes from llama-server and may be anything.  Opening a named pipe would block until somebody writes
    # into it, and the whole proxy with it.
    if model is None or not os.path.isfile(model):
        return None
    try:
        with open(model, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    # In GGUF's binary format a key is followed by the type of its value (4 bytes) and the value (here 4 bytes, too).
    # Searching for the key is enough; a proper reader would have to decode everything that stands before it.
    found = re.search(rb"\.attention\.sliding_window" + struct.pack("<I", UINT32) + rb"(.{4})", head, re.DOTALL)
    return (struct.unpack("<I", found[1])[0] or None) if found else None
