"""How long does a user wait who comes during a warm-up, and for what?  On a real llama.cpp, step by step.

    python -m benchmarks.warmup_wait [MODEL] [TOKENS] [ROUNDS] [THREADS]

In each round a question is asked twice about a document that another one has displaced: once while nothing else goes
on, and once at a random moment of a warm-up.  The difference, up to the moment at which the question is sent on, is
what the warm-up costs that user; what follows is the same work, and takes as long as the machine's other work lets it.
MODEL is a name of `benchmarks.bench.models`, ``smollm2`` by default.

Between bioproxy and llama.cpp stands a `Wire`, which passes bytes on and notes when a request, the head of an answer,
and the end of a connection came by.  So each step has a time:

* *given up*: bioproxy has closed the connection of the warm-up's piece;
* *free*: llama-server has answered ``GET /lora-adapters``, which it does between two batches only, so it has done with
  that piece (of a model with checkpoints a piece may be two batches; then the second is in the next time);
* *restored*: the slot has the document again;
* *sent*: the user's request is on its way;
* *word*: the first piece of the answer is here; *computing* is the time from *sent* on.

A save of a beginning that a user met shows as the time until *given up*.
"""

from __future__ import annotations

import random
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.bench.asking import Asked, ask
from benchmarks.bench.llama_side import Bioproxy
from benchmarks.bench.models import model_file
from benchmarks.servers import Child, Children, free_ports, invented, wait_for

NOTES, OTHER, LATER = "notes", "other", "later"
"""Names of documents: the one that is asked about, the one that displaces it, and the one that is warmed up."""

STEPS = ("given up", "free", "restored", "sent", "word", "computing")
"""What is timed, in this order.  Without a warm-up nothing is given up."""


class Wire:
    """Passes the bytes between `port` and llama.cpp on, and notes what came by.  Each connection has two threads."""

    def __init__(self, target: int) -> None:
        self.noted: list[tuple[float, str]] = []
        """Moments, by `time.perf_counter`, and what happened then: ``"> POST /completion"``, ``"< POST /completion"``
        for the head of its answer, and ``"x POST /completion"`` for a connection that bioproxy has closed before that.
        """
        (self.port,) = free_ports(1)
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            open_calls: list[str] = []
            for way in ((client, server, True), (server, client, False)):
                way[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(*way, open_calls), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, asks: bool, open_calls: list[str]) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                now = time.perf_counter()
                if asks and (call := re.match(rb"([A-Z]+ \S+) HTTP/1", data)):
                    open_calls.append(call[1].decode())
                    self.noted.append((now, f"> {open_calls[-1]}"))
                elif not asks and data.startswith(b"HTTP/1") and open_calls:
                    self.noted.append((now, f"< {open_calls.pop()}"))
                target.sendall(data)
        if asks and open_calls:
            self.noted.append((time.perf_counter(), f"x {open_calls.pop()}"))
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Wired(Bioproxy):
    """bioproxy and llama.cpp with a wire in between."""

    wire: Wire

    def _start_proxy(self) -> Child:
        self.wire = Wire(self._llama_port)
        self.llama_url = f"http://127.0.0.1:{self.wire.port}"
        return super()._start_proxy()


def question(side: Wired, name: str) -> tuple[Asked, dict[str, float]]:
    """Ask about a document; return the answer, and after how many seconds each step was done that there was."""
    began = time.perf_counter()
    asked = ask(side.port, [side.question(name, f"{invented(6)}?")])
    marks = {
        "given up": "x POST /completion",
        "free": "< GET /lora-adapters",
        "restored": "< POST /slots/0?action=restore",
        "sent": "> POST /v1/chat/completions",
    }
    steps = {"word": asked.seconds}
    for step, mark in marks.items():
        if found := [moment - began for moment, what in side.wire.noted if what == mark and moment > began]:
            steps[step] = found[0]
    if "sent" in steps:
        steps["computing"] = steps["word"] - steps["sent"]
    side.settle()
    return asked, steps


def main(model: str = "smollm2", length: str = "1000", rounds: str = "10", threads: str = "1") -> None:
    """Measure, and print the table."""
    chance, tokens = random.Random(1), int(length)
    quiet: list[dict[str, float]] = []
    met: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        names = (NOTES, OTHER, LATER)
        side = Wired(Children(stack, Path(folder)), Path(folder), model_file(model), int(threads), names=names)
        side.write(NOTES, invented(tokens - 30))
        side.write(OTHER, invented(300))
        side.settle()
        # The shapes of questions are learned, and the speed is known.
        for name in (OTHER, NOTES, OTHER, NOTES):
            question(side, name)
        while len(met) < int(rounds):
            question(side, OTHER)
            quiet.append(question(side, NOTES)[1])
            side.write(LATER, invented(max(tokens, 2000)))
            wait_for("a warm-up", lambda: 0 < side.template(LATER)["progress"] < 1, 60)
            time.sleep(chance.uniform(0, 1))
            asked, steps = question(side, NOTES)
            assert asked.cache == "restored", asked
            if "given up" in steps:
                met.append(steps)
    print(f"{model}, {tokens} tokens, {threads} threads, {len(met)} users of each kind; seconds after their arrival")
    print(f"{'':12}{'after a switch':>18}{'in a warm-up':>18}")
    print(f"{'':12}{'median':>9}{'longest':>9}{'median':>9}{'longest':>9}")
    for step in STEPS:
        print(f"{step:12}{figures(quiet, step)}{figures(met, step)}")
    usual = statistics.median(steps["sent"] for steps in quiet)
    added = [steps["sent"] - usual for steps in met]
    print(f"added by the warm-up: {statistics.median(added):.3f}, at most {max(added):.3f}")


def figures(users: Sequence[dict[str, float]], step: str) -> str:
    """Return two columns: after how many seconds a step was done, in the median and at most."""
    taken = [steps[step] for steps in users if step in steps]
    return f"{statistics.median(taken):9.3f}{max(taken):9.3f}" if taken else f"{'-':>9}{'-':>9}"


if __name__ == "__main__":
    main(*sys.argv[1:])
