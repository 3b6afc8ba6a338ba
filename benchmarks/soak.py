"""Is bioproxy right also when a thousand wait?  ``make soak`` finds out in about ten minutes.

The first part (`benchmarks.soak_crowds`) is a thousand clients at once, half of whom leave.  The second
(`benchmarks.soak_preempt`) is about users who come in the middle of a warm-up, the third (`benchmarks.soak_slow`) about
clients that are slow on purpose.  Then come coding agents: their days on each kind of model and in each dialect
(`benchmarks.agents_day`), thousands of conversations in little space, and kills at random moments
(`benchmarks.soak_shelf`, `benchmarks.soak_shared`), also of the llama.cpp that bioproxy starts itself
(`benchmarks.soak_child`).  At last, real clients are installed and asked something (`benchmarks.soak_real_clients`).

What can only go wrong with many at once is looked for here: an answer that goes to somebody else, a request that is
sent twice, an order that is not the one of arrival, memory or open files that are kept of clients who have gone.  Tests
with one client see none of that, and a test with a thousand takes too long for each commit.

Whatever is not as it should be ends the run, with a line that says what.  ``python -m benchmarks.soak --help`` tells
what can be chosen; the same ``--seed`` makes the same crowds.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.agents_day import product
from benchmarks.soak_child import own_llama
from benchmarks.soak_clients import PATIENCE
from benchmarks.soak_crowds import CROWDS, crowds
from benchmarks.soak_preempt import preemptions
from benchmarks.soak_real_clients import real_clients
from benchmarks.soak_shared import shared_kills
from benchmarks.soak_shelf import kills, one_shots
from benchmarks.soak_slow import slow


def main() -> int:
    """Run all parts; return the status to exit with: 0, or 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n")[0])
    # 0 leaves a part out, so that a single one can be tried.
    parser.add_argument(
        "--seconds", type=float, default=40, help=f"for how long crowds come (default: 40); {CROWDS} at least"
    )
    parser.add_argument("--clients", type=int, default=1000, help="how many are a crowd (default: 1000)")
    parser.add_argument("--tries", type=int, default=100, help="users who come in a warm-up (default: 100)")
    parser.add_argument("--slow", type=float, default=20, help="seconds for each kind of slow clients (default: 20)")
    parser.add_argument(
        "--days", action=argparse.BooleanOptionalAction, default=True, help="agents' days (default: yes)"
    )
    parser.add_argument("--conversations", type=int, default=2000, help="conversations in little space (default: 2000)")
    parser.add_argument("--kills", type=int, default=20, help="kills at random moments (default: 20)")
    parser.add_argument(
        "--real-clients",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="install and run some (default: yes)",
    )
    parser.add_argument(
        "--shared-kills", type=int, default=30, help="kills of pairs with one shared shelf (default: 30)"
    )
    parser.add_argument("--seed", type=int, default=1, help="makes the same run again (default: 1)")
    options = parser.parse_args()
    # As an exception, so that on its way out all processes are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("FAILED: it took too long"))
    # Time that is certainly enough, by what was asked for: a run that hangs must end, and say so.
    agents = 600 * options.days + options.conversations + 60 * (options.kills + options.shared_kills)
    agents += 3600 * options.real_clients
    signal.alarm(int(options.seconds + 3 * options.tries + 6 * options.slow + agents + 6 * PATIENCE))
    # From the quick parts to the slow ones.  The first failure ends all: what comes after it would only be confused by
    # it.
    with tempfile.TemporaryDirectory(prefix="bioproxy-soak-") as folder:
        try:
            crowds(Path(folder), options.seconds, options.clients, options.seed)
            if options.tries:
                preemptions(Path(folder), options.tries, options.seed)
            if options.slow:
                slow(Path(folder), options.slow, options.clients)
            if options.days:
                product(Path(folder) / "days")
            if options.conversations:
                one_shots(Path(folder) / "one-shots", options.conversations)
            if options.kills:
                kills(Path(folder) / "kills", options.kills, options.seed)
                own_llama(Path(folder) / "own-llama", (options.kills + 1) // 2, options.seed)
            if options.shared_kills:
                shared_kills(Path(folder) / "shared", options.shared_kills, options.seed)
            if options.real_clients:
                real_clients(Path(folder) / "real-clients")
        except (AssertionError, OSError, EOFError, asyncio.TimeoutError) as error:
            # With the seed, which makes the same crowds and the same moments again.
            print(f"FAILED (seed {options.seed}): {str(error) or repr(error)}")
            return 1
    print("all is well")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
