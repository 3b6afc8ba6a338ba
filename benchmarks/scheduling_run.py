"""One run of the simulated gate: conversations whose requests come, wait, get the slot and are answered.

The clock is a number.  It stands still while something is decided, and then jumps to the next moment at which there is
something to decide: a request has come, or the slot is free.  So an hour of a busy gate passes in some milliseconds,
and the same seed gives the same run to the last digit.

What a request costs depends on one thing, whether its conversation still has the slot.  All that makes one order better
than another is in that.

Does not decide who goes first: a function is handed in (`benchmarks.scheduling`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from bioproxy.gate.order import RECENT_TURNS, Enter, Linger, worth_lingering
from bioproxy.settings.configuration import Settings

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
