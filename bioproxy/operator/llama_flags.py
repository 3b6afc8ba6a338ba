"""llama-server's flags, where it runs on this machine and Linux shows its command line.

Over HTTP llama-server tells little of how it was started: not the size of its batches, and not whether it keeps all of
a sliding window's past.  But on the same machine anybody can read its command line under ``/proc``, and its model's
file names a sliding window near its beginning.  Flags that came from its environment (``LLAMA_ARG_...``) are not seen,
and a llama-server in a container, with another port inside, is not found; then nothing is known.

Plain, blocking, and quick: a few milliseconds.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "llama-server"
USUAL_PORT = "8080"
"""Where llama-server listens without ``--port``."""

HEAD = 1 << 20
"""Bytes at the beginning of a model's file to look through: what describes the model comes first."""

UINT32 = 4
"""GGUF's number for the type of a plain whole number."""


def command_line(port: int, model: str | None, proc: Path = Path("/proc")) -> tuple[str, ...] | None:
    """Return the arguments of the llama-server on this machine that listens on `port` and runs `model`.

    `None` where none is seen, or more than one.
    """
    found = []
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            program, *arguments = file.read_bytes().decode(errors="surrogateescape").rstrip("\0").split("\0")
        except OSError:  # it has just ended
            continue
        theirs = value(arguments, "-m", "--model")
        other_model = theirs is not None and model is not None and Path(theirs).name != Path(model).name
        its_port = value(arguments, "--port") or USUAL_PORT
        if PROGRAM in Path(program).name and its_port == str(port) and not other_model:
            found.append(tuple(arguments))
    return found[0] if len(found) == 1 else None


def value(arguments: Sequence[str], *names: str) -> str | None:
    """Return what follows the last of these options, or `None`."""
    places = [place for place, word in enumerate(arguments[:-1]) if word in names]
    return arguments[places[-1] + 1] if places else None


def sliding_window(model: str | None) -> int | None:
    """Return how many tokens a model's sliding window has; `None` where it has none, or its file cannot be read."""
    # The name comes from llama-server.  Opening a pipe, say, would wait for somebody to write into it.
    if model is None or not os.path.isfile(model):
        return None
    try:
        with open(model, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    # GGUF: a key, the type of its value, its value.
    found = re.search(rb"\.attention\.sliding_window" + struct.pack("<I", UINT32) + rb"(.{4})", head, re.DOTALL)
    return (struct.unpack("<I", found[1])[0] or None) if found else None
