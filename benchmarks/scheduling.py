"""Who goes first: the order of arrival, bioproxy's policy and an oracle, simulated over the same conversations.

    python -m benchmarks.scheduling [--runs 50] [--prefill 670] [--generate 30] [--switch 0.15]

Several conversations of agents run at the same time: each answer ends with tool calls, the tool takes a moment, and
then the next request comes.  The policy is the pure function that the gate uses (`bioproxy.gate.order.decide`), with
the same estimate.  Nothing else of bioproxy runs, and the clock is a number: a run takes some milliseconds.

There are two kinds of llama-server.  Where slot files are of use, a conversation that has lost the slot is *restored*,
which takes `--switch` seconds (saving the other one, then restoring) and some tokens up to the next multiple of 64.
Otherwise its whole prompt is *computed* again.

A simulation and not a benchmark of the gate itself, because the question is about the policy: what does it cost to pass
somebody over, and what does it gain?  On a real llama.cpp the answer would take an hour for each line of the table, and
be blurred by everything else that a machine does.  The tokens and times of the defaults are measured ones.

The oracle knows how long each answer will take and when the conversation's next request will come.  It waits for that
request whenever this costs less time than losing the slot would.  It is printed twice: bound to the same patience, and
without any.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from random import Random
from statistics import mean

from benchmarks.scheduling_run import Machine, Run, conversations
from bioproxy.gate.order import Enter, Linger, Policy, WaitingTurn, decide, expected_s
from bioproxy.settings.configuration import Settings


def by_policy(patience: float, linger: float = Settings().linger) -> Callable[[Run], Enter | Linger | None]:
    """Return bioproxy's own decision.

    `patience` and `linger` are the settings of these names, in seconds.
    """

    def choose(run: Run) -> Enter | Linger | None:
        """Ask the function that the gate asks, in its own terms: a queue, and what is known of the past."""
        # The estimate is made of the past, as the real gate makes it; it does not know what the oracle knows.
        queue = [WaitingTurn(each.conversation == run.holds, each.passed) for each in run.queue]
        return decide(queue, Policy(patience, expected_s(run.recent), min(linger, run.linger_until - run.now)))

    return choose


def by_oracle(patience: float) -> Callable[[Run], Enter | Linger | None]:
    """Return the decision of one who knows the future, bound to this `patience` in seconds."""

    def choose(run: Run) -> Enter | Linger | None:
        """Prefer the conversation that has the slot, if its next request is here or is worth waiting for."""
        # Without anybody who waits there is nothing to weigh: the clock goes to the next arrival.
        if not run.queue:
            return None
        # How long somebody before it in the queue has been passed over already, at most.
        most = 0.0
        for index, each in enumerate(run.queue):
            if each.conversation == run.holds:
                seconds = run.cost(each.conversation, each.number, run.holds)[1]
                return Enter(index if index == 0 or most + seconds <= patience else 0)
            # Whoever stands before it would be passed over by so much more.
            most = max(most, each.passed)
        # Its request is not here yet.  Waiting costs `gap`, and letting another one in costs what losing the slot does.
        for arrives, conversation, number in run.coming:
            if conversation == run.holds:
                stays, goes = (run.cost(conversation, number, holds)[1] for holds in (run.holds, None))
                gap = arrives - run.now
                if gap < goes - stays and most + gap + stays <= patience:
                    return Linger(gap)
        return Enter(0)

    return choose


def table(machine: Machine, runs: int, count: int, turns: int, tokens: int) -> None:
    """Print what each order costs, as a table in Markdown.

    Each order has so many `runs`, with `count` conversations of `turns` requests that begin with `tokens` tokens.
    """
    patience = Settings().patience
    # Each order of the table, and how it decides.  The first one is what any queue does.
    orders = {
        "order of arrival": by_policy(0),
        f"bioproxy, `patience` {patience:g}": by_policy(patience),
        f"bioproxy, `patience` {patience:g}, `linger` 0": by_policy(patience, 0),
        f"bioproxy, `patience` {3 * patience:g}": by_policy(3 * patience),
        f"oracle, `patience` {patience:g}": by_oracle(patience),
        "oracle without `patience`": by_oracle(float("inf")),
    }
    print(
        "| order | computed / new tokens | switches | seconds in all | mean wait | longest wait | longest passed over |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, choose in orders.items():
        # The same conversations for each order.  Means over the runs, and the worst of all runs: a user who waits for a
        # minute is no comfort to others who did not.
        done = [Run(conversations(Random(seed), count, turns, tokens), machine).run(choose) for seed in range(runs)]
        print(
            f"| {name} | {mean(each.computed / each.new for each in done):.2f} "
            f"| {mean(each.switches for each in done):.0f} | {mean(each.wall for each in done):.0f} "
            f"| {mean(mean(each.waits) for each in done):.1f} s | {max(max(each.waits) for each in done):.1f} s "
            f"| {max(max(each.passed) for each in done):.1f} s |"
        )


def main() -> None:
    """Print a table for each kind of llama-server, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="runs, with seeds from 0 on")
    parser.add_argument("--conversations", type=int, default=5, help="conversations at the same time")
    parser.add_argument("--turns", type=int, default=10, help="requests of each")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens that each begins with")
    parser.add_argument("--prefill", type=float, default=670.0, help="tokens of a prompt in a second")
    parser.add_argument("--generate", type=float, default=30.0, help="tokens of an answer in a second")
    parser.add_argument("--switch", type=float, default=0.15, help="seconds to save and to restore a conversation")
    given = parser.parse_args()
    # The two kinds of llama-server, as said above: losing the slot is dear with one, and nearly free with the other.
    for restores in (False, True):
        print(f"\nA conversation that lost the slot is {'restored' if restores else 'computed again'}:\n")
        machine = Machine(given.prefill, given.generate, given.switch, restores)
        table(machine, given.runs, given.conversations, given.turns, given.tokens)


if __name__ == "__main__":
    main()
