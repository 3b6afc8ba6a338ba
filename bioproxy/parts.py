"""What one bioproxy consists of: the table of its parts, and what they need of the world outside.

There is no registry of components and there are no globals.  A part is a plain object that gets the parts it needs in
its constructor, and this table has all of them, so that `bioproxy.service` can start what has to be started, and a test
can look at any of them.  `bioproxy.assembly` makes them.

The table has two halves.  `SlotParts` is everything up to llama-server's one slot: who may use it, and what is in it.
`Parts` adds what uses the slot: warm-ups, requests, and the operator's view.  Nothing in the first half knows anything
in the second.

On Twisted: a *site* is what makes a protocol object for each new connection to a port.  It is not made with the parts,
but when its port is, because it needs the reactor for its time-outs, and a test may use another one for that.

This module makes no part and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.ports import OpenPortWarning
from bioproxy.http.site import CheckedSite
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.connections import Agents
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.llama.speed import Speed
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.admin import Admin
from bioproxy.operator.history import History
from bioproxy.operator.host_check import HostCheck
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.reload import Reload
from bioproxy.operator.status import Status
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.template_poller import InThread, TemplatePoller
from bioproxy.proxy.admission import Admission
from bioproxy.proxy.proxy import Proxy
from bioproxy.proxy.request_log import RequestLog
from bioproxy.proxy.request_reader import Elsewhere, RequestReader
from bioproxy.proxy.shutdown import Shutdown
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.periodic import Periodic
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.runtime.worker import Worker
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
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
from bioproxy.warmup.warmer import Warmer
from bioproxy.warmup.warmup import Warmup

OPERATORS = 100
"""Connections to the operator's port at a time, at most.

An open live page has one, a scrape of the metrics another for a moment.  Halved, that is still enough for a team;
doubled, the operator's port may take more of the open files that clients need.
"""

LARGEST_ACTION = 64 * 1024
"""Bytes of a body sent to the operator's port, at most.

No action there has a body that is read.  Halved or doubled, nothing changes but what a mistake may cost.
"""


@dataclass(frozen=True)
class Outside:
    """What the parts need of the world outside.

    Everything that leaves the process goes through here or through the reactor, so a test that replaces both runs all
    of bioproxy in memory.
    """

    agents: Agents
    """Send requests to llama-server."""

    in_thread: InThread
    """Runs a function that blocks, such as reading a file, in a thread; its Deferred fires in the reactor's thread."""

    elsewhere: Elsewhere
    """Runs a function of an open file's content in another process."""

    free_space: Callable[[Path], int] = free_bytes
    """Tells how many bytes are left on the disk of a folder."""

    worker: IService | None = None
    """The service behind `elsewhere`, if it has one that must be started and stopped."""

    @classmethod
    def real(cls, reactor: Any, settings: Settings) -> Outside:
        """Return the network, the reactor's threads, and a process of our own.  Nothing of it is opened or started."""

        # The pool belongs to the reactor that was handed in.  `deferToThread` would take the global one.
        def in_thread(work: Callable[[], Any]) -> Deferred[Any]:
            return deferToThreadPool(reactor, reactor.getThreadPool(), work)

        worker = Worker(reactor)
        agents = Agents.over_network(reactor, settings.llama_url, settings.llama_ca_file)
        return cls(agents, in_thread, worker.call, worker=worker)


@dataclass(frozen=True)
class SlotParts:
    """The parts up to the slot, in the order in which they are made: each needs only those before it.

    Frozen: a part is never exchanged for another.  What a reload changes are attributes of parts.
    """

    # What was configured, and the world outside.
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
    # The slot: who may use it, what is in it, and what is in its files.
    gate: Gate
    snapshots: SnapshotRecord
    folder: SlotFolder
    reuse_check: ReuseCheck
    content: SlotContent
    files: SlotFiles
    saver: ConversationSaver
    slot: Slot
    # Looks whether llama-server is still there and still the same, and tells the slot.
    watch: ProcessWatch


@dataclass(frozen=True)
class Parts(SlotParts):
    """All parts of one bioproxy."""

    # What is done while no user waits.
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
    # What an operator sees and does.
    history: History
    status: Status
    events: LiveEvents
    host_check: HostCheck
    reload: Reload
    admin: Admin
    # What runs by itself, again and again.  Each is a service with one function of a part above, so that starting and
    # stopping need not be written in every part.
    watching: Periodic
    warming: Periodic
    history_taking: Periodic

    def clients_site(self, reactor: Any) -> CheckedSite:
        """Return what serves connections to the clients' port, with the reactor for their time-outs."""
        judge = Admission(self.keys).judge
        return CheckedSite("clients' port", self.proxy.resource(), reactor, judge, self.limits)

    def operators_site(self, reactor: Any) -> CheckedSite:
        """Return what serves connections to the operator's port, likewise."""
        # Limits of its own: however many clients there are, an operator can still look what is going on.
        limits = ConnectionLimits(LARGEST_ACTION, OPERATORS)
        return CheckedSite("operator's port", self.admin.resource(), reactor, self.host_check.judge, limits)

    def shutdown(self, clients_port: IService, reactor: Any) -> Shutdown:
        """Return how requests end when bioproxy stops; `clients_port` is the service that it closes first."""
        return Shutdown(clients_port, self.gate, self.proxy, self.upstream, self.saver, reactor)
