"""Which part takes a new value of a setting when the configuration is reloaded.

Each new value is a plain assignment or a call that cannot fail: the configuration as a whole was found to be valid
before, so there is no reload that is done by half.  Twisted runs all of it in one thread, so no request can run between
two of these calls either.

A taker is a function with one argument, the new value.  Mostly it assigns an attribute that its part looks at whenever
it needs it; so nothing has to be told to requests in progress, and what has begun goes on as it began.  Only a few
settings are known to several parts or need something done at once, and have a function of their own below.

Why not hand the new settings to all parts, and have each pick what is its own?  Then each part would know all settings,
and nobody could say which of them a reload changes.  Here that is one table.

A setting that is not here needs a restart, and the reload says so (`bioproxy.operator.reload`).  Does not know where
the new values come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from bioproxy.assembly.parts import RequestParts, SlotParts, WarmupParts
from bioproxy.assembly.slot_parts import learned_from
from bioproxy.operator.host_check import HostCheck
from bioproxy.runtime.errors import ProxyError
from bioproxy.settings.configuration import Settings, templates_of
from bioproxy.shared.removal import Limits


def takers_of(
    settings: Settings,
    reactor: Any,
    lower: SlotParts,
    warmups: WarmupParts,
    requests: RequestParts,
    host_check: HostCheck,
) -> dict[str, Callable[[Any], None]]:
    """Return, for each setting that can change, the function to call with its new value.

    `settings` are those of the start, and `reactor` is the clock; all others are the parts that take new values.
    """

    def use_templates(prefixes: Mapping[str, Path]) -> None:
        """Use these templates from now on.  Requests that have found theirs already keep them."""
        # A template that is gone, or has another file now, must not keep the troubles and the progress of the old one.
        for name in warmups.poller.set_templates(templates_of(prefixes)):
            warmups.forgetting.forget(name)

    def limit_bodies(size: int) -> None:
        """Apply a new `max_body`, in bytes, to bodies as they arrive and as they are filled in."""
        # Two parts, because a body may be small when it comes and large when its templates are in it.
        warmups.reader.max_body = requests.limits.max_body = size

    # What several settings together mean is worked out from all of them, so the latest values are kept here.
    in_force = settings

    def use_learning(**changed: Any) -> None:
        """Apply new values of `learn` and `learn_minimum`, which several parts know as one number."""
        nonlocal in_force
        in_force = replace(in_force, **changed)
        warmups.prompt_tokens.minimum = in_force.learn_minimum
        warmups.prompt_learning.minimum = warmups.reader.learn_minimum = lower.saver.minimum = learned_from(in_force)
        # What was learned stays in its files; it is only not warmed up while learning is off.
        warmups.schedule.learns = warmups.prompt_learning.minimum is not None

    def limit_shelf(name: str, size: int) -> None:
        """Apply a new limit, in bytes, to the files of learned prompts or of conversations."""
        setattr(lower.shelf, name, size)
        lower.shelf.within_limits()
        # The same limits hold for the shared shelf, from its next round of removal on.
        warmups.shared.limits = Limits(lower.shelf.prompts_limit, lower.shelf.conversations_limit)
        # What was too large before may not be now.
        for id in warmups.prompt_learning.learned:
            warmups.schedule.forget(id)

    def use_model(**changed: Any) -> None:
        """Apply new values of `model`, `llama_server` and `llama_args`, which the child knows together."""
        nonlocal in_force
        in_force = replace(in_force, **changed)
        assert lower.outside.child is not None
        lower.outside.child.use(in_force)
        # Later, when all three are known.  The next turn at the gate restarts it, and this one makes sure that there
        # is a next turn.
        reactor.callLater(0, lambda: Deferred.fromCoroutine(restart_in_turn()).addErrback(no_turn))

    async def restart_in_turn() -> None:
        """Restart llama-server as soon as the request in progress is answered.  A warm-up makes room."""
        assert lower.outside.child is not None
        lower.outside.child.hurry()
        # As a user: a warm-up makes room, and requests that came before have their turns first.
        async with lower.gate.user():
            await lower.upstream.ready(lower.gate.timeout)

    def no_turn(failure: Failure) -> None:
        """Do nothing about a restart that has no turn, because others have it, or that fails: the child has told."""
        failure.trap(ProxyError)

    of_the_child: dict[str, Callable[[Any], None]] = {
        "model": lambda model: use_model(model=model),
        "llama_server": lambda program: use_model(llama_server=program),
        "llama_args": lambda words: use_model(llama_args=words),
    }

    # Which part takes a new value of a setting, while requests and warm-ups go on.  A setting that is not here needs a
    # restart, and the reload says so: ports, folders and llama-server's address are used by connections and locks that
    # exist.  `partial(setattr, ...)` is a function that assigns its argument to that attribute.
    return {
        # The host at which the port listens is always a known name; only a restart changes that one.
        "admin_hosts": lambda hosts: host_check.know((settings.admin_host, *hosts)),
        # `keys` are read before all others, as they may be wrong; what is left is that a port may be open now.
        "api_key_file": lambda _: requests.open_port_warning.check(),
        # Requests ask `keys` for it each time, so there is nothing to do.  Without an entry it would need a restart.
        "llama_api_key_file": lambda _: None,
        # What was begun already is finished.
        "head_start": partial(setattr, warmups.last_talk, "enabled"),
        # What was learned stays, and is used as before when learning is switched on again.
        "learn": lambda on: use_learning(learn=on),
        "learn_minimum": lambda tokens: use_learning(learn_minimum=tokens),
        # Applied at once: an operator who lowers a limit wants the space.
        "prompts_limit": partial(limit_shelf, "prompts_limit"),
        "conversations_limit": partial(limit_shelf, "conversations_limit"),
        # A body that is just arriving is judged by the new limit from its next piece on.
        "max_body": limit_bodies,
        # For requests that come from now on: each of them reads it once.
        "ping_interval": partial(setattr, requests.proxy, "ping_interval"),
        # The round that is due next still comes by the old interval.
        "poll_interval": warmups.polling.every,
        "prefixes": use_templates,
        # Requests that wait already stay, also if they are more than the new limit, and keep their time-out.
        "queue_limit": partial(setattr, lower.gate, "limit"),
        "queue_timeout": partial(setattr, lower.gate, "timeout"),
        # From the next decision on who goes first, and from the next answer with tool calls on.
        "patience": partial(setattr, lower.gate.queue, "patience"),
        "linger": partial(setattr, lower.gate.queue, "linger"),
        # What is saved already stays, and is still restored.
        "save_conversations": partial(setattr, lower.saver, "enabled"),
        # The watch looks every two seconds, and warm-ups are decided twice a second: these apply with the next look.
        "upstream_timeout": partial(setattr, lower.watch, "timeout"),
        # A warm-up that runs is finished in any case; the next piece has the new size.
        "warmup": partial(setattr, warmups.schedule, "ahead"),
        "warmup_chunk": partial(setattr, warmups.warmup, "longest_piece"),
        # A llama.cpp that bioproxy runs is restarted.
        **(of_the_child if lower.outside.child is not None else {}),
    }
