"""The wiring diagram: every part of bioproxy is made here, and gets what it needs in its constructor.

There is no registry of components and there are no globals: who knows whom can be read off the calls below, from the
bottom of the house (what talks to llama-server) to its top (what a person sees).  `bioproxy.service` calls `assemble`
for the real process, with the real reactor, and puts what it returns into a tree of services.  Tests call it with a
clock that they move by hand and with a llama-server in memory, so they run the same wiring as the process does.

Making a part does nothing else: no file is read or written, nothing is sent, and no port is opened, before its service
starts.  That matters for twistd, which makes all services first, in a process that may still become a daemon or give up
root's rights, and for tests, which look at parts that never start.

The only thing that is decided here is which part takes which new setting when the configuration is read again
(`Parts.setting_takers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from bioproxy.http.connection_limits import ConnectionLimits, allowed_connections
from bioproxy.http.ports import OpenPortWarning
from bioproxy.http.site import CheckedSite
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.connections import Agents
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.prefix_tokens import Prefixes
from bioproxy.llama.process_watch import INTERVAL as WATCH_INTERVAL
from bioproxy.llama.process_watch import Listeners, ProcessWatch
from bioproxy.llama.speed import Speed
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.admin import Admin
from bioproxy.operator.history import INTERVAL as HISTORY_INTERVAL
from bioproxy.operator.history import History
from bioproxy.operator.host_check import HostCheck
from bioproxy.operator.inspection import Advisor
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.page import Page
from bioproxy.operator.reload import Reload
from bioproxy.operator.status import Status
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.template_poller import InThread, TemplatePoller
from bioproxy.proxy.admission import Admission
from bioproxy.proxy.miss_reasons import MissReasons
from bioproxy.proxy.proxy import Proxy
from bioproxy.proxy.request_log import RequestLog
from bioproxy.proxy.request_reader import Elsewhere, RequestReader
from bioproxy.proxy.shutdown import Shutdown
from bioproxy.proxy.slot_access import SlotAccess
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.periodic import Periodic
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.runtime.worker import Worker
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings, templates_of
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.folder import SlotFolder, free_bytes
from bioproxy.slot.gate import Gate
from bioproxy.slot.record import SnapshotRecord
from bioproxy.slot.reuse_check import ReuseCheck
from bioproxy.slot.slot import Slot
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmer import INTERVAL as WARMUP_INTERVAL
from bioproxy.warmup.warmer import Warmer
from bioproxy.warmup.warmup import Warmup

OPERATORS = 100
"""Connections to the operator's port at a time, at most."""

LARGEST_ACTION = 64 * 1024
"""Bytes of a body sent to the operator's port, at most."""


@dataclass(frozen=True)
class Outside:
    """What parts need of the world outside, and tests replace.

    `agents` send requests to llama-server; `in_thread` runs a blocking function in a thread, and `elsewhere` reads an
    open file in another process; `free_space` tells how many bytes a disk has left.  `worker` is the service behind
    `elsewhere`, if there is one.
    """

    agents: Agents
    in_thread: InThread
    elsewhere: Elsewhere
    free_space: Callable[[Path], int] = free_bytes
    worker: IService | None = None

    @classmethod
    def real(cls, reactor: Any, settings: Settings) -> Outside:
        """Return the network, the reactor's threads, and a process of our own."""

        def in_thread(work: Callable[[], Any]) -> Deferred[Any]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), work)

        worker = Worker(reactor)
        agents = Agents.over_network(reactor, settings.llama_url, settings.llama_ca_file)
        return cls(agents, in_thread, worker.call, worker=worker)


@dataclass(frozen=True)
class Parts:
    """All parts of one bioproxy, in the order of the house: each needs only those before it."""

    settings: Settings
    outside: Outside
    # What all others stand on.
    metrics: Metrics
    keys: ApiKeys
    state: StateFolder
    # llama-server, and what is known of it.
    upstream: Upstream
    llama: LlamaApi
    identity: ModelIdentity
    speed: Speed
    # The slot, and what is in it.
    gate: Gate
    snapshots: SnapshotRecord
    folder: SlotFolder
    reuse_check: ReuseCheck
    content: SlotContent
    files: SlotFiles
    saver: ConversationSaver
    slot: Slot
    watch: ProcessWatch
    # What goes on while nobody asks.
    poller: TemplatePoller
    polling: Periodic
    shape_learning: ShapeLearning
    catalogue: Catalogue
    schedule: Schedule
    warmup: Warmup
    warmer: Warmer
    # The life of a request.
    request_log: RequestLog
    reader: RequestReader
    proxy: Proxy
    limits: ConnectionLimits
    open_port_warning: OpenPortWarning
    # What an operator sees.
    history: History
    status: Status
    events: LiveEvents
    host_check: HostCheck
    reload: Reload
    admin: Admin
    # What runs by itself.
    watching: Periodic
    warming: Periodic
    history_taking: Periodic

    def clients_site(self, reactor: Any) -> CheckedSite:
        """Return what serves connections to the clients' port, with the reactor for their time-outs."""
        return CheckedSite("clients' port", self.proxy.resource(), reactor, Admission(self.keys).judge, self.limits)

    def operators_site(self, reactor: Any) -> CheckedSite:
        """Return what serves connections to the operator's port, likewise."""
        limits = ConnectionLimits(LARGEST_ACTION, OPERATORS)
        return CheckedSite("operator's port", self.admin.resource(), reactor, self.host_check.judge, limits)

    def shutdown(self, clients_port: IService, reactor: Any) -> Shutdown:
        """Return how requests end when bioproxy stops."""
        return Shutdown(clients_port, self.gate, self.proxy, self.upstream, self.saver, reactor)


def assemble(
    settings: Settings, reactor: Any, outside: Outside, read_settings: Callable[[], Settings] | None = None
) -> Parts:
    """Make all parts.

    `reactor` is Twisted's reactor, or a clock that stands for it; `read_settings` reads the configuration again, or
    raises `ConfigError` (without it, reloading finds what is in force already).
    """
    metrics = Metrics()
    keys = ApiKeys(settings.api_key_file, settings.llama_api_key_file)
    state = StateFolder(settings.state_dir)

    upstream = Upstream(settings.llama_url, outside.agents, reactor, keys)
    llama = LlamaApi(upstream)
    identity = ModelIdentity(llama)
    speed = Speed()

    gate = Gate(reactor, metrics, settings.queue_limit, settings.queue_timeout)
    snapshots = SnapshotRecord(state)
    folder = SlotFolder(settings.slot_save_path, outside.free_space)
    reuse_check, content = ReuseCheck(), SlotContent(llama)
    files = SlotFiles(llama, identity, snapshots, folder, metrics, speed, reuse_check, reactor)
    saver = ConversationSaver(content, files, reuse_check, speed, settings.save_conversations)
    slot = Slot(identity, content, files, saver, reuse_check, metrics, reactor)
    advisor = Advisor(settings.llama_url, settings.slot_save_path)
    listeners = Listeners(
        fell_asleep=slot.llama_fell_asleep,
        another_process=slot.llama_restarted,
        slot_files=partial(setattr, files, "enabled"),
        advise=advisor.tell,
        what_helps=advisor.what_helps,
    )
    watch = ProcessWatch(llama, upstream, identity, listeners, metrics, reactor, settings.upstream_timeout)

    poller = TemplatePoller(settings.templates, outside.in_thread, metrics)
    polling = Periodic(reactor, settings.poll_interval, poller.poll, "poller")
    shape_learning = ShapeLearning(state)
    catalogue = Catalogue(poller, shape_learning.shape)
    schedule = Schedule(catalogue, shape_learning, slot, watch, reactor, ahead=settings.warmup)
    warmup = Warmup(gate, slot, llama, metrics, speed, reactor, settings.warmup_chunk)
    warmer = Warmer(schedule, catalogue, shape_learning, Prefixes(llama), warmup, gate, slot, watch, metrics, reactor)

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
    limits = ConnectionLimits(settings.max_body, allowed_connections())
    open_port_warning = OpenPortWarning("the clients' port", lambda: keys.required)

    history = History(metrics, gate, reactor)
    status = Status(poller, gate, slot, warmer, watch, upstream, request_log, reactor)
    events = LiveEvents(status, history, reactor)
    host_check = HostCheck((settings.admin_host, *settings.admin_hosts))

    def use_templates(prefixes: Mapping[str, Path]) -> None:
        for name in poller.set_templates(templates_of(prefixes)):
            warmer.forget(name)

    def limit_bodies(size: int) -> None:
        reader.max_body = limits.max_body = size

    # Who takes a new value of a setting while everything goes on.  What is not here only a restart can change.
    takers: dict[str, Callable[[Any], None]] = {
        "admin_hosts": lambda hosts: host_check.know((settings.admin_host, *hosts)),
        "api_key_file": lambda _: open_port_warning.check(),  # `keys` have it already
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
    reload = Reload(settings, read_settings or (lambda: settings), keys, takers)
    return Parts(
        settings=settings,
        outside=outside,
        metrics=metrics,
        keys=keys,
        state=state,
        upstream=upstream,
        llama=llama,
        identity=identity,
        speed=speed,
        gate=gate,
        snapshots=snapshots,
        folder=folder,
        reuse_check=reuse_check,
        content=content,
        files=files,
        saver=saver,
        slot=slot,
        watch=watch,
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
