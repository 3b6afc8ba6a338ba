"""Starts one process with llama.cpp.

`reactor.spawnProcess` returns at once: Twisted forks, and what becomes of the process is told to its protocol
(`bioproxy.child.process_output`), also when the program does not exist, since that shows only in the new process.  What
fails before, in this one, is turned into the same news here: a process that has ended, with its reason as its last
line.  So code that starts a process has one way to learn of its end.

The process gets bioproxy's environment, in which llama.cpp reads its own variables (``LLAMA_ARG_...``), and pipes for
its input and outputs, which Twisted closes when the process is gone.  All other open files of bioproxy are closed in
it.

Does not know when a process is started, nor whether one ran before.
"""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure

from bioproxy.child.command_line import child_flags, command_line, environment, refuse_taken
from bioproxy.child.process_output import ProcessOutput
from bioproxy.child.program import find_program
from bioproxy.settings.configuration import Settings


def launch(settings: Settings, port: int, key: str | None, reactor: Any, aloud: bool) -> ProcessOutput:
    """Start llama.cpp with these settings on a port of this machine, and return its process.

    `key` is the key that its clients must send; `None` leaves that to the settings.  With `aloud`, its lines are logged
    from the beginning.  Never fails: a process that cannot be started is returned as one that has ended.
    """
    process = ProcessOutput(reactor, aloud)
    try:
        # Looked for each time: the program may have been installed meanwhile, or replaced.
        program = find_program(settings)
        refuse_taken(port)
        command = command_line(program, child_flags(settings, port))
        reactor.spawnProcess(process, command[0], command, env=environment(key))
    except Exception as error:
        # No program, a port that is taken, too many processes or open files.
        process.last_lines.append(f"error: {error}")
        process.processEnded(Failure(error))
    return process
