"""The root of the tree of services: what the process as a whole does when it starts and stops.

twistd treats the root as it treats any service, and three things are to be said to it at that level: how the
application logs, what a start that fails looks like to its user, and that a stop begins with a farewell.
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
    """The root of the tree: a start that fails ends the process with one line, and a stop begins with a `shutdown`."""

    shutdown: Callable[[], Coroutine[Deferred[Any], Any, None]] | None = None
    log_observer: Callable[[], ILogObserver] | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Become a part of twistd's application, and say how that is to log.  Called by twistd before it does."""
        if self.log_observer is not None:
            parent.setComponent(ILogObserver, self.log_observer())
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open the ports.  Called by twistd before it gives up root's rights, if it has them."""
        with one_line():
            super().privilegedStartService()

    def startService(self) -> None:
        """Start everything.  Called by twistd; its sister ``twist`` calls nothing but this."""
        with one_line():
            super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop everything.  Called by twistd, which waits for the Deferred."""
        said = Deferred.fromCoroutine(self.shutdown()) if self.shutdown is not None else succeed(None)
        return said.addCallback(lambda _: super(Root, self).stopService())


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what may go wrong in a start into `CannotStart`."""
    try:
        yield
    except CannotListenError as error:
        # Of a Unix socket the "port" is its path.
        where = f"{error.interface}:{error.port}" if isinstance(error.port, int) else os.fsdecode(error.port)
        raise CannotStart(f"bioproxy: cannot listen on {where}: {error.socketError}") from None
    except (ConfigError, OSError) as error:
        raise CannotStart(f"bioproxy: {error}") from None
