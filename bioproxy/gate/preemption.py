"""The warm-up inside the gate, and how an arriving user ends it.

A warm-up uses the slot while no user needs it, so it has to leave at once when a user comes.  In Twisted that means:
the coroutine of the warm-up runs under a `Deferred`, and somebody else calls ``cancel()`` on that.  Twisted passes the
call on to the one Deferred that the coroutine is awaiting, usually the answer to a call of llama-server.  Its
connection is closed, the ``await`` raises `CancelledError`, and that error leaves the coroutine through all its
``finally`` blocks. All of this happens before ``cancel()`` returns.

There are two complications, and both are handled here:

* `CancelledError` does not say who cancelled.  A warm-up that makes room for a user is tried again; one that is
  cancelled because bioproxy stops must end its caller as well.  So `Preemption.preempt` notes that it was here.
* A save to a file must be finished, because llama-server finishes it in any case.  So a part of a warm-up can be
  protected.  A user who comes meanwhile is noticed at the end of that part.

This module does not know the queue, nor the token that guards the slot: `bioproxy.gate.gate` has both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from bioproxy.gate.turn import Work


class Preemption:
    """Runs one warm-up at a time.

    Invariant: `running` is set exactly while the work of a warm-up has begun and has not ended.
    """

    running: Deferred[Any] | None
    """The warm-up that is inside, `None` if there is none."""

    def __init__(self) -> None:
        self.running = None
        # Whether the warm-up may be cancelled at this moment, and whether `preempt` has cancelled it.
        self._may_preempt, self._preempted = True, False

    async def run(self, work: Callable[[], Work]) -> bool:
        """Do `work`.

        Fires with `True` if it was completed, with `False` if `preempt` ended it.  Fails as `work` fails; cancelling
        cancels `work`.
        """
        self._preempted = False
        # A coroutine alone cannot be cancelled.  `fromCoroutine` starts it and returns a Deferred that can be
        # cancelled.
        running = self.running = Deferred.fromCoroutine(work())
        # From here on there are two ways to cancel.  `preempt` cancels `running`.  Cancelling the caller of this method
        # cancels the ``await`` below, and Twisted passes that on to the awaited Deferred, which is `running` again.  In
        # both cases the work ends first, and its ``finally`` blocks have run when the error arrives here.
        try:
            await running
            return True
        except CancelledError:
            # A preempted warm-up is no error: it will be tried again.  Any other cancellation means that the service
            # stops, and then the error must be passed on, or the caller would never stop.
            if self._preempted:
                return False
            raise
        finally:
            self.running = None

    def preempt(self) -> None:
        """Have the warm-up leave, if there is one and it may be interrupted now."""
        # If it may not be interrupted, `protected` looks for a reason to end it at the end of its block.
        if self.running is not None and self._may_preempt:
            # Set before cancelling: the ``except`` above runs inside the next line.
            self._preempted = True
            self.running.cancel()

    @contextmanager
    def protected(self, must_end: Callable[[], bool]) -> Iterator[None]:
        """Protect a part of a warm-up: the code in this ``with`` block is not cancelled by `preempt`.

        Raises `CancelledError` at the end of the block if `must_end` says so, so that the warm-up ends.  The ``with``
        statement itself waits for nothing: it only sets a flag.
        """
        self._may_preempt = False
        try:
            yield
        finally:
            # Also after an error: users must be able to cancel the next warm-up.
            self._may_preempt = True
        # The warm-up could not be cancelled meanwhile, so it is ended here, by the same error.
        if must_end():
            self._preempted = True
            raise CancelledError()
