"""The llama.cpp that bioproxy runs itself, as everybody else sees it: a service, a state, and something to wait for.

`LlamaChild` is a `Service` of Twisted: `startService` begins what must go on while bioproxy runs, and `stopService`
returns a Deferred that fires when it has ended, for which the reactor waits before the process exits.  What goes on in
between, one process after the other, is the coroutine in `bioproxy.child.life`.  A coroutine does nothing by itself;
`Deferred.fromCoroutine` runs it up to its first ``await`` and hands back a Deferred, by which it can be cancelled.

Two things are decided here.  A request may be sent when llama.cpp answers, and is told at once when that is known to be
for nothing (`ready`).  And a reload puts other settings into force at the one moment when that breaks off no answer:
when somebody has the gate and has not begun (`use`, then `ready`), or while llama.cpp does not answer anyway (`hurry`).

Whether llama.cpp answers is not seen in its output, but by the watch over llama-server, which asks `/health` anyway
(`look` and `is_up` are handed in).  So "running" means one thing for a llama-server of the operator's and for this one,
and no text of llama.cpp's log, which changes, decides.

Does not know the gate, requests, or what llama-server does; these ask `ready` before they rely on it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from prometheus_client import Counter
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from bioproxy.child.life import PAUSING, RUNNING, STARTING, STOPPED, Life
from bioproxy.child.program import check_child
from bioproxy.runtime.errors import LlamaNotRunning, ProxyError
from bioproxy.settings.configuration import Settings

IS_STARTING = "llama-server is starting"
"""What waiting clients and operators are told during a start."""


class LlamaChild(Service):
    """At most one process with llama.cpp, and for as long as the service runs, one that is there or about to be.

    Invariant: each request that waits in `ready` is told when the process answers, when its start has failed, or when
    bioproxy stops, whichever comes first.
    """

    log = Logger()

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
        # Functions, because what they call is assigned later.
        self.life = Life(
            settings, port, reactor, lambda: self.look(), lambda: self.is_up(), lambda: self.count_restart.inc()
        )
        """What goes on while the service runs."""
        # The settings of a reload, until the next turn at the gate restarts llama.cpp.
        self._wanted: Settings | None = None
        # The life as it goes on; `None` before the start.
        self._living: Deferred[None] | None = None

    # What is told of it.

    @property
    def state(self) -> str:
        """``starting``, ``running``, ``pausing`` before the next try, or ``stopped``."""
        return self.life.state

    @property
    def restarts(self) -> int:
        """How often a process was started in the place of one that had ended."""
        return self.life.restarts

    @property
    def trouble(self) -> str | None:
        """Why the last start has failed, in words for an operator; `None` if it has not."""
        return self.life.earlier_starts.trouble

    @property
    def pid(self) -> int | None:
        """The id of the process that runs llama.cpp; `None` if there is none, or it is not known yet."""
        process = self.life.process
        # The system gives the id of a process that has ended to another one, sooner or later.
        return None if process is None or process.ended else process.pid

    @property
    def model(self) -> str:
        """The path of the model's file that runs, or is to run next."""
        return str(self.life.settings.model)

    def key(self) -> str | None:
        """Return the key that llama.cpp asks for, `None` if it is for the user to know.  Never shown to anybody."""
        return self.life.key

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
        """Start llama.cpp.  Called by the parent service.  Raises `ConfigError` if it certainly cannot start."""
        # Before anything is started: an error here ends bioproxy with one line.
        check_child(self.life.settings)
        super().startService()
        # Runs up to the first `await` that has to wait: the process exists when this returns.
        self._living = Deferred.fromCoroutine(self.life.live())
        # Without an errback, a fault in there would be logged only when Python collects the Deferred, if ever.
        self._living.addErrback(self._end_of_life)

    def stopService(self) -> Deferred[None] | None:
        """End llama.cpp.  Called by the parent service, after the requests in progress.

        Fires when the process is gone, so that none outlives bioproxy; `None` if there is none.
        """
        super().stopService()
        self.life.state = STOPPED
        self.turn_away(lambda: LlamaNotRunning("bioproxy is shutting down"))
        # First the life, or it would take the end that follows for a crash and start another process.  It may wait
        # anywhere: for an answer, for the end of the process, for the end of a pause.
        if self._living is not None:
            self._living.cancel()
        process = self.life.process
        if process is None or process.ended:
            return None
        # Its input is closed, which is the signal to end; ten seconds later it is killed.
        process.end()
        return process.gone

    def _end_of_life(self, failure: Failure) -> None:
        """Log why the life ended, unless it was cancelled by `stopService`."""
        if not failure.check(CancelledError):
            self.log.failure("the supervision of llama.cpp failed", failure)

    # What requests and reloads ask of it.

    async def ready(self, seconds: float) -> None:
        """Wait until llama-server answers requests.  To be called at the gate: a reload is put into force here.

        Fires when it does, at once if it does already.  Fails with `LlamaNotRunning` if the start fails, if that takes
        more than so many seconds, or if bioproxy stops.  Cancelling only ends the waiting.
        """
        # The caller has the gate, so no request is in progress that a restart could break off.
        self._put_into_force()
        if self.state == RUNNING:
            return
        # Known to have failed: the caller learns that at once, and when to come again.
        if self.state == PAUSING and self.trouble is not None:
            raise self.life.earlier_starts.error(self.life.settings)
        await self.life.waiting.wait(seconds, f"{IS_STARTING}, and did not answer in time")

    def turn_away(self, error: Callable[[], ProxyError]) -> None:
        """Fail all that wait in `ready`, because bioproxy stops; `error` makes a new error for each."""
        self.life.waiting.turn_away(error)

    def use(self, settings: Settings) -> None:
        """Run what these (`adapted`) settings say, from the next call of `ready` or `hurry` on."""
        # Compared with what runs, so that a reload that takes the last one back restarts nothing.
        self._wanted = None if what_runs(settings) == what_runs(self.life.settings) else settings

    def hurry(self) -> None:
        """Run what `use` was told at once, if llama.cpp does not answer requests yet.

        There is no request in progress then.  Whoever has the gate waits in `ready`, perhaps for a start that takes
        minutes and leads to nothing, which the new settings are to correct.
        """
        if self.state in (STARTING, PAUSING):
            self._put_into_force()

    def _put_into_force(self) -> None:
        """Replace the process if a reload has brought other settings for it."""
        if (wanted := self._wanted) is not None:
            self._wanted = None
            self.life.replace(wanted)


def what_runs(settings: Settings) -> tuple[object, ...]:
    """Return the part of the settings that decides what runs.

    A reload hands over all settings, changed or not.  Loading a model again takes up to minutes, and the conversation
    in the slot is lost by it, so what has nothing to do with llama.cpp must not restart it.
    """
    return settings.model, settings.llama_server, settings.llama_args
