"""The configured templates, as values that JSON has: `templates` of `/status`.

An operator has written the templates, and wants to see of each what became of it: which files were read, what is wrong
with them, whether the text is warm, and why not if it is not.  The same prompts occur once more in `prompts`, beside
what was learned and without their files (`bioproxy.operator.prompts_status`).

On Twisted: nothing here waits, so what is told of one template belongs to one moment.  As for all of
`bioproxy.operator.status`, two calls return equal values while nothing happens.

Does not know who reads it, and changes nothing.
"""

from __future__ import annotations

from typing import Any

from bioproxy.llama.speed import Speed
from bioproxy.operator.prompts_status import worth
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.proxy.request_log import RequestLog
from bioproxy.slot.slot import Slot
from bioproxy.warmup.readiness import Readiness


class TemplatesStatus:
    """Reads the state of the templates when it is asked.  Keeps no copy of anything."""

    def __init__(
        self, poller: TemplatePoller, readiness: Readiness, slot: Slot, request_log: RequestLog, speed: Speed
    ) -> None:
        """Read from these parts.

        `poller` has the texts, `readiness` knows how warm each prompt is, `slot` what is in it and in files,
        `request_log` when a template was last asked for, and `speed` what computing a token takes.
        """
        self._poller = poller
        self._readiness = readiness
        self._slot = slot
        self._request_log = request_log
        self._speed = speed

    def now(self) -> list[dict[str, Any]]:
        """Return all templates, in the order of the configuration: a page shows them in the same places each time."""
        return [self._template(name) for name in self._poller.templates]

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
            **worth(self._speed, tokens, state == "warm", hot),
            # Wall-clock times, in ISO 8601: they may be from before a restart, when the reactor's clock was another.
            "warmed_at": snapshot.saved_at if snapshot else None,
            # When the request arrived that was the last one to arrive on this template.
            "last_used": self._request_log.last_used.get(name),
            # Set by a POST to ``/templates/NAME/warm``.
            "wanted": name in self._readiness.schedule.wanted,
            # An error needs the operator; a note only tells why something is slower than it could be.
            "error": error,
            "note": self._readiness.note(name),
        }
