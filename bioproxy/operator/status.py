"""What an operator sees: the present state of everything, as values that JSON has.

Two readers share it: `/status` gives all of it to whoever asks, and the live page is told what changed
(`bioproxy.operator.live_events`).  For the page's sake nothing that `now` returns changes by itself: instead of "for 12
seconds" it says since when, and the browser counts.  So where nothing happens there is nothing to send.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from twisted.internet.interfaces import IReactorTime

from bioproxy import __version__
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.llama.upstream import Upstream
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.proxy.request_log import Record, RequestLog
from bioproxy.slot.gate import Gate
from bioproxy.slot.slot import Slot
from bioproxy.warmup.warmer import Warmer

QUEUE = 20
"""So many of those who wait are named, the first ones."""


class Status:
    """Looks at all parts when it is asked; changes nothing."""

    def __init__(
        self,
        poller: TemplatePoller,
        gate: Gate,
        slot: Slot,
        warmer: Warmer,
        watch: ProcessWatch,
        upstream: Upstream,
        request_log: RequestLog,
        clock: IReactorTime,
    ) -> None:
        self.request_log = request_log
        self._poller = poller
        self._gate = gate
        self._slot = slot
        self._warmer = warmer
        self._watch = watch
        self._upstream = upstream
        self._clock = clock
        self._began = clock.seconds()
        self._started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def whole(self) -> dict[str, Any]:
        """Return everything, as `/status` has it."""
        uptime = round(self._clock.seconds() - self._began, 1)
        return {"version": __version__, "uptime_s": uptime, **self.now(), "requests": self.request_log.latest()}

    def now(self) -> dict[str, Any]:
        """Return everything but the requests and the time that has passed."""
        return {
            "started_at": self._started_at,
            "llama": {
                "url": self._upstream.url,
                "up": self._watch.up,
                "model": self._watch.model,
                "build": self._watch.build,
                "slot_save": self._slot.files.enabled,
                "note": self._slot.reuse_check.trouble,
                "trouble": self._watch.trouble,
            },
            "gate": self._at_the_gate(),
            "templates": [self._template(name) for name in self._poller.templates],
        }

    def _at_the_gate(self) -> dict[str, Any]:
        gate = self._gate
        turn, since = gate.inside, gate.inside_since
        inside: dict[str, Any] | None = None
        if turn is not None:
            inside = {**who(turn.who), "since": since}
        elif since is not None:
            inside = {"id": None, "path": None, "template": self._warmer.current, "since": since}
        queue = [{**who(turn.who), "since": turn.since} for turn in gate.queue[:QUEUE]]
        return {"busy": gate.busy, "waiting": gate.waiting, "inside": inside, "queue": queue}

    def _template(self, name: str) -> dict[str, Any]:
        template = self._poller.templates[name]
        reading = self._poller.readings.get(name)
        includes = reading.text.includes if reading is not None and reading.text is not None else ()
        state, error = self._warmer.state(name)
        prompt = self._warmer.catalogue.get(name)
        snapshot = None if prompt is None else self._slot.saved(name, prompt.key)
        return {
            "name": name,
            "prefix": template.prefix,
            "path": str(template.path),
            "includes": [str(include) for include in includes],
            "state": state,
            "warmup": self._warmer.schedule.look(name).told(),
            "progress": round(self._warmer.progress(name), 3),
            "tokens": snapshot.tokens if snapshot else self._warmer.tokens.get(name),
            "warmed_at": snapshot.saved_at if snapshot else None,
            "last_used": self.request_log.last_used.get(name),
            "wanted": name in self._warmer.schedule.wanted,
            "error": error,
            "note": self._warmer.note(name),
        }


def who(record: Record | None) -> dict[str, Any]:
    """Return what to say of a request at the gate."""
    if record is None:
        return {"id": None, "path": None, "template": None}
    return {"id": record.id, "path": record.path, "template": record.template or None}
