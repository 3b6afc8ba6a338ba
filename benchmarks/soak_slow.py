"""Is a user served while a thousand others are as slow as they can be?  A part of `benchmarks.soak`.

A server with one thread is easy to stop in theory: somebody opens all connections and says nothing.  Twisted waits for
a thousand connections as well as for one, so what matters are limits: how long a head may take, how much is held for a
client that does not read, how many connections there may be.  `bioproxy.http.deadlines` and
`bioproxy.http.connection_limits` have them, and here they meet somebody who wants to reach them.

The program slowhttptest (a package of Debian's) opens many connections and takes its time on each, in three ways:
heads that never end, bodies that hardly come, and answers that are hardly read.  Meanwhile somebody polite asks again
and again, each time over a new connection, and must be served, and soon; bioproxy's memory and open files must have
bounds, and be as before when the slow ones have gone.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.servers import Child, Children, free_ports, get, wait_for
from benchmarks.soak_clients import look_for_trouble

PAGE = 300_000
"""Bytes of the page that is read slowly.  (A thousand times a megabyte is more than the system has for all sockets.)"""

MODES = {
    "slow heads": ("-H", "/health", "-i", "3"),
    "slow bodies": ("-B", "/tokenize", "-i", "3", "-s", "100000"),
    "slow reading": ("-X", "/", "-w", "512", "-y", "1024", "-n", "2", "-z", "32"),
}
"""What they do: slowhttptest's mode, what is asked for, and more options.

Heads that never end get a line each three seconds, and bodies a piece; who reads slowly asks for a page over and over,
and takes 32 bytes of it each two seconds.
"""

WORST = 5.0
"""Seconds that the polite one may wait at most.

Mostly it is some milliseconds; a crowd that is accepted all at once may take a second.
"""

MEGABYTES = 300.0
"""Megabytes (VmRSS) that bioproxy may take more than at rest while they are there: a thousand pages, not read."""

KEPT = 30.0
"""Megabytes that may be left when they have gone: what Python has got from the system it does not all give back.

The next attack uses the same memory again, so a leak would show as more and more.
"""


async def serve(port: int) -> None:
    """Be a llama-server with a web page, which answers everything at once.

    Never fires.  It must not be what is slow, so it reads a request and answers it, and knows nothing of models.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request.  Called by asyncio for each connection."""
        try:
            # Just enough of HTTP: a head, and a body of the length that it gives.
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if length:
                await reader.readexactly(int(length[1]))
            body = b"<" * PAGE if head.startswith(b"GET / ") else b"{}"
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            # bioproxy gives up a request whose client has gone: nothing is wrong with that.
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=1000)
    await server.serve_forever()


class Watcher(threading.Thread):
    """Does something again and again until `end`, which raises what went wrong in it."""

    def __init__(self, work: Callable[[], None], pause: float) -> None:
        """Call `work` again and again, with so many seconds in between."""
        super().__init__(daemon=True)
        # What went wrong is kept for `end`: an exception in a thread is printed and otherwise lost.
        self._work, self._pause = work, pause
        self._over = threading.Event()
        self._error: Exception | None = None

    def run(self) -> None:
        """Do the work until `end`.  Called by `start`, in its own thread."""
        # An exception in a thread is only printed, so it is kept for whoever ends this.
        try:
            while not self._over.wait(self._pause):
                self._work()
        except Exception as error:
            self._error = error

    def end(self) -> None:
        """Stop, and raise what went wrong, if anything did."""
        self._over.set()
        self.join()
        if self._error is not None:
            raise self._error


class Attack:
    """What is seen while the slow ones are there."""

    def __init__(self, proxy: Child) -> None:
        """Look at this bioproxy.  Times are in seconds, memory is in megabytes."""
        self._proxy = proxy
        self.times: list[float] = []
        self.memory = 0.0
        self.files = 0

    def ask(self) -> None:
        """Ask something, politely, and note how long the answer took.

        The whole request is sent at once, and the answer is read to its end.  Raises `AssertionError` for an error.
        """
        began = time.monotonic()
        # A new connection each time: the question is whether somebody who comes now is let in.
        connection = http.client.HTTPConnection("127.0.0.1", self._proxy.port, timeout=30)
        try:
            connection.request("POST", "/v1/chat/completions", b'{"messages":[]}')
            response = connection.getresponse()
            response.read()
            assert response.status == 200, f"the polite one got {response.status}"
        finally:
            connection.close()
        self.times.append(time.monotonic() - began)

    def look(self) -> None:
        """Look at the proxy, and keep the highest values."""
        self.memory = max(self.memory, self._proxy.memory())
        self.files = max(self.files, open_files(self._proxy))


def open_files(child: Child) -> int:
    """Return how many files and connections a process has open.  Linux only.

    Each connection is one file; one that is kept after its client has gone shows here.
    """
    return len(os.listdir(f"/proc/{child.process.pid}/fd"))


def allow_files(needed: int) -> None:
    """Have the system allow so many open files, here and in what is started here."""
    # A process may raise its own limit up to the hard one, and its children inherit that.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= needed or hard == resource.RLIM_INFINITY, f"{needed} open files are needed, {hard} allowed"
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


def slow(folder: Path, seconds: float, connections: int) -> None:
    """Let the slow ones come, in each way for so many seconds.  `AssertionError` says what is wrong.

    `connections` is how many there are at a time.  Without the program slowhttptest nothing is tried, and that is said.
    """
    program = shutil.which("slowhttptest")
    # Said and not counted as a failure: the program is no dependency of bioproxy's, and no package of PyPI.
    if program is None:
        print("slow clients: left out, there is no slowhttptest (apt-get install slowhttptest)")
        return
    allow_files(3 * connections + 200)
    print(f"{connections} clients as slow as they can be, {seconds:g} s each way")
    # All ways are tried, also after one has gone wrong: together they tell more.
    wrong = []
    with ExitStack() as stack:
        children = Children(stack, folder)
        behind, port, admin = free_ports(3)
        children.start("behind", ["-m", "benchmarks.soak_slow", behind], behind)
        proxy = children.bioproxy("slow", port, admin, f"http://127.0.0.1:{behind}", "--no-warmup")
        # Its start opens and closes files of its own, which must not be counted.
        wait_for("bioproxy", lambda: get(admin, "/status") is not None)
        # One question before, so that whatever is made at the first request is there already.
        Attack(proxy).ask()
        for name, (mode, path, *options) in MODES.items():
            # Each way begins at rest, so that what the one before has left does not count.
            memory, files = proxy.memory(), open_files(proxy)
            attack = Attack(proxy)
            # Asked and looked at from threads, because the attack is a process that is waited for.
            watchers = [Watcher(attack.ask, 0.05), Watcher(attack.look, 0.1)]
            for each in watchers:
                each.start()
            # A tenth of all connections each second: all of them are there long before the time is over.
            command = [program, mode, "-c", connections, "-r", connections // 10, "-l", int(seconds), *options]
            # Its own report is left out: what counts is what others got meanwhile.
            subprocess.run(
                [*map(str, command), "-u", f"http://127.0.0.1:{port}{path}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                timeout=seconds + 60,
            )
            # Ended at the same moment as the attack, so that what they saw is what it did.
            for each in watchers:
                each.end()
            print(
                f"  {name:13} {len(attack.times):4} polite questions,"
                f" {max(attack.times) * 1000:.0f} ms at worst; {attack.memory - memory:.1f} MB and"
                f" {attack.files - files} files more than at rest",
                flush=True,
            )
            # Those that are still there are ended by the deadlines; then everything must be as before.
            patience = time.monotonic() + 20
            while time.monotonic() < patience and (open_files(proxy) > files or proxy.memory() > memory + KEPT):
                time.sleep(0.1)
            # What is left is judged together with what was seen before, so that one line tells all that is wrong.
            left, kept = open_files(proxy) - files, proxy.memory() - memory
            print(f"  {'':13} {kept:.1f} MB and {left} files more afterwards", flush=True)
            # The first one is about the attack itself: if nobody came, all the others say nothing.
            bounds = (
                (attack.files - files < connections / 2, "did not come"),
                (max(attack.times) > WORST, "let the polite one wait"),
                (attack.memory - memory > MEGABYTES, "took much memory"),
                (left > 0, "left files open"),
                (kept > KEPT, "left memory taken"),
            )
            wrong += [f"{name} {what}" for is_wrong, what in bounds if is_wrong]
        look_for_trouble(folder / "slow.log")
    assert not wrong, "; ".join(wrong)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
