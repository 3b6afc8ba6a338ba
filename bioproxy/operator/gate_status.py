"""Who uses the slot and who waits for it, as values that JSON has: `gate` of `/status`.

The gate knows a request only as an object that it was given with its turn.  Here that object is the request's record,
and what an operator wants to know stands in it: which path, which template, and how long the client was told to wait.

On Twisted: nothing here waits.  While the method runs, no user can come in or leave, so the number of those who wait
and their list agree.  As for all of `bioproxy.operator.status`, two calls return equal values while nothing happens:
times of day are told and no durations.

Does not know who reads it, and changes nothing.
"""

from __future__ import annotations

from typing import Any

from bioproxy.gate.gate import Gate
from bioproxy.proxy.request_log import Record
from bioproxy.proxy.waits import Waits
from bioproxy.warmup.readiness import Readiness

QUEUE = 20
"""Waiting requests that are listed one by one; the number of all of them is always there.

Half of it hides some that an operator asks about; with twice as much, each change of a long queue is twice as large
for every open page.
"""


class GateStatus:
    """Reads the state of the gate when it is asked.  Keeps no copy of anything."""

    def __init__(self, gate: Gate, waits: Waits, readiness: Readiness) -> None:
        """Read from these parts: `waits` knows how far a prompt is, and `readiness` what is being warmed up."""
        self._gate = gate
        self._waits = waits
        self._readiness = readiness

    def now(self) -> dict[str, Any]:
        """Return who uses the slot, and who waits for it.

        `busy` is ``user``, ``warmup`` or `None`; `waiting` counts all that wait, `queue` lists the first of them.
        `lingering`: nobody is inside although users wait, because a conversation's next request is expected.
        `since` is the time of day at which the request began to wait, or got in, in ISO 8601.  The page computes the
        age; each event has the present time of day with it, because the browser's own clock may be wrong.

        `estimate_s` is how many seconds from `since` on the request was expected to wait when it came, so it does not
        change while the request waits.  `progress` is how many tokens of the prompt were `reused` and `computed` when a
        waiting client was last told, or `None`.
        """
        # The gate knows a request only as an object that it was given (`turn.who`); here it is the request's record.
        gate = self._gate
        turn, since = gate.stats.inside, gate.stats.inside_since
        # A user has a turn at the gate.  A warm-up has none: it enters only when the gate is free, and has no request.
        # What it warms up is then known to the warmer.
        inside: dict[str, Any] | None = None
        if turn is not None:
            # Only until the answer begins: from then on the prompt is over, and nobody asks how far it is.
            is_reading = turn.who is not None and turn.who.ttft_ms is None
            progress = self._waits.progress_of(turn.who) if is_reading else None
            inside = {**who(turn.who), "since": since, "progress": progress}
        elif since is not None:
            current = self._readiness.current
            inside = {**who(None), "template": current, "prompt": current, "since": since, "progress": None}
        # In the order in which they will be served, if nobody passes.
        queue = [
            {**who(turn.who), "since": turn.since, "estimate_s": estimate(turn.who)}
            for turn in gate.queue.in_order()[:QUEUE]
        ]
        # `busy` and `waiting` are the short form for programs; `inside` and `queue` are the details for the page.
        return {
            "busy": gate.busy,
            "waiting": gate.waiting,
            "lingering": gate.queue.lingering,
            "inside": inside,
            "queue": queue,
        }


def who(record: Record | None) -> dict[str, Any]:
    """Return the fields that identify a request at the gate.

    `record` is `None` for a turn that belongs to no request; the fields are there anyway, so that a reader need
    not check.
    """
    # The id is also in the answer's header `X-Bioproxy-Request-Id` and in the log, so an operator can connect them.
    # The prompt is known from the moment on at which the request is inside.
    return {field: getattr(record, field, None) or None for field in ("id", "path", "template", "prompt")}


def estimate(record: Record | None) -> float | None:
    """Return how many seconds a request was expected to wait, `None` if that was not known."""
    return None if record is None or record.estimate_ms is None else round(record.estimate_ms / 1000, 1)
