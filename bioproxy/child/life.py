"""The life of llama.cpp: one process after the other, for as long as nobody cancels it.

The life is one coroutine, `Life.live`, which reads from top to bottom: start a process, wait until it answers, wait
until it ends, pause, and all over again.  In Twisted such a loop needs no thread: at each ``await`` the reactor goes on
with everything else, and the code that has started the coroutine can cancel it wherever it waits.

Twisted has a supervisor of processes, `twisted.runner.procmon`, which was looked at first.  It restarts processes with
a growing pause, and logs their lines.  It is not used because it knows only *running*: a llama.cpp that loads a model
for a minute and then fails has run for longer than its threshold and is restarted at once, for ever.  It does not keep
why a process ended, cannot hold requests back until a process answers, and ends processes by signals, which nobody
sends after ``kill -9``.

A process can end for three reasons: it has crashed, its start has failed, or it is being *replaced* because a reload
has brought other settings.  Only the first two are troubles, with a reason, a line in the log, and a pause
(`bioproxy.child.earlier_starts`).

Does not know the service, requests or reloads (`bioproxy.child.supervisor`), nor how it is found out whether llama.cpp
answers (`bioproxy.child.startup`, and the functions that are handed in).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from bioproxy.child.command_line import has_keys_of_users
from bioproxy.child.earlier_starts import EarlierStarts
from bioproxy.child.failure_reasons import failure_reason
from bioproxy.child.launch import launch
from bioproxy.child.process_output import ProcessOutput
from bioproxy.child.startup import START_LIMIT, Start, until_up
from bioproxy.child.waiting import Waiting
from bioproxy.settings.configuration import Settings

STARTING, RUNNING, PAUSING, STOPPED = "starting", "running", "pausing", "stopped"
"""The states, as `/status` has them."""


class Life:
    """The processes with llama.cpp, one after the other.

    Invariant: there is never more than one process.  Two would not fit into memory together, and both want the port.
    """

    log = Logger()

    state = STOPPED
    """``starting``, ``running``, ``pausing`` before the next try, or ``stopped``."""

    restarts = 0
    """How often a process was started in the place of one that had ended."""

    start_limit = START_LIMIT
    """Seconds that a start may take; tests set less."""

    process: ProcessOutput | None = None
    """The latest process, which may have ended; `None` before the first one."""

    settings: Settings
    """What runs, or is to run next.

    Failures belong to the settings with which they happened, so other settings begin without a past.
    """

    def __init__(
        self,
        settings: Settings,
        port: int,
        reactor: Any,
        look: Callable[[], Coroutine[Any, Any, None]],
        is_up: Callable[[], bool],
        restarted: Callable[[], None],
    ) -> None:
        """Prepare to run the model of these (`adapted`) settings on a port of this machine; nothing is started.

        `look` asks llama-server how it is, `is_up` tells what the last look has found, and `restarted` is called when a
        process is about to be started in the place of one that has ended.
        """
        self.settings = settings
        self.earlier_starts = EarlierStarts(reactor)
        """What has failed."""
        self.waiting = Waiting(reactor)
        """Those that wait until llama.cpp answers."""
        self._port = port
        self._reactor = reactor
        self._look = look
        self._is_up = is_up
        self._restarted = restarted
        # One for all processes: a request may have it already when the next process starts.
        self._secret = secrets.token_hex(16)
        # Whether the present process is to be replaced, so that its end is no failure.
        self._replacing = False
        # Fires at the end of a pause; `None` while there is none.
        self._pause: Deferred[None] | None = None

    @property
    def key(self) -> str | None:
        """The key that llama.cpp asks for; only bioproxy knows it.  `None` if the user has given llama.cpp keys."""
        return None if has_keys_of_users(self.settings) else self._secret

    def replace(self, settings: Settings) -> None:
        """End the present process, and start one with other settings when it is gone.

        Returns at once, with the state "starting": the caller waits like everybody else.  To be called while no request
        is in progress, because it would be broken off.
        """
        # The new process cannot be started first, which would save time: it needs the port and the memory of the old
        # one.
        self.log.info("llama.cpp ends for new settings of the configuration")
        self.settings = settings
        self.state = STARTING
        # What has failed with the old settings says nothing about these.
        self.earlier_starts.succeeded()
        self._replacing = True
        # The life goes on by itself when the process is gone, or when the pause is over.
        if self.process is not None and not self.process.ended:
            self.process.end()
        elif self._pause is not None:
            self._pause.cancel()

    async def live(self) -> None:
        """Keep a process running.

        Never fires.  Fails only by a fault of ours: whatever may go wrong with llama.cpp is the end of a process here.
        Cancelling ends the supervision and leaves the process as it is, at whichever ``await`` that happens, so the
        canceller has to end the process.
        """
        while True:
            # From here on the end of a process is news again, whatever ended the one before.
            self._replacing = False
            # Where a start has failed before, the lines of another try would only repeat themselves.
            self.state, aloud = STARTING, self.earlier_starts.is_first(self.settings)
            if aloud:
                self.log.info("llama.cpp is starting, with {model}", model=self.settings.model)
            # Never fails: a process that cannot be started is one that has ended already, with its reason.
            # So all that follows has one way to go, whatever is wrong.
            process = self.process = launch(self.settings, self._port, self.key, self._reactor, aloud)
            start = await until_up(process, self._look, self._answers, self.start_limit, self._reactor)
            # How long it has answered decides about the pause after its end.
            up_since = None
            if start is Start.ANSWERS:
                up_since = self._reactor.seconds()
                self._runs(process)
            # Here the coroutine spends most of its life: days, if all is well.
            await process.until_gone()
            # The end that a reload has asked for is neither a crash nor a failure.
            if not self._replacing:
                self._note_end(process, start, up_since)
                # Everybody else learns now, and not two seconds later, that nobody answers any more: the slot is empty,
                # and requests that come meanwhile are not sent into nowhere.
                await self._look()
                # A pause also when it has crashed only once.  It is short then, and whatever the process held, its port
                # above all, has a moment to be free again.
                # Unless a reload has come during the look: its settings need not wait.
                if not self._replacing:
                    await self._rest()
            self.restarts += 1
            self._restarted()

    def _answers(self) -> bool:
        """Tell whether the present process has answered the last look."""
        # While it is being replaced, what answers is the old process, which ends soon.
        return self._is_up() and not self._replacing

    def _runs(self, process: ProcessOutput) -> None:
        """Note that a process answers, and let those go on that wait for it."""
        # Earlier failures stay known to the pauses until it has answered for some seconds: a llama.cpp that loads its
        # model and crashes at the first request would be restarted without end otherwise.
        self.state = RUNNING
        self.earlier_starts.succeeded()
        process.heard()
        # Not before the state is right: each of those that wait goes on inside this call.
        self.waiting.let_go()

    def _note_end(self, process: ProcessOutput, start: Start, up_since: float | None) -> None:
        """Note why a process ended, and tell those that wait if its start has failed.

        `start` is how its start has ended.  `up_since` is when it began to answer, in seconds of the reactor's clock;
        `None` if it never did.
        """
        # All that it wrote was read before its end was reported, so the reason is among these lines.
        reason = failure_reason(list(process.last_lines), process.code, process.killed_by)
        self.state = PAUSING
        if up_since is not None:
            # Those that wait go on waiting: the next start will probably do.
            return self.earlier_starts.crashed(self.settings, reason, self._reactor.seconds() - up_since)
        if start is Start.LATE:
            # It was killed from here, so its last lines are about something else.
            reason = f"it did not get ready within {self.start_limit:g} s"
        self.earlier_starts.failed(self.settings, reason)
        self.waiting.turn_away(lambda: self.earlier_starts.error(self.settings))

    async def _rest(self) -> None:
        """Wait until the next try is allowed.  Fires then, or when other settings are to be tried."""
        self._pause = deferLater(self._reactor, self.earlier_starts.seconds_left(self.settings))
        try:
            await self._pause
        except CancelledError:
            # By `replace`, for settings that need not wait; otherwise by the end of this life.
            if not self._replacing:
                raise
        finally:
            self._pause = None
