"""The wiring diagram: which parts there are, who knows whom, and in what order they start.

twistd calls `makeService` with the parsed options and runs what it returns: a tree of services.  The root starts its
children in order and stops them in reverse::

    bioproxy
    |- demo       a llama.cpp of its own, with --demo only
    |- state      the proxy's own records are read
    |- watch      looks at llama-server every 2 s
    |- poller     looks at the template files every `poll_interval`
    |- warmer     warms templates up
    |- history    the numbers of the last hour, every 5 s
    |- events     tells open pages what happens
    |- worker     reads large requests, in a process of its own
    |- operator's port
    |- clients' port
    `- heartbeat  has time stand still while nothing here can run

Every part is made here and gets what it needs in its constructor, so this function shows all dependencies there
are.  Nothing is read, sent or opened before the services start.

The *reactor* is Twisted's event loop.  It is imported here, and for ``--check`` in `bioproxy.survey`, and nowhere else:
importing it chooses it, and whoever gets it handed in can be tested with another clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from bioproxy.admin import Admin
from bioproxy.agenda import Agenda
from bioproxy.clock import Heartbeat, install
from bioproxy.config import templates_of
from bioproxy.connections import Agents
from bioproxy.crowd import Crowd, allowed_connections
from bioproxy.events import Events
from bioproxy.farewell import Farewell
from bioproxy.filler import Filler
from bioproxy.gate import Gate
from bioproxy.guard import Guard
from bioproxy.habits import Habits
from bioproxy.history import INTERVAL as HISTORY_INTERVAL
from bioproxy.history import History
from bioproxy.holding import Holding
from bioproxy.identity import Identity
from bioproxy.journal import Journal
from bioproxy.keeper import Keeper
from bioproxy.keys import Keys
from bioproxy.llama import Llama
from bioproxy.logs import json_observer, leaves_it_to_us
from bioproxy.metrics import Metrics
from bioproxy.options import Options
from bioproxy.page import Page
from bioproxy.periodic import Periodic
from bioproxy.poller import Poller, Reading
from bioproxy.ports import Exposure, QuietSite, port, tcp
from bioproxy.prefix import Prefixes
from bioproxy.proof import Proof
from bioproxy.proxy import Proxy
from bioproxy.reload import Hangup, Reload
from bioproxy.root import Root, one_line
from bioproxy.slot import Slot
from bioproxy.slot_files import SlotFiles
from bioproxy.slot_folder import SlotFolder
from bioproxy.snapshots import Snapshots
from bioproxy.speed import Speed
from bioproxy.state import State, StateFolder
from bioproxy.status import Status
from bioproxy.survey import Advisor
from bioproxy.upstream import Upstream
from bioproxy.warmer import INTERVAL as WARMUP_INTERVAL
from bioproxy.warmer import Warmer
from bioproxy.warmup import Warmup
from bioproxy.watch import INTERVAL as WATCH_INTERVAL
from bioproxy.watch import Watch
from bioproxy.worker import Worker

__all__ = ["Options", "makeService"]

OPERATORS = 100
"""Connections to the operator's port at a time, at most."""

LARGEST_ACTION = 64 * 1024
"""Bytes of a body sent to the operator's port, at most."""


def makeService(options: Options, reactor: Any = None) -> MultiService:
    """Build everything.  Called by twistd, which finds this name and `Options` through the plugin."""
    os.umask(0o077)  # whatever this process writes, twistd's log too, is for its owner's eyes only
    usable = None
    if reactor is None:
        from twisted.internet import reactor as real

        reactor = real
        usable = install(reactor)  # whoever hands in another reactor has a clock, too
    root = Root()
    settings = options.settings
    twistd = options.parent
    if settings.log_format == "json" and twistd is not None and leaves_it_to_us(twistd):
        root.log_observer = lambda: json_observer(twistd, reactor)
    demo = None
    if options.demo:
        from bioproxy.demo.service import Demo

        demo = Demo(settings, reactor)
        settings = demo.settings
        demo.setServiceParent(root)

    metrics, speed = Metrics(), Speed()
    keys = Keys(settings.api_key_file, settings.llama_api_key_file)
    with one_line():
        keys.read()
        agents = Agents.over_network(reactor, settings.llama_url, settings.llama_ca_file)
    upstream = Upstream(settings.llama_url, agents, reactor, keys)
    llama = Llama(upstream)
    identity = Identity(llama)
    state = StateFolder(settings.state_dir)
    snapshots, habits = Snapshots(state), Habits(state)
    proof, holding = Proof(), Holding(llama)
    folder = SlotFolder(settings.slot_save_path)
    files = SlotFiles(llama, identity, snapshots, folder, metrics, speed, proof, reactor)
    keeper = Keeper(holding, files, proof, speed, settings.save_conversations)
    slot = Slot(identity, holding, files, keeper, proof, metrics, reactor)
    advisor = Advisor(settings.llama_url, settings.slot_save_path)
    watch = Watch(llama, upstream, identity, slot, metrics, reactor, settings.upstream_timeout, advisor)

    def in_thread(work: Callable[[], Reading]) -> Deferred[Reading]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)

    poller = Poller(settings.templates, in_thread, metrics)
    gate = Gate(reactor, metrics, settings.queue_limit, settings.queue_timeout)
    warmup = Warmup(gate, slot, llama, metrics, speed, reactor, settings.warmup_chunk)
    agenda = Agenda(poller, habits, slot, watch, reactor, ahead=settings.warmup)
    warmer = Warmer(agenda, poller, habits, Prefixes(llama), warmup, gate, slot, watch, metrics, reactor)
    journal = Journal(metrics, speed, reactor)
    worker = Worker(reactor)
    filler = Filler(poller, worker.call, settings.max_body)
    proxy = Proxy(filler, gate, slot, habits, warmer, upstream, journal, keys, reactor, settings.ping_interval)
    history = History(metrics, gate, reactor)
    status = Status(poller, gate, slot, warmer, watch, upstream, journal, reactor)
    events = Events(status, history, reactor)
    polling = Periodic(reactor, settings.poll_interval, poller.poll, "poller")
    crowd = Crowd(settings.max_body, allowed_connections())
    guard = Guard((settings.admin_host, *settings.admin_hosts))
    clients_exposure = Exposure("the clients' port", lambda: keys.required)

    def use_templates(prefixes: Mapping[str, Path]) -> None:
        for name in poller.use(templates_of(prefixes)):
            warmer.forget(name)

    def limit_bodies(size: int) -> None:
        filler.max_body = crowd.max_body = size

    takers: dict[str, Callable[[Any], None]] = {
        "admin_hosts": lambda hosts: guard.know((settings.admin_host, *hosts)),
        "api_key_file": lambda _: clients_exposure.look(),  # `keys` have it already
        "llama_api_key_file": lambda _: None,
        "max_body": limit_bodies,
        "ping_interval": partial(setattr, proxy, "ping_interval"),
        "poll_interval": polling.every,
        "prefixes": use_templates,
        "queue_limit": partial(setattr, gate, "limit"),
        "queue_timeout": partial(setattr, gate, "timeout"),
        "save_conversations": partial(setattr, keeper, "enabled"),
        "upstream_timeout": partial(setattr, watch, "timeout"),
        "warmup": partial(setattr, agenda, "ahead"),
        "warmup_chunk": partial(setattr, warmup, "longest_piece"),
    }
    reload = Reload(settings, lambda: demo.adapted(options.read()) if demo else options.read(), keys, takers)
    admin = Admin(status, events, Page(), poller, warmer, watch, reload, metrics)

    operators_port = port(
        settings.admin_listen or tcp(settings.admin_host, settings.admin_port),
        QuietSite("operator's port", admin.resource(), reactor, guard.judge, Crowd(LARGEST_ACTION, OPERATORS)),
        reactor,
        Exposure("the operator's port", lambda: False).listening,
    )
    clients_port = port(
        settings.listen or tcp(settings.host, settings.port),
        QuietSite("clients' port", proxy.resource(), reactor, proxy.judge, crowd),
        reactor,
        clients_exposure.listening,
    )
    for service in (
        State((state, folder), (snapshots.load, habits.load, lambda: files.tidy_folder(poller.templates))),
        Periodic(reactor, WATCH_INTERVAL, watch.look, "watch"),
        polling,
        Periodic(reactor, WARMUP_INTERVAL, warmer.round, "warmer"),
        Periodic(reactor, HISTORY_INTERVAL, history.take, "history"),
        events,
        worker,
        operators_port,
        clients_port,
        Hangup(reactor, reload.run),
    ):
        service.setServiceParent(root)
    if usable is not None:
        Heartbeat(reactor, usable, metrics.reactor_stall_seconds).setServiceParent(root)
    root.farewell = Farewell(clients_port, gate, proxy, upstream, keeper, reactor).say
    if demo is not None:
        demo.announce(lambda: all(warmer.state(name)[0] == "warm" for name in poller.templates))
    return root
