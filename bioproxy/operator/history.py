"""The numbers of the last hour, for the plots of the live page.

Every five seconds `History.take` reads the counters that `bioproxy.runtime.metrics` keeps anyway, and stores a point:
by how much each counter has grown since the last time.  No other module has to report anything to it.

While nothing happens, all points are the same, and two of them draw the same line as a thousand.  So only the first and
the last point of a quiet time are stored.  An idle proxy stores nothing, and the live page has nothing to be sent.

Twisted is not in here: `take` is a coroutine only because `bioproxy.runtime.periodic` calls coroutines, and it never
waits.  The history is lost at a restart; Prometheus keeps the numbers for longer.  Does not know how they are drawn.
"""

from __future__ import annotations

from collections import deque
from dataclasses import astuple, dataclass
from typing import Any

from prometheus_client import Counter, Histogram
from twisted.internet.interfaces import IReactorTime

from bioproxy.gate.gate import Gate
from bioproxy.runtime.metrics import Metrics

INTERVAL = 5.0
"""Seconds between points.

Half of it would double what a page loads at first; with twice as much, a short queue disappears in the average.
"""

POINTS = 720
"""Points that are kept: an hour, if something happens all the time, and more with quiet times in between.

Half of it shows half an hour; twice as much doubles what a page loads when it opens.
"""


@dataclass(frozen=True)
class Point:
    """What happened in one interval.  The page knows the fields by their order."""

    time: float
    """The end of the interval, in seconds of the reactor's clock.

    A wall clock may be set back, and then a plot's line would run backwards.
    """

    queue: int
    """How many users waited at the gate at the same time, at most."""

    ttft: float | None
    """The mean time to the first token of the requests that ended, in seconds; `None` if none ended."""

    cached: int
    """Prompt tokens that were reused."""

    computed: int
    """Prompt tokens that were computed."""

    saved: float
    """Seconds of computing that reuse has saved since the process started."""


class History:
    """The latest points, oldest first, at most as many as `points`.

    Of points that follow each other and are quiet, only the first is stored, and the last when the quiet time is over.
    """

    taken: int
    """How many points were ever stored.  A reader that knows an earlier count knows which points are new to it."""

    def __init__(self, metrics: Metrics, gate: Gate, clock: IReactorTime, points: int = POINTS) -> None:
        """Begin without points.  `metrics` has the counters, `gate` the queue; `clock` gives the points' times."""
        self.taken = 0
        self._metrics = metrics
        self._gate = gate
        self._clock = clock
        self._points: deque[Point] = deque(maxlen=points)
        # The counters at the last point, in the order of `totals` below.
        self._last = (0.0,) * 5
        self._saved = 0.0
        # The latest quiet point, which is stored only if something happens after it.
        self._skipped: Point | None = None

    async def take(self) -> None:
        """Take the point of the interval that ends now.  Called every `INTERVAL` seconds; never waits and never fails.

        The point is stored unless it is quiet and follows a quiet one.
        """
        metrics, gate = self._metrics, self._gate
        totals = (
            total(metrics.ttft_seconds, "_sum"),
            total(metrics.ttft_seconds, "_count"),
            total(metrics.prompt_tokens, "_total", source="cache"),
            total(metrics.prompt_tokens, "_total", source="computed"),
            total(metrics.prefill_seconds_saved, "_total"),
        )
        # The metrics of a template that a reload removed are gone, so a total may fall.  That is no negative growth.
        grown = (max(0.0, new - old) for new, old in zip(totals, self._last, strict=True))
        seconds, count, cached, computed, saved = grown
        self._last = totals
        # Growth is added up instead of showing the total, which may fall.
        self._saved += saved
        # The most at any moment of the interval; what waits right now may be none although many have waited.
        queue = gate.stats.take_peak()
        ttft = round(seconds / count, 4) if count else None
        point = Point(round(self._clock.seconds(), 1), queue, ttft, int(cached), int(computed), round(self._saved, 3))
        # The first point of a quiet time is stored, so that the line goes down to zero.
        if self._points and quiet(point) and quiet(self._points[-1]):
            self._skipped = point
            return
        # The end of the quiet time comes first: without it, the plot would draw a slope from its beginning to here.
        if self._skipped is not None:
            self._add(self._skipped)
            self._skipped = None
        self._add(point)

    def latest(self, count: int = POINTS) -> list[tuple[Any, ...]]:
        """Return the latest `count` points, or all if there are fewer, each as a tuple in the order of `Point`."""
        # Tuples instead of objects with names: a page that opens gets hundreds of points.
        return [astuple(point) for point in self._points][max(0, len(self._points) - count) :]

    def _add(self, point: Point) -> None:
        """Store a point; the oldest one is dropped if there are too many."""
        self._points.append(point)
        self.taken += 1


def quiet(point: Point) -> bool:
    """Tell whether nothing happened in a point's interval."""
    return not (point.queue or point.ttft is not None or point.cached or point.computed)


def total(metric: Counter | Histogram, suffix: str, **labels: str) -> float:
    """Return the sum of a metric's values over all templates.

    `suffix` is how the name of the sample ends, since a metric has several; `labels` are those that it must have.
    """
    # `collect` is prometheus-client's public way to read values.  A histogram has samples for its buckets, its count
    # and its sum.
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix) and labels.items() <= sample.labels.items()
    )
