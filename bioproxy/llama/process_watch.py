"""Watches llama-server: whether it is up, and whether it is still the same process.

A *look* happens every two seconds, and when `/readyz` is asked.  It sends two cheap requests: `/health`, which
llama-server answers within 20 ms even while it processes a long prompt (measured with b11434 and b11549), and `/props`,
whose random ``media_marker`` tells one process from the next (llama.cpp, tools/server/server-common.cpp, function
``get_media_marker``).  Polling is the only way: llama-server announces neither its start nor its end nor its sleep.

The same looks notice when llama-server is *unresponsive*: it accepts connections and answers neither a request nor
`/health`.  After `upstream_timeout` seconds of that, all calls that wait for it fail.  A long prompt is no reason to
give up, because `/health` keeps being answered.

The Twisted idea here: a look is a coroutine, and `Deferred.fromCoroutine` turns it into a `Deferred`, Twisted's object
for a result that comes later.  Only a `Deferred` can be given a time limit (`addTimeout`) and be cancelled.  Everything
runs in one thread, and only at an `await` can another coroutine run in between.  So a change that is made without an
`await` in the middle is never seen half done, and no lock is needed.

This module does not know who depends on llama-server's process.  The layers above hand in plain callables
(`Listeners`), which `bioproxy.assembly` puts together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.api import LlamaApi, Props
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.process import NOT_MET, LlamaProcess
from bioproxy.llama.upstream import Upstream
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.runtime.metrics import Metrics

INTERVAL = 2.0
"""Seconds between two looks.

Halved, twice as many requests reach llama-server (two a second); doubled, a restart or a sleep goes unnoticed for up to
four seconds, in which a warm-up may be tried in vain.
"""

PATIENCE = 5.0
"""Seconds that one look may take; after that it counts as failed.

Halved, a machine that swaps for a moment is reported as trouble; doubled, `upstream_timeout` is kept less precisely,
because llama-server is given up only at the end of a look.
"""


STARTING = "llama-server is starting"
"""The `trouble` of a failed look while bioproxy itself has just started llama-server.

Loading a model takes seconds to minutes, and nothing else would be known of it meanwhile.  One line at level info tells
it, instead of one warning for each kind of failure on the way (refused, then 503).
"""


@dataclass(frozen=True)
class Listeners:
    """What the layers above do when something about llama-server's process changes.

    Invariant: within one look they are called in the order in which they stand here, and none of them waits.  Each is
    an ordinary function, so nothing else runs between a change and the last reaction to it.

    Why not Twisted's own means, or a list of subscribers?  There is exactly one listener for each event, its result or
    its place in the order matters, and with named fields a type checker sees a wrong one, and a reader sees all of
    them.
    """

    fell_asleep: Callable[[], None]
    """llama-server has unloaded its model and, with it, what its slot held."""

    another_process: Callable[[bool], None]
    """Another process runs, or may run.  The argument tells whether a request has met this very process before."""

    slot_files: Callable[[bool], None]
    """Whether the process writes slot files was found out."""

    advise: Callable[[Props, bool], None]
    """All that can be asked of this process was asked: its properties, and whether it writes slot files."""

    what_helps: Callable[[LlamaCallFailed], str]
    """Return what an operator can do about a failed look, in a few words for the log."""


class ProcessWatch:
    """Holds the current process of llama-server, and tells the listeners when it changes.

    Invariant: `process` is the last one that answered.  It is replaced as a whole, and before any listener is called,
    so a listener that reads it finds the new one.  While llama-server is out of reach, `trouble` says why and `process`
    stays what it was, so that `/status` can still name the model.  When it answers again, that counts as another
    process, whatever it says about itself.
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
        """Why the last look failed, human-readable; `None` if it did not."""
        self.timeout = timeout
        """Seconds of silence after which llama-server is given up (`upstream_timeout`); a reload may set it."""
        self.starting: Callable[[], bool] = lambda: False
        """Tells whether bioproxy has just started llama-server itself, so that no answer is to be expected yet.

        Whoever starts it puts another function here; where an operator starts it, the answer is always no.
        """
        self._llama = llama
        self._upstream = upstream
        self._identity = identity
        self._listeners = listeners
        self._metrics = metrics
        self._clock = clock

    @property
    def up(self) -> bool:
        """Whether the last look succeeded: llama-server runs and has its model loaded, or loads it when asked.

        Up to `INTERVAL` plus `PATIENCE` seconds old.  Good enough to decide whether a warm-up is worth starting; a
        user's request does not depend on it, but is always sent.
        """
        return self.trouble is None

    async def look(self) -> None:
        """Ask llama-server how it is, and log what has changed.

        Fires with `None` after at most `PATIENCE` seconds, and never fails because of llama-server.  Cancelling closes
        the connection of the request in progress; what the look has found out until then stays.
        """
        # Asked first: a connection that is refused during the start may be told only after the end of the start.
        starting = self.starting()
        trouble, fix, complete = None, "", False
        try:
            complete = await Deferred.fromCoroutine(self._ask()).addTimeout(PATIENCE, self._clock)
        except TimeoutError:
            # `addTimeout` has cancelled the coroutine, which closed its connection, and turned the resulting
            # CancelledError into this one.  A cancellation from outside, at shutdown, stays a CancelledError and
            # passes.
            trouble, fix = "llama-server does not answer", "if it is stuck, start it again"
        except LlamaCallFailed as error:
            # For example 503 while the model is being loaded.
            trouble, fix = str(error), self._listeners.what_helps(error)
        # A failed look alone proves little: a stream may be flowing meanwhile.  `last_heard` covers every answer and
        # every piece of one, whoever asked for it.  This is the only time limit that a relayed request has: nobody can
        # tell how long a long prompt takes, so a limit for each request would end good ones.  `give_up` is called at
        # each further failed look as well, because it also ends the calls that were begun meanwhile.
        if trouble is not None and self._clock.seconds() - self._upstream.last_heard >= self.timeout:
            self._upstream.give_up()
        # Changes are logged, states are not: a server that is down for an hour is one line.  `self.trouble` still is
        # the state before this look.
        if trouble is not None and starting:
            trouble = STARTING
            if trouble != self.trouble:
                self.log.info("llama-server at {url} is starting", url=self._upstream.url)
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
        # Advice comes after the line above, so that the log first says what runs there and then what is unwise about
        # it.
        if complete:
            self._listeners.advise(self.process.props, bool(self.process.slot_files))
        self.trouble = trouble
        self._metrics.upstream_up.set(self.up)

    async def _ask(self) -> bool:
        """Send the requests of one look and note what they say.

        Fires with whether this look has found out the last thing there is to know about this process.  Fails as
        `LlamaApi`'s calls do.
        """
        # `/health` first: while the model is being loaded it answers 503 at once, and `/props` would only fail
        # likewise. `/health` needs no api key, so a wrong key fails at `/props`, with a status of its own (401).
        await self._llama.health()
        self._note(await self._llama.props())
        # Asked once for each process, and not while it sleeps: every request except `/health`, `/props`, `/models` and
        # `/metrics` makes it load its model (llama.cpp, tools/server/README.md, "Sleeping on Idle").
        if self.process.slot_files is not None or self.process.props.asleep:
            return False
        slot_files = await self._llama.slot_files_enabled()
        # Two looks may overlap: `/readyz` starts one whenever it is asked.  So `self.process` is read again here, after
        # the `await`: replacing the value from before would undo what the other look has noted meanwhile.  An answer of
        # an older process cannot arrive this late, because its end closed the connection.
        self.process = replace(self.process, slot_files=slot_files)
        self._listeners.slot_files(slot_files)
        return True

    def _note(self, props: Props) -> None:
        """Take over what `/props` says, and tell the listeners if that is a change.

        The order matters, because users' requests go on between two looks:

        1. Sleep comes first.  A model that was unloaded may be another one when it is loaded again from its file, even
           in the same process, so from now on `ModelIdentity` trusts nothing but the fingerprint.
        2. Then another process.  `ModelIdentity` is asked first, because it alone can tell whether a *request* has met
           this process before this look did: a request that restores a file asks `/props` itself, up to `INTERVAL`
           seconds ahead of the watch, and notes what it leaves in the slot.  That note is about the new process and
           must survive.  If the slot forgot it here, the next question would be restored, or computed, for nothing.
           What was learned about the *old* process (does restoring help, can the model go back) is forgotten in both
           cases.
        3. Whether slot files are written is asked last, in `_ask`, because it needs another request.  Until its answer
           is there, the slot goes on with the old one: a restore that is refused costs one cheap request.
        """
        before = self.process
        # `self.up` is still the result of the look before this one: it changes only at the end of `look`.
        # After it was out of reach it may be another process even with equal properties: older builds all have the same
        # marker.
        if another := props != before.props or not self.up:
            self.process = LlamaProcess(before.serial + 1, props)
        else:
            self.process = replace(before, props=props)
        # Only the moment of falling asleep is told.  Waking up needs nothing: the request that woke the model up has
        # noted what it left in the slot.
        if props.asleep and not before.props.asleep:
            self._listeners.fell_asleep()
            self._identity.fell_asleep()
        # The slot is told whether what it believes is about this process already; see 2.
        if another:
            self._listeners.another_process(self._identity.met(props))
