"""The part of the wiring diagram for operators: what they see, and the few things that they may do.

These parts come last and know many others, and no other part knows them.  What they show they ask of the parts each
time, and store none of it, so it cannot be out of date.  What an operator does is a mark or a call of a part, and the
part decides when something comes of it: an operator's wish does not interrupt a user's request.

One thing is decided here, with `bioproxy.assembly.takers`: which part takes which new setting when the configuration is
read again.

On Twisted: the open pages are served by one service with one timer (`LiveEvents`), whatever their number, and by no
timer where there are none.

Making a part does nothing else: no port is opened, no file is read.  Does not know how the other parts are made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bioproxy.assembly.parts import OperatorParts, RequestParts, SlotParts, WarmupParts
from bioproxy.assembly.takers import takers_of
from bioproxy.operator.admin import Admin
from bioproxy.operator.first_steps import FirstSteps
from bioproxy.operator.gate_status import GateStatus
from bioproxy.operator.history import History
from bioproxy.operator.host_check import HostCheck
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.page import Page
from bioproxy.operator.prompt_actions import PromptActions
from bioproxy.operator.prompts_status import PromptsStatus
from bioproxy.operator.reload import Reload
from bioproxy.operator.status import Status
from bioproxy.operator.templates_status import TemplatesStatus
from bioproxy.settings.configuration import Settings


def assemble_operator(
    settings: Settings,
    reactor: Any,
    read_settings: Callable[[], Settings] | None,
    configuration: Path | None,
    lower: SlotParts,
    warmups: WarmupParts,
    requests: RequestParts,
) -> OperatorParts:
    """Make the parts of the operator's view.

    `settings` are those of the start, `reactor` is the clock.  `read_settings` reads the configuration again, or raises
    `ConfigError`; `None` if it never changes.  `configuration` is the file that it reads, which only the live page
    names.  The last three are all the other parts.

    An arrow means "knows and calls"::

        Hangup, Admin --> Reload ----> the parts with settings
        Admin ----------> Status ----> most parts, to show what they believe
             |----------> PromptActions --> TemplatePoller, Schedule, Forgetting, Shelf, SharedShelf
             `----------> LiveEvents --> Status, History
    """
    # What an operator sees: the numbers of the last hour, the state at this moment, and both as events for open pages.
    # The history is collected from the metrics, so the curves and Prometheus never show different numbers.
    history = History(lower.metrics, lower.gate, reactor)
    # The status asks the parts each time and stores nothing, so it cannot be out of date.
    # Three parts of it are made apart: each shows another thing, as the live page does.
    gate_status = GateStatus(lower.gate, requests.waits, warmups.readiness)
    templates_status = TemplatesStatus(warmups.poller, warmups.readiness, lower.slot, requests.request_log, lower.speed)
    prompts_status = PromptsStatus(
        warmups.readiness, lower.slot, lower.files, lower.snapshots, requests.request_log, lower.speed
    )
    # What a new user wants to know: which file was read, and the address for clients, which is known when the port is
    # open.
    first_steps = FirstSteps(settings, configuration, lower.keys)
    # It knows most of the parts, and calls nothing that would change one.  The clock is for the age of the process
    # only.
    status = Status(
        lower.watch,
        lower.upstream,
        lower.slot.facts,
        gate_status,
        templates_status,
        prompts_status,
        requests.request_log,
        warmups.last_talk.kinds,
        first_steps,
        warmups.shared,
        reactor,
    )
    # Compares the status with what the pages were told, and sends the difference.
    events = LiveEvents(status, history, reactor)
    # The operator's port has no keys.  A web page in the operator's browser could send requests to it, though, by a
    # name that resolves to this machine; so only known names are answered.
    host_check = HostCheck((settings.admin_host, *settings.admin_hosts))
    # The reload has a way into many parts.  Nobody but the operator's port and the signal SIGHUP knows it.
    # Tests that never reload hand in no `read_settings`; then nothing is ever new.
    # The table of takers is made once; what a taker does with a new value is its own affair.
    takers = takers_of(settings, reactor, lower, warmups, requests, host_check)
    reload = Reload(settings, read_settings or (lambda: settings), lower.keys, takers)
    # The last part of all: it shows or starts what the others do, and none of them knows it.  Its routes are few lines
    # each, since everything that they need is a part.
    admin = Admin(
        status,
        events,
        Page(),
        warmups.poller,
        lower.watch,
        reload,
        # What may be done with one prompt: warm it up, forget it, pin its files.
        PromptActions(
            warmups.poller, warmups.catalogue, warmups.schedule, warmups.forgetting, lower.shelf, warmups.shared
        ),
        lower.metrics,
        lower.gate,
    )
    # What only these parts use among themselves, such as the status of prompts, is in no table.
    return OperatorParts(
        history=history,
        first_steps=first_steps,
        status=status,
        events=events,
        host_check=host_check,
        reload=reload,
        admin=admin,
    )
