"""The root of the tree of services: what the process as a whole does when it starts and when it stops.

A Twisted application is a tree of *services*: objects with `startService` and `stopService`.  twistd makes an
application object, hangs the root below it (`setServiceParent`), and calls the root's methods; a `MultiService` calls
those of its children.  Three things concern the whole process and not one of the children, so they are done here:

* which log observer the application has;
* a start that fails ends the process with one line on standard error, instead of a traceback;
* a stop begins with `bioproxy.proxy.shutdown`: requests in progress are finished before anything is closed.

Does not know what the children are: `bioproxy.service` puts them in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.logger import ILogObserver

from bioproxy.runtime.errors import CannotStart, ConfigError


class Root(MultiService):
    """The root.  Both attributes are to be set before twistd gets it, and may stay `None`."""

    shutdown: Callable[[], Coroutine[Deferred[Any], Any, None]] | None = None
    """What a stop begins with, before any child is stopped."""

    log_observer: Callable[[], ILogObserver] | None = None
    """Makes the application's log observer; with `None`, twistd uses its own.

    A function and not an observer, because making one opens the log file: only a process that goes on to run needs it.
    """

    def setServiceParent(self, parent: Any) -> None:
        """Become a part of the application.  Called by twistd, before it opens the log and before it daemonizes."""
        # `parent` is the application: an object that keeps one object for each interface.  twistd looks for
        # `ILogObserver` there, right after this call.
        if self.log_observer is not None:
            parent.setComponent(ILogObserver, self.log_observer())
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open the ports.  Called by twistd before it gives up root's rights, if it has them."""
        with one_line():
            super().privilegedStartService()

    # Under twistd, root's rights are gone between these two methods: ports below 1024 can be opened in the first only.

    def startService(self) -> None:
        """Start all children, in order.  Called by twistd; the newer command ``twist`` calls only this one."""
        with one_line():
            super().startService()

    def stopService(self) -> Deferred[None]:
        """Run `shutdown`, then stop all children in reverse order.

        Called when the reactor is about to stop, which waits for the Deferred that is returned.
        """
        # `super()` without arguments works only directly in a method, and the lambda is called later.
        said = Deferred.fromCoroutine(self.shutdown()) if self.shutdown is not None else succeed(None)
        return said.addCallback(lambda _: super(Root, self).stopService())


@contextmanager
def one_line() -> Iterator[None]:
    """Turn errors that a user can correct into `CannotStart`, whose text is the one line that the user sees.

    All other exceptions are bugs and keep their traceback.
    """
    try:
        yield
    except CannotListenError as error:
        # For a Unix socket, Twisted keeps its path in `port`.
        where = f"{error.interface}:{error.port}" if isinstance(error.port, int) else os.fsdecode(error.port)
        # An error of the system has a number in its text, which says nothing to a user.
        reason = getattr(error.socketError, "strerror", None) or error.socketError
        raise CannotStart(f"bioproxy: cannot listen on {where}: {reason}") from None
    except (ConfigError, OSError) as error:
        raise CannotStart(f"bioproxy: {error}") from None
