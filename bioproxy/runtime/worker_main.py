"""The child process that reads large requests for `bioproxy.runtime.worker`.

It is started as ``python -m bioproxy.runtime.worker_main``.
Its standard input is a Unix socket.  A question is a file descriptor with, behind it, the function to run and its
further arguments; the answer is what the function returned or raised.  Plain, blocking Python: there is nobody else
here to be kept waiting.  It ends when the socket is closed, and so with bioproxy, however that ends.
"""

from __future__ import annotations

import array
import gc
import os
import pickle
import resource
import socket
import struct
import sys
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from typing import Any

from bioproxy.runtime.errors import ProxyError, TooComplex

NICE = 10
"""How much the process steps back where processors are short: everybody else is served by the one that started it."""

LENGTH = struct.Struct("!I")
"""The length in front of each message, as Twisted's `Int32StringReceiver` writes it."""


def main() -> None:
    """Answer questions until there are no more."""
    limit_memory(int(sys.argv[1]))
    os.nice(NICE)
    # Nothing that is made here refers to itself in a circle, and looking for circles is what makes parsing slow.
    gc.disable()
    line = socket.socket(fileno=0)
    while question := receive(line):
        descriptor, function, args = question
        answer = run(function, descriptor, args)
        line.sendall(LENGTH.pack(len(answer)) + answer)


def run(function: Any, descriptor: int, args: tuple[Any, ...]) -> bytes:
    """Return what the function returns or raises, pickled, with whether it succeeded."""
    try:
        with mmap(descriptor, 0, access=ACCESS_READ) as view:
            return pickle.dumps((True, function(view, *args)))
    except MemoryError:
        return pickle.dumps((False, TooComplex("reading the request took more memory than is allowed")))
    except ProxyError as error:
        return pickle.dumps((False, error))
    finally:
        os.close(descriptor)


def receive(line: socket.socket) -> tuple[int, Any, tuple[Any, ...]] | None:
    """Return the next question: descriptor, function and arguments; `None` at the end."""
    data, descriptors = b"", array.array("i")
    while len(data) < LENGTH.size or len(data) < LENGTH.size + LENGTH.unpack(data[: LENGTH.size])[0]:
        more, passed, _, _ = socket.recv_fds(line, 1 << 16, 1)
        if not more:
            return None
        data += more
        descriptors.extend(passed)
    function, args = pickle.loads(data[LENGTH.size :])
    return descriptors[0], function, args


def limit_memory(size: int) -> None:
    """Let this process use so many bytes at most, where the operating system can do that."""
    with suppress(ValueError, OSError):  # macOS, for one, knows the limit and refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
