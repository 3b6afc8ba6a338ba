"""Who goes first: the order of arrival, bioproxy's policy and an oracle, simulated over the same conversations.

    python -m benchmarks.scheduling [--runs 50] [--prefill 670] [--generate 30] [--switch 0.15]

Several conversations of agents run at the same time: each answer ends with tool calls, the tool takes a moment, and
then the next request comes.  The policy is the pure function that the gate uses (`bioproxy.slot.order.decide`), with
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
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import mean

from bioproxy.settings.configuration import Settings
from bioproxy.slot.order import RECENT_TURNS, Enter, Linger, Policy, Waiting, decide, expected_s, worth_lingering

TO_THE_NEXT_BLOCK = 32
"""Tokens that are computed again after a restore, on average: files end at multiples of 64.

Halved or doubled, a restore costs a fiftieth of a second less or more, far less than a switch.
"""


@dataclass(frozen=True)
class Machine:
    """How fast llama-server is."""

    prefill: float
    """Tokens of a prompt in a second."""
    generate: float
    """Tokens of an answer in a second."""
    switch: float
    """Seconds to save one conversation and restore another one."""
    restores: bool
    """Whether slot files are of use; if not, a conversation that has lost the slot is computed again."""


@dataclass(frozen=True)
class Step:
    """One request: how many tokens are new, how many the answer has, and how long the tool takes afterwards."""

    new: int
    """Tokens of the prompt that no earlier request of the conversation had."""
    answer: int
    """Tokens of the answer."""
    pause: float
    """Seconds from the answer to the next request of this conversation."""


@dataclass
class Request:
    """A request that waits."""

    conversation: int
    """Which conversation it belongs to."""
    number: int
    """0 for the first request of its conversation."""
    arrived: float
    """When it came, in seconds from the beginning."""
    passed: float = 0.0
    """Seconds for which others that came later were let in before it: what `patience` limits."""


@dataclass
class Result:
    """What one run has cost."""

    computed: int = 0
    """Tokens of prompts that were computed."""
    new: int = 0
    """Tokens that had to be computed in any order: those that were new."""
    wall: float = 0.0
    """Seconds until all was answered."""
    switches: int = 0
    """How often a conversation that went on had lost the slot."""
    waits: list[float] = field(default_factory=list)
    """Seconds from each request's arrival to its turn."""
    passed: list[float] = field(default_factory=list)
    """Seconds by which each request was passed over."""


def conversations(random: Random, count: int, turns: int, tokens: int) -> list[list[Step]]:
    """Return conversations that begin with so many tokens.

    A tool's result has 50 to 250 tokens, an answer 20 to 100.  Most tools take 0.05 to 0.4 s, one in ten 1 to 8 s.
    """
    return [
        [
            Step(
                tokens if turn == 0 else random.randint(50, 250),
                random.randint(20, 100),
                random.uniform(1, 8) if random.random() < 0.1 else random.uniform(0.05, 0.4),
            )
            for turn in range(turns)
        ]
        for _ in range(count)
    ]


class Run:
    """One run over the conversations.

    Invariant: `now` is a moment at which the slot is free; each request is in `coming`, in `queue`, or answered.
    """

    def __init__(self, plan: Sequence[Sequence[Step]], machine: Machine) -> None:
        """Prepare to answer these conversations, each of which is its requests in their order."""
        self.plan, self.machine = plan, machine
        # Who waits, in the order of arrival; whose conversation is in the slot; until when the gate may wait for its
        # next request.
        self.now = 0.0
        self.queue: list[Request] = []
        self.holds: int | None = None
        self.linger_until = 0.0
        # Whether the gate lingers only where a switch is dear.
        self.judges = True
        # How long the last turns took that went on with what the slot held; by these the policy estimates the next one.
        self.recent: deque[float] = deque(maxlen=RECENT_TURNS)
        self.result = Result(new=sum(step.new for steps in plan for step in steps))
        # All begin within the first second.
        self.coming = [(index * 0.2, index, 0) for index in range(len(plan))]

    def cost(self, conversation: int, number: int, holds: int | None) -> tuple[int, float]:
        """Return how many tokens a request computes, and for how many seconds it is inside."""
        # `holds` is a parameter, so that the oracle can ask what a request would cost if somebody else had the slot.
        step, machine = self.plan[conversation][number], self.machine
        computed, switch = step.new, 0.0
        if holds != conversation and number:
            before = sum(each.new + each.answer for each in self.plan[conversation][:number])
            computed += TO_THE_NEXT_BLOCK if machine.restores else before
            switch = machine.switch if machine.restores else 0.0
        return computed, switch + computed / machine.prefill + step.answer / machine.generate

    def run(self, choose: Callable[[Run], Enter | Linger | None]) -> Result:
        """Let `choose` decide until all is answered; return what it has cost.

        `choose` says who enters, for how long the gate waits, or `None` if nobody is there.
        """
        # All that has happened by now comes first; then there is one decision, and the clock goes to the next moment at
        # which there is something to decide.
        while self.coming or self.queue:
            while self.coming and self.coming[0][0] <= self.now:
                arrived, conversation, number = heapq.heappop(self.coming)
                self.queue.append(Request(conversation, number, arrived))
            decision = choose(self)
            if decision is None:
                self.now = self.coming[0][0]
            elif isinstance(decision, Linger):
                self.linger(decision.seconds)
            else:
                self.serve(decision.index)
        self.result.wall = self.now
        return self.result

    def linger(self, seconds: float) -> None:
        """Let nobody in until somebody comes, or for so many seconds; all who wait are passed over by that."""
        # Somebody who comes ends it, whoever it is: then it is decided anew.  If nobody does, there is no more waiting
        # for this conversation.
        end = self.now + seconds
        if self.coming and self.coming[0][0] <= end:
            end = self.coming[0][0]
        else:
            self.linger_until = 0.0
        for each in self.queue:
            each.passed += end - self.now
        self.now = end

    def serve(self, index: int) -> None:
        """Let the request at this place of the queue in, until it is answered."""
        request = self.queue.pop(index)
        computed, seconds = self.cost(request.conversation, request.number, self.holds)
        self.result.computed += computed
        self.result.waits.append(self.now - request.arrived)
        self.result.passed.append(request.passed)
        # Who stands before the chosen one is passed over by it, for as long as it is inside.
        goes_on = self.holds == request.conversation
        self.result.switches += not goes_on and request.number > 0
        for each in self.queue[:index]:
            each.passed += seconds
        self.recent.append(seconds if goes_on else 0.0)
        self.holds = request.conversation
        self.now += seconds
        steps = self.plan[request.conversation]
        self.linger_until = 0.0
        if request.number + 1 < len(steps):
            heapq.heappush(
                self.coming, (self.now + steps[request.number].pause, request.conversation, request.number + 1)
            )
            before = sum(each.new + each.answer for each in steps[: request.number + 1])
            machine = self.machine
            switch = machine.switch if machine.restores else before / machine.prefill
            self.linger_until = self.now + (
                worth_lingering(Settings().linger, switch) if self.judges else Settings().linger
            )


def by_policy(patience: float, linger: float = Settings().linger) -> Callable[[Run], Enter | Linger | None]:
    """Return bioproxy's own decision.

    `patience` and `linger` are the settings of these names, in seconds.
    """

    def choose(run: Run) -> Enter | Linger | None:
        """Ask the function that the gate asks, in its own terms: a queue, and what is known of the past."""
        queue = [Waiting(each.conversation == run.holds, each.passed) for each in run.queue]
        return decide(queue, Policy(patience, expected_s(run.recent), min(linger, run.linger_until - run.now)))

    return choose


def by_oracle(patience: float) -> Callable[[Run], Enter | Linger | None]:
    """Return the decision of one who knows the future, bound to this `patience` in seconds."""

    def choose(run: Run) -> Enter | Linger | None:
        """Prefer the conversation that has the slot, if its next request is here or is worth waiting for."""
        if not run.queue:
            return None
        most = 0.0
        for index, each in enumerate(run.queue):
            if each.conversation == run.holds:
                seconds = run.cost(each.conversation, each.number, run.holds)[1]
                return Enter(index if index == 0 or most + seconds <= patience else 0)
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
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="runs, with seeds from 0 on")
    parser.add_argument("--conversations", type=int, default=5, help="conversations at the same time")
    parser.add_argument("--turns", type=int, default=10, help="requests of each")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens that each begins with")
    parser.add_argument("--prefill", type=float, default=670.0, help="tokens of a prompt in a second")
    parser.add_argument("--generate", type=float, default=30.0, help="tokens of an answer in a second")
    parser.add_argument("--switch", type=float, default=0.15, help="seconds to save and to restore a conversation")
    given = parser.parse_args()
    for restores in (False, True):
        print(f"\nA conversation that lost the slot is {'restored' if restores else 'computed again'}:\n")
        machine = Machine(given.prefill, given.generate, given.switch, restores)
        table(machine, given.runs, given.conversations, given.turns, given.tokens)


if __name__ == "__main__":
    main()
