"""Theme "scale": what grows with the number of clients, templates, tokens and files, and what a start costs.

* waiting streams (`benchmarks.bench.waiting`);
* a large template, and many templates (`benchmarks.bench.inside`, in a process of its own);
* files on the shelf (`benchmarks.bench.shelf`);
* from the start of the process until it listens, beside the fifteen lines and a Python that only imports Twisted, in
  turns; and the memory of both proxies a moment later, when nothing goes on.

Does not know how these parts measure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bench.contestants import bioproxy, fifteen_lines
from benchmarks.bench.measuring import Amounts, in_turns, median
from benchmarks.bench.models import model_file
from benchmarks.bench.results import Cell, Found, Table
from benchmarks.bench.shelf import shelf_costs
from benchmarks.bench.waiting import waiting
from benchmarks.servers import ROOT, Child, Children, free_ports, get, wait_for

RESTING = 1.0
"""Seconds after which a started process is at rest."""

TWISTED_ALONE = ("-c", "import twisted.internet.reactor, twisted.web.server, treq, klein")
"""What any proxy of these libraries does before its first own line."""


def run(amounts: Amounts, folder: Path) -> Found:
    """Measure the theme."""
    found = Found()
    parts = (starts, streams, templates, shelf)
    for part in parts:
        scratch = folder / part.__name__
        scratch.mkdir()
        part(found, amounts, scratch)
        print(f"  {part.__name__}: done", flush=True)
    return found


def starts(found: Found, amounts: Amounts, folder: Path) -> None:
    """Measure starts and memory at rest."""
    memory: dict[str, list[float]] = {"15 lines": [], "bioproxy": []}

    def imports() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *TWISTED_ALONE], check=True)
        return time.perf_counter() - began

    def listening(name: str, start: Callable[[Children, Path, int], Child]) -> Callable[[], float]:
        def once() -> float:
            with ExitStack() as stack:
                children = Children(stack, folder)
                (server,) = free_ports(1)
                began = time.perf_counter()
                child = start(children, folder, server)
                taken = time.perf_counter() - began
                time.sleep(RESTING)
                memory[name].append(child.memory())
            return taken

        return once

    ways = {
        "Python that imports Twisted, treq and Klein": imports,
        "15 lines": listening("15 lines", fifteen_lines),
        "bioproxy": listening("bioproxy", bioproxy),
    }
    taken = in_turns(list(ways.values()), amounts.starts, lambda way: way())
    rows: list[list[Cell]] = [
        [name, median(seconds), median(memory[name]) if name in memory else None]
        for name, seconds in zip(ways, taken, strict=True)
    ]
    note = f"{amounts.starts} starts of each, in turns. bioproxy has one template, and no llama-server answers it."
    found.tables.append(Table("start", "Start", ("", "until it listens, s", "memory at rest, MB"), rows, note))
    found.ratios["start: bioproxy / 15 lines"] = min(taken[2]) / min(taken[1])
    found.ratios["memory at rest: bioproxy / 15 lines"] = median(memory["bioproxy"]) / median(memory["15 lines"])


def streams(found: Found, amounts: Amounts, folder: Path) -> None:
    """Measure waiting streams."""
    rows: list[list[Cell]] = []
    for count in amounts.waiting:
        scratch = folder / str(count)
        scratch.mkdir()
        each = waiting(count, scratch)
        rows.append([each.streams, 100 * each.processor_part, each.memory, each.passing_ms, each.each_ms])
    columns = (
        "streams",
        "processor while they wait, %",
        "memory, MB",
        "a request that passes them, p50 ms",
        "each when the slot is free, ms",
    )
    note = "Each waiting client gets a comment every 10 s. When the slot is free, each stream has 500 events."
    found.tables.append(Table("waiting", "Streams that wait for the slot", columns, rows, note))


def templates(found: Found, amounts: Amounts, folder: Path) -> None:
    """Measure a large template, and many."""
    with ExitStack() as stack:
        (port,) = free_ports(1)
        slots = folder / "slots"
        arguments = ("--model", model_file("tiny"), "--port", port, "--slot-save-path", slots, "--threads", 1)
        Children(stack, folder).start("llama", ("-m", "benchmarks.llama_child", *arguments), port, 60)
        wait_for("llama.cpp", lambda: get(port, "/health") is not None)
        numbers = [",".join(map(str, each)) for each in (amounts.template_tokens, amounts.templates)]
        command = [sys.executable, "-m", "benchmarks.bench.inside", str(folder), f"http://127.0.0.1:{port}", *numbers]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout
    inside = json.loads(printed.splitlines()[-1])
    keys = ("read_ms", "poll_ms", "find_ms", "fill_ms", "prefix_s")
    rows: list[list[Cell]] = [[each["tokens"], *(each[key] for key in keys)] for each in inside["large"].values()]
    columns: tuple[str, ...] = (
        *("tokens", "read after a change, ms", "poll without a change, ms"),
        *("find it in a request, ms", "fill it in, ms", "exact prefix, s"),
    )
    note = (
        "The least of 20 calls; reading and the prefix once. For the exact prefix, llama-server makes three prompts "
        "and tokenizes them."
    )
    found.tables.append(Table("large-template", "A large template", columns, rows, note))
    sizes = list(inside["large"].values())
    small, big = sizes[0], sizes[-1]
    found.ratios["exact prefix: time for each token, largest / smallest template"] = (
        big["prefix_s"] / big["tokens"] / (small["prefix_s"] / small["tokens"])
    )
    rows = [[int(count), each["ms"], each["thread_ms"]] for count, each in inside["polls"].items()]
    columns = ("templates", "a poll without changes, ms", "the same without a thread, ms")
    note = "The least of 20 polls, which run every two seconds. One visit to a thread looks at all files of a disk."
    found.tables.append(Table("polls", "Many templates", columns, rows, note))


def shelf(found: Found, amounts: Amounts, folder: Path) -> None:
    """Measure files on the shelf."""
    costs: list[dict[str, tuple[float, float]]] = []
    for entries in amounts.entries:
        scratch = folder / str(entries)
        scratch.mkdir()
        costs.append(shelf_costs(entries, scratch))
    rows: list[list[Cell]] = [[what, *(each[what][0] for each in costs)] for what in costs[0]]
    columns = ("", *(f"{entries:,} files, ms" for entries in amounts.entries))
    found.tables.append(Table("shelf", "Files on the shelf: medians of one call each", columns, rows))
