"""The last hour, for the plots of the live page.

Every few seconds it looks at the counters that `bioproxy.runtime.metrics` keeps anyway, and notes by how much they
grew.  Two points of a quiet time tell as much as a thousand, so only its first and its last are noted: an idle proxy
adds nothing, and has nothing to send.

It is for a look at the page, not for archives: Prometheus keeps those.
"""

from __future__ import annotations

from collections import deque
from dataclasses import astuple, dataclass
from typing import Any

from prometheus_client import Counter, Histogram
from twisted.internet.interfaces import IReactorTime

from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.gate import Gate

INTERVAL = 5.0
"""Seconds between points."""

POINTS = 720
"""How many are kept: an hour of them, where something happens all the time."""


@dataclass(frozen=True)
class Point:
    """What happened between two looks.

    `time` is its end, in the clock's seconds: the wall clock may be set, and a plot goes one way only.  `queue` is
    how many users waited at most; `ttft` the mean time to the first token, in seconds, of the requests that ended,
    `None` if there were none; `cached` and `computed` are the prompt tokens; `saved` the seconds saved since the
    process started.
    """

    time: float
    queue: int
    ttft: float | None
    cached: int
    computed: int
    saved: float


class History:
    """The latest `points`, oldest first.  `taken` counts all that there ever were."""

    def __init__(self, metrics: Metrics, gate: Gate, clock: IReactorTime, points: int = POINTS) -> None:
        self.taken = 0
        self._metrics = metrics
        self._gate = gate
        self._clock = clock
        self._points: deque[Point] = deque(maxlen=points)
        self._last = (0.0,) * 5
        self._saved = 0.0
        self._skipped: Point | None = None

    async def take(self) -> None:
        """Note a point, unless it says the same as the one before: nothing."""
        metrics, gate = self._metrics, self._gate
        totals = (
            total(metrics.ttft_seconds, "_sum"),
            total(metrics.ttft_seconds, "_count"),
            total(metrics.prompt_tokens, "_total", source="cache"),
            total(metrics.prompt_tokens, "_total", source="computed"),
            total(metrics.prefill_seconds_saved, "_total"),
        )
        # A template that was removed takes its numbers along: totals may fall.
        grown = (max(0.0, new - old) for new, old in zip(totals, self._last, strict=True))
        seconds, count, cached, computed, saved = grown
        self._last = totals
        self._saved += saved
        queue = gate.stats.take_peak()
        ttft = round(seconds / count, 4) if count else None
        point = Point(round(self._clock.seconds(), 1), queue, ttft, int(cached), int(computed), round(self._saved, 3))
        if self._points and quiet(point) and quiet(self._points[-1]):
            self._skipped = point
            return
        if self._skipped is not None:
            self._add(self._skipped)
            self._skipped = None
        self._add(point)

    def latest(self, count: int = POINTS) -> list[tuple[Any, ...]]:
        """Return the latest points, at most so many, each as its values in `Point`'s order."""
        return [astuple(point) for point in self._points][max(0, len(self._points) - count) :]

    def _add(self, point: Point) -> None:
        self._points.append(point)
        self.taken += 1


def quiet(point: Point) -> bool:
    """Tell whether nothing happened."""
    return not (point.queue or point.ttft is not None or point.cached or point.computed)


def total(metric: Counter | Histogram, suffix: str, **labels: str) -> float:
    """Return the sum of a metric's values over all templates."""
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix) and labels.items() <= sample.labels.items()
    )
