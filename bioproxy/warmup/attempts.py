"""One try to warm a prompt up, from the moment when it is due to what came of it.

A try has four steps: it is settled that this bioproxy is the one to do it (`bioproxy.shared`); llama-server turns the
prompt into tokens; the gate lets the warm-up in, if no user is there; and `bioproxy.warmup.warmup` has the tokens
processed and saved.  Each step may be the last one.  What came of the try is told to the schedule, which decides when
the next one may come, to the metrics, and to the log.

A user may come at any moment, and then the gate cancels the warm-up: the innermost ``await`` raises `CancelledError`,
and `Gate.warmup` catches it and fires with ``False``.  So an interruption arrives here as a result, and every error as
an exception.  The first two steps happen outside the gate; users need not wait for them, and do not cancel them.

Between two ``await``s nothing else runs.  So what was checked before an ``await`` must be checked again behind it: the
text may have been edited meanwhile, the prompt forgotten, or a user may have come.

Does not know why a prompt is due, what is done when none is, or what a piece of a warm-up is.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.gate.gate import Gate
from bioproxy.learning.shape_learning import ShapeLearning
from bioproxy.llama.prefix_tokens import DoesNotFit
from bioproxy.prompts.catalogue import Catalogue, Prompt
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.shelf import SharedShelf
from bioproxy.slot.slot import Slot
from bioproxy.slot_files.save_failures import SaveFailed, TooLarge
from bioproxy.warmup.due_reasons import Due, Reason
from bioproxy.warmup.forgetting import Forgetting
from bioproxy.warmup.idle_work import IdleWork
from bioproxy.warmup.prompt_tokens import PromptTokens, TooShort, UnusablePrompt
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.warmup import Warmup


class Attempts:
    """Tries to warm prompts up, one at a time.

    Invariant: each try that was begun ends with a report to the schedule, unless a user interrupted it; then the prompt
    is still due.
    """

    log = Logger()

    def __init__(
        self,
        schedule: Schedule,
        catalogue: Catalogue,
        shape_learning: ShapeLearning,
        prompt_tokens: PromptTokens,
        warmup: Warmup,
        idle_work: IdleWork,
        shared: SharedShelf,
        gate: Gate,
        slot: Slot,
        forgetting: Forgetting,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        """Store the parts; nothing is asked before the first try.

        `schedule` is told what came of a try, `catalogue` has each prompt as it is now, and `shape_learning` hears of
        shapes that llama-server refuses.  `prompt_tokens` turns a prompt into tokens, and `warmup` has these processed,
        inside `gate`.  `idle_work` is told that the slot is about to lose what it holds, and `shared` settles who of
        several bioproxies computes.  `slot` tells which files may be used, and `forgetting` has a learned prompt
        forgotten.  `metrics` counts the outcomes; `clock` measures how long a failing try took, by which the pause
        after it is sized.
        """
        self._schedule = schedule
        self._catalogue = catalogue
        self._shape_learning = shape_learning
        self._prompt_tokens = prompt_tokens
        self._warmup = warmup
        self._idle_work = idle_work
        self._shared = shared
        self._gate = gate
        self._slot = slot
        self._metrics = metrics
        self._clock = clock
        self._forgetting = forgetting

    async def try_once(self, due: Due) -> None:
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
            if self._schedule.begins(due):
                self.log.info("{prompt}: its warm-up starts: {reason}", prompt=prompt, reason=due.reason.value)
            # A file was restored and its tokens were not reused.  Perhaps the chat template makes other tokens of the
            # same text now, for example after midnight if it contains the date.  Cached tokens would hide that, so
            # llama-server is asked again.
            if self._slot.facts.is_doubted(name):
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
                return self._catalogue.get(name) == prompt and (prompt.learned is None or self._schedule.learns)

            done = await self._gate.warmup(lambda: self._warmup.run(prompt, tokens, as_before))
            # `done` is false if a user came.  That is no failure: there is no pause, and the next round that finds the
            # gate free tries again.  Otherwise the warm-up was not interrupted, but its text may have changed
            # meanwhile: then it stopped between two pieces, or has just saved an old text.  An interruption and a
            # changed text both count as "preempted".  Only changed texts lead to pauses, after several in a row,
            # because the text would probably change again.
            if done and as_before():
                self._schedule.succeeded(name)
            else:
                self._metrics.warmups.labels(metric_label(name), "preempted").inc()
                # An operator may have had a learned prompt forgotten while its file was being saved.  Then the file has
                # been recorded after all others were removed, and nobody would ever ask for it.
                if prompt.learned is not None and self._catalogue.get(name) is None:
                    self._forgetting.forget_learned(name)
                elif done:
                    self._schedule.changed(name)
        except TooShort:
            # Its tokens were only estimated when it was learned.
            self._forgetting.forget_learned(name)
        except (DoesNotFit, UnusablePrompt, TooLarge) as error:
            # A later try would not help.  Another text, another model or a larger context would, and the schedule
            # notices each of these, because a failure is recorded together with them.  So would a
            # higher limit of files: a reload of the configuration has the failures of learned prompts forgotten.
            self._failed(prompt, str(error), None)
        except (LlamaCallFailed, SaveFailed, OSError) as error:
            # llama-server, saving the slot, or writing the record has failed.  Any other exception is a bug: `Periodic`
            # logs it, and still starts the next round.  `CancelledError` comes at the stop, and must be passed on.
            self._failed(prompt, str(error), self._clock.seconds() - began)
        finally:
            # Also after an interruption: another bioproxy may have more time for it.
            self._shared.release(name)

    async def _claim(self, prompt: Prompt) -> bool:
        """Fire with whether this bioproxy is to compute a prompt.  Fails as `LlamaApi`'s calls do."""
        if not self._shared.usable:
            return True
        # Files are shared by model.  To find out which one runs overwrites the slot, as the warm-up would.
        if not self._slot.facts.model_is_known and not await self._gate.warmup(self._slot.find_out_model):
            return False
        claimed = await self._shared.claim(prompt.id, prompt.key)
        # Fetched, which is as good as computed here.
        if not claimed and self._slot.facts.saved(prompt.id, prompt.key) is not None:
            self._schedule.succeeded(prompt.id)
        return claimed

    async def _tokens_of(self, prompt: Prompt) -> list[int]:
        """Have llama-server turn a prompt into tokens.  Fires, fails and is cancelled as `PromptTokens.of`."""
        try:
            return await self._prompt_tokens.of(prompt)
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
        if self._schedule.failed(prompt, text, took):
            self.log.warn("{prompt} cannot be warmed up: {text}", prompt=prompt, text=text)
