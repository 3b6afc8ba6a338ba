"""How long does a user wait who comes during a warm-up, and for what?  On a real llama.cpp, step by step.

    python -m benchmarks.warmup_wait [MODEL] [TOKENS] [ROUNDS] [THREADS]

In each round a question is asked twice about a document that another one has displaced: once while nothing else goes
on, and once at a random moment of a warm-up.  The difference is what the warm-up costs that user.  MODEL is a name of
`benchmarks.bench.models`, ``smollm2`` by default.

Between bioproxy and llama.cpp stands a `Wire`, which passes bytes on and notes when a request, the head of an answer,
and the end of a connection came by.  So each step has a time:

* *given up*: bioproxy has closed the connection of the warm-up's piece;
* *free*: llama-server has answered ``GET /lora-adapters``, which it does between two batches only, so it has done with
  that piece;
* *restored*: the slot has the document again;
* *sent*: the user's request is on its way;
* *word*: the first piece of the answer is here.  From *sent* on it is llama-server that computes the question.

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
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.bench.asking import Asked, ask
from benchmarks.bench.llama_side import Bioproxy
from benchmarks.bench.models import model_file
from benchmarks.servers import Child, Children, free_ports, invented, wait_for

NOTES, OTHER, LATER = "notes", "other", "later"
"""Names of documents: the one that is asked about, the one that displaces it, and the one that is warmed up."""

STEPS = ("given up", "free", "restored", "sent", "word")
"""What is timed, in this order."""


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
    side.settle()
    return asked, steps


def main(model: str = "smollm2", length: str = "1000", rounds: str = "10", threads: str = "1") -> None:
    """Measure, and print the table."""
    chance, tokens = random.Random(1), int(length)
    quiet: list[float] = []
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
            quiet.append(question(side, NOTES)[0].seconds)
            side.write(LATER, invented(max(tokens, 2000)))
            wait_for("a warm-up", lambda: 0 < side.template(LATER)["progress"] < 1, 60)
            time.sleep(chance.uniform(0, 1))
            asked, steps = question(side, NOTES)
            assert asked.cache == "restored", asked
            if "given up" in steps:
                met.append(steps)
    usual = statistics.median(quiet)
    added = sorted(steps["word"] - usual for steps in met)
    print(f"{model}, {tokens} tokens, {threads} threads: a question after a switch takes {usual:.2f} s (median)")
    print(f"{len(met)} users in a running warm-up, seconds after their arrival:")
    print(f"{'':10}{'median':>8}{'longest':>9}")
    for step in STEPS:
        taken = [steps[step] for steps in met if step in steps]
        print(f"{step:10}{statistics.median(taken):8.3f}{max(taken):9.3f}")
    print(f"{'added':10}{statistics.median(added):8.3f}{added[-1]:9.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
