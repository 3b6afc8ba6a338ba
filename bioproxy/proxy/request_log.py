"""What happened to each request: one record, told in three places.

A record is filled in while its request makes its way through `bioproxy.proxy.proxy`, and closed when the request has
ended, however it ended.  It is then counted in the metrics (for graphs and alerts), written to the log as one line (for
looking back), and kept among the latest ones (for `/status` and the live page).  All three get the same numbers,
because there is only one record.  No text of any message is in it.

On Twisted: `Logger.info` does not write anything.  It makes an *event*, a dictionary with a format and its values, and
hands it to the observers of the process.  One of them may write a line of text, another JSON; values that the format
does not name reach them as well.  So the JSON log gets the whole record in ``fields``, while the text shows a part.

Closing never waits and never fails, since it is called while a coroutine is being cancelled.  Does not know what any of
the values mean for the request.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.http.targets import GATED
from bioproxy.llama.speed import Speed
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.runtime.metrics import Metrics

LATEST = 100
"""How many records are kept.

The live page shows them all.  Halved, a busy minute is gone before an operator has looked; doubled, each answer of
`/status` has twice the size, and open pages get it with every change.
"""

CLIENT_GONE = 499
"""The status noted for a request whose client hung up.

Nobody receives it: it is for the log, `/status` and the metrics, where a hang-up must not count as an error of
llama-server.  nginx uses the same number for this.
"""

WORTH_TELLING = 1000
"""Milliseconds of waiting, real or estimated, from which an estimate is judged in the metrics.

At half of it more moments count that no client notices; at twice as much, quick servers have fewer observations.
"""


@dataclass
class Record:
    """One request.

    Durations are in milliseconds, except `saved_s`.  `None` is for what is not known, or not yet.  The names of the
    fields are those in `/status` and in the JSON log, so they do not change.
    """

    path: str
    """The path without its query, which may have secrets."""
    arrived: float
    """When the request was complete, in the clock's seconds.  Only good for differences."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """What the client finds in `X-Bioproxy-Request-Id`."""
    time: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))
    """When the request was complete, as a time of day: ISO 8601 in UTC."""
    template: str = ""
    """The first template that it names, or empty."""
    prompt: str = ""
    """The prompt that it begins with, a template's name or ``auto-...``; empty if none is known."""
    status: int = 0
    """The status that the client got; 499 if it hung up, 0 if there was no answer at all."""
    cache: str | None = None
    """``hot``, ``restored`` or ``cold``; `None` without a template."""
    miss: str | None = None
    """Why nothing was reused, as one word (`bioproxy.proxy.miss_reasons`)."""
    miss_detail: str | None = None
    """The same in more words, where there is more to say."""
    queue_ms: float | None = None
    """How long it waited at the gate."""
    estimate_ms: float | None = None
    """How long it was expected to wait, when it arrived; `None` if it did not have to, or nothing was known."""
    restore_ms: float | None = None
    """How long restoring a file took, if one was restored."""
    ttft_ms: float | None = None
    """From its arrival to the first piece of llama-server's answer, the time in the queue included."""
    total_ms: float | None = None
    """From its arrival to its end, when the client has read the answer."""
    prompt_tokens: int | None = None
    """Tokens of its prompt, reused ones included, as llama-server counts them."""
    cached_tokens: int | None = None
    """How many of these were reused."""
    saved_s: float | None = None
    """About how many seconds computing the reused tokens would have taken; `None` before the speed was measured."""


class RequestLog:
    """Closes records and keeps the latest.

    Invariant: at most `LATEST` records are kept, so this does not grow with the number of requests.
    """

    log = Logger()

    kept: int
    """How many records were ever kept.  Code that shows them can tell by it whether there are new ones."""

    last_used: dict[str, str]
    """When each template was last asked for, by name: ISO 8601 in UTC."""

    def __init__(self, metrics: Metrics, speed: Speed, clock: IReactorTime) -> None:
        """Count in `metrics`, let `speed` learn from each answer, and measure durations by `clock`."""
        self.kept = 0
        self.last_used = {}
        # The arrival of that request, in the clock's seconds.
        self._last_arrival: dict[str, float] = {}
        self._metrics = metrics
        self._speed = speed
        self._clock = clock
        # Oldest first.
        self._latest: deque[Record] = deque(maxlen=LATEST)

    def latest(self, count: int = LATEST) -> list[dict[str, Any]]:
        """Return the latest records, newest first, at most `count`, as `/status` shows them."""
        return [told(record) for record in islice(reversed(self._latest), count)]

    def close(self, record: Record, gated: bool, timings: dict[str, float]) -> None:
        """Count a request that has ended, and if it was `gated`, log and keep it.

        `timings` is what llama-server has said about it, perhaps nothing.  Raises nothing.
        """
        # A client may ask for any path.  As labels, they would make a new time series each, and fill Prometheus's
        # memory; so only known paths are named.
        # Measured to the moment in which the client has read its answer, so a slow client makes a long request.
        endpoint = record.path if record.path in GATED else "other"
        seconds = self._clock.seconds() - record.arrived
        record.total_ms = seconds * 1000
        # By template, or as one of those on a learned prompt; never by the name of that.
        name = record.template or metric_label(record.prompt)
        self._metrics.requests.labels(endpoint, name, str(record.status)).inc()
        # The others are many and tell little: a health check each second would push everything else out of the list.
        if not gated:
            return
        # Each histogram gets only what is known.  A request that was refused in the queue has no time to its first
        # token, and a zero in its place would make the mean look better than it is.
        self._metrics.request_seconds.labels(name).observe(seconds)
        if record.ttft_ms is not None:
            self._metrics.ttft_seconds.labels(name).observe(record.ttft_ms / 1000)
        if record.queue_ms is not None:
            self._metrics.queue_seconds.labels(name).observe(record.queue_ms / 1000)
            # Within a second, the ratio is that of two small numbers and says nothing: nobody is told such estimates.
            if record.estimate_ms is not None and max(record.queue_ms, record.estimate_ms) >= WORTH_TELLING:
                self._metrics.estimate_ratio.observe(record.queue_ms / max(record.estimate_ms, 1.0))
        # Unknown for a request that never had the slot, or whose prompt is neither a template's nor learned.
        if record.cache is not None:
            self._metrics.slot_uses.labels(name, record.cache).inc()
        # Only if llama-server said both: an answer that was broken off, or an error, says neither.
        if "cache_n" in timings and "prompt_n" in timings:
            self._count_tokens(record, name, timings)
        # A `deque` with a limit drops the oldest by itself.
        self._latest.append(record)
        self.kept += 1
        if record.template:
            self._note_use(record)
        # The sentence is made here, and the event has no other value for the format.  `Logger` could put in the values
        # by their names, but its formatting is written in Python, and took a tenth of the time of a small request.
        self.log.info(
            "{sentence}",
            sentence=sentence(record),
            # For a log of JSON, where each value has a name.  The event has a time of its own.
            fields={key: value for key, value in told(record).items() if key != "time"},
        )

    def _note_use(self, record: Record) -> None:
        """Note when a template was asked for."""
        # Requests may end in another order than they came in.  The arrivals are compared, and not the times of day,
        # because the wall clock can be set back.
        if record.arrived >= self._last_arrival.get(record.template, 0.0):
            self._last_arrival[record.template] = record.arrived
            self.last_used[record.template] = record.time

    def _count_tokens(self, record: Record, label: str, timings: dict[str, float]) -> None:
        """Count the tokens of a prompt under a label, and the time that reusing them has saved."""
        reused, computed = int(timings["cache_n"]), int(timings["prompt_n"])
        # llama-server counts the two separately; clients and operators mean the whole prompt by "prompt".
        record.cached_tokens, record.prompt_tokens = reused, reused + computed
        self._metrics.prompt_tokens.labels(label, "cache").inc(reused)
        self._metrics.prompt_tokens.labels(label, "computed").inc(computed)
        # What was saved is an estimate: the tokens that were reused, times what computing one takes.  The speed learns
        # from this answer first, so the estimate is by the latest measurement.
        self._speed.measured(computed, timings.get("prompt_ms", 0.0))
        seconds = reused * self._speed.seconds_per_token
        self._metrics.prefill_seconds_saved.labels(label).inc(seconds)
        # Without a measurement 0 would say that nothing was saved, which is known only where nothing was reused.
        if self._speed.seconds_per_token or not reused:
            record.saved_s = seconds


def sentence(record: Record) -> str:
    """Return a record as one line for people, without a line end.

    It has the same format for all requests, so that `grep` and `awk` can work with it.  What is not known is `None`
    there, and a miss is named only where there is one.
    """
    # A client may put anything into a path, line ends too, and could so write lines of its own into the log.
    path = record.path if record.path.isprintable() else ascii(record.path)
    # A learned prompt stands in the place of a template.
    asked = record.template or record.prompt
    miss = f" miss={record.miss}" if record.miss else ""
    queue, ttft, total = rounded(record.queue_ms), rounded(record.ttft_ms), rounded(record.total_ms)
    return (
        f"{record.id} {path} {record.status} template={asked} cache={record.cache}{miss} prompt={record.prompt_tokens}"
        f" cached={record.cached_tokens} tokens queue={queue} ttft={ttft} total={total} ms"
    )


def told(record: Record) -> dict[str, Any]:
    """Return a record as `/status` and the JSON log have it: without `arrived`, which means nothing to others."""
    # All attributes, so a new field is in `/status` and in the log without another line of code.  `asdict` would do
    # the same ten times slower, because it copies each value in depth; these are numbers and texts.
    return {key: rounded(value) for key, value in vars(record).items() if key != "arrived"}


def rounded(value: Any) -> Any:
    """Return a number rounded to a tenth, and anything else as it is: no more of a millisecond is of interest."""
    return round(value, 1) if isinstance(value, float) else value
