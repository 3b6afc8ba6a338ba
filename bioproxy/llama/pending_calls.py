"""The calls to llama-server that somebody waits for, and how all of them are ended at once.

No call has a time limit of its own while it waits for the head of an answer, because nobody knows how long a prompt
takes: a good answer may come after ten minutes.  Instead there is one judgement for llama-server as a whole.  Every
answer is a sign of life.  If there was none for long enough, although `/health` was asked every two seconds, the watch
(`bioproxy.llama.process_watch`) gives llama-server up: all that wait fail together, and those who still stand in the
queue fail fast, too.  The next sign of life ends that state by itself.

On Twisted: any code that has a `Deferred` may cancel it, and the code that awaits it sees a `CancelledError`, which
does not say *why*.  Here two may have done it: the caller, because its own client has hung up, or `end_all`, because
llama-server is given up.  In the second case the caller must see that error instead.  `waited_for` tells these two
apart.

This module does not know what the calls are, nor when to give up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from bioproxy.llama.failures import translated
from bioproxy.runtime.errors import ProxyError, UpstreamTimeout


class PendingCalls:
    """Knows which calls are waited for, and when llama-server was last heard of.

    Invariant: `_waiting` has each call that some coroutine awaits, and nothing else, so `end_all` reaches all of them.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.last_heard = clock.seconds()
        """When llama-server last answered anything: seconds, on the given clock."""
        self._clock = clock
        # Whether llama-server is regarded as unresponsive, until it answers something again.
        self._given_up = False
        self._waiting: set[Deferred[Any]] = set()
        # The calls that were ended by `end_all`, each with the error that its caller is to see.
        self._ended: dict[Deferred[Any], ProxyError] = {}

    async def waited_for(self, deferred: Deferred[Any]) -> Any:
        """Wait for a call's `Deferred` so that `end_all` can end the wait, and translate its failures.

        Used for heads and bodies of answers alike, also by `bioproxy.proxy.relay` for the body of a relayed answer.
        Fires with the result, and notes a sign of life.  Fails with `CancelledError` if the *caller* is cancelled, with
        the error that `end_all` was given if that ended the call, and else as `bioproxy.llama.failures.translated`
        says.
        """
        # The `try` covers the `await` only, and `finally` runs in each of its outcomes: result, failure, cancellation.
        self._waiting.add(deferred)
        try:
            with translated():
                result = await deferred
        except CancelledError:
            # Two may have cancelled: the caller, or `end_all`, which left a note.  Without one the caller did.
            if deferred in self._ended:
                raise self._ended[deferred] from None
            raise
        finally:
            self._waiting.discard(deferred)
            self._ended.pop(deferred, None)
        # Only after a success.  A refused or broken connection shows that llama-server is gone, not that it lives; for
        # an error *status* this place is reached, because to Twisted that is an answer like any other.
        self.heard()
        return result

    def heard(self) -> None:
        """Note a sign of life: an answer to any call, whatever its status, or a piece of a relayed body.

        A connection that is accepted is none: the operating system accepts for a process that hangs.
        """
        self.last_heard = self._clock.seconds()
        self._given_up = False

    def check(self) -> None:
        """Raise `UpstreamTimeout` while llama-server is unresponsive.

        Lets a request that comes out of the queue fail fast, instead of waiting for the whole time-out once more.
        """
        if self._given_up:
            raise self._timeout()

    def _timeout(self) -> UpstreamTimeout:
        """Return the error for an unresponsive llama-server, which says for how long it has been silent."""
        # Measured when the error is made, not when llama-server was given up: the number is right when it is read.
        silence = self._clock.seconds() - self.last_heard
        return UpstreamTimeout(f"llama-server has not answered for {silence:.0f} s")

    def give_up(self, fail_fast: bool = True) -> None:
        """Fail all pending calls with `UpstreamTimeout`: llama-server has been unresponsive for too long.

        Closes their connections.  Later calls are sent anyway: one of them will find out that it answers again.  With
        `fail_fast`, `check` fails until then.
        """
        self._given_up = fail_fast
        self.end_all(self._timeout)

    # Also called by `bioproxy.proxy.shutdown` when the time for open answers is over, with another error.
    def end_all(self, error: Callable[[], ProxyError]) -> None:
        """Fail all pending calls with an error; `error` makes a new one for each.

        A new one, because each is raised in another coroutine, and an exception object collects the traceback of the
        place where it is raised.
        """
        # A copy, and all notes first: `cancel` resumes the waiting coroutine at once, before it returns.  That
        # coroutine removes itself from `_waiting`, and may make other calls, which are not to be ended.
        waiting = list(self._waiting)
        self._ended.update((each, error()) for each in waiting)
        for each in waiting:
            each.cancel()
