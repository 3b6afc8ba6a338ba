"""What the child process is asked to do in tests."""

from __future__ import annotations

import os
import signal
import sys
import time
from mmap import mmap

from bioproxy.runtime.errors import BodyTooLarge


def measure(view: mmap, factor: int) -> tuple[int, int]:
    """Return the number of the process, and the length of the file so many times."""
    return os.getpid(), len(view) * factor


def refuse(view: mmap) -> None:
    """Refuse every request."""
    raise BodyTooLarge(f"{len(view)} bytes are too many")


def make_a_mistake(view: mmap) -> None:
    """Fail as no function should."""
    raise ZeroDivisionError


def take_memory(view: mmap) -> int:
    """Take more memory than there is."""
    return len(bytearray(1 << 40))


def be_killed(view: mmap) -> None:
    """Be killed, as by the operating system."""
    os.kill(os.getpid(), signal.SIGKILL)


def take_time(view: mmap) -> None:
    """Never end."""
    while True:
        pass


def wait(view: mmap, seconds: float) -> int:
    """Do nothing for so long, as a process that gets no processor, or waits for a disk."""
    time.sleep(seconds)
    return len(view)


def complain(view: mmap) -> int:
    """Write to standard error."""
    print("something is odd", file=sys.stderr, flush=True)
    return len(view)
