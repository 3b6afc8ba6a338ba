"""``python -m benchmarks.bench``: measure, write the results, and draw them.

Each theme runs in a scratch folder of its own, starts the processes that it needs and ends them.  What it found is
printed, and written at once, so that a run that is ended in the middle keeps the themes that were done.  The pictures
are drawn from ``results.json`` at the end, also from what earlier runs left there: with ``--themes latency`` only the
latencies are measured anew, and all else stays.

No Twisted here.  The client of a benchmark is plain blocking Python, which waits for one answer at a time, so that what
is measured is the server.  Does not know what a theme measures, only its name and that it returns a `Found`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.bench import disk, first_token, latency, scale
from benchmarks.bench.machine import machine
from benchmarks.bench.measuring import AMOUNTS, Amounts
from benchmarks.bench.plots import draw
from benchmarks.bench.results import Found, as_markdown, load, write

THEMES: dict[str, Callable[[Amounts, Path], Found]] = {
    "latency": latency.run,
    "first-token": first_token.run,
    "scale": scale.run,
    "disk": disk.run,
}
"""What is measured, in this order."""


def main(arguments: list[str]) -> int:
    """Run the themes that were asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", dest="amounts", action="store_const", const="quick", help="about three minutes")
    parser.add_argument("--amounts", choices=AMOUNTS, help=argparse.SUPPRESS)  # the tests' way to the tiny form
    parser.add_argument("--themes", nargs="*", choices=THEMES, default=list(THEMES), help="default: all")
    parser.add_argument("--results", type=Path, default=Path("bench-results"), help="folder (default: bench-results)")
    parser.add_argument("--threads", type=int, help="of llama.cpp; 1 where the machine does other things too")
    parser.add_argument("--models", nargs="*", help="of the theme first-token (default: all)")
    parser.add_argument("--longest", type=int, default=1 << 30, metavar="TOKENS", help="no longer prompts than these")
    options = parser.parse_args(arguments)
    amounts = AMOUNTS[options.amounts or "full"]
    prompts = {
        model: tuple(each for each in lengths if each <= options.longest)
        for model, lengths in amounts.prompts.items()
        if options.models is None or model in options.models
    }
    amounts = replace(amounts, threads=options.threads or amounts.threads, prompts=prompts)
    # Ended from outside, the processes are ended all the same: `SystemExit` leaves each `with` block.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for theme in options.themes:
        began, facts = time.monotonic(), machine()
        print(f"\n{theme}", flush=True)
        with tempfile.TemporaryDirectory(prefix="bioproxy-bench-") as folder:
            found = THEMES[theme](amounts, Path(folder))
        for table in found.tables:
            print(f"\n{as_markdown(table)}")
        print("\n".join(["", *(f"{name}: {value:.2f}" for name, value in found.ratios.items()), *found.remarks]))
        seconds = time.monotonic() - began
        print(f"({seconds:.0f} s)", flush=True)
        write(options.results, theme, found, {**facts, "threads": str(amounts.threads), "took": f"{seconds:.0f} s"})
    drawn = draw(load(options.results / "results.json"), options.results)
    print(f"\nresults.json, tables.md{''.join(f', {file.name}' for file in drawn)} are in {options.results}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
