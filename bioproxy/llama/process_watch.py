"""Watches llama-server: whether it is up, and whether it is still the same process.

A *look*, which is one check of llama-server, happens every two seconds, and when `/readyz` is requested.  It sends two
cheap requests: `/health`, which llama-server answers within 20 ms even while it processes a long prompt (measured with
b11434 and b11549), and `/props`, whose random ``media_marker`` tells one process from the next (llama.cpp,
tools/server/server-common.cpp, function ``get_media_marker``).  Polling is the only way: llama-server announces neither
its start nor its end nor its sleep.

The same looks notice when llama-server is *unresponsive*: it accepts connections and answers neither a request nor
`/health`.  After `upstream_timeout` seconds of that, all calls that wait for it fail.  A long prompt does not have this
effect, because `/health` is answered meanwhile.

The idea of Twisted in this module: a look is a coroutine, and `Deferred.fromCoroutine` turns it into a `Deferred`,
Twisted's object for a result that comes later.  Only a `Deferred` can be given a time limit (`addTimeout`) and be
cancelled.  Everything runs in one thread, and only at an `await` can another coroutine run in between.  So other
coroutines never see a half-made change if there is no `await` in it, and no lock is needed.

This module does not know which code depends on llama-server's process.  The layers above pass functions (`Listeners`),
which `bioproxy.assembly` collects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.answers import Props
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.process import NOT_MET, LlamaProcess
from bioproxy.llama.upstream import Upstream
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError, NothingListens
from bioproxy.runtime.metrics import Metrics

INTERVAL = 2.0
"""Seconds between two looks.

Halved, twice as many requests reach llama-server (two a second); doubled, a restart or a sleep goes unnoticed for up to
four seconds, in which a warm-up may be tried for nothing.
"""

PATIENCE = 5.0
"""Seconds that one look may take; after that it counts as failed.

Halved, a machine that swaps for a moment is reported as trouble; doubled, `upstream_timeout` is kept less precisely,
because llama-server is given up only at the end of a look.
"""


@dataclass(frozen=True)
class Listeners:
    """What the layers above do when something about llama-server's process changes.

    Invariant: within one look they are called in the order of the fields here, and none of them waits.  Each is an
    ordinary function, so nothing else runs between a change and the last reaction to it.

    There is exactly one listener for each event, and its result or its place in the order matters.  So these are named
    fields instead of a list of subscribers: a type checker finds a wrong listener, and all listeners can be read in one
    place.
    """

    fell_asleep: Callable[[], None]
    """llama-server has unloaded its model and, with it, what its slot held."""

    another_process: Callable[[bool], None]
    """Another process runs, or may run.  The argument tells whether a request has reached this process before."""

    slot_files: Callable[[bool], None]
    """It is now known whether the process writes slot files, which the argument tells."""

    advise: Callable[[Props, bool], None]
    """All facts about this process are known now: its properties, and whether it writes slot files."""

    what_helps: Callable[[LlamaCallFailed], str]
    """Return what an operator can do about a failed look, in a few words for the log."""


class ProcessWatch:
    """Holds the current process of llama-server, and tells the listeners when it changes.

    Invariant: `process` is the process that answered last.  It is replaced as a whole, and before any listener is
    called, so a listener that reads it gets the new process.  While llama-server is unreachable, `trouble` says why and
    `process` is kept, so that `/status` can still name the model.  When llama-server answers again, it counts as
    another process, whatever properties it reports.
    """

    log = Logger()

    def __init__(
        self,
        llama: LlamaApi,
        upstream: Upstream,
        identity: ModelIdentity,
        listeners: Listeners,
        metrics: Metrics,
        clock: IReactorTime,
        timeout: float,
    ) -> None:
        self.process = NOT_MET
        """The process that answered last."""
        self.trouble: str | None = "not asked yet"
        """Why the last look failed, in words for operators; `None` if it succeeded."""
        self.help: str | None = None
        """What an operator can do about `trouble`; `None` if that is not known, or there is no trouble."""
        self.wants_key = False
        """Whether the last look failed only for want of llama-server's key; clients may have it."""
        self.timeout = timeout
        """Seconds of silence after which llama-server is given up (`upstream_timeout`); a reload may set it."""
        self._llama = llama
        self._upstream = upstream
        self._identity = identity
        self._listeners = listeners
        self._metrics = metrics
        self._clock = clock

    @property
    def up(self) -> bool:
        """Whether the last look succeeded: llama-server runs and has its model loaded, or loads it when asked.

        The result is up to `INTERVAL` plus `PATIENCE` seconds old.  That is good enough to decide whether a warm-up is
        worth starting; users' requests do not depend on it and are always sent.
        """
        return self.trouble is None

    async def look(self) -> None:
        """Check the state of llama-server, and log what has changed.

        Fires with `None` after at most `PATIENCE` seconds, and never fails because of llama-server.  Cancelling closes
        the connection of the request in progress; what the look has stored until then is kept.
        """
        # Called first: a connection that is refused during the start may be reported only after the start has ended.
        not_running = self._upstream.not_running()
        trouble, fix, complete, wants_key, refused = None, "", False, False, False
        try:
            complete = await Deferred.fromCoroutine(self._ask()).addTimeout(PATIENCE, self._clock)
        except TimeoutError:
            # `addTimeout` has cancelled the coroutine, which closed its connection, and turned the resulting
            # CancelledError into a TimeoutError.  A cancellation from outside, at shutdown, stays a CancelledError and
            # is not caught here.
            trouble, fix = "llama-server does not answer", "if it hangs, restart it"
        except LlamaCallFailed as error:
            # For example 503 while the model is being loaded.
            trouble, fix = str(error), self._listeners.what_helps(error)
            # `/health` needs no key, so it has been answered before: the model is loaded.
            wants_key = isinstance(error, LlamaError) and error.status == 401
            refused = isinstance(error, NothingListens)
        # A failed look alone does not prove much: llama-server may be sending a stream meanwhile.  `last_heard` is
        # updated by every answer and every piece of an answer, to any request.  This is the only time limit of a
        # relayed request: the time for a long prompt cannot be predicted, so a limit for each request would end good
        # requests.  `give_up` is called again at each further failed look, because it also ends the calls that were
        # begun meanwhile.
        # A llama-server that is being started by bioproxy is silent for good reason.
        pending = self._upstream.pending
        if trouble is not None and not_running is None and self._clock.seconds() - pending.last_heard >= self.timeout:
            # A request that is refused fails fast by itself.  It need not wait for another look.
            pending.give_up(fail_fast=not refused)
        # Changes are logged, states are not: a server that is down for an hour gets one line.  `self.trouble` is still
        # the result of the look before this one.
        # The part that starts a llama-server of bioproxy's own logs what that does.
        if trouble is not None and not_running is not None:
            trouble, fix = not_running, ""
        elif trouble is not None and trouble != self.trouble:
            self.log.warn(
                "llama-server at {url}: {trouble} (what helps: {fix})", url=self._upstream.url, trouble=trouble, fix=fix
            )
        elif trouble is None and not self.up:
            self.log.info(
                "llama-server at {url} is up: {model}, build {build}, {context} tokens of context",
                url=self._upstream.url,
                model=self.process.props.model,
                build=self.process.props.build,
                context=self.process.props.context,
            )
        # Advice comes after the line above, so that the log first says what is running, and then what should be
        # changed.
        if complete:
            self._listeners.advise(self.process.props, bool(self.process.slot_files))
        self.trouble, self.help, self.wants_key = trouble, fix or None, wants_key
        self._metrics.upstream_up.set(self.up)

    async def _ask(self) -> bool:
        """Send the requests of one look and note what they say.

        Fires with `True` if this look has completed what can be known about this process, else with `False`.  Fails as
        `LlamaApi`'s calls do.
        """
        # `/health` first: while the model is being loaded it answers 503 at once, and `/props` would fail in the same
        # way. `/health` needs no api key, so a wrong key fails at `/props`, with a status of its own (401).
        await self._llama.health()
        self._note(await self._llama.props())
        # Asked once for each process, and not while it sleeps: every request except `/health`, `/props`, `/models` and
        # `/metrics` makes it load its model (llama.cpp, tools/server/README.md, "Sleeping on Idle").
        if self.process.slot_files is not None or self.process.props.asleep:
            return False
        slot_files = await self._llama.slot_files_enabled()
        # Two looks may overlap: `/readyz` starts one whenever it is asked.  So `self.process` is read again here, after
        # the `await`: replacing the value from before would undo what the other look has stored meanwhile.  An answer
        # of an older process cannot arrive this late, because its end closed the connection.
        self.process = replace(self.process, slot_files=slot_files)
        self._listeners.slot_files(slot_files)
        return True

    def _note(self, props: Props) -> None:
        """Store what `/props` says, and call the listeners if it has changed.

        The order matters, because users' requests go on between two looks:

        1. Sleep comes first.  A model that was unloaded may be another one when it is loaded again from its file, even
           in the same process, so from now on `ModelIdentity` trusts nothing but the fingerprint.
        2. Then another process.  `ModelIdentity` is asked first, because only `ModelIdentity` knows whether a *request*
           has reached this process before this look: a request that restores a file asks `/props` itself, up to
           `INTERVAL` seconds ahead of the watch, and notes what it leaves in the slot.  That record is about the new
           process and must be kept.  If the slot dropped it here, the next request would be restored, or computed,
           without need.  What was learned about the *old* process (whether restoring helps, whether the model can
           continue from a point inside the slot's tokens) is dropped in both cases.
        3. Whether slot files are written is asked last, in `_ask`, because it needs another request.  Until it is
           answered, the slot uses the old answer: a restore that is refused costs one cheap request.
        """
        before = self.process
        # `self.up` is still the result of the look before this one: it changes only at the end of `look`.  After
        # llama-server was unreachable it may be another process, even with equal properties: older builds all have the
        # same marker.
        if another := props != before.props or not self.up:
            self.process = LlamaProcess(before.serial + 1, props)
        else:
            self.process = replace(before, props=props)
        # Only falling asleep is reported.  Waking up need not be: the request that woke the model up has recorded what
        # it left in the slot.
        if props.asleep and not before.props.asleep:
            self._listeners.fell_asleep()
            self._identity.fell_asleep()
        # The argument tells the slot whether its record is about this process already; see 2.
        if another:
            self._listeners.another_process(self._identity.met(props))
