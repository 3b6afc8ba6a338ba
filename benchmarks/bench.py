"""How fast is bioproxy?  ``make bench`` prints the answer in about six minutes: ``python -m benchmarks.bench``.

Everything is measured on this machine, by the same client (Python's own `http.client`), in three ways:

* *direct*: the client talks to the server;
* *15 lines*: through the plainest proxy that Klein and treq allow (`benchmarks.servers.pass_through`): the yardstick;
* *bioproxy*: through a real bioproxy, with a template configured.

They take turns, in another order each round, so that whatever else the machine does hits all three alike.  No
measurement is dropped, and none is corrected.

The first part uses a stand-in for llama-server that answers at once: a real one takes milliseconds, with a spread far
wider than what a proxy adds.  The second part (`benchmarks.first_words`) is about what bioproxy is for, and needs the
real one: how long a user waits for the first word of an answer to a long prompt.

On a machine that does other things too, times grow and spread.  The processor time per request, which is printed
beside them, hardly does.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.first_words import first_words
from benchmarks.servers import CHUNKS, Child, Children, free_ports

LIMIT = 720
"""Seconds after which all is ended, done or not."""

ROUNDS = 1500
STREAMS = 31

GOAL_RATIO = 1.25
"""What bioproxy may add to a small request, as a multiple of what the 15 lines add."""

GOAL_MEGABYTES = 60

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 1}
JSON = {"Content-Type": "application/json"}


class Client:
    """One client of `server` with one connection, which it keeps."""

    def __init__(self, name: str, server: Child) -> None:
        self.name = name
        self.server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def post(self, path: str, body: bytes) -> bytes:
        """Send a request and return the whole answer, which must be a success."""
        self._connection.request("POST", path, body, JSON)
        response = self._connection.getresponse()
        answer = response.read()
        assert response.status == 200, (self.name, response.status, answer)
        return answer


def take_turns(clients: Sequence[Client], path: str, body: bytes, rounds: int) -> dict[str, list[float]]:
    """Send the same request with each client, `rounds` times; return the milliseconds until the answer was whole."""
    taken: dict[str, list[float]] = {client.name: [] for client in clients}
    expected = clients[0].post(path, body)
    order = list(clients)
    shuffled = random.Random(1)
    gc.disable()  # of this process: a pause of the client's is nobody's latency
    try:
        for number in range(-(rounds // 20), rounds):  # those below zero warm caches up
            shuffled.shuffle(order)
            for client in order:
                began = time.perf_counter()
                answer = client.post(path, body)
                ended = time.perf_counter()
                assert answer == expected, client.name
                if number >= 0:
                    taken[client.name].append((ended - began) * 1000)
    finally:
        gc.enable()
    return taken


def p99(values: Sequence[float]) -> float:
    """Return what 99 of 100 values stay below."""
    return sorted(values)[len(values) * 99 // 100]


def ratio(taken: Mapping[str, Sequence[float]]) -> float:
    """Return what bioproxy adds to the median, as a multiple of what the 15 lines add."""
    direct, plain, ours = (statistics.median(taken[name]) for name in ("direct", "15 lines", "bioproxy"))
    return (ours - direct) / (plain - direct)


def small_requests(clients: Sequence[Client], path: str, what: str, question: object) -> None:
    """Part a: what each way adds to a small request, as medians and 99th percentiles."""
    body = json.dumps(question).encode()
    used = {client.name: client.server.cpu() for client in clients}
    taken = take_turns(clients, path, body, ROUNDS)
    print(f"\nPOST {path} ({what}), {len(body)} bytes, {ROUNDS} times each, in milliseconds")
    print(f"  {'':10}{'p50':>9}{'p99':>9}{'added p50':>12}{'added p99':>12}{'processor':>12}")
    direct = taken["direct"]
    for client in clients:
        values = taken[client.name]
        middle, high = statistics.median(values), p99(values)
        added = f"{middle - statistics.median(direct):12.3f}{high - p99(direct):12.3f}" if values is not direct else ""
        cpu = (client.server.cpu() - used[client.name]) * 1000 / (ROUNDS + ROUNDS // 20)
        print(f"  {client.name:10}{middle:9.3f}{high:9.3f}{added:24}{cpu:12.3f}")
    quarter = ROUNDS // 4
    parts = [ratio({name: v[i * quarter : (i + 1) * quarter] for name, v in taken.items()}) for i in range(4)]
    spread = ", ".join(f"{part:.2f}" for part in parts)
    print(
        f"  added p50, bioproxy / 15 lines: {verdict(ratio(taken), GOAL_RATIO, '')} (each quarter: {spread})",
        flush=True,
    )


def verdict(value: float, goal: float, unit: str) -> str:
    """Say a number and whether it is within its goal."""
    return f"{value:.2f}{unit}, goal {goal:g}{unit}: {'reached' if value <= goal else 'MISSED'}"


def proxies(folder: Path) -> None:
    """Parts a, b and c: small requests, a long stream, and memory, with the stand-in as the server."""
    with ExitStack() as stack:
        children = Children(stack, folder)
        ports = free_ports(4)
        program, url = ("-m", "benchmarks.servers"), f"http://127.0.0.1:{ports[0]}"
        server = children.start("stand-in", [*program, "stand-in", ports[0]], ports[0])
        plain = children.start("15-lines", [*program, "pass-through", ports[1], url], ports[1])
        template = folder / "small.txt"
        template.write_text("Answer briefly. <{message}>")
        # Without warm-ups: the stand-in has nothing to warm up.  The template is there to be looked for in requests.
        ours = children.bioproxy("bioproxy", ports[2], ports[3], url, "--prefix", f"@x={template}", "--no-warmup")
        time.sleep(3)
        fresh = plain.memory(), ours.memory()

        clients = [Client("direct", server), Client("15 lines", plain), Client("bioproxy", ours)]
        small_requests(clients, CHAT, "waits at the gate, takes a fresh connection", QUESTION)
        small_requests(clients, "/tokenize", "passes straight through", {"content": "How are you?"})
        streams(clients)
        time.sleep(2)
        memory(clients[1:], fresh)


def streams(clients: Sequence[Client]) -> None:
    """Part b: a long answer in many pieces, as fast as it goes."""
    taken = take_turns(clients, CHAT, json.dumps({**QUESTION, "stream": True}).encode(), STREAMS)
    print(f"\nA stream of {CHUNKS} events at full speed until its end, {STREAMS} times each, in milliseconds")
    print(f"  {'':10}{'p50':>9}{'worst':>9}")
    for name, values in taken.items():
        print(f"  {name:10}{statistics.median(values):9.1f}{max(values):9.1f}")


def memory(clients: Sequence[Client], fresh: Sequence[float]) -> None:
    """Part c: the resident memory of both proxies while nothing happens, `fresh` after their start, and now."""
    print("\nMemory at rest in MB (VmRSS)")
    print(f"  {'':10}{'started':>9}{'after all of the above':>25}")
    for client, before in zip(clients, fresh, strict=True):
        print(f"  {client.name:10}{before:9.1f}{client.server.memory():25.1f}")
    for when, megabytes in (("started", fresh[-1]), ("after", clients[-1].server.memory())):
        print(f"  bioproxy, {when}: {verdict(megabytes, GOAL_MEGABYTES, ' MB')}")


def main() -> None:
    """Measure everything, print it, and leave nothing behind."""

    def too_long(*_: object) -> None:
        raise SystemExit(f"ended after {LIMIT} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.alarm(LIMIT)
    began = time.monotonic()
    print(
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the start; Python {sys.version.split()[0]}"
    )
    with tempfile.TemporaryDirectory(prefix="bioproxy-bench-") as folder:
        proxies(Path(folder))
        first_words(Path(folder), began + 0.75 * LIMIT)
    print(f"\n{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
