"""The process with the wheel's server: that nothing of what llama.cpp has said is lost when the process ends."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import xllamacpp  # type: ignore[import-untyped]
from twisted.trial.unittest import TestCase

from bioproxy.child.wheel_server import FLUSH, LOG

LINES, LENGTH = 150, 1000
"""Lines and the characters in each: more than a pipe holds, and no more lines than llama.cpp keeps for its thread."""

SAYS_MUCH = f"""
import ctypes, os, sys
import xllamacpp
from bioproxy.child.wheel_server import LOG, flush_log
library = ctypes.CDLL(sys.modules["xllamacpp.xllamacpp"].__file__)
log = library[LOG]
log.restype = ctypes.c_void_p
add = library["_Z14common_log_addP10common_log14ggml_log_levelPKcz"]
for number in range({LINES}):
    add(ctypes.c_void_p(log()), 0, b"line %d%s\\n", number, b"." * {LENGTH})
os.write(2, b"all is said")
flush_log()
os._exit(0)
"""
"""Has llama.cpp log more than a pipe holds, and ends the hard way when `flush_log` returns."""

OTHER_WHEEL = """
import xllamacpp
from bioproxy.child.wheel_server import main
class Server:
    def __init__(self, params):
        pass
xllamacpp.Server = Server
main(["--port", "1"])
"""
"""Serves with a wheel whose server does not tell its address."""


class End(TestCase):
    """The end of the process."""

    def test_mistake(self) -> None:
        """What goes wrong after the model was loaded is told, although the process does not end in the usual way."""
        ended = subprocess.run(
            [sys.executable, "-c", OTHER_WHEEL],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        # Both outputs go into one pipe.
        self.assertIn(b"error: AttributeError", ended.stdout.splitlines()[-1])
        self.assertIn(b"listening_address", ended.stdout)
        self.assertEqual(1, ended.returncode)


class FlushLog(TestCase):
    """`flush_log`."""

    def test_all_lines(self) -> None:
        """All lines are written before it returns, however slowly they are read."""
        read, write = os.pipe()
        with subprocess.Popen([sys.executable, "-c", SAYS_MUCH], stdout=write, stderr=subprocess.PIPE) as process:
            os.close(write)
            # Nothing is read before the last line is logged: the thread that writes them stands still meanwhile,
            # because the pipe is full.
            assert process.stderr is not None
            self.assertEqual(b"all is said", process.stderr.read(11))
            with open(read, "rb") as output:
                lines = output.read().splitlines()
        self.assertEqual(0, process.returncode)
        self.assertEqual([f"line {number}" for number in range(LINES)], [line.decode().rstrip(".") for line in lines])

    def test_functions(self) -> None:
        """The wheel that is installed has the functions."""
        library = ctypes.CDLL(sys.modules[xllamacpp.Server.__module__].__file__)
        self.assertTrue(hasattr(library, LOG) and hasattr(library, FLUSH))
