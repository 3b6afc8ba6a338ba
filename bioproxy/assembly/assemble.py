"""The wiring diagram: every part of bioproxy is made here, and gets what it needs in its constructor.

Who knows whom can be read off the calls, in four modules from the bottom to the top: the slot and all below it
(`bioproxy.assembly.slot_parts`), what is done while no user waits (`warmup_parts`), the life of a request
(`request_parts`), and what an operator sees (`operator_parts`).  `bioproxy.service` calls `assemble` for the real
process, with the real reactor, and puts the parts that run by themselves into a tree of services.  Tests call it with a
clock that they advance by hand and with a llama-server in memory, so they run the same wiring as the process does.

Making a part does nothing else: no file is read or written, nothing is sent, and no port is opened, before its service
starts.  That matters for twistd, which makes all services first, in a process that may still become a daemon or give up
root's rights, and for tests, which look at parts that never start.

On Twisted: parts get the reactor as an argument and never import it.  Most of them use it only as a clock
(`IReactorTime`), to set timers and to measure durations.

Parts that call each other in both directions do not exist: each needs only what was made before it, so the order of the
calls is forced, and no part can be used half made.  Where an earlier part must hear of something that happens
in a later one, it gets a function, mostly as a ``lambda`` or a bound method, which is called when it happens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bioproxy.assembly.operator_parts import assemble_operator
from bioproxy.assembly.outside import Outside
from bioproxy.assembly.parts import Parts
from bioproxy.assembly.request_parts import assemble_requests
from bioproxy.assembly.slot_parts import assemble_slot
from bioproxy.assembly.warmup_parts import assemble_warmups
from bioproxy.llama.process_watch import INTERVAL as WATCH_INTERVAL
from bioproxy.operator.history import INTERVAL as HISTORY_INTERVAL
from bioproxy.runtime.periodic import Periodic
from bioproxy.settings.configuration import Settings
from bioproxy.shared.shelf import INTERVAL as SHARING_INTERVAL
from bioproxy.slot_files.record_uses import INTERVAL as USES_INTERVAL
from bioproxy.warmup.warmer import INTERVAL as WARMUP_INTERVAL


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

    An arrow means "knows and calls"::

        operator's view --> all others
        requests ---------> warm-ups     only to tell what was asked for
               |----------> slot
        warm-ups ---------> slot

    A request and a warm-up do not know each other's work.  They meet at the gate, which lets users in first, and in the
    slot, which says what is there.
    """
    # From the bottom to the top.  A group is handed to the next one as a whole, and that picks from it what its parts
    # need.
    lower = assemble_slot(settings, reactor, outside)
    warmups = assemble_warmups(settings, reactor, outside, lower)
    requests = assemble_requests(settings, reactor, lower, warmups)
    operator = assemble_operator(settings, reactor, read_settings, configuration, lower, warmups, requests)

    async def write_uses() -> None:
        """Write which slot files were used.  A coroutine, because `Periodic` calls nothing else; it never waits."""
        lower.snapshots.flush_uses()

    # The four groups become one table (`vars` gives the fields of a dataclass by name).  What is made here are rounds
    # of a function: `Periodic` calls it again only when the coroutine of the last call has ended, logs its errors, and
    # cancels it at a stop.  The names are those in the tree of services and in the log.  The intervals are constants of
    # the modules whose rounds they time, where their meaning is explained.
    return Parts(
        **vars(lower),
        **vars(warmups),
        **vars(requests),
        **vars(operator),
        watching=Periodic(reactor, WATCH_INTERVAL, lower.watch.look, "watch"),
        warming=Periodic(reactor, WARMUP_INTERVAL, warmups.warmer.round, "warmer"),
        history_taking=Periodic(reactor, HISTORY_INTERVAL, operator.history.take, "history"),
        sharing=Periodic(reactor, SHARING_INTERVAL, warmups.shared.round, "shared shelf"),
        publishing=Periodic(reactor, SHARING_INTERVAL, warmups.shared.publish, "publishing"),
        uses_writing=Periodic(reactor, USES_INTERVAL, write_uses, "uses"),
    )
