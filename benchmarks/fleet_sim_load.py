"""The conversations of the simulated fleet: when they begin, what is new in each turn, how long their clients pause.

A conversation is a list of turns on a template, which is the long text that it begins with.  After an answer its client
pauses: a tool runs, or a person reads and types.  Then the next request comes, with all that was said before.

Everything is drawn from one seeded generator, in the order in which conversations begin.  So each balancer gets exactly
the same conversations, whatever it does with them.  They are made one at a time, as there may be a million of them.

Tokens of turns and most pauses are those of `benchmarks.scheduling`, which simulates a single gate.

Does not know of pairs or balancers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from bioproxy.slot.conversation_saver import GROWN, GROWN_IF_DISPLACED, LONGEST_SAVE, WORTH

MOST_TURNS = 50
"""Requests of a conversation at most."""

DEMO_BYTES_PER_TOKEN = 16_384
"""Bytes of one token in a slot file of the 112 MB demo model: 2 x 8 blocks x width 512 x 2 bytes.

Measured: 6,000 tokens are 99 MB (the model of `docs/scheduling.md`).
"""


@dataclass(frozen=True)
class Machine:
    """How fast one pair is, and how large its files are.  The defaults are the demo model's on two busy cores.

    Speeds and times of the defaults are those of `docs/scheduling.md`: 670 tokens of a prompt in a second, 30 of an
    answer; to save 2,000 tokens (33 MB) took 0.04 to 0.1 s, to restore them 0.004 to 0.19 s.
    """

    prefill: float = 670.0
    """Tokens of a prompt in a second."""
    generate: float = 30.0
    """Tokens of an answer in a second."""
    bytes_per_token: int = DEMO_BYTES_PER_TOKEN
    """Bytes of each token in a slot file."""
    save: float = 470e6
    """Bytes that llama-server writes in a second."""
    restore: float = 410e6
    """Bytes that llama-server reads in a second."""
    local: float = 16 * 2**30
    """Bytes of conversations on a pair's own disk at most (`conversations_limit`, whose default this is)."""
    overhead: float = 0.004
    """Seconds that saving or restoring takes however small a file is: the least that was measured."""

    def save_seconds(self, tokens: int) -> float:
        """Return how long saving so many tokens takes."""
        return self.overhead + tokens * self.bytes_per_token / self.save

    def restore_seconds(self, tokens: int) -> float:
        """Return how long restoring so many tokens takes."""
        return self.overhead + tokens * self.bytes_per_token / self.restore

    def worth_saving(self, tokens: int, grown: int, displaced: bool) -> bool:
        """Tell whether a conversation is saved that has grown by so many tokens, by bioproxy's own rule.

        `displaced`: another one takes the slot.  Else nobody waits.
        """
        seconds, computing = self.save_seconds(tokens), grown / self.prefill
        if grown < GROWN:
            return displaced and grown >= GROWN_IF_DISPLACED and seconds < computing
        return seconds <= max(LONGEST_SAVE, WORTH * computing)


@dataclass(frozen=True)
class Load:
    """What the clients of a fleet do."""

    conversations: int
    """How many there are in all."""
    rate: float
    """Conversations that begin in a second, on average."""
    templates: int = 4
    """Long beginnings; the second one is used half as often as the first, the third a third as often."""
    prefix: int = 2000
    """Tokens of a template."""
    turns: float = 5.0
    """Requests of a conversation, on average (one at least, `MOST_TURNS` at most)."""
    new: tuple[int, int] = (50, 250)
    """Fewest and most new tokens in a request: a question, or what a tool has found."""
    answer: tuple[int, int] = (20, 100)
    """Fewest and most tokens of an answer."""
    people: float = 0.2
    """Share of pauses in which a person reads and types, which takes 10 to 120 s.

    Of the rest, nine of ten are tools that take 0.05 to 0.4 s, and one in ten is a tool that takes 1 to 8 s.
    """
    alike: int = 0
    """If not 0, each conversation has so many turns, and they use the templates in turn, as in ``make fleet``."""
    pause: float = 0.0
    """If not 0, all pauses are 0 to so many seconds, and all conversations begin within so many seconds."""
    prepared: bool = False
    """Whether each pair has all templates in files before the first request."""
    seed: int = 0

    def busy_seconds(self, machine: Machine) -> float:
        """Return for how many seconds a conversation keeps a pair busy that always is warm for it."""
        per_turn = sum(self.new) / 2 / machine.prefill + sum(self.answer) / 2 / machine.generate
        return self.turns * per_turn


@dataclass(slots=True, eq=False)
class Conversation:
    """One conversation, and how far it has come.

    Invariant: at any time it has at most one request, which is in one place: on its way, in a queue, or at a pair.
    """

    number: int
    """Which one it is, in the order of their beginnings."""
    key: int
    """What the balancer hashes, as it does a session's name."""
    template: int
    steps: list[tuple[int, int, float]]
    """New tokens, tokens of the answer, and seconds until the next request, for each turn."""
    turn: int = 0
    tokens: int = 0
    """Tokens of the whole conversation after its last answer; 0 before the first one."""
    home: int = -1
    """The number of the pair that gave the last answer; -1 before the first one."""

    # Of the present request.
    arrived: float = 0.0
    first_token: float = 0.0
    computed: int = 0
    fetched: bool = False
    """Whether it came from the shared shelf."""


def conversations(load: Load) -> Iterator[tuple[float, Conversation]]:
    """Yield each conversation with the time in seconds at which it begins, in the order of these times."""
    random = Random(load.seed)
    popularity = list(accumulate(1 / (place + 1) for place in range(load.templates)))
    # They begin one after the other at random, or all within a short time.
    together = sorted(random.uniform(0, load.pause) for _ in range(load.conversations if load.pause else 0))
    now = 0.0
    for number in range(load.conversations):
        now = together[number] if together else now + random.expovariate(load.rate)
        if load.alike:
            template = number % load.templates
        else:
            template = random.choices(range(load.templates), cum_weights=popularity)[0]
        yield now, Conversation(number, random.getrandbits(32), template, _steps(load, random.random))


def _steps(load: Load, draw: Callable[[], float]) -> list[tuple[int, int, float]]:
    """Return the turns of a conversation: new tokens, tokens of the answer, and the pause after it."""
    # The chance of another turn, such that there are `turns` on average.
    more = 1 - 1 / load.turns
    (least_new, most_new), (least_answer, most_answer) = load.new, load.answer
    steps: list[tuple[int, int, float]] = []
    while len(steps) < load.alike if load.alike else not steps or (len(steps) < MOST_TURNS and draw() < more):
        kind, place = draw(), draw()
        if load.pause:
            pause = load.pause * place
        elif kind < load.people:
            pause = 10 + 110 * place
        elif kind < load.people + 0.1 * (1 - load.people):
            pause = 1 + 7 * place
        else:
            pause = 0.05 + 0.35 * place
        new = least_new + int(draw() * (most_new - least_new + 1))
        steps.append((new, least_answer + int(draw() * (most_answer - least_answer + 1)), pause))
    return steps
