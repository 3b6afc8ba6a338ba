"""Runs the program llama-server for as long as bioproxy lives: ``python -m bioproxy.child.lifeline llama-server ...``.

A program does not end when the process that started it ends.  bioproxy's own end can be arranged (`stopService`), but
after ``kill -9``, or when the system kills bioproxy for its memory, nobody is left to end llama-server: it would keep
gigabytes of memory, and the port.  So this small process stands between the two.  Its standard input is a pipe from
bioproxy, on which nothing is ever written.  However bioproxy ends, the operating system closes that pipe, and this
process ends the program.

If this process itself is killed, Linux ends the program: a process may ask for a signal at the death of its parent
(``man 2 prctl``, ``PR_SET_PDEATHSIG``).  Elsewhere that one case is left open.

Blocking Python without Twisted, because there is nothing else to do here than to wait.  Does not know what it runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

LAST_WORDS = 5.0
"""Seconds that the program has to end by itself before it is killed.

llama-server frees its memory in well under a second.  Halved, a busy machine has it killed, which loses nothing;
doubled, a stop of bioproxy takes longer when llama-server hangs.
"""

PR_SET_PDEATHSIG = 1
"""Linux' number for "send me this signal when my parent dies" (``linux/prctl.h``)."""


def main(command: Sequence[str]) -> None:
    """Run a program until it ends or standard input does, and exit with its code.

    `command` is the program with its arguments.  The code is 128 and the signal's number if a signal ended it.
    """
    # Ctrl-C in a terminal signals all processes in it.  llama-server is still needed then, to finish the answers in
    # progress, so it gets a session of its own, and this process ignores the signals.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Python has no function for that call, but the C library has.  Loaded here, and not between `fork` and `exec`,
    # where little is safe to do.
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def follow_parent() -> None:
        """Ask Linux to kill the program if this process dies.  Called in the new process, before the program runs."""
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    # The program has no input: nobody types anything to a server, and it must not read from bioproxy's pipe.
    try:
        # Both outputs into one pipe: with two, their lines could be read in another order than they were written.
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            # A session of its own: out of reach of the terminal's signals, which llama-server would take as its end.
            start_new_session=True,
            preexec_fn=follow_parent,
        )
    except OSError as error:
        raise SystemExit(f"error: {command[0]}: {error.strerror}") from None
    # bioproxy shows this number to operators, who look for llama-server's memory and not for this process'.
    # In one write: the program writes to the same pipe, and `print` may send the end of a line by itself.
    sys.stdout.write(f"process {program.pid}\n")
    sys.stdout.flush()

    def end_with_parent() -> None:
        """Wait for the end of standard input, and end the program.  Runs in a thread, as both are waited for."""
        # Without Python's own stream, whose lock would be held by this thread when the process exits.
        while os.read(0, 1024):
            pass
        # Politely at first: llama-server then frees the memory of a graphics card itself.
        program.terminate()
        try:
            program.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            program.kill()

    # Two things are waited for, and whichever comes first ends the other: the thread ends the program, and the
    # program's end is the end of this process, with the thread in it.
    threading.Thread(target=end_with_parent, daemon=True).start()
    code = program.wait()
    # A signal as shells tell it, since only a number can be handed on.
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
