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
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.first_steps import FirstSteps
from bioproxy.operator.gate_status import GateStatus
from bioproxy.operator.prompts_status import PromptsStatus
from bioproxy.operator.templates_status import TemplatesStatus
from bioproxy.proxy.request_log import RequestLog
from bioproxy.shared.shelf import SharedShelf
from bioproxy.slot.facts import PromptFacts
from bioproxy.warmup.client_kinds import ClientKinds


class Status:
    """Reads the state of all parts when it is asked.

    Keeps no copy of anything, so it is never older than the parts themselves.
    """

    request_log: RequestLog
    """The latest requests.  `LiveEvents` reads them from here, because it needs only those that are new."""

    def __init__(
        self,
        watch: ProcessWatch,
        upstream: Upstream,
        facts: PromptFacts,
        gate: GateStatus,
        templates: TemplatesStatus,
        prompts: PromptsStatus,
        request_log: RequestLog,
        client_kinds: ClientKinds,
        first_steps: FirstSteps,
        shared: SharedShelf,
        clock: IReactorTime,
    ) -> None:
        """Make the status of these parts.

        `watch`, `upstream` and `facts` tell about llama-server; `gate`, `templates` and `prompts` are parts of the
        status themselves.  `request_log` has the latest requests, `client_kinds` the clients without head starts,
        `first_steps` where things are, and `shared` what is shared with others.  The time that the process runs counts
        from now, by `clock`.
        """
        self.request_log = request_log
        # Only read from, never changed: an operator who looks must not disturb anything.
        self._watch = watch
        self._upstream = upstream
        self._facts = facts
        self._gate = gate
        self._templates = templates
        self._prompts = prompts
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
            "gate": self._gate.now(),
            # The kinds of clients whose conversations get no head starts any more, with the reason.
            "head_start": self._client_kinds.told(),
            "templates": self._templates.now(),
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
            "slot_save": self._facts.llama_keeps_files,
            "note": self._facts.restore_trouble,
            # A sentence for people; programs should look at `up`.
            "trouble": self._watch.trouble,
            "help": self._watch.help,
            # Of the llama.cpp that bioproxy starts itself; `None` for another one.
            # Its own `trouble` tells a start that failed from one that goes on.
            "child": None if child is None else {**child.told(), "model": child.model, "trouble": child.trouble},
        }
