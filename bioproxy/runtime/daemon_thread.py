"""Runs a function in a thread that does not keep the process alive.

Twisted's own thread pool waits at the end of the process until each of its threads has returned.  That is right for
work that ends.  A call to a network disk that has gone away does not end, sometimes for hours, and then neither would
bioproxy.  A *daemon thread* is left behind when the process ends.

On Twisted: a thread must not touch anything that belongs to the reactor's thread.  The one exception is
`callFromThread`, which puts a function into a queue and wakes the reactor up; the reactor calls it in its own thread.
So the Deferred that is returned here fires where all other code runs, and nobody needs a lock.

Does not limit the number of threads; callers do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure


def in_daemon_thread(reactor: IReactorFromThreads, work: Callable[[], Any]) -> Deferred[Any]:
    """Call `work` in a new thread.

    Fires with its result, or fails with what it raises, and with `OSError` if there can be no further thread.
    Cancelling does not end the thread: its result is dropped.
    """
    # Without a canceller, cancelling makes the Deferred fail at once, and ignore the one result that comes later.
    result: Deferred[Any] = Deferred()

    def run() -> None:
        try:
            value = work()
        except BaseException:
            # With its traceback, which belongs to this thread.
            reactor.callFromThread(result.errback, Failure())
        else:
            reactor.callFromThread(result.callback, value)

    try:
        threading.Thread(target=run, name="shared shelf", daemon=True).start()
    except RuntimeError as error:
        # The limit of threads is reached.  To the caller that is an error of the system like any other.
        result.errback(OSError(str(error)))
    return result
