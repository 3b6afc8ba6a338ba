"""A fleet of 3 to 3,000 pairs behind a balancer, simulated: who finds a warm pair, and what the rest costs.

    python -m benchmarks.fleet                                            3 pairs, all balancers: seconds
    python -m benchmarks.fleet --pairs 30 --conversations 20000 --shared 1T
    python -m benchmarks.fleet --pairs 3000 --conversations 1000000 --shared 10T --total 125e9
    python -m benchmarks.fleet --pairs 30 --conversations 20000 --shared 1T --change lost

Each balancer gets the same conversations.  Their rate follows from ``--busy``: the share of time for which pairs would
be busy if each request found its pair warm.  ``docs/scaling.md`` has tables made with this, and what follows from them.

With ``--change``, a tenth of the pairs is lost, gets slow or is added when half of the conversations have begun, and
only the requests of the five minutes after that are counted: how long does it take until those who have lost their pair
are warm elsewhere, and what does it cost the others?  ``--change none`` counts the same minutes undisturbed.

The decisions are made by `benchmarks.fleet_sim_balancers` and the pairs behave as `benchmarks.fleet_sim_pairs` has it;
this module is the command line and the table.  A real fleet of three is `benchmarks.fleet_demo`.

``--like-make-fleet`` simulates what ``make fleet`` runs on real llama.cpp: 20 sessions, 4 templates, 200 requests.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace

from benchmarks.fleet_sim_balancers import BALANCERS
from benchmarks.fleet_sim_load import DEMO_BYTES_PER_TOKEN, Load, Machine
from benchmarks.fleet_sim_result import Result
from benchmarks.fleet_sim_run import Change, Run, best
from benchmarks.fleet_sim_shelf import SharedShelf

WINDOW = 300.0
"""Seconds after a change whose requests are counted.

Halved, most conversations that had to move are counted once only; doubled, what follows hides what the change did.
"""

CHANGED = 0.1
"""Share of pairs that are lost, slow or added; one at least.

A rack of ten.  Halved, the effect drowns in chance with few pairs; doubled, it is a catastrophe, and no balancer helps.
"""

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""What a letter behind a number of bytes means, as in bioproxy's own settings."""


def size(text: str) -> float:
    """Return a number of bytes, such as 16G or 470e6.  Raises `ValueError`, which `argparse` turns into one line."""
    unit = UNITS.get(text[-1:], 1)
    return float(text if unit == 1 else text[:-1]) * unit


def templates_for(pairs: int) -> int:
    """Return how many templates a fleet uses: 4 for 3 pairs, and ten times as many for a hundred times the pairs.

    A guess about organisations: more people bring more kinds of work, but not in proportion.
    """
    return max(4, round(4 * math.sqrt(pairs / 3)))


def shelf_of(given: argparse.Namespace) -> SharedShelf | None:
    """Return an empty shared shelf as the command line describes it, or `None` if there is none.

    A new one for each run, since a run fills it.
    """
    if not given.shared:
        return None
    return SharedShelf(limit=given.shared, bandwidth=given.total, link=given.link)


def simulate(name: str, load: Load, machine: Machine, given: argparse.Namespace) -> Result:
    """Return what a balancer makes of a load.

    Without a change all requests are counted, with one those of `WINDOW` seconds from the middle on.
    """
    change, since, until = None, 0.0, math.inf
    # From the middle on, when the first conversations have come and gone and the fleet is as busy as it will be.
    if given.change is not None:
        since = load.conversations / load.rate / 2
        until = since + WINDOW
        # "none" is the control: the same minutes of the same fleet, in which nothing happens.
        if given.change != "none":
            change = Change(given.change, max(1, round(CHANGED * given.pairs)), since)
    # One at a time, each with a shelf of its own: a run of 3,000 pairs takes gigabytes.
    runs = (
        Run(load, machine, given.pairs, balancer, shelf_of(given), change, since, until) for balancer in BALANCERS[name]
    )
    return best(runs).result


def row(name: str, result: Result, seconds: float) -> str:
    """Return a row of the table, in Markdown.  `seconds` is how long a processor has simulated it."""
    # Shares are of the later requests: the first of a conversation can only find its template.
    later = max(1, result.later)
    return (
        f"| {name} | {result.warm / later:.1%} | {(result.warm + result.fetched) / later:.1%} "
        f"| {result.computed / max(1, result.new):.2f} | {result.busiest:.2f} "
        f"| {result.ttft(0.5):.2f} s | {result.ttft(0.99):.1f} s "
        f"| {result.local_bytes / 1e9:.1f} GB | {result.shared_bytes / 1e9:.0f} GB "
        f"| {result.copied / max(1.0, result.wall) / 1e9:.2f} GB/s | {seconds:.1f} s |"
    )


def parse() -> argparse.Namespace:
    """Return what the command line says, checked: a mistake ends the program with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # The defaults are the demo model's on two busy cores, as `docs/scheduling.md` has measured them.
    add = parser.add_argument
    add("--pairs", type=int, default=3, help="bioproxies, each with a llama-server")
    add("--conversations", type=int, default=2000, help="conversations in all")
    add("--busy", type=float, default=0.6, help="share of time that pairs would be busy if all were warm")
    add("--people", type=float, default=0.2, help="share of pauses in which a person thinks, not a tool runs")
    add("--turns", type=float, default=5.0, help="requests of a conversation, on average")
    add("--prefix", type=int, default=2000, help="tokens of a template")
    add("--templates", type=int, default=0, help="templates (default: 4 for 3 pairs, growing as the square root)")
    add("--prefill", type=float, default=670.0, help="tokens of a prompt that a pair computes in a second")
    add("--generate", type=float, default=30.0, help="tokens of an answer that it generates in a second")
    add("--bytes", type=int, default=DEMO_BYTES_PER_TOKEN, help="bytes of each token in a slot file")
    add("--save", type=size, default=470e6, help="bytes that llama-server saves in a second")
    add("--restore", type=size, default=410e6, help="bytes that llama-server restores in a second")
    add("--overhead", type=float, default=0.004, help="seconds that saving or restoring takes beside that")
    add("--local", type=size, default=16 * 2**30, help="bytes of conversations on each pair's disk, such as 16G")
    add("--shared", type=size, default=0, help="bytes of conversations on the shared shelf; 0 for none")
    add("--link", type=size, default=1.25e9, help="bytes in a second between a pair and the shared shelf")
    add("--total", type=size, default=1.25e9, help="bytes in a second that the shared shelf manages in all")
    add("--change", choices=("none", "added", "lost", "slow"), help="what happens to a tenth of the pairs")
    add("--balancers", default="", help=f"names, with semicolons between them, of: {'; '.join(BALANCERS)}")
    add("--seed", type=int, default=0, help="number that all chance follows from")
    add("--like-make-fleet", action="store_true", help="the load of `make fleet`")
    given = parser.parse_args()
    # Semicolons, because names have commas in them.
    names = [each.strip() for each in given.balancers.split(";") if each.strip()] or list(BALANCERS)
    for name in names:
        if name not in BALANCERS:
            parser.error(f"no balancer {name!r}: {'; '.join(BALANCERS)}")
    # A zero would be divided by, or make a run that never ends; so it is refused here, by the name of its option.
    for option in (
        "pairs",
        "conversations",
        "busy",
        "prefix",
        "prefill",
        "generate",
        "bytes",
        "save",
        "restore",
        "link",
        "total",
    ):
        if getattr(given, option) <= 0:
            parser.error(f"--{option} must be more than 0")
    for option in ("templates", "overhead", "local", "shared"):
        if getattr(given, option) < 0:
            parser.error(f"--{option} must not be negative")
    if given.turns < 1:
        parser.error("--turns must be 1 or more")
    if not 0 <= given.people <= 1:
        parser.error("--people must be between 0 and 1")
    # One at least has to be left.
    if given.change == "lost" and given.pairs < 2:
        parser.error("--change lost needs two pairs")
    given.balancers = names
    return given


LIKE_MAKE_FLEET = Load(
    20, 1.0, templates=4, prefix=848, turns=10, new=(72, 72), answer=(12, 12), alike=10, pause=3.0, prepared=True
)
"""The load of ``make fleet``: 20 sessions of ten turns, which pause for up to three seconds, on four warm templates.

A test compares what is simulated with what was measured on real programs, so that the simulation can be believed.
"""

MACHINE_OF_MAKE_FLEET = Machine(prefill=15_000.0, generate=100.0, bytes_per_token=512, overhead=0.02)
"""Three llama.cpp with the smallest generated model on two cores, which they share with everything else.

The model has 2 blocks of width 64, so a token needs 2 x 2 x 64 x 2 bytes, and 6,000 tokens were computed in 0.4 s.  The
rest are guesses: answers of twelve tokens, and small files, take about as long as calls over HTTP on a busy machine.
"""


def machine_of(given: argparse.Namespace) -> Machine:
    """Return the machine that the command line describes: all pairs have the same."""
    # Guessed and measured as its docstring says, so that the result can be held against the real one.
    if given.like_make_fleet:
        return MACHINE_OF_MAKE_FLEET
    speeds = (given.prefill, given.generate, given.bytes, given.save, given.restore)
    return Machine(*speeds, local=given.local, overhead=given.overhead)


def load_of(given: argparse.Namespace, machine: Machine) -> Load:
    """Return the load that the command line asks for.

    `machine` tells how long a request keeps a pair busy, from which the rate of conversations follows.
    """
    # All that the command line says of the load is left aside, except for the seed.
    if given.like_make_fleet:
        return replace(LIKE_MAKE_FLEET, seed=given.seed)
    load = Load(
        given.conversations,
        rate=1.0,
        templates=given.templates or templates_for(given.pairs),
        prefix=given.prefix,
        turns=given.turns,
        people=given.people,
        seed=given.seed,
    )
    # So busy that each balancer has to show what it can do, and not so busy that all queues grow for ever.
    return replace(load, rate=given.busy * given.pairs / load.busy_seconds(machine))


def main() -> None:
    """Simulate each balancer with the same conversations, and print a table with a row for each."""
    given = parse()
    # Everything but the balancer is the same in all rows.
    machine = machine_of(given)
    load = load_of(given, machine)
    # A table in Markdown, to be put into a document as it is; each row as soon as it is known, since one takes minutes.
    print(
        f"{given.pairs} pairs, {load.conversations} conversations, {load.templates} templates of {load.prefix} tokens"
    )
    print(
        "\n| balancer | pair warm | or fetched | computed / new | fullest pair | first token p50 | p99 "
        "| fullest disk | shared shelf | copied | processor |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in given.balancers:
        # The time of the processor, not of the day: other programs on the machine do not count.
        began = time.process_time()
        result = simulate(name, load, machine, given)
        print(row(name, result, time.process_time() - began), flush=True)


if __name__ == "__main__":
    main()
