"""The part of the wiring diagram that serves clients: the life of a request.

The order of a request's steps is written once, in `bioproxy.proxy.proxy`.  Each step is done by a part that is handed
to it here: reading the request, waiting for a turn, getting the slot ready, sending, and noting what came of it.

The proxy gets the schedule and not the warmer: a request only tells what was asked for, and it never waits for a
warm-up.  That a warm-up makes room is the gate's business.  So the life of a request can be read without knowing what
goes on while nobody asks.

Making a part does nothing else; above all, no port is opened.  The ports come with the services
(`bioproxy.service`), and Twisted makes an object for each connection then.  Does not know the operator's view.
"""

from __future__ import annotations

from typing import Any

from bioproxy.assembly.parts import RequestParts, SlotParts, WarmupParts
from bioproxy.gate.estimate import Experience
from bioproxy.http.connection_limits import ConnectionLimits
from bioproxy.http.ports import OpenPortWarning
from bioproxy.proxy.miss_reasons import MissReasons
from bioproxy.proxy.proxy import Proxy
from bioproxy.proxy.request_log import RequestLog
from bioproxy.proxy.slot_access import SlotAccess
from bioproxy.proxy.waits import Waits
from bioproxy.settings.configuration import Settings


def assemble_requests(settings: Settings, reactor: Any, lower: SlotParts, warmups: WarmupParts) -> RequestParts:
    """Make the parts that serve clients.

    `settings` are those of the start, `reactor` is the clock.  `lower` knows the slot, `warmups` know the prompts.

    An arrow means "knows and calls"::

        Proxy ---> RequestReader --> TemplatePoller   what is asked
            |----> Gate                               wait for its turn
            |----> Waits                              what a waiting client is told
            |----> SlotAccess -----> Slot, MissReasons
            |----> Upstream                           send the request
            `----> RequestLog                         note how it ended
    """
    # Short names for what is used more than once below.
    slot, prompt_learning = lower.slot, warmups.prompt_learning
    # The log also teaches the speed, because each answer says how long its prompt took.
    request_log = RequestLog(lower.metrics, lower.speed, reactor)
    # What waiting clients are told; the status shows the same.
    waits = Waits(lower.gate, prompt_learning, lower.speed, lower.upstream, reactor, Experience())
    # Asked only where a request found nothing to use, so that an operator learns why.
    miss_reasons = MissReasons(warmups.shape_learning, prompt_learning, warmups.readiness, warmups.warmup, slot.facts)
    proxy = Proxy(
        warmups.reader,
        lower.gate,
        waits,
        slot,
        SlotAccess(slot, warmups.shape_learning, prompt_learning, miss_reasons, warmups.last_talk),
        prompt_learning,
        warmups.schedule,
        lower.upstream,
        request_log,
        reactor,
        settings.ping_interval,
    )
    # Limits and warning of the clients' port.  They are parts and not in the port's service, because a reload changes
    # the one and has the other look again.
    # How many connections are possible depends on the limit of open files, which is asked again at the start.
    limits = ConnectionLimits(settings.max_body)
    # A function for the keys, because they are read later, when the services start.
    open_port_warning = OpenPortWarning("the clients' port", lambda: lower.keys.required)
    # What only the proxy uses, such as the way to the slot, is in no table.
    return RequestParts(
        request_log=request_log, waits=waits, proxy=proxy, limits=limits, open_port_warning=open_port_warning
    )
