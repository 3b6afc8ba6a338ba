"""What happened to each request: one record, told in three places.

A record is filled in while its request makes its way through `bioproxy.proxy.proxy`, and closed at the end: it is then
counted in the metrics, written to the log as one line, and kept among the latest ones for `/status`.  No text of any
message is in it.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.http.targets import GATED
from bioproxy.llama.speed import Speed
from bioproxy.runtime.metrics import Metrics

LATEST = 100
"""How many records are kept."""


@dataclass
class Record:
    """One request.

    Times are in milliseconds, but for its arrival: `arrived` in the clock's seconds and `time` in ISO 8601.  `None`:
    not known.
    """

    path: str
    arrived: float
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    time: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
    template: str = ""
    status: int = 0
    cache: str | None = None
    miss: str | None = None
    miss_detail: str | None = None
    queue_ms: float | None = None
    restore_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


class RequestLog:
    """Closes records and keeps the latest.

    `kept` counts all that were ever kept; `last_used` is when each template was last asked for, in ISO 8601.
    """

    log = Logger()

    def __init__(self, metrics: Metrics, speed: Speed, clock: IReactorTime) -> None:
        self.kept = 0
        self.last_used: dict[str, str] = {}
        self._last_arrival: dict[str, float] = {}
        self._metrics = metrics
        self._speed = speed
        self._clock = clock
        self._latest: deque[Record] = deque(maxlen=LATEST)

    def latest(self, count: int = LATEST) -> list[dict[str, Any]]:
        """Return the latest records, newest first, at most so many."""
        return [told(record) for record in islice(reversed(self._latest), count)]

    def close(self, record: Record, gated: bool, timings: dict[str, float]) -> None:
        """Count a request that has ended; log and keep it too if it was `gated`: the others are many and tell little.

        `timings` is what llama-server said of it, perhaps nothing.
        """
        endpoint = record.path if record.path in GATED else "other"
        seconds = self._clock.seconds() - record.arrived
        record.total_ms = seconds * 1000
        name = record.template
        self._metrics.requests.labels(endpoint, name, str(record.status)).inc()
        if not gated:
            return
        self._metrics.request_seconds.labels(name).observe(seconds)
        if record.ttft_ms is not None:
            self._metrics.ttft_seconds.labels(name).observe(record.ttft_ms / 1000)
        if record.queue_ms is not None:
            self._metrics.queue_seconds.labels(name).observe(record.queue_ms / 1000)
        if "cache_n" in timings and "prompt_n" in timings:
            self._count_tokens(record, timings)
        self._latest.append(record)
        self.kept += 1
        if name:
            self._note_use(name, record)
        self.log.info(
            "{r.id} {path} {r.status} template={r.template} cache={r.cache}{miss} prompt={r.prompt_tokens}"
            " cached={r.cached_tokens} tokens queue={queue} ttft={ttft} total={total} ms",
            r=record,
            # For a log of JSON.  The event has a time of its own.
            fields={key: value for key, value in told(record).items() if key != "time"},
            # A client may put anything into a path, line ends too.
            path=record.path if record.path.isprintable() else ascii(record.path),
            miss=f" miss={record.miss}" if record.miss else "",
            queue=rounded(record.queue_ms),
            ttft=rounded(record.ttft_ms),
            total=rounded(record.total_ms),
        )

    def _note_use(self, name: str, record: Record) -> None:
        # Requests may end in another order than they came in, and of two times of day the later one may be smaller.
        if record.arrived >= self._last_arrival.get(name, 0.0):
            self._last_arrival[name] = record.arrived
            self.last_used[name] = record.time

    def _count_tokens(self, record: Record, timings: dict[str, float]) -> None:
        reused, computed = int(timings["cache_n"]), int(timings["prompt_n"])
        record.cached_tokens, record.prompt_tokens = reused, reused + computed
        self._metrics.prompt_tokens.labels(record.template, "cache").inc(reused)
        self._metrics.prompt_tokens.labels(record.template, "computed").inc(computed)
        self._speed.measured(computed, timings.get("prompt_ms", 0.0))
        self._metrics.prefill_seconds_saved.labels(record.template).inc(reused * self._speed.seconds_per_token)


def told(record: Record) -> dict[str, Any]:
    """Return what others are told of a request."""
    return {key: rounded(value) for key, value in asdict(record).items() if key != "arrived"}


def rounded(value: Any) -> Any:
    """Return a number as a person wants to see it: a tenth of a millisecond is plenty."""
    return round(value, 1) if isinstance(value, float) else value
