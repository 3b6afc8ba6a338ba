"""The requests that are being served, and a way to wait until there are none.

At a stop, clients that are being answered get the rest of their answers first.  So the shutdown has to wait for a
moment at which no request runs; requests that came meanwhile are waited for, too.

In Twisted such a moment is a `Deferred`, which fires once.  So there is a new one after each time.  Each caller gets a
Deferred of its own, chained to it: if all callers got the same one, the first time-out would cancel it for the others.

Does not know what a request is, or how it ends.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from bioproxy.proxy.exchange import Exchange


class RunningRequests:
    """The requests that are being served.

    Invariant: the Deferred that `finished` chains to has not fired, and fires when the last request is removed.
    """

    exchanges: set[Exchange]
    """All of them.  Only `add` and `remove` change it."""

    def __init__(self) -> None:
        self.exchanges = set()
        self._none_left: Deferred[None] = Deferred()

    def add(self, exchange: Exchange) -> None:
        """Note that a request is being served from now on."""
        self.exchanges.add(exchange)

    def remove(self, exchange: Exchange) -> None:
        """Note that a request has ended."""
        # The request leaves the set before the Deferred fires: firing runs the code of the shutdown at once, inside
        # this call, and that code must find nothing running.
        self.exchanges.discard(exchange)
        if not self.exchanges:
            none_left, self._none_left = self._none_left, Deferred()
            none_left.callback(None)

    def finished(self) -> Deferred[None]:
        """Return a Deferred that fires when all requests are answered, those that come meanwhile too.

        Never fails.  Cancelling it only ends this waiting: no request is ended by it.
        """
        if not self.exchanges:
            return succeed(None)
        finished: Deferred[None] = Deferred()
        self._none_left.chainDeferred(finished)
        return finished
