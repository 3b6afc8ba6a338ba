"""Warms prompts up, for as long as no user needs llama-server.

A *round* starts twice a second.  Usually all prompts are warm, and the round ends.  Otherwise the round takes each
prompt that is due, in the order of `bioproxy.warmup.schedule`, has llama-server turn the prompt into tokens, and has
these tokens processed and saved (`bioproxy.warmup.warmup`) if the gate is free.  When nothing is due, the round saves a
conversation that a user left in the slot, or restores the prompt that will probably be asked for next.

The idea of Twisted in this module is cancellation.  A round is a coroutine that awaits Deferreds.  When a user arrives,
`bioproxy.slot.gate` cancels the Deferred of the warm-up inside the gate.  The innermost ``await`` (usually for an
answer of llama-server) then raises `CancelledError`, the ``finally`` and ``with`` blocks around it clean up, and the
connection to llama-server is closed, which tells llama-server to stop.  The gate catches the error and returns
``False``, so the round continues, finds the gate in use, and ends.  A later round tries again.

A round is started by `bioproxy.runtime.periodic.Periodic`, never while the last one still runs.  So two warm-ups never
overlap, however long one takes, and no lock is needed.

This module does not know what is due and why, what a piece of a warm-up is, or how the slot is saved.  It connects the
modules that do, and logs and counts the outcome.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.prefix_tokens import DoesNotFit
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.catalogue import Catalogue, Prompt
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.shelf import SharedShelf
from bioproxy.slot.gate import Gate
from bioproxy.slot.save_failures import SaveFailed, TooLarge
from bioproxy.slot.slot import Slot
from bioproxy.warmup.due import Due, Reason
from bioproxy.warmup.head_start import HeadStart
from bioproxy.warmup.idle_work import IdleWork
from bioproxy.warmup.prompt_learning import PromptLearning
from bioproxy.warmup.prompt_tokens import PromptTokens, TooShort, Unusable
from bioproxy.warmup.readiness import Readiness
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmup import Warmup

INTERVAL = 0.5
"""Seconds between rounds.

Halved: warm-ups start a quarter of a second earlier on average, and an idle bioproxy does twice the work.  Doubled: a
user who comes right after an edit is more likely to find the old text's file.
"""


class Warmer:
    """Keeps every prompt of a catalogue warm, as far as users leave time for that.

    Invariant: the warmer uses the slot only inside the gate, for one warm-up, save or restore at a time.
    """

    log = Logger()

    schedule: Schedule
    """Decides which prompt is due, and knows what operators and users asked for."""

    catalogue: Catalogue
    """Which prompts there are."""

    tokens: dict[str, int]
    """The number of tokens of each prompt, by id, where they were counted; 0 if there are too many to count."""

    def __init__(
        self,
        schedule: Schedule,
        catalogue: Catalogue,
        shape_learning: ShapeLearning,
        prompt_learning: PromptLearning,
        prompt_tokens: PromptTokens,
        warmup: Warmup,
        idle_work: IdleWork,
        head_start: HeadStart,
        shared: SharedShelf,
        gate: Gate,
        slot: Slot,
        watch: ProcessWatch,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        """Store the parts; no request is sent and nothing is started before the first round.

        `schedule` says what is due, `catalogue` which prompts there are, `shape_learning` how clients ask for
        templates, and `prompt_learning` what is to be learned.  `prompt_tokens` turns a prompt into tokens, and
        `warmup` has these processed, inside `gate`; `idle_work` is done when nothing is due, and
        `head_start` right after an answer.  `shared` has what other bioproxies have computed.  `slot` is the slot that
        is used; `watch` tells whether llama-server is up, awake, and still the same process.  `metrics` gets the
        outcome of each warm-up.  `clock` measures how long a failing one took: the reactor's in production, one that is
        advanced by hand in tests.
        """
        self.schedule = schedule
        self.catalogue = catalogue
        self._shape_learning = shape_learning
        self._prompt_learning = prompt_learning
        self._prompt_tokens = prompt_tokens
        self._warmup = warmup
        self._idle_work = idle_work
        self._head_start = head_start
        self._shared = shared
        self._gate = gate
        self._slot = slot
        self._watch = watch
        self._metrics = metrics
        self._clock = clock
        # The numbers that were counted are shown by the gauges and by `/status`.
        self.tokens = prompt_tokens.counts
        self._readiness = Readiness(catalogue, schedule, slot, warmup, metrics, self.tokens)

    def forget(self, id: str) -> None:
        """Forget everything about a prompt that was removed, or replaced by another prompt with the same id.

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

        Computed anew at each call from the present files and slot, which is cheap, but not free.
        """
        return self._readiness.state(id)

    def progress(self, id: str) -> float:
        """Return how far a prompt is, from 0 to 1, as `Readiness.progress` does."""
        return self._readiness.progress(id)

    def note(self, id: str) -> str | None:
        """Return a warning about how clients use a prompt, if there is one.

        For operators.  For example, a client whose system message contains the time makes every warm-up useless, and
        only a change of the client can help.
        """
        return self._shape_learning.note(id) or self._prompt_learning.note(id)

    # The rounds.

    async def round(self) -> None:
        """Warm up what is due, one prompt after the other, until a user is at the gate; if none is, tidy up.

        Fires with nothing when there is nothing more to do, or a user has come.  Errors of llama-server do not make
        this fail: they are logged, counted, and lead to a pause.  Cancelling ends the work in progress; at most what
        was computed since the last save is lost.
        """
        # What users' requests have taught since the last round.  It needs llama-server, but not its slot.
        if self._watch.up and not self._gate.busy and self._prompt_learning.has_news:
            for id in await self._prompt_learning.study():
                self.forget_learned(id)
        # The conversation in the slot comes before learned prompts, because its client will probably be the next.  It
        # does not come before templates, whose warm-ups displace it in any case.
        if self._watch.up and not self._watch.process.props.asleep and not self._gate.busy:
            due = self.schedule.next(set())
            if due is None or due.prompt.learned is not None:
                await self._head_start.do()
        tried: set[str] = set()
        # All conditions are checked again before each prompt: the last warm-up may have taken minutes, in which
        # llama-server stopped, a user came, or an operator asked for a prompt.  A list that was made before the loop
        # would be out of date after the first ``await``.
        while self._watch.up and not self._gate.busy and (due := self.schedule.next(tried)) is not None:
            # Once in a round: a warm-up that fails at once would be repeated endlessly, and nothing else could run.
            tried.add(due.prompt.id)
            await self._try(due)
        # A llama-server that sleeps (``--sleep-idle-seconds``) is not woken up for this: waking up means loading the
        # model, and when it falls asleep again, what was restored into the slot is lost.
        if self._watch.up and not self._watch.process.props.asleep and not self._gate.busy:
            await self._idle_work.do()
        # The gauges are set in every round, also while users are at the gate: a file may have been deleted, or a text
        # edited, since the last round.
        self._readiness.show()

    async def _try(self, due: Due) -> None:
        """Warm one prompt up, unless a user comes.

        Fires with `None` in all cases; the outcome is reported to the schedule.  Fails only because of bugs.
        Cancelling ends the call to llama-server that is in progress.
        """
        prompt = due.prompt
        name = prompt.id
        began = self._clock.seconds()
        try:
            # Of several bioproxies that share their files only one computes a prompt, and the others fetch it.
            # A prompt that is to be warm in the slot alone is of use to this one only.
            if due.reason is not Reason.NOT_IN_SLOT and not await self._claim(prompt):
                return
            # Logged here and not in the gate, so that the line is also written for a warm-up that fails while its
            # tokens are requested.
            if self.schedule.begins(due):
                self.log.info("{prompt}: its warm-up starts: {reason}", prompt=prompt, reason=due.reason.value)
            # A file was restored and its tokens were not reused.  Perhaps the chat template makes other tokens of the
            # same text now, for example after midnight if it contains the date.  Cached tokens would hide that, so
            # llama-server is asked again.
            if self._slot.is_doubted(name):
                self._prompt_tokens.forget()
            # Outside the gate: llama-server tokenizes without its slot, so users need not wait for that.  So an
            # arriving user does not cancel this ``await`` either; it takes a second at most, for a very long text.
            tokens = await self._tokens_of(prompt)
            # A user may have come meanwhile.  The gate would turn the warm-up away then, and that would be counted as
            # an interruption, although nothing was begun.  From here to the gate there is no ``await``, so no user can
            # come in between.
            if self._gate.busy:
                return
            # The warm-up displaces what the slot holds, so afterwards something may have to be restored again.
            self._idle_work.slot_displaced()

            # Asked between two pieces, so that a text that was edited is not computed to its end, and once more at the
            # end.  Two prompts are equal if id, text, shape and source are.  Where learning is switched off meanwhile,
            # no file of a learned prompt may be written any more.
            def as_before() -> bool:
                return self.catalogue.get(name) == prompt and (prompt.learned is None or self.schedule.learns)

            done = await self._gate.warmup(lambda: self._warmup.run(prompt, tokens, as_before))
            # `done` is false if a user came.  That is no failure: there is no pause, and the next round that finds the
            # gate free tries again.  Otherwise the warm-up was not interrupted, but its text may have changed
            # meanwhile: then it stopped between two pieces, or has just saved an old text.  An interruption and a
            # changed text both count as "preempted".  Only changed texts lead to pauses, after several in a row,
            # because the text would probably change again.
            if done and as_before():
                self.schedule.succeeded(name)
            else:
                self._metrics.warmups.labels(metric_label(name), "preempted").inc()
                # An operator may have had a learned prompt forgotten while its file was being saved.  Then the file has
                # been recorded after all others were removed, and nobody would ever ask for it.
                if prompt.learned is not None and self.catalogue.get(name) is None:
                    self.forget_learned(name)
                elif done:
                    self.schedule.changed(name)
        except TooShort:
            # Its tokens were only estimated when it was learned.
            self.forget_learned(name)
        except (DoesNotFit, Unusable, TooLarge) as error:
            # A later try would not help.  Another text, another model or a larger context would, and the schedule
            # notices each of these, because a failure is recorded together with them (`Schedule.about`).  So would a
            # higher limit of files: a reload of the configuration has the failures of learned prompts forgotten.
            self._failed(prompt, str(error), None)
        except (LlamaCallFailed, SaveFailed, OSError) as error:
            # llama-server, saving the slot, or writing the record has failed.  Any other exception is a bug: `Periodic`
            # logs it, and still starts the next round.  `CancelledError` comes at the stop, and must be passed on.
            self._failed(prompt, str(error), self._clock.seconds() - began)
        finally:
            # Also after an interruption: another bioproxy may have more time for it, and the warm-up may have displaced
            # another prompt that was warm in the slot only.
            self._shared.release(name)
            self._readiness.show()

    async def _claim(self, prompt: Prompt) -> bool:
        """Fire with whether this bioproxy is to compute a prompt.  Fails as `LlamaApi`'s calls do."""
        if not self._shared.usable:
            return True
        # Files are shared by model.  To find out which one runs overwrites the slot, as the warm-up would.
        if not self._slot.model_is_known and not await self._gate.warmup(self._slot.find_out_model):
            return False
        claimed = await self._shared.claim(prompt.id, prompt.key)
        # Fetched, which is as good as computed here.
        if not claimed and self._slot.saved(prompt.id, prompt.key) is not None:
            self.schedule.succeeded(prompt.id)
        return claimed

    async def _tokens_of(self, prompt: Prompt) -> list[int]:
        """Have llama-server turn a prompt into tokens.  Fires, fails and is cancelled as `PromptTokens.of`."""
        try:
            return await self._prompt_tokens.of(prompt, self._watch.process.props.context, self.schedule.about(prompt))
        except LlamaError as error:
            # A chat template may refuse what a client sent, for example tools that it does not support, and would
            # refuse it each time.  Then the shape without system message and tools is more likely to work.  Status 503
            # is different: llama-server is loading its model, and has not read the request.
            if prompt.learned is None and prompt.shape != USER_MESSAGE_ONLY and error.status != 503:
                self._shape_learning.refused(prompt.id)
            raise

    def _failed(self, prompt: Prompt, text: str, took: float | None) -> None:
        """Report a failed try to the schedule, the metrics and the log.

        `text` says what failed, in words for an operator.  `took` is how many seconds the try took; the pause is in
        proportion to that.  `None` means that trying again would be useless.
        """
        self._metrics.warmups.labels(metric_label(prompt.id), "failed").inc()
        # A lasting problem is logged once, not for each try.  `/status` shows the problem while it lasts, and the
        # counter grows with each try, so that an alert can watch its rate.
        if self.schedule.failed(prompt, text, took):
            self.log.warn("{prompt} cannot be warmed up: {text}", prompt=prompt, text=text)

    def forget_learned(self, id: str) -> bool:
        """Forget a learned prompt or a conversation, with its files; return whether there was one."""
        known = self._prompt_learning.forget(id)
        self.forget(id)
        return self._slot.remove_files(id) or known
