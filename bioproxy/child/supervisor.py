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

from bioproxy.child.command_line import child_flags, command_line, environment
from bioproxy.child.failure_reasons import failure_reason
from bioproxy.child.process_output import ProcessOutput
from bioproxy.child.program import check_child, find_program
from bioproxy.runtime.backoff import Backoff
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

FIRST_PAUSE = 0.5
"""Seconds between the end of a process and the next start; doubled with each further end, up to a minute.

Halved or doubled, one crash is over a moment sooner or later.
"""

STEADY = 10.0
"""Seconds that a process must have answered requests for, so that its end counts as the first one again.

Halved, a llama.cpp that crashes with each request is started more often; doubled, two crashes that have nothing to do
with each other cost a second.
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

    trouble: str | None = None
    """Why the last start failed, in words for an operator; `None` if it did not."""

    restarts = 0
    """How often a process was started in the place of one that had ended."""

    # Assigned by `bioproxy.assembly`: the watch and the metrics are made later than this service.
    look: Callable[[], Coroutine[Any, Any, None]]
    """Asks llama-server how it is; fires when that is known."""

    is_up: Callable[[], bool]
    """Tells what the last look has found."""

    count_restart: Counter
    """The metric that counts what `restarts` does."""

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
        self._backoff = Backoff(reactor, FIRST_PAUSE)
        self._life: Deferred[None] | None = None
        # Those that wait in `ready`.
        self._waiting: set[Deferred[None]] = set()
        # Whether the present process is to be replaced, so that its end is no failure.
        self._replacing = False

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
        """Return what `/status` shows of the child."""
        return {"pid": self.pid, "restarts": self.restarts, "state": self.state}

    def not_running(self) -> str | None:
        """Return why llama-server cannot answer now, in words for an operator; `None` while it runs."""
        return None if self.state == RUNNING else self.trouble or IS_STARTING

    # The service.

    def startService(self) -> None:
        """Start llama.cpp.  Called by the parent service.  Raises `ConfigError` if that can be seen to be in vain."""
        check_child(self._settings)
        super().startService()
        self._life = Deferred.fromCoroutine(self._supervise())
        self._life.addErrback(self._end_of_life)

    def stopService(self) -> Deferred[None] | None:
        """End llama.cpp.  Called by the parent service, after the requests in progress.

        Fires when the process is gone, so that none outlives bioproxy; `None` if there is none.
        """
        super().stopService()
        self.state = STOPPED
        self.turn_away(lambda: LlamaNotRunning("bioproxy is shutting down"))
        if self._life is not None:
            self._life.cancel()
        process = self._process
        if process is None or process.ended:
            return None
        process.end()
        return process.gone

    def turn_away(self, error: Callable[[], ProxyError]) -> None:
        """Fail all that wait in `ready`; `error` makes a new error for each, as each is raised in another coroutine."""
        # A copy: each of them leaves the set when its coroutine goes on, which is inside `errback`.
        for waiting in list(self._waiting):
            waiting.errback(error())

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
        if self._wanted is not None:
            self._replace(self._wanted)
        if self.state == RUNNING:
            return
        # Known to have failed: the caller learns that at once, and when to come again.
        if self.state == PAUSING and self.trouble is not None:
            raise self._failed()
        waiting: Deferred[None] = Deferred()
        self._waiting.add(waiting)
        try:
            # A long time limit may come out negative if all of it was spent in the queue.
            await waiting.addTimeout(max(0.0, seconds), self._reactor)
        except TimeoutError:
            raise LlamaNotRunning(f"{IS_STARTING}, and did not answer in time") from None
        finally:
            self._waiting.discard(waiting)

    def use(self, settings: Settings) -> None:
        """Run what these (`adapted`) settings say, from the next call of `ready` on."""
        changed = (settings.model, settings.llama_server, settings.llama_args)
        self._wanted = (
            settings
            if changed != (self._settings.model, self._settings.llama_server, self._settings.llama_args)
            else None
        )

    # The life of the child.

    def _replace(self, settings: Settings) -> None:
        """End the present process, and start one with other settings when it is gone."""
        self.log.info("llama.cpp ends for new settings of the configuration")
        self._settings, self._wanted = settings, None
        self.state, self.trouble = STARTING, None
        self._replacing = True
        if self._process is not None and not self._process.ended:
            self._process.end()
        elif self._pause is not None:
            self._pause.cancel()

    _pause: Deferred[None] | None = None

    async def _supervise(self) -> None:
        """Keep a process running.  Never fires; cancelling ends the supervision, and leaves the process as it is."""
        while True:
            self._replacing = False
            process = self._start()
            began = self._reactor.seconds()
            late = await self._until_up(process)
            up_since = None if self.state != RUNNING else self._reactor.seconds()
            await _fired(process.gone)
            # From here on: what to say and how long to pause.
            if not self._replacing:
                self._note_end(process, up_since, self._reactor.seconds() - began if late else None)
                # Everybody else learns now, and not two seconds later, that nobody answers any more.
                await self.look()
                await self._rest()
            self.restarts += 1
            self.count_restart.inc()

    def _start(self) -> ProcessOutput:
        """Start a process."""
        self.state = STARTING
        aloud = self._backoff.current("start", self._settings) is None
        process = self._process = ProcessOutput(self._reactor, aloud)
        if aloud:
            self.log.info("llama.cpp is starting, with {model}", model=self._settings.model)
        try:
            # Looked for each time: it may have been installed meanwhile, or replaced.
            command = command_line(find_program(self._settings), child_flags(self._settings, self.port))
            # Returns at once: the protocol is told what becomes of the process.
            self._reactor.spawnProcess(process, command[0], command, env=environment())
        except Exception as error:
            # Too many processes, or the program is gone.
            process.last_lines.append(f"error: {error}")
            process.processEnded(Failure(error))
        return process

    async def _until_up(self, process: ProcessOutput) -> bool:
        """Wait until the process answers or has ended; fires with whether it was killed because it took too long."""
        looking = Deferred.fromCoroutine(self._look_until_up())
        process.gone.addCallback(lambda _: looking.cancel())
        try:
            await looking.addTimeout(self.start_limit, self._reactor)
        except TimeoutError:
            process.kill()
            return True
        except CancelledError:
            # By the end of the process; otherwise by `stopService`, which ends all of this.
            if not process.ended:
                raise
            return False
        self.state, self.trouble = RUNNING, None
        process.heard()
        # Not before the state is right: each of them goes on inside `callback`.
        for waiting in list(self._waiting):
            waiting.callback(None)
        return False

    async def _look_until_up(self) -> None:
        """Look until llama-server answers.  Cancelling ends it."""
        # A look that began after the start can only have been answered by the new process.
        await self.look()
        while not self.is_up() or self._replacing:
            await deferLater(self._reactor, LOOK)
            await self.look()

    def _note_end(self, process: ProcessOutput, up_since: float | None, late: float | None) -> None:
        """Note why a process ended, log it, and tell those that wait.

        `up_since` is when it began to answer, `None` if it never did; `late` is after how many seconds it was killed.
        """
        reason = failure_reason(list(process.last_lines), process.code, process.killed_by)
        self.state = PAUSING
        if up_since is not None:
            # A crash.  Those that wait go on waiting: the same start has worked before.
            if self._reactor.seconds() - up_since >= STEADY:
                self._backoff.over("start")
            self._backoff.failed("start", self._settings, reason)
            self.log.warn("llama.cpp ended and is started again: {reason}", reason=reason)
            return
        if late is not None:
            reason = f"it did not get ready within {late:.0f} s"
        self.trouble = f"llama.cpp does not start: {reason}"
        # One line for a trouble that lasts.
        if self._backoff.failed("start", self._settings, reason):
            self.log.error("{trouble}", trouble=self.trouble)
        self.turn_away(self._failed)

    def _failed(self) -> LlamaNotRunning:
        """Return the error for a client while the start is known to have failed."""
        pause = self._seconds_left()
        return LlamaNotRunning(self.trouble or IS_STARTING, max(1, round(pause)))

    def _seconds_left(self) -> float:
        """Return how many seconds the present pause still takes."""
        trouble = self._backoff.current("start", self._settings)
        return max(0.0, (trouble.retry_at or 0.0) - self._reactor.seconds()) if trouble is not None else 0.0

    async def _rest(self) -> None:
        """Wait until the next try is allowed."""
        self._pause = deferLater(self._reactor, self._seconds_left())
        try:
            await self._pause
        except CancelledError:
            # By a reload, which need not wait; otherwise by `stopService`.
            if not self._replacing:
                raise
        finally:
            self._pause = None


async def _fired(deferred: Deferred[None]) -> None:
    """Wait for a Deferred without taking its result away from others; cancelling leaves it as it is."""
    own: Deferred[None] = Deferred()
    deferred.addCallback(lambda _: own.callback(None) if not own.called else None)
    await own
