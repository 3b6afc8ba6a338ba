"""What one bioproxy consists of: the table of its parts.

There is no registry of components and there are no globals.  A part is a plain object that gets the parts it needs in
its constructor, and this table has all of them, so that `bioproxy.service` can start what has to be started, and a test
can look at any of them.  `bioproxy.assembly` makes them.

The table has four groups, each made by a module of its own, from the bottom to the top.  `SlotParts` is everything up
to llama-server's one slot: who may use it, and what is in it.  `WarmupParts` and `RequestParts` use the slot, and
`OperatorParts` show and steer all of them.  No group knows anything in a group behind it.

On Twisted: a *site* is what makes a protocol object for each new connection to a port.  It is not made with the parts,
but when its port is, because it needs the reactor for its time-outs, and a test may use another one for that.

This module makes no part and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.application.service import IService

from bioproxy.assembly.outside import Outside
from bioproxy.gate.gate import Gate
from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.ports import OpenPortWarning
from bioproxy.http.site import CheckedSite
from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.learning.shape_learning import ShapeLearning
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.llama.speed import Speed
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.admin import Admin
from bioproxy.operator.first_steps import FirstSteps
from bioproxy.operator.history import History
from bioproxy.operator.host_check import HostCheck
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.reload import Reload
from bioproxy.operator.status import Status
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.learned_prompts import LearnedPrompts
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.proxy.admission import Admission
from bioproxy.proxy.proxy import Proxy
from bioproxy.proxy.request_log import RequestLog
from bioproxy.proxy.request_reader import RequestReader
from bioproxy.proxy.shutdown import Shutdown
from bioproxy.proxy.waits import Waits
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.periodic import Periodic
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from bioproxy.shared.shelf import SharedShelf
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.slot import Slot
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.record import SnapshotRecord
from bioproxy.slot_files.reuse_check import ReuseCheck
from bioproxy.slot_files.shelf import Shelf
from bioproxy.warmup.last_talk import LastTalk
from bioproxy.warmup.prompt_tokens import PromptTokens
from bioproxy.warmup.schedule import Schedule
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
class SlotParts:
    """The parts up to the slot, in the order in which they are made: each needs only those before it.

    Frozen: a part is never exchanged for another.  What a reload changes are attributes of parts.
    """

    # What was configured, and the world outside.
    settings: Settings
    """The configuration as it was at the start.  A reload does not replace it, but changes attributes of parts."""
    outside: Outside
    """What leaves the process."""
    # What all others stand on.
    metrics: Metrics
    """All counters, gauges and histograms, in a registry of their own."""
    keys: ApiKeys
    """The clients' keys, and the one for llama-server.  Read when the services start, and at a reload."""
    state: StateFolder
    """bioproxy's own folder, for what must survive a restart."""
    # llama-server, and what is known of it.
    upstream: Upstream
    """Sends every request to llama-server, those of clients and our own, and can end all of them."""
    llama: LlamaApi
    """bioproxy's own calls to llama-server, by what they mean."""
    identity: ModelIdentity
    """Which model runs, as far as that can be found out."""
    speed: Speed
    """How fast llama-server processes and saves tokens, learned from its answers."""
    # The slot: who may use it, what is in it, and what is in its files.
    gate: Gate
    """The queue: one use of the slot at a time, users before warm-ups."""
    snapshots: SnapshotRecord
    """The record of slot files: which text and which model each is of."""
    folder: SlotFolder
    """llama-server's folder with the slot files, as far as it can be seen from here."""
    shelf: Shelf
    """Keeps the slot files within their limits."""
    reuse_check: ReuseCheck
    """Whether llama-server really reuses what was restored."""
    content: SlotContent
    """What is believed to be in the slot."""
    files: SlotFiles
    """Saves and restores the slot, and keeps the record right."""
    saver: ConversationSaver
    """Saves a conversation that would be lost."""
    slot: Slot
    """The slot as all others see it; puts the parts before it together."""
    # After the slot, because it tells the slot when llama-server has fallen asleep or is another process.
    watch: ProcessWatch
    """Whether llama-server is up, which process it is, and what it can do."""


@dataclass(frozen=True)
class WarmupParts:
    """Which prompts there are, and what is done about them while no user waits."""

    poller: TemplatePoller
    """Reads the template files, and again when they change."""
    polling: Periodic
    """The rounds of `poller`."""
    shape_learning: ShapeLearning
    """What clients put before a template: what has to be warmed up with it."""
    learned: LearnedPrompts
    """The prompts that were learned from requests, kept over restarts."""
    prompt_learning: PromptLearning
    """Decides what is learned, and tells with which learned prompt a request begins."""
    shared: SharedShelf
    """What other bioproxies have computed, and what they get from this one."""
    catalogue: Catalogue
    """The prompts that are to be warm."""
    schedule: Schedule
    """Which prompt is due next, and why."""
    prompt_tokens: PromptTokens
    """The tokens of prompts, remembered as long as they are needed."""
    warmup: Warmup
    """One warm-up at a time, and how far each has come."""
    reader: RequestReader
    """Finds templates in requests and fills them in.  It is among these because a head start reads with it, too."""
    warmer: Warmer
    """Has the warm-ups done that are due, while no user waits."""
    last_talk: LastTalk
    """The last conversation, and what is expected of its next request: what head starts are made of."""


@dataclass(frozen=True)
class RequestParts:
    """The life of a request."""

    request_log: RequestLog
    """The latest requests, for `/status` and the log."""
    waits: Waits
    """What clients are told while they wait."""
    proxy: Proxy
    """The clients' port: the order of the steps of a request."""
    limits: ConnectionLimits
    """Limits of the clients' port for connections, bodies and memory."""
    open_port_warning: OpenPortWarning
    """Warns if other machines can reach the clients' port and no key is asked for."""


@dataclass(frozen=True)
class OperatorParts:
    """What an operator sees and does."""

    history: History
    """Numbers of the last hour, for the curves of the live page."""
    first_steps: FirstSteps
    """Where things are, for a new user; is told the address of the clients' port."""
    status: Status
    """The present state, as `/status` shows it."""
    events: LiveEvents
    """A service that sends both to open pages as they change."""
    host_check: HostCheck
    """Refuses requests to the operator's port that come from another site's web page."""
    reload: Reload
    """Reads the configuration again and hands new values to the parts."""
    admin: Admin
    """The operator's port: its routes and actions."""


@dataclass(frozen=True)
class Parts(SlotParts, WarmupParts, RequestParts, OperatorParts):
    """All parts of one bioproxy: the four groups in one table, so that a part has one name wherever it is used."""

    # What runs by itself, again and again.  Each is a service with one function of a part above, so that starting and
    # stopping need not be written in every part.
    watching: Periodic
    """The rounds of `watch`."""
    warming: Periodic
    """The rounds of `warmer`."""
    sharing: Periodic
    """The rounds of `shared`."""
    publishing: Periodic
    """Publishes on the shared shelf what was saved."""
    uses_writing: Periodic
    """Writes down, now and then, which slot files were used."""
    history_taking: Periodic
    """The rounds of `history`."""

    def clients_site(self, reactor: Any) -> CheckedSite:
        """Return what serves connections to the clients' port, with the reactor for their time-outs."""
        judge = Admission(self.keys).judge
        return CheckedSite("clients' port", self.proxy.resource(), reactor, judge, self.limits)

    def operators_site(self, reactor: Any) -> CheckedSite:
        """Return what serves connections to the operator's port, with the reactor for their time-outs."""
        # Limits of its own: however many clients there are, an operator can still look what is going on.
        limits = ConnectionLimits(LARGEST_ACTION, OPERATORS)
        return CheckedSite("operator's port", self.admin.resource(), reactor, self.host_check.judge, limits)

    def shutdown(self, clients_port: IService, reactor: Any) -> Shutdown:
        """Return how requests end when bioproxy stops; `clients_port` is the service that it closes first."""
        return Shutdown(
            clients_port, self.gate, self.proxy.running, self.upstream, self.saver, self.shared.finish, reactor
        )
