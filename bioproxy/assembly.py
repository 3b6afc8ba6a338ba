"""The wiring diagram: every part of bioproxy is made here, and gets what it needs in its constructor.

Who knows whom can be read off the calls below, from the slot (made by `bioproxy.slot_assembly`) to what an operator
sees.  `bioproxy.service` calls `assemble` for the real process, with the real reactor, and puts the parts that run by
themselves into a tree of services.  Tests call it with a clock that they advance by hand and with a llama-server in
memory, so they run the same wiring as the process does.

Making a part does nothing else: no file is read or written, nothing is sent, and no port is opened, before its service
starts.  That matters for twistd, which makes all services first, in a process that may still become a daemon or give up
root's rights, and for tests, which look at parts that never start.

On Twisted: parts get the reactor as an argument and never import it.  Most of them use it only as a clock
(`IReactorTime`), to set timers and to measure durations.

The only thing that is decided here is which part takes which new setting when the configuration is reloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bioproxy.http.connection_limits import ConnectionLimits, allowed_connections
from bioproxy.http.ports import OpenPortWarning
from bioproxy.llama.prefix_tokens import Prefixes
from bioproxy.llama.process_watch import INTERVAL as WATCH_INTERVAL
from bioproxy.operator.admin import Admin
from bioproxy.operator.history import INTERVAL as HISTORY_INTERVAL
from bioproxy.operator.history import History
from bioproxy.operator.host_check import HostCheck
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.page import Page
from bioproxy.operator.reload import Reload
from bioproxy.operator.status import Status
from bioproxy.parts import Outside, Parts
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.proxy.miss_reasons import MissReasons
from bioproxy.proxy.proxy import Proxy
from bioproxy.proxy.request_log import RequestLog
from bioproxy.proxy.request_reader import RequestReader
from bioproxy.proxy.slot_access import SlotAccess
from bioproxy.runtime.periodic import Periodic
from bioproxy.settings.configuration import Settings, templates_of
from bioproxy.slot_assembly import assemble_slot
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmer import INTERVAL as WARMUP_INTERVAL
from bioproxy.warmup.warmer import Warmer
from bioproxy.warmup.warmup import Warmup


def assemble(
    settings: Settings, reactor: Any, outside: Outside, read_settings: Callable[[], Settings] | None = None
) -> Parts:
    """Make all parts.

    `reactor` is Twisted's reactor, or a clock that stands for it.  `outside` is what tests replace.  `read_settings`
    reads the configuration again, or raises `ConfigError`; without it, a reload finds what is in force already.
    """
    # The lower half.  These are short names for what is used more than once below.
    lower = assemble_slot(settings, reactor, outside)
    metrics, upstream, llama, speed = lower.metrics, lower.upstream, lower.llama, lower.speed
    gate, slot, watch, keys = lower.gate, lower.slot, lower.watch, lower.keys

    # What is done while no user waits.  The poller knows texts, the catalogue knows prompts (a text in the shape in
    # which clients send it), the schedule knows which prompt is due, and the warmer does it.
    poller = TemplatePoller(settings.templates, outside.in_thread, metrics)
    polling = Periodic(reactor, settings.poll_interval, poller.poll, "poller")
    shape_learning = ShapeLearning(lower.state)
    catalogue = Catalogue(poller, shape_learning.shape)
    schedule = Schedule(catalogue, shape_learning, slot, watch, reactor, ahead=settings.warmup)
    warmup = Warmup(gate, slot, llama, metrics, speed, reactor, settings.warmup_chunk)
    warmer = Warmer(schedule, catalogue, shape_learning, Prefixes(llama), warmup, gate, slot, watch, metrics, reactor)

    # The life of a request.  The order of the steps is in `Proxy`; everything that it needs for a step is handed in
    # here.
    request_log = RequestLog(metrics, speed, reactor)
    reader = RequestReader(poller, outside.elsewhere, settings.max_body)
    proxy = Proxy(
        reader,
        gate,
        slot,
        SlotAccess(slot, shape_learning, MissReasons(shape_learning, warmer, warmup, slot)),
        schedule,
        upstream,
        request_log,
        reactor,
        settings.ping_interval,
    )
    # Limits and warning of the clients' port.  They are parts and not in the port's service, because a reload changes
    # the one and has the other look again.
    limits = ConnectionLimits(settings.max_body, allowed_connections())
    open_port_warning = OpenPortWarning("the clients' port", lambda: keys.required)

    # What an operator sees: the numbers of the last hour, the state at this moment, and both as events for open pages.
    history = History(metrics, gate, reactor)
    status = Status(poller, gate, slot, warmer, watch, upstream, request_log, reactor)
    events = LiveEvents(status, history, reactor)
    host_check = HostCheck((settings.admin_host, *settings.admin_hosts))

    # What a reload does.  Each new value is a plain assignment or a call that cannot fail: the configuration as a whole
    # was found to be valid before, so there is no reload that is done by half.
    def use_templates(prefixes: Mapping[str, Path]) -> None:
        for name in poller.set_templates(templates_of(prefixes)):
            warmer.forget(name)

    def limit_bodies(size: int) -> None:
        reader.max_body = limits.max_body = size

    # Which part takes a new value of a setting, while requests and warm-ups go on.  A setting that is not here needs a
    # restart, and the reload says so: ports, folders and llama-server's address are used by connections and locks that
    # exist.  `partial(setattr, ...)` is a function that assigns its argument to that attribute.
    takers: dict[str, Callable[[Any], None]] = {
        "admin_hosts": lambda hosts: host_check.know((settings.admin_host, *hosts)),
        # `keys` are read before all others, as they may be wrong; what is left is that a port may be open now.
        "api_key_file": lambda _: open_port_warning.check(),
        "llama_api_key_file": lambda _: None,
        "max_body": limit_bodies,
        "ping_interval": partial(setattr, proxy, "ping_interval"),
        "poll_interval": polling.every,
        "prefixes": use_templates,
        "queue_limit": partial(setattr, gate, "limit"),
        "queue_timeout": partial(setattr, gate, "timeout"),
        "save_conversations": partial(setattr, lower.saver, "enabled"),
        "upstream_timeout": partial(setattr, watch, "timeout"),
        "warmup": partial(setattr, schedule, "ahead"),
        "warmup_chunk": partial(setattr, warmup, "longest_piece"),
    }
    reload = Reload(settings, read_settings or (lambda: settings), keys, takers)
    # Everything of the lower half, and the rest by name.  The three last ones make rounds of a function: `Periodic`
    # calls it again only when the coroutine of the last call has ended, logs its errors, and cancels it at a stop.
    return Parts(
        **vars(lower),
        poller=poller,
        polling=polling,
        shape_learning=shape_learning,
        catalogue=catalogue,
        schedule=schedule,
        warmup=warmup,
        warmer=warmer,
        request_log=request_log,
        reader=reader,
        proxy=proxy,
        limits=limits,
        open_port_warning=open_port_warning,
        history=history,
        status=status,
        events=events,
        host_check=host_check,
        reload=reload,
        admin=Admin(status, events, Page(), poller, warmer, watch, reload, metrics),
        watching=Periodic(reactor, WATCH_INTERVAL, watch.look, "watch"),
        warming=Periodic(reactor, WARMUP_INTERVAL, warmer.round, "warmer"),
        history_taking=Periodic(reactor, HISTORY_INTERVAL, history.take, "history"),
    )
