"""Warms prompts up, for as long as no user needs llama-server.

A *round* comes twice a second.  Mostly it finds that everything is warm, and ends.  Otherwise the round takes what is
due, in the order of `bioproxy.warmup.schedule`, has llama-server turn the prompt into tokens, and has these tokens
processed and saved (`bioproxy.warmup.warmup`) if the gate is free.  When nothing is due, the round tidies up: a
conversation that a user left in the slot is saved, or the prompt that will probably be asked for next is restored.

Twisted's part in this is cancellation.  A round is a coroutine, and what it awaits are Deferreds.  When a user arrives,
`bioproxy.slot.gate` cancels the Deferred of the warm-up inside the gate.  The ``await`` at the very bottom (mostly an
answer of llama-server) then raises `CancelledError`, every ``finally`` and ``with`` on the way up does its part, and
the connection to llama-server is closed, by which llama-server learns that nobody waits any more.  The gate turns that
into a plain ``False``, so the round goes on, finds the gate taken, and ends.  A later round tries again.

A round is started by `bioproxy.runtime.periodic.Periodic`, never while the last one still runs.  So two warm-ups never
meet, however long one takes, and nothing here needs a lock.

Does not know what is due and why, what a piece of work is, or how the slot is saved; it puts these parts together, logs
and counts the outcome.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.prefix_tokens import DoesNotFit, Prefixes
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.catalogue import Catalogue, Prompt
from bioproxy.prompts.prompt_shape import BARE
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.files import SaveFailed
from bioproxy.slot.gate import Gate
from bioproxy.slot.slot import Slot
from bioproxy.warmup.due import Due
from bioproxy.warmup.readiness import Readiness
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmup import Warmup

INTERVAL = 0.5
"""Seconds between rounds.

Halved: warm-ups start a quarter of a second earlier on average, and an idle bioproxy does twice the work.  Doubled: a
user who comes right after an edit is more likely to find the old text's file.
"""

IDLE = 3.0
"""Seconds without any user at the gate after which the conversation in the slot is saved.

A save makes whoever comes meanwhile wait for it.  Halved: users who read an answer quickly meet the save more often.
Doubled: a conversation is more often lost to the next request, or saved while that request waits.
"""


class Warmer:
    """Keeps every prompt of a catalogue warm, as far as users leave time for that.

    Invariant: outside the gate nothing touches the slot; inside, one warm-up or one save runs at a time.
    """

    log = Logger()

    schedule: Schedule
    """What is due, and what people ask for."""

    catalogue: Catalogue
    """Which prompts there are."""

    tokens: dict[str, int]
    """The number of tokens of each prompt, by id, where they were counted; 0 if there are too many to count."""

    def __init__(
        self,
        schedule: Schedule,
        catalogue: Catalogue,
        shape_learning: ShapeLearning,
        prefixes: Prefixes,
        warmup: Warmup,
        gate: Gate,
        slot: Slot,
        watch: ProcessWatch,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        self.schedule = schedule
        self.catalogue = catalogue
        self._shape_learning = shape_learning
        self._prefixes = prefixes
        self._warmup = warmup
        self._gate = gate
        self._slot = slot
        self._watch = watch
        self._metrics = metrics
        self._clock = clock
        self._readiness = Readiness(catalogue, schedule, slot, warmup, metrics)
        self.tokens = self._readiness.tokens
        # The last occasion on which a prompt was restored by `_tidy_up`.
        self._brought_back: object = None

    def forget(self, id: str) -> None:
        """Forget all about a prompt: it is gone, or another one with this id has come."""
        self.tokens.pop(id, None)
        self._warmup.forget(id)
        self.schedule.forget(id)

    @property
    def current(self) -> str | None:
        """The id of the prompt that is being warmed up, if any."""
        return self._warmup.current

    def state(self, id: str) -> tuple[str, str | None]:
        """Return a prompt's state and what is wrong, as `Readiness.state` does."""
        return self._readiness.state(id)

    def progress(self, id: str) -> float:
        """Return how far a prompt is, from 0 to 1."""
        return self._readiness.progress(id)

    def note(self, id: str) -> str | None:
        """Return what is unwise about how clients ask for a prompt, if anything is."""
        return self._shape_learning.note(id)

    # The work.

    async def round(self) -> None:
        """Do what there is to do, one prompt after the other, for as long as no user is at the gate.

        Fires with nothing when there is nothing more to do, or a user has come.  Does not fail for llama-server's
        reasons: these are logged, counted, and lead to a pause.  Cancelling ends the work in progress; at most what was
        computed since the last save is lost.
        """
        tried: set[str] = set()
        # Everything is asked anew before each prompt: the warm-up before may have taken minutes.
        while self._watch.up and not self._gate.busy and (due := self.schedule.next(tried)) is not None:
            # Each prompt once in a round.  If it is still due, or due again, the next round will see; otherwise a
            # warm-up that ends at once without success would be repeated for ever, and Twisted would do nothing else.
            tried.add(due.prompt.id)
            if self.schedule.begins(due):
                self.log.info("{prompt}: its warm-up starts: {reason}", prompt=due.prompt, reason=due.reason.value)
            await self._try(due.prompt)
        if self._watch.up and not self._watch.asleep and not self._gate.busy:
            await self._tidy_up()
        self._readiness.show()

    async def _try(self, prompt: Prompt) -> None:
        """Warm one prompt up, unless a user comes.

        Fires with nothing, whatever came of it; what came of it the schedule has been told.  Fails only with bugs.
        Cancelling ends the call to llama-server that is in progress.
        """
        name = prompt.id
        began = self._clock.seconds()
        try:
            # A file was restored and not reused: perhaps the chat template makes other tokens of the same text now.
            if self._slot.doubted(name):
                self._prefixes.forget()
            # Outside the gate: llama-server makes tokens beside its slot, and users need not wait for that.
            tokens = await self._prefix_tokens(prompt)
            self.tokens[name] = len(tokens)
            # A user may have come meanwhile.  The gate would turn the warm-up away then, and that would be counted as
            # an interruption, although nothing was begun.  From here to the gate there is no ``await``, so nobody can
            # come in between.
            if self._gate.busy:
                return
            # The warm-up displaces what the slot holds: from now on there is a new reason to bring a prompt back.
            self._brought_back = None

            # Asked between two pieces, so that a text that was edited is not computed to its end.
            def as_before() -> bool:
                return self.catalogue.get(name) == prompt

            done = await self._gate.warmup(lambda: self._warmup.run(prompt, tokens, as_before))
            # `done` is false if a user came.  Otherwise the warm-up ran to its end, but perhaps for an old text: then
            # it stopped between two pieces, or has just saved what nobody will ask for any more.
            if done and as_before():
                self.schedule.succeeded(name)
            else:
                self._metrics.warmups.labels(name, "preempted").inc()
                if done:
                    self.schedule.changed(name)
        except DoesNotFit as error:
            # No pause makes it fit.
            self.tokens[name] = error.tokens or 0
            self._failed(prompt, str(error), None)
        except (LlamaCallFailed, SaveFailed, OSError) as error:
            # Anything else is a bug: `Periodic` logs it with its traceback, and starts the next round all the same.
            # `CancelledError` gets here only if the whole round is cancelled, when bioproxy stops.
            self._failed(prompt, str(error), self._clock.seconds() - began)
        finally:
            # Also after a cancellation: the user who comes now may have taken the slot from a prompt that was warm.
            self._readiness.show()

    async def _prefix_tokens(self, prompt: Prompt) -> list[int]:
        """Have llama-server turn a prompt into tokens.

        Fires with the tokens; fails with `DoesNotFit`, or as `LlamaApi`'s calls do; cancelling gives the answer up.
        """
        # `Prefixes` remembers the last tokens by this, so that a warm-up that users interrupt again and again asks
        # once.
        about = self.schedule.about(prompt)
        try:
            return await self._prefixes.tokens(prompt.text, prompt.shape, self._watch.context, about)
        except LlamaError as error:
            # A chat template may refuse what a client sent (tools that it has no place for), and would refuse it again.
            # 503 only means that llama-server is loading its model.
            if prompt.shape != BARE and error.status != 503:
                self._shape_learning.refused(prompt.id)
            raise

    def _failed(self, prompt: Prompt, text: str, took: float | None) -> None:
        """Note a failure after `took` seconds, or `None` if trying again would be useless."""
        self._metrics.warmups.labels(prompt.id, "failed").inc()
        # Trouble that lasts is one line in the log, not one for each try; `/status` shows it all the time.
        if self.schedule.failed(prompt, text, took):
            self.log.warn("{prompt} cannot be warmed up: {text}", prompt=prompt, text=text)

    async def _tidy_up(self) -> None:
        """Save what a user left in the slot, or restore what warm-ups displaced.  Nothing is due when this is called.

        Fires when that is done or a user has come.  Cancelling leaves what the slot holds unknown, or lets a save end.
        """
        # First the conversation, because restoring a prompt would displace it.  If a user comes, the gate ends this,
        # and what follows finds either the gate taken or the user's content in the slot.
        if self._gate.idle_seconds() >= IDLE and self._slot.saver.due():
            await self._gate.warmup(self._keep)
        # The prompt that will probably be asked for next should be in the slot.  Without any question so far nothing is
        # probable, and where warm-ups ahead are off nothing is done ahead.
        prompt = self.schedule.favourite()
        if prompt is None or not self.schedule.ahead or not self._shape_learning.turn(prompt.id):
            return
        name, key = prompt.id, prompt.key
        content = self._slot.content
        # What a user left there stays: going on with it is more probable than anything else.
        if content.users or not content.visible or content.has(key) or not self._slot.saved(name, key):
            return
        # Once for each occasion: what cannot be brought back, or not be seen, would be tried for ever.
        if self._brought_back != (occasion := (self._watch.process, name, key)):
            self._brought_back = occasion
            await self._gate.warmup(lambda: self._slot.bring_back(name, key))

    async def _keep(self) -> None:
        """Save the conversation in the slot; inside the gate.

        Fires when it is saved, or could not be.  A user's arrival does not end it: llama-server would finish the save
        anyhow and let everybody wait, so giving up would only lose the file.
        """
        # `last`: nothing follows that a user who has come meanwhile would have to be let in before.
        with self._gate.let_finish(last=True):
            await self._slot.saver.keep()
