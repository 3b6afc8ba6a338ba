"""A real llama.cpp server in a process of its own: ``python -m bioproxy.child.wheel_server --model FILE``.

The wheel `xllamacpp` has llama.cpp's server as a Python extension.  It runs in a child process and not in bioproxy's
own, because llama.cpp ends its *process* when it fails hard (a failed assertion in C++ is not an exception), and
because a process can be killed and started again.

The child lives as long as its standard input is open, a pipe that the parent never writes to.  When the parent ends,
however hard (``kill -9`` included), the operating system closes the pipe, the child reads its end and ends too.  No
process is left behind, and no process id has to be stored.

Blocking Python without Twisted: llama.cpp serves in threads of its own, and the main thread only waits for that end.
Does not know the rest of bioproxy, but for the flags (`bioproxy.child.wheel_flags`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from bioproxy.child.wheel_flags import KEY_VARIABLE, assign, parsed

LOG, FLUSH = "_Z15common_log_mainv", "_Z16common_log_flushP10common_log"
"""The functions `common_log_main()` and `common_log_flush(common_log *)` of llama.cpp, as C++ names them in the wheel.

The first returns the process's log, the second returns when all of that log is written.
"""


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input ends; `arguments` are those that the program llama-server would get.

    Prints the process id at once, and ``listening on URL`` when requests are answered.
    """
    # Both outputs into one pipe: with two, their lines could be read in another order than they were written.
    if not sys.stdin.isatty():
        os.dup2(1, 2)
    try:
        values = parsed(arguments)
        # A flag wins over the variable, as for llama-server.
        if key := os.environ.get(KEY_VARIABLE):
            values.setdefault("api_keys", key.split(","))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    # Ctrl-C in a terminal, and closing the terminal, signal all processes in it, this one too.  But the parent still
    # needs llama.cpp then, to finish the answers in progress; it closes the pipe when it is done.  Somebody who runs
    # this by hand has a terminal as standard input, and ends it with Ctrl-C.
    if not sys.stdin.isatty():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    print(f"process {os.getpid()}", flush=True)

    # Imported late: loading the extension takes a moment, and a mistake in the flags is told without it.
    import xllamacpp  # type: ignore[import-untyped]

    params = xllamacpp.CommonParams()
    assign(params, values)
    # Returns when the model is loaded and the port is open.  Why it failed is in llama.cpp's log, which is on standard
    # error; the exception says nothing more.
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        flush_log()
        raise SystemExit(f"error: {error}") from None
    code = 1
    try:
        # Fails if the parent was killed while the model was loaded: nobody reads the pipe any more.
        with suppress(BrokenPipeError):
            print(f"listening on {server.listening_address}", flush=True)
            # Blocks until the parent closes the pipe or is gone.
            sys.stdin.buffer.read()
        code = 0
    except Exception as error:
        # A wheel that is not as this module knows it, for example.  `os._exit` alone would not say a word about it.
        print(f"error: {error!r}", file=sys.stderr, flush=True)
    finally:
        # Not `sys.exit`, nor the end of an exception, which would wait for the C++ threads: an answer in progress may
        # take minutes.
        os._exit(code)


def flush_log() -> None:
    """Return when all lines that llama.cpp has logged so far are written.  Does nothing in a build that cannot do that.

    llama.cpp hands its lines to a thread that writes them.  The end of the process does not wait for this thread, so on
    a busy machine the last lines, which say why a start has failed, would be lost now and then.
    """
    # The extension is loaded already, and its path leads to the same library.  ctypes knows functions by the names that
    # the linker uses; those of C++ have the types of their parameters in them, so another signature is another name.
    library = ctypes.CDLL(sys.modules["xllamacpp.xllamacpp"].__file__)
    if hasattr(library, LOG) and hasattr(library, FLUSH):
        log = library[LOG]
        # A pointer, which is more than the `int` that ctypes takes for granted.
        log.restype = ctypes.c_void_p
        library[FLUSH](ctypes.c_void_p(log()))


if __name__ == "__main__":
    main(sys.argv[1:])
