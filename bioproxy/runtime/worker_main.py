"""The child process that reads large requests for `bioproxy.runtime.worker`.

It is started as ``python -m bioproxy.runtime.worker_main MEMORY``.  Its standard input is one end of a pair of Unix
sockets.  A question is a file descriptor, the function to run and its further arguments; the answer is what the
function returned or raised.  Messages are pickled, with their length in front.

This is plain, blocking Python without Twisted: the process has one question at a time and nothing else to do.  It ends
when the socket is closed, and so it ends with bioproxy, also when bioproxy is killed.

Does not know what the functions do.  Their modules are imported when the first question names them.
"""

from __future__ import annotations

import array
import gc
import os
import pickle
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from typing import Any

from bioproxy.runtime.errors import ProxyError, TooComplex

NICE = 10
"""How far the process lowers its own priority, from 0 to 19.

Where processors are short, bioproxy's own process comes first, which serves all other requests, and llama-server.  With
5 the child would take noticeably more of a single core; with 19 large requests could starve under load.
"""

LENGTH = struct.Struct("!I")
"""The length in front of each message: 4 bytes, the highest first, as Twisted's `Int32StringReceiver` writes it."""

PIECE = 1 << 16
"""Bytes to read from the socket at a time.  Questions are far shorter, so the size makes no difference."""


def main() -> None:
    """Answer questions until bioproxy closes the socket."""
    # Ctrl-C, the end of a terminal, and systemd signal all processes of a group, this one too.  But bioproxy then first
    # finishes the requests in progress, for which this process is still needed; it closes the socket when it is done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    limit_memory(int(sys.argv[1]))
    os.nice(NICE)
    # Python's garbage collector looks for objects that refer to each other in a circle.  Decoded JSON has none, but it
    # has millions of objects, and looking at all of them again and again takes most of the time of parsing.
    gc.disable()
    # Descriptor 0 is standard input: `socket` finds out by itself what kind of socket it is.
    line = socket.socket(fileno=0)
    while question := receive(line):
        # A question may allocate much.  What it allocated is given back before the next one, because nothing keeps it.
        descriptor, function, args, seconds = question
        # Counted by the system, and only while this process computes: on a busy machine it waits for a processor most
        # of the time.  The signal that comes then ends the process, whatever it does; no Python code could, in the
        # middle of a long call into C.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = run(function, descriptor, args)
        signal.setitimer(signal.ITIMER_PROF, 0)
        line.sendall(LENGTH.pack(len(answer)) + answer)


def run(function: Any, descriptor: int, args: tuple[Any, ...]) -> bytes:
    """Return what the function returns or raises, pickled, with whether it succeeded.

    The descriptor is closed in any case.  Other exceptions than these are bugs: they end the process, and bioproxy logs
    the traceback.
    """
    try:
        # The body is mapped into memory instead of read, so its pages count as the operating system's file cache.
        with mmap(descriptor, 0, access=ACCESS_READ) as view:
            return pickle.dumps((True, function(view, *args)))
    # Raised when the limit is reached.  What failed is usually a large allocation, so there is room for this small one.
    except MemoryError:
        return pickle.dumps((False, TooComplex("reading the request took more memory than is allowed")))
    # An error that the client is told about, such as `TooDeep`.  `pickle` stores its class and its arguments.
    except ProxyError as error:
        return pickle.dumps((False, error))
    # The parent has its own copy of the descriptor.  Without this one closed, the file's disk space would stay in use.
    finally:
        os.close(descriptor)


def receive(line: socket.socket) -> tuple[int, Any, tuple[Any, ...], float] | None:
    """Return the next question: descriptor, function, arguments, and the seconds of a processor that it may take.

    `None` when the socket was closed.
    """
    data, descriptors = b"", array.array("i")
    # A stream of bytes has no messages in it, so a question may come in several pieces.  The descriptor comes along
    # with the first of them; the kernel has made a copy of it that belongs to this process.
    while len(data) < LENGTH.size or len(data) < LENGTH.size + LENGTH.unpack(data[: LENGTH.size])[0]:
        more, passed, _, _ = socket.recv_fds(line, PIECE, 1)
        if not more:
            return None
        data += more
        descriptors.extend(passed)
    function, args, seconds = pickle.loads(data[LENGTH.size :])
    return descriptors[0], function, args, seconds


def limit_memory(size: int) -> None:
    """Let this process use `size` bytes of memory at most, where the operating system can limit that.

    Over the limit, an allocation fails and Python raises `MemoryError`, or C code ends the process.
    """
    with suppress(ValueError, OSError):  # macOS, for one, knows this limit but refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
