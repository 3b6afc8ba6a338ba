"""The wiring diagram: every part of bioproxy is made here, and gets what it needs in its constructor.

Who knows whom can be read off the calls below, from the slot (made by `bioproxy.assembly.slot_parts`) to what an
operator sees.  `bioproxy.service` calls `assemble` for the real process, with the real reactor, and puts the parts that
run by themselves into a tree of services.  Tests call it with a clock that they advance by hand and with a llama-server
in memory, so they run the same wiring as the process does.

Making a part does nothing else: no file is read or written, nothing is sent, and no port is opened, before its service
starts.  That matters for twistd, which makes all services first, in a process that may still become a daemon or give up
root's rights, and for tests, which look at parts that never start.

On Twisted: parts get the reactor as an argument and never import it.  Most of them use it only as a clock
(`IReactorTime`), to set timers and to measure durations.

Parts that call each other in both directions do not exist.  Where an earlier part must hear of something that happens
in a later one, it gets a function, mostly as a ``lambda`` or a bound method, which is called when it happens.

The only thing that is decided here is which part takes which new setting when the configuration is reloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bioproxy.assembly.parts import Outside, Parts
from bioproxy.assembly.sharing import assemble_sharing
from bioproxy.assembly.slot_parts import assemble_slot, learned_from
from bioproxy.assembly.takers import forget_when_removed, takers_of
from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.ports import OpenPortWarning
from bioproxy.llama.prefix_tokens import Prefixes
from bioproxy.llama.process_watch import INTERVAL as WATCH_INTERVAL
from bioproxy.operator.admin import Admin
from bioproxy.operator.first_steps import FirstSteps
from bioproxy.operator.history import INTERVAL as HISTORY_INTERVAL
from bioproxy.operator.history import History
from bioproxy.operator.host_check import HostCheck
from bioproxy.operator.live_events import LiveEvents
from bioproxy.operator.page import Page
from bioproxy.operator.prompt_actions import PromptActions
from bioproxy.operator.prompts_status import PromptsStatus
from bioproxy.operator.reload import Reload
from bioproxy.operator.status import Status
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.learned_prompts import LearnedPrompts
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.proxy.miss_reasons import MissReasons
from bioproxy.proxy.proxy import Proxy
from bioproxy.proxy.request_log import RequestLog
from bioproxy.proxy.request_reader import RequestReader
from bioproxy.proxy.slot_access import SlotAccess
from bioproxy.proxy.waits import Waits
from bioproxy.runtime.periodic import Periodic
from bioproxy.settings.configuration import Settings
from bioproxy.shared.shelf import INTERVAL as SHARING_INTERVAL
from bioproxy.slot.estimate import Experience
from bioproxy.slot.record_uses import INTERVAL as USES_INTERVAL
from bioproxy.warmup.head_start import HeadStart
from bioproxy.warmup.head_start_evaluation import HeadStartEvaluation
from bioproxy.warmup.idle_work import IdleWork
from bioproxy.warmup.prompt_learning import PromptLearning
from bioproxy.warmup.prompt_tokens import PromptTokens
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmer import INTERVAL as WARMUP_INTERVAL
from bioproxy.warmup.warmer import Warmer
from bioproxy.warmup.warmup import Warmup


def assemble(
    settings: Settings,
    reactor: Any,
    outside: Outside,
    read_settings: Callable[[], Settings] | None = None,
    configuration: Path | None = None,
) -> Parts:
    """Make all parts.

    `reactor` is Twisted's reactor, or a clock that stands for it.  `outside` is what tests replace.  `read_settings`
    reads the configuration again, or raises `ConfigError`; without it, a reload finds what is in force already.
    `configuration` is the file that it reads, which only the live page names.

    An arrow means "knows and calls"; every part on the right is made before the one on its left::

        Hangup, Admin --> Reload ----> the parts with settings
        Admin ----------> Status ----> most parts, to show what they believe
        LiveEvents -----> Status, History
        Proxy ----------> Gate         wait for its turn
                 |------> RequestReader --> TemplatePoller
                 |------> SlotAccess -----> Slot, MissReasons
                 `------> Upstream     send the request
        Warmer ---------> Schedule     what is due
                 |------> Gate         begin only if no user is there
                 `------> Warmup -----> Slot, LlamaApi

    The proxy and the warmer do not know each other's work.  They meet at the gate, which lets users in first, and in
    the slot, which says what is there.
    """
    # The lower half, with everything that the upper half stands on.  These are short names for what is used more than
    # once below.
    lower = assemble_slot(settings, reactor, outside)
    metrics, upstream, llama, speed = lower.metrics, lower.upstream, lower.llama, lower.speed
    gate, slot, watch, keys = lower.gate, lower.slot, lower.watch, lower.keys

    # What is done while no user waits.  The poller knows texts, the catalogue knows prompts (a text in the shape in
    # which clients send it), the schedule knows which prompt is due, and the warmer does it.
    poller = TemplatePoller(settings.templates, outside.in_thread, metrics)
    # The rounds come every few seconds, and a reload may change how many.  A thread reads what has changed.
    polling = Periodic(reactor, settings.poll_interval, poller.poll, "poller")
    shape_learning = ShapeLearning(lower.state)
    # The catalogue asks for the shape each time, because clients may change it with any question.
    # Beside the templates it has what was learned from requests.  That is kept in files only, and where bioproxy cannot
    # see the folder, it could not remove them either.
    minimum = learned_from(settings)
    learned = LearnedPrompts(lower.state)
    prompt_learning = PromptLearning(learned, llama, watch, reactor, minimum)
    # What other bioproxies have computed.  Without `shared_shelf` it does nothing, and nobody has to ask.
    shared = assemble_sharing(settings, lower, reactor, outside)
    prompt_learning.shelf_tokens = shared.prompt_tokens
    catalogue = Catalogue(poller, shape_learning.shape, learned)
    schedule = Schedule(
        catalogue,
        shape_learning,
        slot,
        watch,
        reactor,
        ahead=settings.warmup,
        idle_seconds=gate.stats.idle_seconds,
        learns=minimum is not None,
        is_computed_elsewhere=shared.is_computed_elsewhere,
    )
    # The schedule decides and changes nothing; the warm-up does one piece of work and decides nothing.  The warmer puts
    # them together.  It gets the gate as well, because it must not begin anything while a user is there.
    warmup = Warmup(gate, slot, llama, metrics, speed, reactor, settings.warmup_chunk)
    # Its tokens are remembered, so that a warm-up that is interrupted again and again has them made once.
    prompt_tokens = PromptTokens(Prefixes(llama), settings.learn_minimum)
    slot.know_tokens(prompt_tokens.remembered)
    # Large bodies are parsed in another process.  In tests `elsewhere` is a plain call, so that they need no process.
    reader = RequestReader(poller, outside.elsewhere, settings.max_body, minimum)
    # Reads a conversation once more when it was answered, to guess how it goes on.
    evaluation = HeadStartEvaluation(gate, slot, llama, watch, warmup, speed)
    head_start = HeadStart(gate, slot, llama, watch, evaluation, metrics, reactor, reader.read, settings.head_start)
    warmer = Warmer(
        schedule,
        catalogue,
        shape_learning,
        prompt_learning,
        prompt_tokens,
        warmup,
        IdleWork(catalogue, schedule, prompt_tokens, gate, slot, watch, lower.snapshots.flush_uses),
        head_start,
        shared,
        gate,
        slot,
        watch,
        metrics,
        reactor,
    )

    # The life of a request.  The order of the steps is in `Proxy`; everything that it needs for a step is handed in
    # here.
    # The log also teaches the speed, because each answer says how long its prompt took.
    request_log = RequestLog(metrics, speed, reactor)
    # The proxy gets the schedule and not the warmer: a request only tells what was asked for, and it never waits for a
    # warm-up.  That a warm-up makes room is the gate's business.
    # What waiting clients are told; the status shows the same.
    waits = Waits(gate, prompt_learning, speed, upstream, reactor, Experience())
    proxy = Proxy(
        reader,
        gate,
        waits,
        slot,
        SlotAccess(
            slot,
            shape_learning,
            prompt_learning,
            MissReasons(shape_learning, prompt_learning, warmer, warmup, slot),
            head_start,
        ),
        prompt_learning,
        schedule,
        upstream,
        request_log,
        reactor,
        settings.ping_interval,
    )
    # Limits and warning of the clients' port.  They are parts and not in the port's service, because a reload changes
    # the one and has the other look again.
    # How many connections are possible depends on the limit of open files, which is asked again at the start.
    limits = ConnectionLimits(settings.max_body)
    # A function for the keys, because they are read later, when the services start.
    open_port_warning = OpenPortWarning("the clients' port", lambda: keys.required)

    # What an operator sees: the numbers of the last hour, the state at this moment, and both as events for open pages.
    # The history is collected from the metrics, so the curves and Prometheus never show different numbers.
    history = History(metrics, gate, reactor)
    # The status asks the parts each time and stores nothing, so it cannot be out of date.
    prompts_status = PromptsStatus(warmer, slot, lower.files, lower.snapshots, request_log, speed)
    first_steps = FirstSteps(settings, configuration, keys)
    status = Status(
        poller,
        gate,
        slot,
        warmer,
        watch,
        upstream,
        request_log,
        prompts_status,
        waits,
        head_start,
        first_steps,
        shared,
        reactor,
    )
    events = LiveEvents(status, history, reactor)
    # The operator's port has no keys.  A web page in the operator's browser could send requests to it, though, by a
    # name that resolves to this machine; so only known names are answered.
    host_check = HostCheck((settings.admin_host, *settings.admin_hosts))

    lower.shelf.removed = forget_when_removed(prompt_learning, warmer)
    takers = takers_of(
        settings,
        reactor,
        lower,
        poller,
        polling,
        warmer,
        schedule,
        warmup,
        prompt_learning,
        prompt_tokens,
        reader,
        proxy,
        limits,
        open_port_warning,
        host_check,
        head_start,
        shared,
    )
    # The reload comes after all others, because it has a way into many of them.  Nobody but the operator's port and the
    # signal SIGHUP knows it.
    # Tests that never reload hand in no `read_settings`; then nothing is ever new.
    reload = Reload(settings, read_settings or (lambda: settings), keys, takers)

    async def write_uses() -> None:
        """Write which slot files were used.  A coroutine, because `Periodic` calls nothing else; it never waits."""
        lower.snapshots.flush_uses()

    # Everything of the lower half (`vars` gives the fields of a dataclass by name), and the rest by name.  The four
    # last ones make rounds of a function: `Periodic` calls it again only when the coroutine of the last call has ended,
    # logs its errors, and cancels it at a stop.
    return Parts(
        **vars(lower),
        poller=poller,
        polling=polling,
        shape_learning=shape_learning,
        learned=learned,
        prompt_learning=prompt_learning,
        shared=shared,
        catalogue=catalogue,
        schedule=schedule,
        warmup=warmup,
        warmer=warmer,
        head_start=head_start,
        request_log=request_log,
        reader=reader,
        proxy=proxy,
        limits=limits,
        open_port_warning=open_port_warning,
        history=history,
        first_steps=first_steps,
        status=status,
        events=events,
        host_check=host_check,
        reload=reload,
        # The last part of all: it shows or starts what the others do, and none of them knows it.
        admin=Admin(
            status,
            events,
            Page(),
            poller,
            warmer,
            watch,
            reload,
            PromptActions(poller, warmer, lower.shelf),
            metrics,
            gate,
        ),
        # The names are those in the tree of services and in the log.  The intervals are constants of the modules whose
        # rounds they time, where their meaning is explained.
        watching=Periodic(reactor, WATCH_INTERVAL, watch.look, "watch"),
        warming=Periodic(reactor, WARMUP_INTERVAL, warmer.round, "warmer"),
        history_taking=Periodic(reactor, HISTORY_INTERVAL, history.take, "history"),
        sharing=Periodic(reactor, SHARING_INTERVAL, shared.round, "shared shelf"),
        publishing=Periodic(reactor, SHARING_INTERVAL, shared.publish, "publishing"),
        uses_writing=Periodic(reactor, USES_INTERVAL, write_uses, "uses"),
    )
