"""The process between bioproxy and the program llama-server, with other programs in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent


class Lifeline(SynchronousTestCase):
    """The program as it is run."""

    def run_it(self, *command: str) -> subprocess.Popen[bytes]:
        """Run a program below it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "bioproxy.child.lifeline", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
        self.addCleanup(process.wait, 30)
        self.addCleanup(process.kill)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> list[str]:
        """Wait for its end; return its lines."""
        assert process.stdout is not None
        with process.stdout as stream:
            lines = stream.read().decode().splitlines()
        process.wait(30)
        return lines

    def test_output_and_code(self) -> None:
        """Both outputs come in the order in which they were written; the process id and the exit code are handed on."""
        process = self.run_it("sh", "-c", "echo one; echo two >&2; echo three; exit 7")
        lines = self.output(process)
        # The program may be faster than the process that started it.
        (number,) = [line for line in lines if line.startswith("process ")]
        self.assertRegex(number, r"\Aprocess \d+\Z")
        lines.remove(number)
        self.assertEqual((["one", "two", "three"], 7), (lines, process.returncode))

    def test_signal(self) -> None:
        """A program that a signal ends has the exit code that shells give it."""
        process = self.run_it("sh", "-c", "kill -ABRT $$")
        self.output(process)
        self.assertEqual(128 + signal.SIGABRT, process.returncode)

    def test_end_of_input(self) -> None:
        """When its input ends, the program is asked to end, and reads nothing itself."""
        script = "trap 'echo bye; exit 0' TERM; read x || echo no input; while :; do sleep 0.05; done"
        process = self.run_it("sh", "-c", script)
        assert process.stdin is not None and process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        self.assertIn(b"no input\n", lines)
        process.stdin.close()
        self.assertEqual((["bye"], 0), (self.output(process), process.returncode))

    def test_deaf(self) -> None:
        """A program that does not react is killed; a terminal's signals reach neither of the two."""
        process = self.run_it("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
        assert process.stdin is not None and process.stdout is not None
        lines = sorted(process.stdout.readline() for _ in range(2))
        self.assertEqual(b"ready\n", lines[1])
        number = int(lines[0].split()[1])
        self.assertEqual(number, os.getsid(number), "a session of its own")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        self.assertIsNone(process.poll())
        process.stdin.close()
        self.output(process)
        self.assertEqual(128 + signal.SIGKILL, process.returncode)

    def test_no_program(self) -> None:
        """A program that cannot be run is told in one line."""
        process = self.run_it("/no/such/program")
        self.assertEqual(["error: /no/such/program: No such file or directory"], self.output(process))
        self.assertEqual(1, process.returncode)
