"""A fleet in one line: ``make fleet`` starts HAProxy and three pairs, gives them work, and prints what came of it.

Each pair is a bioproxy and a real llama.cpp with a small generated model; they share one folder.  Twelve agents have
conversations on four long templates, first with requests going to the pair that is warm for them, as the configuration
in `examples/haproxy` has it, then with requests going to the pairs in turn.  Everything runs in a temporary folder and
is ended at the end, by Ctrl-C, or by SIGTERM.

    python -m benchmarks.fleet_demo [--sessions 12] [--turns 6] [--pause 2]

What a visitor should see is one difference: the same agents, on the same machines, with the balancer looking at who
asks or not looking.  So the same sessions run twice, behind two HAProxies that differ in three lines.

No Twisted in here: processes and threads, each of which does one thing.

Does not know how processes are started (`benchmarks.fleet_parts`) and what a session is (`benchmarks.fleet_clients`).
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.fleet_clients import Crowd, Session, Summary, Turn
from benchmarks.fleet_parts import Balancer, Pair, find_haproxy, round_robin, write_templates
from benchmarks.servers import Children, wait_for
from bioproxy.demo import tiny_model

QUESTION = 200
"""Words of a question, as the output of an agent's tool.

Halved, computing what is new takes so little that conversations hardly matter; doubled, it takes most of the time.
"""

PAIRS, TEMPLATES = 3, 4
"""What there is; HAProxy's configuration has three pairs, and one more template than pairs shows that they are
shared."""

MODEL = tiny_model.Size(blocks=4, width=256, heads=4, feed_forward=768)
"""Small enough for three of them on two processor cores, and slow enough that computing a prompt can be felt.

Its answers are nonsense; what counts is how long a prompt takes.
"""

HEADINGS = ("pair", "requests", "sessions", "in the slot", "from a file", "tokens reused", "computed", "first token, s")
"""The columns of the table; tokens and requests are sums, the last one is a mean."""


def say(text: str) -> None:
    """Print a line at once, also where the output is not a terminal: a demonstration that is silent looks broken."""
    print(text, flush=True)


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as lines with columns of equal width; the first column is text, the others are numbers.

    For a terminal, so without the frames of Markdown.
    """
    # Each column is as wide as its widest cell.
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def shares(turns: Sequence[Turn], pairs: Sequence[Pair]) -> str:
    """Return the table of what went where: a line for each pair, by what HAProxy's header says."""
    # Pairs that got nothing are in the table, too: that is news.
    rows: list[tuple[object, ...]] = [HEADINGS]
    # All that is known of a turn comes with its answer: HAProxy's header names the pair, bioproxy's say what it found.
    for name in [pair.name for pair in pairs]:
        mine = [turn for turn in turns if turn.answer.pair == name]
        answers = [turn.answer for turn in mine]
        rows.append(
            (
                name,
                len(mine),
                len({turn.session for turn in mine}),
                sum(answer.cache == "hot" for answer in answers),
                sum(answer.cache == "restored" for answer in answers),
                sum(answer.reused for answer in answers),
                sum(answer.computed for answer in answers),
                f"{sum(answer.ttft for answer in answers) / max(len(answers), 1):.2f}",
            )
        )
    return table(rows)


def work(folder: Path, pairs: Sequence[Pair], configuration: str | None, options: argparse.Namespace) -> Summary:
    """Let the agents work behind a HAProxy of its own; print the table, and return the summary.

    `configuration` is HAProxy's, `None` for the example's.  The pairs go on running; only HAProxy is a new one.
    """
    folder.mkdir()
    with ExitStack() as stack:
        # HAProxy looks at the pairs each second or so; until it has found them ready, each request would be refused.
        balancer = Balancer(stack, folder, *pairs, configuration=configuration)
        wait_for("HAProxy to see the pairs", lambda: all(balancer.sees(pair) for pair in pairs))
        # New sessions, with names of their own: none of them can find a conversation of the other run.
        crowd = Crowd(
            Session(f"{folder.name} {number}", f"@t{number % TEMPLATES}", question_words=QUESTION)
            for number in range(options.sessions)
        )
        # Each agent thinks between two questions, so the pairs are busy and not overloaded.
        crowd.start(balancer.port, options.turns, options.pause)
        crowd.join()
    # After HAProxy has ended, so that nothing is still on its way.
    say(shares(crowd.turns, pairs))
    # None is expected.  If there are some, the numbers above are of answers that were asked for again.
    if crowd.failures:
        say(f"{len(crowd.failures)} requests failed and were sent again; the first one: {crowd.failures[0]}")
    return Summary.of(crowd.turns)


def fleet(folder: Path, stack: ExitStack, options: argparse.Namespace) -> None:
    """Start everything, have it work, and tell what was saved.

    All processes belong to `stack`, so they end with it, whatever happens.
    """
    began = time.monotonic()
    say(f"Starting {PAIRS} pairs of bioproxy and llama.cpp with one shared folder ...")
    # One file for all of them, made in a second: no model has to be downloaded for a demonstration.
    model = folder / "model.gguf"
    tiny_model.write_model(model, MODEL)
    children, templates = Children(stack, folder), write_templates(folder, TEMPLATES)
    # They start beside each other, since each loads its own copy of the model.
    pairs = [Pair(children, folder, f"pair{number}", model, templates) for number in range(1, PAIRS + 1)]
    # All three want the same templates at the same moment: one computes each, and the others fetch it.
    for pair in pairs:
        wait_for(f"{pair.name} to be warm", pair.warm)
    # By bioproxy's own metrics, as Prometheus would have them.
    computed = sum(pair.metric("warmups_total", result="done") for pair in pairs)
    fetched = sum(pair.metric("shared_warmups_saved_total") for pair in pairs)
    tokens = max(pair.metric("template_tokens") for pair in pairs)
    saved = sum(pair.metric("shared_tokens_total") for pair in pairs)
    say(
        f"All pairs have {TEMPLATES} templates of {tokens:.0f} tokens in all, after {time.monotonic() - began:.0f} s."
        f"  Computed: {computed:.0f} warm-ups; taken from the shared folder: {fetched:.0f}, {saved:.0f} tokens.\n"
    )
    # First as the configuration has it, then as a balancer does that knows nothing of conversations.  The second run
    # finds the pairs with the first one's conversations in their slots, which are of no use to it.
    count = options.sessions * options.turns
    say(f"{options.sessions} agents ask {count} questions.  Each goes to the pair that is warm for it:")
    warm = work(folder / "affinity", pairs, None, options)
    say(f"\nThe same with {options.sessions} new agents, and each question to the next pair in turn:")
    turn = work(folder / "in-turn", pairs, round_robin(), options)
    say(
        f"\nWhere requests found their pair, {warm.again} tokens were computed once more although an answer had used"
        f" them before; where they went in turn, {turn.again}.\n"
        f"Of the second and later questions, {warm.warm:.0%} found their conversation, against {turn.warm:.0%};"
        f" {warm.stayed:.0%} came to the pair of the one before, against {turn.stayed:.0%}.\n"
        f"The first word came after {warm.ttft:.2f} s (median), against {turn.ttft:.2f} s; in the slowest twentieth"
        f" after {warm.ttft_worst:.2f} s, against {turn.ttft_worst:.2f} s."
    )


def main(arguments: Sequence[str]) -> int:
    """Run the fleet; return the exit code of the process: 1 without HAProxy, 130 after Ctrl-C."""
    # The module's docstring is too long for ``--help``.
    parser = argparse.ArgumentParser(
        prog="benchmarks.fleet_demo", description="HAProxy, three pairs, and a load of agents"
    )
    parser.add_argument("--sessions", type=int, default=12, help="agents that work at the same time (%(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="questions of each agent, at least 2 (%(default)s)")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two of them, at most (%(default)s)")
    options = parser.parse_args(arguments)
    # With one turn there would be no later ones, which all the shares are of.
    if options.turns < 2 or options.sessions < 1:
        parser.error("there must be one session and two turns at least")
    if find_haproxy() is None:
        print("HAProxy is missing: apt-get install haproxy", file=sys.stderr)
        return 1
    # As Ctrl-C: an exception, on whose way out everything is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The stack is inside the folder's block: processes are ended before the folder that they write to is removed.
    try:
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder, ExitStack() as stack:
            fleet(Path(folder), stack, options)
    except KeyboardInterrupt:
        say("\nStopped; everything is ended.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
