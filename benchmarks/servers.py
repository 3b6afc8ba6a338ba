"""The processes that benchmarks and load tests start, how they are watched, and how they are ended.

Each is a process of its own, as in real life.  One thread of Python has one processor core, and a server that shared it
with the client would be measured together with the client.

A `Child` is one process that listens on a port.  `Children` starts them with `subprocess` and ends all of them when
its `ExitStack` is left, whatever happened.  No Twisted here: the clients of a benchmark are plain blocking Python, so
that what they measure is the server and not another event loop.

Does not know what the processes are for, or what is measured.  What bioproxy is compared with is in
`benchmarks.bench.contestants`.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bioproxy.demo.vocabulary import COMMON_WORDS

ROOT = Path(__file__).parent.parent
"""The checkout: where processes are started, so that ``python -m`` finds its modules."""

TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "--pidfile=", "-n")
"""What ``twistd -n`` is, for this very Python and whether or not it has scripts installed."""

PATIENCE = 60.0
"""Seconds that something may take before it is given up, unless told otherwise.

It takes a second or two; on a machine that is overloaded, many times as long.
"""

BLOCKS = range(12_000, 32_000, 400)
"""First ports of the blocks of which each process that asks for free ports gets one.

They are below the range from which Linux chooses ports by itself, 32,768 and up.  A block is more than the integration
tests of one process need; with half of it they take a second one.
"""


@dataclass
class Child:
    """A process that listens on `port`."""

    process: subprocess.Popen[bytes]
    """The process itself, to be killed by those who mean it."""
    port: int
    """The port of this machine on which it is asked."""

    def memory(self) -> float:
        """Return the megabytes (10^6 bytes) of the process's resident set: ``VmRSS``.  Linux only."""
        # What is in memory now; what was given back, or was never touched, does not count.
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024 / 1e6

    def cpu(self) -> float:
        """Return the seconds of processor time that the process has used.  Linux only."""
        # The name of the program comes first, in parentheses, and may have spaces in it: so what stands behind it is
        # read.
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # in its own code, and in the kernel

    def end(self) -> None:
        """End the process: with SIGTERM, and with SIGKILL if it still runs after 5 s.  Does nothing if it has ended."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Children:
    """Starts processes in a scratch folder; the stack given ends them all, whatever happens.

    Invariant: a process is on the stack before anything can fail that follows its start.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        """Start processes whose logs and state are in `folder`; none is started here."""
        self._stack = stack
        self._folder = folder
        # Whatever the user has configured must not have a say here.
        self._env = dict(os.environ, XDG_CONFIG_HOME=str(folder / "config"), XDG_STATE_HOME=str(folder / "state"))
        # An installed package is compiled already.  With this variable, a checkout would be compiled at each start.
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)

    def start(
        self,
        name: str,
        arguments: Sequence[object],
        port: int,
        patience: float = PATIENCE,
        program: str | Path = sys.executable,
        **env: str,
    ) -> Child:
        """Start a program, which is this Python by default, and return it once it listens on `port`.

        `name` is the stem of its log file; `env` is added to its environment.  Raises `SystemExit` with the end of that
        log if the process ends, or does not listen after `patience` seconds.
        """
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(program), *map(str, arguments)],
                stdin=subprocess.PIPE,  # llama_child lives as long as this pipe
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**self._env, **env},
            )
        # No program says in the same way that it is ready, so its port is tried until it listens.
        child = Child(process, port)
        self._stack.callback(child.end)
        deadline = time.monotonic() + patience
        while not listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            # A start takes a few tenths of a second, and is measured with this.
            time.sleep(0.01)
        return child

    def bioproxy(self, name: str, port: int, admin_port: int, url: str, *options: object) -> Child:
        """Start bioproxy as a user would, with no settings but these, and return it once it listens.

        `url` is llama-server's.  The name is that of its log and of its `state_dir`, so a second start with the same
        name finds what the first one has left.
        """
        where = ("--port", port, "--admin-port", admin_port, "--llama-url", url)
        return self.start(name, [*TWISTD, "bioproxy", *where, "--state-dir", self._folder / name, *options], port)


def listens(port: int) -> bool:
    """Tell whether a process of this machine accepts connections on `port`."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return `count` different ports of this machine that no process listens on, and that none will be given soon."""
    return [next(_PORTS) for _ in range(count)]


def _ports() -> Iterator[int]:
    """Yield one free port after the other.  Linux only."""
    # Most processes listen only a second after their port was chosen.  A port that the system chooses (port 0) may be
    # chosen again meanwhile, for another test or as a connection's own end: then one of both cannot listen.  So these
    # ports are outside the range of the system, and in blocks of which each belongs to one process.  The claim is a
    # socket in Linux's abstract namespace, which needs no file and ends with the process, however that ends.
    claims = []
    for number in range(len(BLOCKS)):
        block = BLOCKS[(os.getpid() + number) % len(BLOCKS)]
        claims.append(socket.socket(socket.AF_UNIX))
        try:
            claims[-1].bind(f"\0bioproxy-ports-{block}")
        except OSError:
            claims.pop().close()  # another process has it
            continue
        yield from filter(_is_free, range(block, block + BLOCKS.step))
    raise SystemExit(f"no free port from {BLOCKS.start} to {BLOCKS.stop}")


def _is_free(port: int) -> bool:
    """Tell whether a process could listen on `port` now."""
    with socket.socket() as probe:
        # Connections that were closed a moment ago do not count, as for any server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


_PORTS = _ports()
"""The ports of this process."""


def get(port: int, path: str) -> Any:
    """Return the JSON answer of a GET request, `None` unless its status is 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == 200 else None
    finally:
        connection.close()


def wait_for(what: str, ready: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Wait until `ready` returns something true.  Raises `SystemExit` after `patience` seconds.

    `what` says in the error what was waited for.  A benchmark never sleeps for a time in place of this: on a slow
    machine that would be too short, and on a fast one too long.
    """
    deadline = time.monotonic() + patience
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {patience:.0f} s for {what}")
        time.sleep(0.05)


def invented(words: int) -> str:
    """Return a text of `words` random words, never seen before.  Each is one token of the generated models."""
    return " ".join(random.choices(COMMON_WORDS, k=words))
