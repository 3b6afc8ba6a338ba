"""A command on a terminal, as a person has it: a pty, with its size, its echo, and Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PATIENCE = 60.0
"""Seconds that a command may take before a test gives up."""

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A terminal with one command in it.  `seen` is all that it has shown so far, escape sequences included."""

    def __init__(
        self, folder: Path, command: Sequence[str], env: Mapping[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self.seen = ""
        self._waited = 0
        self._code: int | None = None
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            # In the child, whose standard streams are the terminal.  Its size is set from the inside, so it is right
            # before the command looks at it.
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                os.chdir(folder)
                # Without the size that the readline of pytest's own process may have put into the environment.
                env = {name: value for name, value in env.items() if name not in ("LINES", "COLUMNS")}
                os.execvpe(command[0], list(command), {"TERM": "xterm", **env})
            finally:
                os._exit(127)

    def type(self, text: str) -> None:
        """Type a text; a newline is the Enter key."""
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until a text has been shown behind everything that was waited for before."""
        start = self._waited
        deadline = time.monotonic() + PATIENCE
        while (found := self.seen.find(text, start)) < 0:
            assert self._read(deadline), f"ended without {text!r}: {self.seen[start:]!r}"
        self._waited = found + len(text)

    def ended(self, again: str = "") -> int:
        """Wait for the command's end; return its exit code, that of a shell for signals.

        `again` is a key to type once more in each second in which nothing happens.
        """
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline, again):
            pass
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code if self._code >= 0 else 128 - self._code

    @property
    def screen(self) -> list[str]:
        """What is on the screen: `seen`, with what was replaced left out, and without colours."""
        lines: list[str] = []
        for number, frame in enumerate(self.seen.replace("\r\n", "\n").split("\x1b[J")):
            # What stands before the sequence that clears is the one that moves up: "\x1b[8A".
            text, _, up = frame.rpartition("\x1b[") if frame.endswith("A") else (frame, "", "")
            new = text.split("\n")[:-1]
            lines = new if number else lines + new
            assert not up or int(up[:-1]) == len(new), f"{up} for {len(new)} lines"
        return [line.replace("\x1b[0m", "") for line in lines]

    def close(self) -> None:
        """End the command the hard way, if it still runs."""
        if self._code is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._terminal)

    def _read(self, deadline: float, again: str = "") -> bool:
        """Read what there is, typing a key in each second in which nothing comes; tell whether more may come."""
        while again and time.monotonic() < deadline and not select.select([self._terminal], [], [], 1.0)[0]:
            self.type(again)
        ready, _, _ = select.select([self._terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"nothing more came: {self.seen!r}"
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # so Linux reports that nobody has the terminal open any more
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)
