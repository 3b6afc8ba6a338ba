"""How things are measured: turns, medians and ratios, and how much is measured in a quick run and in a whole one.

Two measurements that are made one after the other differ by whatever the machine did meanwhile: on a machine that does
other things too, by a factor of two.  So contestants take turns: each is asked once in each round, in a random order.
A slow second then makes all of them slow, and what one costs beside another hardly changes.

The garbage collector of this process is off meanwhile: a pause of the client's is nobody's latency.

Pure, but for the clock and the collector.  Does not know who the contestants are.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

WARM_UP = 20
"""One of so many rounds is made before those that count, so that caches and connections are as in the middle of a
day."""


LENGTHS = (1000, 3000, 7000)
"""Tokens of the prompts in a whole run."""


@dataclass(frozen=True)
class Amounts:
    """How much is measured."""

    posts: int
    """Small requests to each contestant."""
    streams: int
    """Streams of each kind from each contestant."""
    from_pypi: tuple[str, ...]
    """Programs that take part and must be installed first: ``hearth-llm`` in seconds, ``litellm`` in minutes."""
    prompts: dict[str, tuple[int, ...]]
    """Tokens of the prompts, for each model."""
    repeats: int
    """Questions to each contestant in each state that takes no computing, such as hot."""
    restarts: int
    """Restarts of each program."""
    waiting: tuple[int, ...]
    """Streams that wait at the same time."""
    template_tokens: tuple[int, ...]
    """Tokens of a large template."""
    templates: tuple[int, ...]
    """Templates that are polled."""
    entries: tuple[int, ...]
    """Files on the shelf."""
    starts: int
    """Starts of bioproxy."""
    day: int
    """Requests of an agent's day."""
    kinds: tuple[str, ...]
    """Kinds of models that live that day."""
    threads: int
    """Threads of each llama.cpp, of which one computes at a time.

    On a machine that does other things too, one is faster than two: llama.cpp's threads wait for each other in loops.
    """


QUICK = Amounts(
    posts=400,
    streams=10,
    from_pypi=("hearth-llm",),
    prompts={"dense": (1200,)},
    repeats=5,
    restarts=3,
    waiting=(1, 100),
    template_tokens=(25_000, 100_000),
    templates=(1, 300),
    entries=(1000,),
    starts=3,
    day=40,
    kinds=("dense",),
    threads=1,
)
"""About three minutes."""

FULL = Amounts(
    posts=1500,
    streams=30,
    from_pypi=("hearth-llm", "litellm"),
    prompts={
        "smollm2": (1000, 3000, 7000),
        "dense": (3000,),
        "sliding": (1000, 3000, 7000),
        "hybrid": (1000, 3000, 7000),
    },
    repeats=5,
    restarts=3,
    waiting=(1, 10, 100, 1000),
    template_tokens=(25_000, 50_000, 100_000),
    templates=(1, 30, 300),
    entries=(100, 1000, 10_000),
    starts=7,
    day=200,
    kinds=("dense", "sliding", "hybrid"),
    threads=2,
)
"""About half an hour on two processors: half of it is what llama.cpp alone and hearth-llm compute again."""

TINY = Amounts(
    posts=5,
    streams=1,
    from_pypi=(),
    prompts={"tiny": (300,)},
    repeats=1,
    restarts=1,
    waiting=(2,),
    template_tokens=(1000, 2000),
    templates=(1, 3),
    entries=(20,),
    starts=1,
    day=12,
    kinds=("dense",),
    threads=1,
)
"""Some seconds: whether the benchmark itself still works, which `tests/integration/test_bench.py` asks."""

AMOUNTS = {"quick": QUICK, "full": FULL, "tiny": TINY}


@contextmanager
def no_collector() -> Iterator[None]:
    """Switch this process's garbage collector off for a while."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_turns(
    contestants: Sequence[T], rounds: int, measure: Callable[[T], float | list[float]], seed: int = 1
) -> list[list[float]]:
    """Return what `measure` returned for each contestant in each of the rounds, in the order of `contestants`.

    Every round asks each contestant once, in another order.  Some rounds before them do not count.
    """
    taken: list[list[float]] = [[] for _ in contestants]
    order = list(range(len(contestants)))
    shuffled = random.Random(seed)
    with no_collector():
        for number in range(-(rounds // WARM_UP), rounds):
            shuffled.shuffle(order)
            for index in order:
                value = measure(contestants[index])
                if number >= 0:
                    taken[index] += value if isinstance(value, list) else [value]
    return taken


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def p10(values: Sequence[float]) -> float:
    """Return what 9 of 10 values are above: what it takes when nothing else on the machine gets in between."""
    return sorted(values)[len(values) // 10]


def p99(values: Sequence[float]) -> float:
    """Return what 99 of 100 values stay below; of fewer than 100 values the largest."""
    return sorted(values)[len(values) * 99 // 100]
