"""Does each rule of shape learning earn its keep?  Replays clients against the rules, with one switched off at a time.

    python -m benchmarks.replay_shapes

Nothing is measured here: everything runs in simulated time, in some seconds.  A replay has one prompt, a slot, a file,
and questions with their times.  Warm-ups run while nobody asks: one takes `SAVING` seconds if the slot holds the shape
already, and `COMPUTING` more if not; a question that comes meanwhile ends it.  Counted are

* the warm-ups that were started,
* the useful ones: a first question had their shape before the next warm-up was through,
* the first questions that found their prompt warm, in the slot or in the file.

Each column is `bioproxy.learning.shape_rules` with one rule undone, by its number there; "3: three" asks for three in a
row, "4: double" counts each takeover double, "4 not eased" lets no confirmation soften rule 4.  The columns with a "+"
are rules that are gone: a second takeover at once, and later questions as confirmations.

The rules themselves have no switches.  A rule is undone from outside, by changing the `Habit` before or after
`learned`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from bioproxy.learning.shape_rules import Habit, learned
from bioproxy.prompts.prompt_shape import Shape
from bioproxy.warmup.warmer import INTERVAL as ROUND

COMPUTING, SAVING, ANSWERING = 20.0, 1.0, 5.0
"""Seconds: to compute the prompt, to save it, to answer a question on it."""

BETWEEN, BETWEEN_TURNS = 60.0, 20.0
"""Seconds between two conversations, and between two questions of one, on average."""

STRANGERS = 0.3
"""The part of all requests that are on something else, and leave that in the slot."""

QUESTIONS, SEEDS = 200, 10
"""First questions in each replay, and how many replays the figures are the mean of."""

Learn = Callable[[Habit, Shape], Habit]
Client = Callable[[random.Random, int, float], Shape]
"""Returns the shape of a first question, from its number and its time in seconds."""


@dataclass(frozen=True)
class Question:
    """A request: on the prompt, or, without a shape, on something else."""

    at: float
    """When it comes, in seconds from the beginning."""
    shape: Shape | None
    """What its client puts before the prompt; `None` for something else."""
    first: bool
    """Whether it begins a conversation: only these teach anything."""


@dataclass(frozen=True)
class Outcome:
    """What came of one replay, or of several, added up."""

    started: int = 0
    """Warm-ups."""
    useful: int = 0
    """Warm-ups of which some first question had something."""
    warm: int = 0
    """First questions that found their prompt warm."""
    asked: int = 0
    """First questions."""

    def __add__(self, other: Outcome) -> Outcome:
        """Return the sum."""
        return Outcome(
            self.started + other.started, self.useful + other.useful, self.warm + other.warm, self.asked + other.asked
        )

    def __str__(self) -> str:
        """Return started, useful, and the part found warm, for one replay."""
        return f"{self.started / SEEDS:.0f}/{self.useful / SEEDS:.0f}/{self.warm / max(1, self.asked):.0%}"


# The clients.


def told(text: object) -> Shape:
    """Return the shape of requests with this system message."""
    return Shape.of([{"role": "system", "content": str(text)}], {}, [], {})


def tools(names: Iterable[str]) -> Shape:
    """Return the shape of requests with these tools, in this order."""
    return Shape.of([], {}, [], {"tools": [{"type": "function", "function": {"name": name}} for name in names]})


A, B = told("A"), told("B")
"""Two shapes, where it does not matter which."""


def clock(seconds: float) -> Client:
    """Return a client whose system message tells the time, and changes every so many seconds."""
    return lambda _, number, at: told(f"It is {at // seconds}")


def rarely(part: float, other: Client) -> Client:
    """Return a client that asks in shape A, and for this part of its questions as another one does."""
    return lambda random, number, at: other(random, number, at) if random.random() < part else A


def in_runs(length: int) -> Client:
    """Return two clients, of whom each asks so many questions before the other's turn comes."""
    return lambda _, number, at: (A, B)[number // length % 2]


# The kinds of clients that were seen or can be thought of, from the one that needs no rule at all to those that make
# each rule necessary: a shape that changes each time, and one that comes back.
CLIENTS: dict[str, Client] = {
    "one shape": lambda *_: A,
    "changes once": lambda _, number, at: A if number < QUESTIONS / 2 else B,
    "changes 10 times": lambda _, number, at: told(number // 20),
    "stranger, 1 in 10": rarely(0.1, lambda _, number, at: told(number)),
    "same stranger, 1 in 10": rarely(0.1, lambda *_: B),
    "second client, 1 in 4": rarely(0.25, lambda *_: B),
    "two in turn": in_runs(1),
    "two, 3 each": in_runs(3),
    "two, 10 each": in_runs(10),
    "two at random": rarely(0.5, lambda *_: B),
    "clock by the second": clock(1),
    "clock by the minute": clock(60),
    "clock by 10 minutes": clock(600),
    "clock by the hour": clock(3600),
    "clock by the day": clock(86400),
    "3 tools in any order": lambda random, *_: tools(random.sample("abc", 3)),
    "regular and minute clock": rarely(0.5, clock(60)),
}


def questions(client: Client, seed: int, turns: float) -> Iterator[Question]:
    """Yield the questions of one replay; a conversation has `turns` later questions on average."""
    source, at, number = random.Random(seed), 0.0, 0
    while number < QUESTIONS:
        at += source.expovariate(1 / BETWEEN) + 1
        if source.random() < STRANGERS:
            yield Question(at, None, True)
            continue
        shape = client(source, number, at)
        yield Question(at, shape, True)
        number += 1
        while source.random() < turns / (1 + turns):
            at += source.expovariate(1 / BETWEEN_TURNS) + 1
            yield Question(at, shape, False)


# The rules, and the same with one undone.


def not_at_once(habit: Habit, shape: Shape) -> Habit:
    """Learn without rule 2: the first shape must come twice in a row, too."""
    return learned(replace(habit, settled=True), shape)


def at_once_always(habit: Habit, shape: Shape) -> Habit:
    """Learn without rule 3: each other shape is taken over at once."""
    return learned(replace(habit, settled=False), shape)


def three_in_a_row(habit: Habit, shape: Shape) -> Habit:
    """Learn with one more in a row than rule 3 asks for."""
    after = learned(replace(habit, changes=habit.changes + 1), shape)
    return replace(after, changes=max(0, after.changes - 1))


def not_costly(habit: Habit, shape: Shape) -> Habit:
    """Learn without rule 4."""
    return replace(learned(habit, shape), changes=0)


def twice_as_costly(habit: Habit, shape: Shape) -> Habit:
    """Learn with a rule 4 that counts double."""
    after = learned(habit, shape)
    return replace(after, changes=after.changes + max(0, after.changes - habit.changes))


def never_easier(habit: Habit, shape: Shape) -> Habit:
    """Learn with a rule 4 that confirmations do not soften."""
    after = learned(habit, shape)
    return replace(after, changes=max(after.changes, habit.changes))


def not_broken(habit: Habit, shape: Shape) -> Habit:
    """Learn without the part of rule 1 by which a confirmation ends a row of others."""
    after = learned(habit, shape)
    if shape != habit.shape:
        return after
    return replace(after, other=habit.other, in_a_row=habit.in_a_row, others=habit.others)


def twice_at_once(habit: Habit, shape: Shape) -> Habit:
    """Learn with a rule that is gone: a first guess that nobody confirmed is followed by a second one."""
    after = learned(habit, shape)
    first_guess = habit.turn == 0 and shape != habit.shape
    return replace(after, settled=False) if first_guess else after


RULES: dict[str, tuple[Learn, bool]] = {
    "all rules": (learned, False),
    "1 off": (not_broken, False),
    "2 off": (not_at_once, False),
    "3 off": (at_once_always, False),
    "3: three": (three_in_a_row, False),
    "4 off": (not_costly, False),
    "4: double": (twice_as_costly, False),
    "4 not eased": (never_easier, False),
    "+ 2 guesses": (twice_at_once, False),
    "+ later turns": (learned, True),
}
"""How to learn, and whether later questions in the present shape confirm it (a rule that is gone)."""


def replay(asked: Iterable[Question], learn: Learn, later_turns: bool) -> Outcome:
    """Replay one sequence of questions.

    `learn` makes the next habit of a first question; with `later_turns`, other questions confirm the habit as well.
    """
    # What the slot and the file hold; from when on the slot is free; whether the last warm-up helped nobody yet.
    habit, outcome = Habit(), Outcome()
    slot: Shape | None = None
    file: Shape | None = None
    free, unused = 0.0, False
    for question in asked:
        # The warm-up since the last answer, if one was due.
        begin = free + ROUND
        if file != habit.shape and begin < question.at:
            outcome += Outcome(started=1)
            if begin + SAVING + (COMPUTING if slot != habit.shape else 0.0) <= question.at:
                slot = file = habit.shape
                unused = True
            elif slot != habit.shape:
                slot = None  # the beginning of a prompt is not worth much
        found = question.shape is not None and question.shape in (slot, file)
        free = max(question.at, free) + ANSWERING + (0.0 if found else COMPUTING)
        slot = question.shape
        if question.shape is None:
            continue
        if question.first:
            outcome += Outcome(warm=int(found), asked=1, useful=int(unused and question.shape == file))
            unused = unused and question.shape != file
            habit = learn(habit, question.shape)
            habit = replace(habit, turn=habit.turn + 1)
        elif later_turns and question.shape == habit.shape:
            habit = learn(habit, question.shape)
    return outcome


def outcome(client: Client, rules: str, turns: float) -> Outcome:
    """Return what comes of a kind of client under some rules, over all seeds."""
    learn, later_turns = RULES[rules]
    results = (replay(questions(client, seed, turns), learn, later_turns) for seed in range(SEEDS))
    return sum(results, Outcome())


def main() -> None:
    """Print the table, once for conversations with later questions and once without."""
    for turns in (1.0, 0.0):
        print(f"\nstarted/useful/found warm of {QUESTIONS} first questions, {turns:g} later ones in each")
        print(f"{'':26}" + "".join(f"{rules:>14}" for rules in RULES))
        sums = {rules: Outcome() for rules in RULES}
        for name, client in CLIENTS.items():
            row = {rules: outcome(client, rules, turns) for rules in RULES}
            sums = {rules: sums[rules] + row[rules] for rules in RULES}
            print(f"{name:26}" + "".join(f"{row[rules]!s:>14}" for rules in RULES))
        print(f"{'in all':26}" + "".join(f"{sums[rules]!s:>14}" for rules in RULES))


if __name__ == "__main__":
    main()
