"""The present state of bioproxy, as values that JSON has: what an operator sees.

There are two readers.  ``GET /status`` returns all of it.  The live page gets all of it once, and then only what has
changed since the last second (`bioproxy.operator.live_events`).

For the page's sake, nothing that `Status.now` returns changes by itself.  It says since when something lasts, not for
how long: a value like "for 12 seconds" would be new in every second, and every open page would be sent it.  The browser
computes the ages.

All parts run in the reactor's thread, and nothing here waits, so what one call returns belongs to one moment: no part
can change between two lines of it.

No text of a message is in here; a request is shown by its id, path, template, prompt and times.  Field names are part
of the interface: they may be added to, but not renamed.

Does not know who reads it, and changes nothing.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from twisted.internet.interfaces import IReactorTime

from bioproxy import __version__
from bioproxy.gate.gate import Gate
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.first_steps import FirstSteps
from bioproxy.operator.prompts_status import PromptsStatus
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.proxy.request_log import Record, RequestLog
from bioproxy.proxy.waits import Waits
from bioproxy.shared.shelf import SharedShelf
from bioproxy.slot.slot import Slot
from bioproxy.warmup.client_kinds import ClientKinds
from bioproxy.warmup.readiness import Readiness

QUEUE = 20
"""Waiting requests that are listed one by one; the number of all of them is always there.

Half of it hides some that an operator asks about; with twice as much, each change of a long queue is twice as large
for every open page.
"""


class Status:
    """Reads the state of all parts when it is asked.

    Keeps no copy of anything, so it is never older than the parts themselves.
    """

    request_log: RequestLog
    """The latest requests.  `LiveEvents` reads them from here, because it needs only those that are new."""

    def __init__(
        self,
        poller: TemplatePoller,
        gate: Gate,
        slot: Slot,
        readiness: Readiness,
        watch: ProcessWatch,
        upstream: Upstream,
        request_log: RequestLog,
        prompts: PromptsStatus,
        waits: Waits,
        client_kinds: ClientKinds,
        first_steps: FirstSteps,
        shared: SharedShelf,
        clock: IReactorTime,
    ) -> None:
        """Make the status of these parts.  The time that the process runs counts from now, by `clock`."""
        self.request_log = request_log
        # Only read from, never changed: an operator who looks must not disturb anything.
        self._poller = poller
        self._gate = gate
        self._slot = slot
        self._readiness = readiness
        self._watch = watch
        self._upstream = upstream
        self._prompts = prompts
        self._waits = waits
        self._client_kinds = client_kinds
        self._first_steps = first_steps
        self._shared = shared
        self._clock = clock
        # By the reactor's clock for the time that has passed, which cannot be set, and by the wall clock for people.
        self._began = clock.seconds()
        self._started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")

    # The methods below return new dicts each time, made of texts, numbers and lists, so that the result can be kept,
    # compared and encoded while the parts go on.

    def whole(self) -> dict[str, Any]:
        """Return everything, in the order in which ``/status`` shows it.

        The requests are the latest ones, newest first (`bioproxy.proxy.request_log`).  Called for each GET, and for
        each page that opens.

        `uptime_s` is in seconds.  It leaves out the time in which the process was stopped (`bioproxy.runtime.clock`).
        """
        uptime = round(self._clock.seconds() - self._began, 1)
        return {"version": __version__, "uptime_s": uptime, **self.now(), "requests": self.request_log.latest()}

    # What is split off from `whole` is what a page is sent again when it changes.  A request never changes after its
    # end, and is sent once.

    def now(self) -> dict[str, Any]:
        """Return everything but the requests and `uptime_s`.

        While nothing happens, two calls return equal values: `LiveEvents` compares them, key by key of the outermost
        object, and sends the keys that differ.
        """
        return {
            # By which a page that reconnects knows whether it talks to the same process as before.
            "started_at": self._started_at,
            # Where things are, for the commands that the page tells a new user to type.
            "setup": self._first_steps.now(),
            "llama": self._llama(),
            "gate": self._at_the_gate(),
            # The kinds of clients whose conversations get no head starts any more, with the reason.
            "head_start": self._client_kinds.told(),
            # In the order of the configuration, so that a page shows them in the same places after each change.
            "templates": [self._template(name) for name in self._poller.templates],
            # Everything that is kept warm: the templates once more, what was learned, and conversations.
            **self._prompts.now(),
            # What is shared with other bioproxies; `None` without a shared shelf.
            "shared_shelf": self._shared.tell(),
        }

    def _llama(self) -> dict[str, Any]:
        """Return what is known of llama-server, as old as the watch's last look (two seconds at most).

        `trouble` says why `up` is false, and `help` what an operator can do about that.  `slot_save` is `None` as long
        as llama-server has not been asked whether it keeps slot files.  `note` is there when restored files turned out
        to be of no use.
        """
        child = self._upstream.child
        return {
            # As configured; it has no password in it, which the setting's check refuses.
            "url": self._upstream.url,
            "up": self._watch.up,
            "model": self._watch.process.props.model,
            "build": self._watch.process.props.build,
            # Asked once for each process of llama-server, by a call that changes nothing.
            "slot_save": self._slot.facts.llama_keeps_files,
            "note": self._slot.facts.restore_trouble,
            # A sentence for people; programs should look at `up`.
            "trouble": self._watch.trouble,
            "help": self._watch.help,
            # Of the llama.cpp that bioproxy starts itself; `None` for another one.
            # Its own `trouble` tells a start that failed from one that goes on.
            "child": None if child is None else {**child.told(), "model": child.model, "trouble": child.trouble},
        }

    def _at_the_gate(self) -> dict[str, Any]:
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

    def _template(self, name: str) -> dict[str, Any]:
        """Return what there is to say of one template.

        `state` is ``cold``, ``warming``, ``warm`` or ``error``, with `error` saying why; `progress` goes from 0 to 1.
        `warmed_at` is `None` unless a slot file holds the present text for the present model.  `wanted`: an operator
        asked for a warm-up that has not begun yet.  `note` says what could be better although nothing failed.
        """
        # What the poller read last.  A file that was edited since then is shown as it was up to two seconds ago.
        template = self._poller.templates[name]
        # No reading yet right after the start, and no text in it if the file could not be read.
        reading = self._poller.readings.get(name)
        includes = reading.text.includes if reading is not None and reading.text is not None else ()
        state, error = self._readiness.state(name)
        # The prompt's key stands for the present text and shape: an older file of this template has another key, and is
        # not taken for it.
        prompt = self._readiness.catalogue.get(name)
        snapshot = None if prompt is None else self._slot.facts.saved(name, prompt.key)
        # The file's own number if there is a file; else what the warm-up has counted, before it has saved anything.
        tokens = snapshot.tokens if snapshot else self._readiness.tokens.get(name)
        hot = prompt is not None and self._slot.holds(prompt.key)
        return {
            # What headers, metrics and slot files call the template, and what a message has to begin with.
            "name": name,
            "prefix": template.prefix,
            # Paths on bioproxy's machine, for the operator; clients never see them.
            "path": str(template.path),
            "includes": [str(include) for include in includes],
            "state": state,
            # Whether a warm-up is due, and why it is or is not.
            "warmup": self._readiness.schedule.look(name).told(),
            # Rounded to what a progress bar can show, so that it is not news for every page with each token.
            "progress": round(self._readiness.progress(name), 3),
            "tokens": tokens,
            # What being warm is worth: `cold_s` and `now_s`, in seconds.
            **self._prompts.worth(tokens, state == "warm", hot),
            # Wall-clock times, in ISO 8601: they may be from before a restart, when the reactor's clock was another.
            "warmed_at": snapshot.saved_at if snapshot else None,
            # When the request arrived that was the last one to arrive on this template.
            "last_used": self.request_log.last_used.get(name),
            # Set by a POST to ``/templates/NAME/warm``.
            "wanted": name in self._readiness.schedule.wanted,
            # An error needs the operator; a note only tells why something is slower than it could be.
            "error": error,
            "note": self._readiness.note(name),
        }


def who(record: Record | None) -> dict[str, Any]:
    """Return the fields that identify a request at the gate.

    `record` is `None` for a turn that belongs to no request; the fields are there anyway, so that a reader need
    not check.
    """
    if record is None:
        return {"id": None, "path": None, "template": None, "prompt": None}
    # The id is also in the answer's header `X-Bioproxy-Request-Id` and in the log, so an operator can connect them.
    # The prompt is known from the moment on at which the request is inside.
    return {
        "id": record.id,
        "path": record.path,
        "template": record.template or None,
        "prompt": record.prompt or None,
    }


def estimate(record: Record | None) -> float | None:
    """Return how many seconds a request was expected to wait, `None` if that was not known."""
    return None if record is None or record.estimate_ms is None else round(record.estimate_ms / 1000, 1)
