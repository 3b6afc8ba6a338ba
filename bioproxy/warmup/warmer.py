"""Warms prompts up, for as long as no user needs llama-server.

A *round* starts twice a second.  Usually all prompts are warm, and the round ends.  Otherwise the round takes each
prompt that is due, in the order of `bioproxy.warmup.schedule`, and has it tried once (`bioproxy.warmup.attempts`).
When nothing is due, the round saves a conversation that a user left in the slot, or restores the prompt that will
probably be asked for next.

The idea of Twisted in this module is cancellation.  A round is a coroutine that awaits Deferreds.  When a user arrives,
`bioproxy.gate.gate` cancels the Deferred of the warm-up inside the gate.  The innermost ``await`` (usually for an
answer of llama-server) then raises `CancelledError`, the ``finally`` and ``with`` blocks around it clean up, and the
connection to llama-server is closed, which tells llama-server to stop.  The gate catches the error and returns
``False``, so the round continues, finds the gate in use, and ends.  A later round tries again.

A round is started by `bioproxy.runtime.periodic.Periodic`, never while the last one still runs.  So two warm-ups never
overlap, however long one takes, and no lock is needed.

This module does not know what is due and why, what a warm-up takes, or what comes of one that fails.  It puts the work
of quiet moments into an order, and answers for all of it what operators ask.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from bioproxy.gate.gate import Gate
from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.learning.shape_learning import ShapeLearning
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.shelf import SharedShelf
from bioproxy.slot.slot import Slot
from bioproxy.warmup.attempts import Attempts
from bioproxy.warmup.head_start import HeadStart
from bioproxy.warmup.idle_work import IdleWork
from bioproxy.warmup.prompt_tokens import PromptTokens
from bioproxy.warmup.readiness import Readiness
from bioproxy.warmup.schedule import Schedule
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
        self._warmup = warmup
        self._idle_work = idle_work
        self._head_start = head_start
        self._gate = gate
        self._slot = slot
        self._watch = watch
        # The numbers that were counted are shown by the gauges and by `/status`.
        self.tokens = prompt_tokens.counts
        self._readiness = Readiness(catalogue, schedule, slot, warmup, metrics, self.tokens)
        # Used only through the warmer, so it is made here.  Both forget prompts: operators do so at any time, through
        # the warmer, and a try that finds a learned prompt to be too short does, too.  Hence the bound method at the
        # end: it is called later, when this constructor has long returned.
        self._attempts = Attempts(
            schedule,
            catalogue,
            shape_learning,
            prompt_tokens,
            warmup,
            idle_work,
            shared,
            gate,
            slot,
            watch,
            metrics,
            clock,
            self._readiness.show,
            self.forget_learned,
        )

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
        # A try may leave its prompt due, for example because the text has changed meanwhile.  Without this set the loop
        # below would take the same prompt again at once, for as long as the gate is free.
        tried: set[str] = set()
        # All conditions are checked again before each prompt: the last warm-up may have taken minutes, in which
        # llama-server stopped, a user came, or an operator asked for a prompt.  A list that was made before the loop
        # would be out of date after the first ``await``.
        while self._watch.up and not self._gate.busy and (due := self.schedule.next(tried)) is not None:
            tried.add(due.prompt.id)
            await self._attempts.try_once(due)
        # A llama-server that sleeps (``--sleep-idle-seconds``) is not woken up for this: waking up means loading the
        # model, and when it falls asleep again, what was restored into the slot is lost.
        if self._watch.up and not self._watch.process.props.asleep and not self._gate.busy:
            await self._idle_work.do()
        # The gauges are set in every round, also while users are at the gate: a file may have been deleted, or a text
        # edited, since the last round.
        self._readiness.show()

    def forget_learned(self, id: str) -> bool:
        """Forget a learned prompt or a conversation, with its files; return whether there was one."""
        known = self._prompt_learning.forget(id)
        self.forget(id)
        return self._slot.remove_files(id) or known
