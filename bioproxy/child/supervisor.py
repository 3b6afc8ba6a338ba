"""Starts llama.cpp, starts it again when it has ended, and tells everybody else how it is doing.

`LlamaChild` is a `Service`.  Its life is one coroutine, `_supervise`, which reads from top to bottom: start a process,
wait until it answers, wait until it ends, pause, and all over again.  In Twisted such a loop needs no thread: at each
`await` the reactor goes on with everything else, and `stopService` cancels the coroutine wherever it waits.

Twisted has a supervisor of processes, `twisted.runner.procmon`, which was looked at first.  It restarts processes with
a growing pause, and logs their lines.  It is not used because it knows only *running*: a llama.cpp that loads a model
for a minute and then fails has run for longer than its threshold and is restarted at once, for ever.  It does not keep
why a process ended, cannot hold requests back until a process answers, and ends processes by signals, which nobody
sends after ``kill -9``.

Whether llama.cpp answers is not seen here, in its output, but by the watch over llama-server, which asks `/health`
anyway (`look` and `is_up` are handed in).  So "running" means one thing for a llama-server of the operator's and for
this one, and no text of llama.cpp's log, which changes, decides.

Does not know the gate, requests, or what llama-server does; these ask `ready` before they rely on it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from prometheus_client import Counter
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from bioproxy.child.attempts import Attempts
from bioproxy.child.failure_reasons import failure_reason
from bioproxy.child.launch import launch
from bioproxy.child.process_output import ProcessOutput
from bioproxy.child.program import check_child
from bioproxy.child.waiting import Waiting
from bioproxy.runtime.errors import LlamaNotRunning, ProxyError
from bioproxy.settings.configuration import Settings

LOOK = 0.25
"""Seconds between two looks whether a new process answers.

Halved, twice as many small requests during a start; doubled, requests that wait begin up to half a second late.
"""

START_LIMIT = 900.0
"""Seconds that a process may take until it answers; then it is killed, and the start has failed.

A model of 100 GB from a slow disk takes ten minutes.  Halved, such a model could never be loaded; doubled, requests
wait longer for a llama.cpp that hangs, if `queue_timeout` lets them.
"""

STARTING, RUNNING, PAUSING, STOPPED = "starting", "running", "pausing", "stopped"
"""The states, as `/status` has them."""

IS_STARTING = "llama-server is starting"
"""What waiting clients and operators are told during a start."""


class LlamaChild(Service):
    """At most one process with llama.cpp, and for as long as the service runs, one that is there or about to be.

    Invariant: whoever waits in `ready` is told when the process answers, when its start has failed, or when bioproxy
    stops, whichever comes first.
    """

    log = Logger()

    state = STOPPED
    """``starting``, ``running``, ``pausing`` before the next try, or ``stopped``."""

    restarts = 0
    """How often a process was started in the place of one that had ended."""

    # Assigned by `bioproxy.assembly`: the watch and the metrics are made later than this service.
    look: Callable[[], Coroutine[Any, Any, None]]
    """Asks llama-server how it is; fires when that is known."""

    is_up: Callable[[], bool]
    """Tells what the last look has found."""

    count_restart: Counter
    """The metric that counts what `restarts` does, for Prometheus."""

    def __init__(self, settings: Settings, port: int, reactor: Any) -> None:
        """Prepare to run the model of these (`adapted`) settings on a port of this machine; nothing is started."""
        self.setName("llama.cpp")
        self.port = port
        self.start_limit = START_LIMIT
        """`START_LIMIT`; tests set less."""
        self._settings = settings
        # The settings of a reload, until whoever has the gate restarts llama.cpp.
        self._wanted: Settings | None = None
        self._reactor = reactor
        self._process: ProcessOutput | None = None
        self._attempts = Attempts(reactor)
        self._life: Deferred[None] | None = None
        # Those that wait in `ready`.
        self._waiting = Waiting(reactor)
        # Whether the present process is to be replaced, so that its end is no failure.
        self._replacing = False
        # Fires at the end of a pause; `None` while there is none.
        self._pause: Deferred[None] | None = None

    @property
    def trouble(self) -> str | None:
        """Why the last start has failed, in words for an operator; `None` if it has not."""
        return self._attempts.trouble

    @property
    def pid(self) -> int | None:
        """The id of the process that runs llama.cpp; `None` if there is none, or it is not known yet."""
        process = self._process
        return None if process is None or process.ended else process.pid

    @property
    def model(self) -> str:
        """The path of the model's file that runs, or is to run next."""
        return str(self._settings.model)

    def told(self) -> dict[str, Any]:
        """Return what `/status` shows of the child: names and values are part of the interface."""
        return {"pid": self.pid, "restarts": self.restarts, "state": self.state}

    def not_running(self) -> str | None:
        """Return why llama-server cannot answer now, in words for an operator; `None` while it runs.

        Asked by the watch, whose looks fail meanwhile for good reason, and for the words to clients that wait.
        """
        return None if self.state == RUNNING else self.trouble or IS_STARTING

    # The service.

    def startService(self) -> None:
        """Start llama.cpp.  Called by the parent service.  Raises `ConfigError` if that can be seen to be in vain."""
        # Before anything is started: an error here ends bioproxy with one line.
        check_child(self._settings)
        super().startService()
        # Runs up to the first `await` that has to wait: the process exists when this returns.
        self._life = Deferred.fromCoroutine(self._supervise())
        self._life.addErrback(self._end_of_life)

    def stopService(self) -> Deferred[None] | None:
        """End llama.cpp.  Called by the parent service, after the requests in progress.

        Fires when the process is gone, so that none outlives bioproxy; `None` if there is none.
        """
        super().stopService()
        self.state = STOPPED
        self.turn_away(lambda: LlamaNotRunning("bioproxy is shutting down"))
        # First the supervision, or it would take the end that follows for a crash and start another process.
        if self._life is not None:
            self._life.cancel()
        process = self._process
        if process is None or process.ended:
            return None
        process.end()
        return process.gone

    def turn_away(self, error: Callable[[], ProxyError]) -> None:
        """Fail all that wait in `ready`, because bioproxy stops; `error` makes a new error for each."""
        self._waiting.turn_away(error)

    def _end_of_life(self, failure: Failure) -> None:
        """Log why the supervision ended, unless it was cancelled by `stopService`."""
        if not failure.check(CancelledError):
            self.log.failure("the supervision of llama.cpp failed", failure)

    # What all others ask.

    async def ready(self, seconds: float) -> None:
        """Wait until llama-server answers requests.  To be called at the gate: a reload is put into force here.

        Fires when it does, at once if it does already.  Fails with `LlamaNotRunning` if the start fails, if that takes
        more than so many seconds, or if bioproxy stops.  Cancelling only ends the waiting.
        """
        # Whoever calls has the gate, so no request is in progress that a restart could break off.
        if self._wanted is not None:
            self._replace(self._wanted)
        if self.state == RUNNING:
            return
        # Known to have failed: the caller learns that at once, and when to come again.
        if self.state == PAUSING and self.trouble is not None:
            raise self._attempts.error(self._settings)
        await self._waiting.wait(seconds, f"{IS_STARTING}, and did not answer in time")

    def use(self, settings: Settings) -> None:
        """Run what these (`adapted`) settings say, from the next call of `ready` on."""
        # Compared with what runs, so that a reload that takes the last one back restarts nothing.
        self._wanted = None if what_runs(settings) == what_runs(self._settings) else settings

    # The life of the child.

    def _replace(self, settings: Settings) -> None:
        """End the present process, and start one with other settings when it is gone.

        Returns at once, with the state "starting": the caller waits like everybody else.
        """
        self.log.info("llama.cpp ends for new settings of the configuration")
        self._settings, self._wanted = settings, None
        self.state = STARTING
        self._attempts.succeeded()
        self._replacing = True
        # The supervision goes on by itself when the process is gone, or when the pause is over.
        if self._process is not None and not self._process.ended:
            self._process.end()
        elif self._pause is not None:
            self._pause.cancel()

    async def _supervise(self) -> None:
        """Keep a process running.  Never fires; cancelling ends the supervision, and leaves the process as it is."""
        # One process after the other, never two: they would not fit into memory together, and both want the port.
        while True:
            self._replacing = False
            # Where a start has failed before, the lines of another try would only repeat themselves.
            self.state, aloud = STARTING, self._attempts.is_first(self._settings)
            if aloud:
                self.log.info("llama.cpp is starting, with {model}", model=self._settings.model)
            process = self._process = launch(self._settings, self.port, self._reactor, aloud)
            late = await self._until_up(process)
            # From here on it answers, or has ended already.  How long it did decides about the next pause.
            up_since = None if self.state != RUNNING else self._reactor.seconds()
            await process.until_gone()
            # The end that a reload has asked for is neither a crash nor a failure.
            if not self._replacing:
                self._note_end(process, up_since, late)
                # Everybody else learns now, and not two seconds later, that nobody answers any more.
                await self.look()
                await self._rest()
            self.restarts += 1
            self.count_restart.inc()

    async def _until_up(self, process: ProcessOutput) -> bool:
        """Wait until the process answers or has ended; fires with whether it was killed because it took too long."""
        # Two things can happen first: the looking succeeds, or the process ends, which cancels the looking.  A Deferred
        # that has fired takes a later `cancel` quietly.
        looking = Deferred.fromCoroutine(self._look_until_up())
        process.gone.addCallback(lambda _: looking.cancel())
        try:
            await looking.addTimeout(self.start_limit, self._reactor)
        except TimeoutError:
            # It had its time, and may not react to anything any more.
            process.kill()
            return True
        except CancelledError:
            # By the end of the process; otherwise by `stopService`, which ends all of this.
            if not process.ended:
                raise
            return False
        self.state = RUNNING
        self._attempts.succeeded()
        process.heard()
        # Not before the state is right: each of those that wait goes on inside this call.
        self._waiting.let_go()
        return False

    async def _look_until_up(self) -> None:
        """Look until llama-server answers.  Cancelling ends it."""
        # A look that began after the start can only have been answered by the new process.
        await self.look()
        # While it is being replaced, what answers is the old process.
        while not self.is_up() or self._replacing:
            await deferLater(self._reactor, LOOK)
            await self.look()

    def _note_end(self, process: ProcessOutput, up_since: float | None, late: bool) -> None:
        """Note why a process ended, and tell those that wait if its start has failed.

        `up_since` is when it began to answer, by the clock, `None` if it never did; `late` tells whether it was killed
        because it took too long.
        """
        # All that it wrote was read before its end was reported, so the reason is among these lines.
        reason = failure_reason(list(process.last_lines), process.code, process.killed_by)
        self.state = PAUSING
        if up_since is not None:
            return self._attempts.crashed(self._settings, reason, self._reactor.seconds() - up_since)
        if late:
            reason = f"it did not get ready within {self.start_limit:g} s"
        self._attempts.failed(self._settings, reason)
        self._waiting.turn_away(lambda: self._attempts.error(self._settings))

    async def _rest(self) -> None:
        """Wait until the next try is allowed."""
        self._pause = deferLater(self._reactor, self._attempts.seconds_left(self._settings))
        try:
            await self._pause
        except CancelledError:
            # By a reload, which need not wait; otherwise by `stopService`.
            if not self._replacing:
                raise
        finally:
            self._pause = None


def what_runs(settings: Settings) -> tuple[object, ...]:
    """Return the part of the settings that decides what runs."""
    return settings.model, settings.llama_server, settings.llama_args
