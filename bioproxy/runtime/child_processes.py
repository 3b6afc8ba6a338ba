"""What bioproxy's child processes have in common: which Python modules they find, and waiting for their end.

There are two kinds: the process that reads large requests (`bioproxy.runtime.worker_child`), and the one with llama.cpp
(`bioproxy.child`).  Both run modules of bioproxy, and must run those of the very bioproxy that has started them.

The end of a process is one event for which several coroutines may wait.  In Twisted, awaiting a `Deferred` directly is
for one waiter only: cancelling that waiter cancels the Deferred itself, and so the wait of all others.  So each waiter
gets a Deferred of its own here.

Does not know how a process is started, or what it does.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet.defer import Deferred


def environment() -> dict[str, str]:
    """Return bioproxy's own environment, in which a child finds the same bioproxy, whatever folder it runs in."""
    # `sys.path` goes along, so that a checkout that is not installed works, too.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


async def until_fired(event: Deferred[Any]) -> None:
    """Fire when `event` does, at once if it has.  Cancelling only ends this waiting."""
    own: Deferred[None] = Deferred()
    # After a cancellation `own` has failed already, and must not be fired again.
    event.addCallback(lambda _: own.callback(None) if not own.called else None)
    await own
