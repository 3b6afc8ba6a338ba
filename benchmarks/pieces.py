"""How large should the pieces of a warm-up be?  Computes prompts on a real llama.cpp, by several rules in turns.

    python -m benchmarks.pieces [MODEL] [TOKENS] [ROUNDS]

A user who comes during a warm-up waits for the rest of the piece that is being computed, and for nothing else of it.
Smaller pieces make that shorter, and the warm-up longer: each is a request of its own, and a small batch is computed
less efficiently.  Both are measured for each rule, with prompts that nobody has seen before, while the machine has
other work that comes and goes as it likes: that is what makes the time of the next piece hard to tell.

MODEL is a name of `benchmarks.bench.models`; ``dense`` by default.  The rules are the product's own code with other
numbers (`bioproxy.warmup.progress`, `bioproxy.llama.speed`).  No bioproxy runs here.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bench.models import model_file
from benchmarks.servers import Child, Children, free_ports, get, wait_for
from bioproxy.llama.speed import Speed
from bioproxy.prompts.prompt_shape import Key
from bioproxy.warmup.progress import PIECES, Progress, piece_end

LOAD_SECONDS = 3.0
"""Seconds for which other work goes on, and stands still, on average."""

AIM = 0.5
"""Seconds that a user should wait for a warm-up at most."""


@dataclass
class Rule:
    """How pieces are sized, and what came of it."""

    seconds: float
    """Of a piece."""
    recent: int
    """Measurements of which the slowest counts."""
    speed: Speed = field(init=False)
    pieces: list[float] = field(default_factory=list)
    """Seconds that each piece took."""
    whole: float = 0.0
    """Seconds that all prompts took."""
    processor: float = 0.0
    """Seconds of a processor that llama.cpp needed for them, which other work hardly changes."""

    def __post_init__(self) -> None:
        self.speed = Speed(self.recent)

    def compute(self, llama: Child, tokens: list[int]) -> None:
        """Have llama.cpp compute a prompt in pieces."""
        progress = Progress(Key("", ""), piece_seconds=self.seconds)
        began, processor, done = time.perf_counter(), llama.cpu(), 0
        while done < len(tokens):
            end = piece_end(done, progress.piece(self.speed, PIECES[0]), len(tokens))
            sent = time.perf_counter()
            computed, ms = evaluate(llama.port, tokens[:end])
            self.pieces.append(time.perf_counter() - sent)
            self.speed.measured(computed, ms)
            done = end
        self.whole += time.perf_counter() - began
        self.processor += llama.cpu() - processor


RULES = {
    "last measurement, 0.5 s": (0.5, 1),
    "last measurement, 0.25 s": (0.25, 1),
    "slowest of 4, 0.5 s": (0.5, 4),
    "slowest of 4, 0.25 s": (0.25, 4),
    "always 512 tokens": (1e9, 1),
}
"""Seconds of a piece, and measurements that count, of each rule that is compared."""


def evaluate(port: int, tokens: list[int]) -> tuple[int, float]:
    """Have the slot hold these tokens; return how many were computed, and the milliseconds that took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"prompt": tokens, "n_predict": 0, "cache_prompt": True, "id_slot": 0}
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    timings = json.loads(connection.getresponse().read())["timings"]
    connection.close()
    return timings["prompt_n"], timings["prompt_ms"]


def other_work(seed: int) -> None:
    """Be busy and be idle, for a random time each, until the process is ended."""
    chance = random.Random(seed)
    while True:
        until = time.monotonic() + chance.expovariate(1 / LOAD_SECONDS)
        while time.monotonic() < until:
            pass
        time.sleep(chance.expovariate(1 / LOAD_SECONDS))


def main(model: str = "dense", length: str = "2000", rounds: str = "5", others: str = "3", threads: str = "1") -> None:
    """Measure, and print the table."""
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        (port,) = free_ports(1)
        amounts = ("--threads", threads, "--threads-batch", threads)
        arguments = ("-m", "benchmarks.llama_child", "--model", model_file(model), "--port", port, *amounts)
        llama = Children(stack, Path(folder)).start("llama", arguments, port, 60)
        wait_for("llama.cpp", lambda: get(port, "/health") is not None)
        for seed in range(int(others)):
            busy = multiprocessing.Process(target=other_work, args=(seed,), daemon=True)
            busy.start()
            stack.callback(busy.terminate)
        rules = {name: Rule(*numbers) for name, numbers in RULES.items()}
        for _ in range(int(rounds)):
            for name in chance.sample(list(rules), len(rules)):
                rules[name].compute(llama, [chance.randrange(300, 600) for _ in range(int(length))])
    print(f"{model}, {length} tokens, {rounds} prompts by each rule, {others} processes with other work; seconds")
    columns = ("pieces", "median", "p90", "longest", "waits", "over", "whole", "CPU", "ratio")
    print(f"{'':26}" + "".join(f"{column:>8}" for column in columns))
    base = next(iter(rules.values()))
    for name, rule in rules.items():
        pieces = sorted(rule.pieces)
        # Of users who come at any moment: a long piece is met more often than a short one.
        total = sum(pieces)
        waits = sum(each * each / 2 for each in pieces) / total
        over = sum(each - AIM for each in pieces if each > AIM) / total
        times = (statistics.median(pieces), pieces[len(pieces) * 9 // 10], pieces[-1], waits)
        print(f"{name:26}{len(pieces):8}" + "".join(f"{each:8.2f}" for each in times), end="")
        print(f"{over:8.1%}{rule.whole:8.1f}{rule.processor:8.1f}{rule.processor / base.processor:8.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
