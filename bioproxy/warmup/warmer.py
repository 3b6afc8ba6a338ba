"""Warms prompts up, for as long as no user needs llama-server.

A *round* comes twice a second.  Mostly it finds that everything is warm, and ends.  Otherwise the round takes what is
due, in the order of `bioproxy.warmup.schedule`, has llama-server turn the prompt into tokens, and has these tokens
processed and saved (`bioproxy.warmup.warmup`) if the gate is free.  When nothing is due, the round tidies up: a
conversation that a user left in the slot is saved, or the prompt that will probably be asked for next is restored.

Twisted's part in this is cancellation.  A round is a coroutine, and what it awaits are Deferreds.  When a user arrives,
`bioproxy.slot.gate` cancels the Deferred of the warm-up inside the gate.  The ``await`` at the very bottom (mostly an
answer of llama-server) then raises `CancelledError`, every ``finally`` and ``with`` on the way up does its part, and
the connection to llama-server is closed, by which llama-server learns that it may stop.  The gate turns that
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
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.gate import Gate
from bioproxy.slot.saving import SaveFailed
from bioproxy.slot.slot import Slot
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

A user who arrives during a save waits for its end.  Halved: users who read an answer quickly meet the save more often.
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
        """Put the parts together; nothing is asked or started before the first round.

        `schedule` says what is due, `catalogue` which prompts there are, and `shape_learning` which one was asked for
        last.  `prefixes` turns a prompt into tokens, and `warmup` has these processed, inside `gate`.  `slot` is what
        gets warm; `watch` tells whether llama-server is up, awake, and still the same process.  `metrics` gets the
        outcome of each warm-up.  `clock` measures how long a failing one took: the reactor's in production, one that
        is advanced by hand in tests.
        """
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
        # One table for both: the warmer counts the tokens, and the gauges and `/status` show them.
        self.tokens = self._readiness.tokens
        # The last occasion on which a prompt was restored by `_tidy_up`.
        # Anything that can be compared; `None` before the first restore, and after each warm-up.
        self._brought_back: object = None

    def forget(self, id: str) -> None:
        """Forget all about a prompt: it is gone, or another one with this id has come.

        Called after a reload of the configuration.  A warm-up of this prompt that is running ends between two pieces.
        """
        self.tokens.pop(id, None)
        self._warmup.progress.pop(id, None)
        self.schedule.forget(id)

    @property
    def current(self) -> str | None:
        """The id of the prompt that is inside the gate for a warm-up, if any."""
        return self._warmup.current

    def state(self, id: str) -> tuple[str, str | None]:
        """Return a prompt's state and what is wrong, as `Readiness.state` does.

        Worked out anew with each call, from the files and the slot as they are: cheap, but not free.
        """
        return self._readiness.state(id)

    def progress(self, id: str) -> float:
        """Return how far a prompt is, from 0 to 1, as `Readiness.progress` does."""
        return self._readiness.progress(id)

    def note(self, id: str) -> str | None:
        """Return what is unwise about how clients ask for a prompt, if anything is.

        For an operator: a client whose system message tells the time makes every warm-up useless, and only the client
        can be changed.
        """
        return self._shape_learning.note(id)

    # The work.

    async def round(self) -> None:
        """Do what there is to do, one prompt after the other, for as long as no user is at the gate.

        Fires with nothing when there is nothing more to do, or a user has come.  Does not fail for llama-server's
        reasons: these are logged, counted, and lead to a pause.  Cancelling ends the work in progress; at most what was
        computed since the last save is lost.
        """
        tried: set[str] = set()
        # Everything is asked anew before each prompt: the warm-up before may have taken minutes, in which llama-server
        # went away, a user came, or an operator asked for a prompt.  A list that was made before the loop would be out
        # of date after the first ``await``.
        while self._watch.up and not self._gate.busy and (due := self.schedule.next(tried)) is not None:
            # Each prompt once in a round.  If it is still due, or due again, the next round will see; otherwise a
            # warm-up that ends at once without success would be repeated endlessly, and Twisted would do nothing else.
            tried.add(due.prompt.id)
            # Logged here and not in the gate, so that the line also comes before a warm-up that fails at its tokens.
            if self.schedule.begins(due):
                self.log.info("{prompt}: its warm-up starts: {reason}", prompt=due.prompt, reason=due.reason.value)
            await self._try(due.prompt)
        # A llama-server that sleeps (``--sleep-idle-seconds``) is not woken up for this: waking up means loading the
        # model, and when it falls asleep again, what was restored into the slot is lost.
        if self._watch.up and not self._watch.process.props.asleep and not self._gate.busy:
            await self._tidy_up()
        # Whatever happened or not, half a second has passed: a file may have been deleted, or a text edited.  So the
        # gauges are set in every round, also while users are at the gate.
        self._readiness.show()

    async def _try(self, prompt: Prompt) -> None:
        """Warm one prompt up, unless a user comes.

        Fires with nothing, whatever came of it; what came of it the schedule has been told.  Fails only with bugs.
        Cancelling ends the call to llama-server that is in progress.
        """
        name = prompt.id
        began = self._clock.seconds()
        try:
            # A file was restored and its tokens were not reused.  Perhaps the chat template makes other tokens of the
            # same text now, as one with a date in it does after midnight.  The tokens that are remembered would hide
            # that, so llama-server is asked again.
            if self._slot.is_doubted(name):
                self._prefixes.forget()
            # Outside the gate: llama-server makes tokens beside its slot, and users need not wait for that.  So no
            # user's arrival cancels this ``await`` either; it takes a second at most, for a very long text.
            tokens = await self._prefix_tokens(prompt)
            self.tokens[name] = len(tokens)
            # A user may have come meanwhile.  The gate would turn the warm-up away then, and that would be counted as
            # an interruption, although nothing was begun.  From here to the gate there is no ``await``, so no user can
            # come in between.
            if self._gate.busy:
                return
            # The warm-up displaces what the slot holds, so afterwards there is a new reason to bring a prompt back.
            self._brought_back = None

            # Asked between two pieces, so that a text that was edited is not computed to its end, and once more at the
            # end.  Two prompts are equal if id, text, shape and source are.
            def as_before() -> bool:
                return self.catalogue.get(name) == prompt

            done = await self._gate.warmup(lambda: self._warmup.run(prompt, tokens, as_before))
            # `done` is false if a user came.  That is no failure: there is no pause, and the next round that finds the
            # gate free tries again.  Otherwise the warm-up ran to its end, but perhaps for an old text: then it stopped
            # between two pieces, or has just saved an old text.  Both count as "preempted".  Only
            # the second leads to pauses, after some such changes in a row: the text itself is the reason, and it would
            # happen again.
            if done and as_before():
                self.schedule.succeeded(name)
            else:
                self._metrics.warmups.labels(name, "preempted").inc()
                if done:
                    self.schedule.changed(name)
        except DoesNotFit as error:
            # No pause makes the prompt fit.  What would are another text, another model or a larger context, and the
            # schedule notices each of them, because the failure is noted about just these (`Schedule.about`).
            self.tokens[name] = error.tokens or 0
            self._failed(prompt, str(error), None)
        except (LlamaCallFailed, SaveFailed, OSError) as error:
            # llama-server is in trouble, the slot could not be saved, or our own record could not be written.  Any
            # other exception is a bug: `Periodic` logs it with its traceback, and starts the next round all the same.
            # A `CancelledError` gets here only if the whole round is cancelled, when bioproxy stops, and must go on.
            self._failed(prompt, str(error), self._clock.seconds() - began)
        finally:
            # Also after an interruption: the warm-up may have displaced another prompt that was warm in the slot only.
            self._readiness.show()

    async def _prefix_tokens(self, prompt: Prompt) -> list[int]:
        """Have llama-server turn a prompt into tokens.

        Fires with the tokens; fails with `DoesNotFit`, or as `LlamaApi`'s calls do; cancelling gives the answer up.
        """
        # `Prefixes` remembers the last tokens by this, so that a warm-up that users interrupt again and again asks
        # once.
        about = self.schedule.about(prompt)
        try:
            return await self._prefixes.tokens(prompt.text, prompt.shape, self._watch.process.props.context, about)
        except LlamaError as error:
            # A chat template may refuse what a client sent, for example tools that it has no place for, and would
            # refuse it each time.  The bare shape is then the better bet.  503 is another matter: llama-server is
            # loading its model, and has not even looked at the request.
            if prompt.shape != USER_MESSAGE_ONLY and error.status != 503:
                self._shape_learning.refused(prompt.id)
            raise

    def _failed(self, prompt: Prompt, text: str, took: float | None) -> None:
        """Note that a try failed.

        `text` says what failed, in words for an operator.  `took` is how many seconds the try took; the pause is in
        proportion to that.  `None` means that trying again would be useless.
        """
        self._metrics.warmups.labels(prompt.id, "failed").inc()
        # Trouble that lasts is one line in the log, not one for each try.  `/status` shows it for as long as it lasts,
        # and the counter grows with each try, for an alert on its rate.
        if self.schedule.failed(prompt, text, took):
            self.log.warn("{prompt} cannot be warmed up: {text}", prompt=prompt, text=text)

    async def _tidy_up(self) -> None:
        """Save what a user left in the slot, or restore what warm-ups displaced.  Called when nothing is due.

        Fires when that is done, or a user has come.  Does not fail for llama-server's reasons.  Cancelling leaves what
        the slot holds unknown, never something wrong: the next request is slower, and nothing else.
        """
        # First the conversation, because restoring a prompt would displace it.  If a user comes, the gate ends this,
        # and what follows finds either the gate taken or the user's content in the slot.
        if self._gate.stats.idle_seconds() >= IDLE and self._slot.conversation_save_is_due():
            await self._gate.warmup(self._keep)
        # The prompt that will probably be asked for next should be in the slot.  Without any question so far nothing is
        # probable, and where warm-ups ahead are off nothing is done ahead.
        prompt = self.schedule.favourite()
        if prompt is None or not self.schedule.ahead or not self._shape_learning.turn(prompt.id):
            return
        name, key = prompt.id, prompt.key
        # All of this is about one moment: there is no ``await`` between here and the gate.
        # What a user left there stays: that the user goes on with it is more probable than anything else.  Where
        # llama-server does not tell what the slot holds, a request could not rely on what was restored.  And only a
        # file is restored here: nothing is computed, so this is a matter of a second at most.
        if not self._slot.was_displaced(name, key):
            return
        # Once for each occasion: what cannot be brought back, or not be seen in the slot afterwards, would be tried
        # twice a second, endlessly.  A new process of llama-server is a new occasion, and so is another text or shape;
        # a warm-up of another prompt makes one, too, in `_try`.
        if self._brought_back != (occasion := (self._watch.process, name, key)):
            self._brought_back = occasion
            await self._gate.warmup(lambda: self._slot.bring_back(name, key))

    async def _keep(self) -> None:
        """Save the conversation in the slot; runs inside the gate.

        Fires when it is saved, or could not be.  A user's arrival does not end this: llama-server finishes a save that
        it has begun, and lets all requests wait meanwhile, so giving up would only lose the file.  Cancelling, when
        bioproxy stops, gives up llama-server's answer, and with it the record of the file.
        """
        # `last`: nothing follows here, so there is no need to end this coroutine for a user who has come meanwhile.
        # `save_conversation` never fails for llama-server's reasons, and says in the log if a conversation could not be
        # saved.
        with self._gate.without_preemption(last=True):
            await self._slot.save_conversation()
