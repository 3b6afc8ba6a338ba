"""Does each part of the pauses after failures earn its keep?  Replays trouble, with one part left out at a time.

    python -m benchmarks.replay_pauses

Nothing is measured here: time is simulated.  A warm-up is tried, comes to nothing after some seconds, and is tried
again when `Backoff` allows that.  The class and its constants are bioproxy's own, so a changed constant shows here what
it does.  The clock is Twisted's `Clock`, which stands still until it is moved.  Counted are the tries in an hour, and
the part of the hour that they take from llama-server.
"""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.task import Clock

from bioproxy.runtime.backoff import LONGEST_PAUSE, Backoff
from bioproxy.warmup.outcomes import CHANGES, CHANGES_PAUSE, SHORTEST_PAUSE
from bioproxy.warmup.warmer import INTERVAL


@dataclass(frozen=True)
class Trouble:
    """Warm-ups that come to nothing, each after `takes` seconds, and the pauses after them."""

    takes: float
    """Seconds of llama-server's time."""
    shortest: float
    """Seconds of the first pause."""
    free: int = 0
    """Tries before pauses begin."""
    by_cost: bool = True
    """Whether a dear try makes its pause longer."""


TROUBLES = {
    "fails at once": Trouble(0.05, SHORTEST_PAUSE),
    "fails after 30 s": Trouble(30.0, SHORTEST_PAUSE),
    "its text changes": Trouble(5.0, CHANGES_PAUSE, CHANGES, by_cost=False),
}
"""A llama-server that refuses, one that fails at the end of its work, and a template that changes before it is warm."""


def tries(trouble: Trouble, shortest: float, longest: float, by_cost: bool) -> tuple[int, float]:
    """Return how many tries an hour of trouble has, and the part of the time that they take."""
    timer, count = Clock(), 0
    backoff = Backoff(timer, shortest, longest, trouble.free)
    while timer.seconds() < 3600:
        if backoff.waiting("code") is None:
            timer.advance(trouble.takes)
            backoff.failed("code", took=trouble.takes if by_cost and trouble.by_cost else 0.0)
            count += 1
        timer.advance(INTERVAL)
    return count, count * trouble.takes / timer.seconds()


def main() -> None:
    """Print the table: the pauses as they are, without regard to a try's cost, without doubling, and none at all."""
    print("tries in an hour of trouble, and the part of the time that they take")
    print(f"{'':26}" + "".join(f"{what:>16}" for what in ("as it is", "not by cost", "not doubled", "no pauses")))
    for name, trouble in TROUBLES.items():
        first = trouble.shortest
        ways = ((first, LONGEST_PAUSE, True), (first, LONGEST_PAUSE, False), (first, first, False), (0.0, 0.0, False))
        found = (tries(trouble, *way) for way in ways)
        print(f"{name:26}" + "".join(f"{f'{count}, {part:.0%}':>16}" for count, part in found))


if __name__ == "__main__":
    main()
