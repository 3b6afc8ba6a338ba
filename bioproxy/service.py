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

The *reactor* is Twisted's event loop.  It is imported here, and for ``--check`` in `bioproxy.operator.inspection`, and
nowhere else: importing it chooses it, and whoever gets it handed in can be tested with another clock.
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

from bioproxy.http.connection_limits import ConnectionLimits, allowed_connections
from bioproxy.http.ports import Exposure, QuietSite, port, tcp
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.connections import Agents
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.prefix_tokens import Prefixes
from bioproxy.llama.process_watch import INTERVAL as WATCH_INTERVAL
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.llama.speed import Speed
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.admin import Admin
from bioproxy.operator.history import INTERVAL as HISTORY_INTERVAL
from bioproxy.operator.history import History
from bioproxy.operator.host_check import HostCheck
from bioproxy.operator.inspection import Advisor
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.options import Options
from bioproxy.operator.page import Page
from bioproxy.operator.reload import Hangup, Reload
from bioproxy.operator.status import Status
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.template_poller import Reading, TemplatePoller
from bioproxy.proxy.proxy import Proxy
from bioproxy.proxy.request_log import RequestLog
from bioproxy.proxy.request_reader import RequestReader
from bioproxy.proxy.shutdown import Shutdown
from bioproxy.root import Root, one_line
from bioproxy.runtime.clock import Heartbeat, install
from bioproxy.runtime.json_log import json_observer, leaves_it_to_us
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.periodic import Periodic
from bioproxy.runtime.state_folder import State, StateFolder
from bioproxy.runtime.worker import Worker
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import templates_of
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.folder import SlotFolder
from bioproxy.slot.gate import Gate
from bioproxy.slot.record import SnapshotRecord
from bioproxy.slot.reuse_check import ReuseCheck
from bioproxy.slot.slot import Slot
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmer import INTERVAL as WARMUP_INTERVAL
from bioproxy.warmup.warmer import Warmer
from bioproxy.warmup.warmup import Warmup

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
    keys = ApiKeys(settings.api_key_file, settings.llama_api_key_file)
    with one_line():
        keys.read()
        agents = Agents.over_network(reactor, settings.llama_url, settings.llama_ca_file)
    upstream = Upstream(settings.llama_url, agents, reactor, keys)
    llama = LlamaApi(upstream)
    identity = ModelIdentity(llama)
    state = StateFolder(settings.state_dir)
    snapshots, shape_learning = SnapshotRecord(state), ShapeLearning(state)
    reuse_check, content = ReuseCheck(), SlotContent(llama)
    folder = SlotFolder(settings.slot_save_path)
    files = SlotFiles(llama, identity, snapshots, folder, metrics, speed, reuse_check, reactor)
    saver = ConversationSaver(content, files, reuse_check, speed, settings.save_conversations)
    slot = Slot(identity, content, files, saver, reuse_check, metrics, reactor)
    advisor = Advisor(settings.llama_url, settings.slot_save_path)
    watch = ProcessWatch(llama, upstream, identity, slot, metrics, reactor, settings.upstream_timeout, advisor)

    def in_thread(work: Callable[[], Reading]) -> Deferred[Reading]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)

    poller = TemplatePoller(settings.templates, in_thread, metrics)
    gate = Gate(reactor, metrics, settings.queue_limit, settings.queue_timeout)
    warmup = Warmup(gate, slot, llama, metrics, speed, reactor, settings.warmup_chunk)
    catalogue = Catalogue(poller, shape_learning.shape)
    schedule = Schedule(catalogue, shape_learning, slot, watch, reactor, ahead=settings.warmup)
    warmer = Warmer(schedule, catalogue, shape_learning, Prefixes(llama), warmup, gate, slot, watch, metrics, reactor)
    request_log = RequestLog(metrics, speed, reactor)
    worker = Worker(reactor)
    reader = RequestReader(poller, worker.call, settings.max_body)
    proxy = Proxy(
        reader, gate, slot, shape_learning, warmer, upstream, request_log, keys, reactor, settings.ping_interval
    )
    history = History(metrics, gate, reactor)
    status = Status(poller, gate, slot, warmer, watch, upstream, request_log, reactor)
    events = LiveEvents(status, history, reactor)
    polling = Periodic(reactor, settings.poll_interval, poller.poll, "poller")
    limits = ConnectionLimits(settings.max_body, allowed_connections())
    host_check = HostCheck((settings.admin_host, *settings.admin_hosts))
    clients_exposure = Exposure("the clients' port", lambda: keys.required)

    def use_templates(prefixes: Mapping[str, Path]) -> None:
        for name in poller.use(templates_of(prefixes)):
            warmer.forget(name)

    def limit_bodies(size: int) -> None:
        reader.max_body = limits.max_body = size

    takers: dict[str, Callable[[Any], None]] = {
        "admin_hosts": lambda hosts: host_check.know((settings.admin_host, *hosts)),
        "api_key_file": lambda _: clients_exposure.look(),  # `keys` have it already
        "llama_api_key_file": lambda _: None,
        "max_body": limit_bodies,
        "ping_interval": partial(setattr, proxy, "ping_interval"),
        "poll_interval": polling.every,
        "prefixes": use_templates,
        "queue_limit": partial(setattr, gate, "limit"),
        "queue_timeout": partial(setattr, gate, "timeout"),
        "save_conversations": partial(setattr, saver, "enabled"),
        "upstream_timeout": partial(setattr, watch, "timeout"),
        "warmup": partial(setattr, schedule, "ahead"),
        "warmup_chunk": partial(setattr, warmup, "longest_piece"),
    }
    reload = Reload(settings, lambda: demo.adapted(options.read()) if demo else options.read(), keys, takers)
    admin = Admin(status, events, Page(), poller, warmer, watch, reload, metrics)

    operators_port = port(
        settings.admin_listen or tcp(settings.admin_host, settings.admin_port),
        QuietSite(
            "operator's port", admin.resource(), reactor, host_check.judge, ConnectionLimits(LARGEST_ACTION, OPERATORS)
        ),
        reactor,
        Exposure("the operator's port", lambda: False).listening,
    )
    clients_port = port(
        settings.listen or tcp(settings.host, settings.port),
        QuietSite("clients' port", proxy.resource(), reactor, proxy.judge, limits),
        reactor,
        clients_exposure.listening,
    )
    for service in (
        State((state, folder), (snapshots.load, shape_learning.load, lambda: files.tidy_folder(poller.templates))),
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
    root.shutdown = Shutdown(clients_port, gate, proxy, upstream, saver, reactor).say
    if demo is not None:
        demo.announce(lambda: all(warmer.state(name)[0] == "warm" for name in poller.templates))
    return root
