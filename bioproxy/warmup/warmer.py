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
of quiet moments into an order.
"""

from __future__ import annotations

from bioproxy.gate.gate import Gate
from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.warmup.attempts import Attempts
from bioproxy.warmup.forgetting import Forgetting
from bioproxy.warmup.head_start import HeadStart
from bioproxy.warmup.idle_work import IdleWork
from bioproxy.warmup.readiness import Readiness
from bioproxy.warmup.schedule import Schedule

INTERVAL = 0.5
"""Seconds between rounds.

Halved: warm-ups start a quarter of a second earlier on average, and an idle bioproxy does twice the work.  Doubled: a
user who comes right after an edit is more likely to find the old text's file.
"""


class Warmer:
    """Keeps every prompt of a catalogue warm, as far as users leave time for that.

    Invariant: the warmer uses the slot only inside the gate, for one warm-up, save or restore at a time.
    """

    def __init__(
        self,
        schedule: Schedule,
        prompt_learning: PromptLearning,
        attempts: Attempts,
        head_start: HeadStart,
        idle_work: IdleWork,
        readiness: Readiness,
        forgetting: Forgetting,
        gate: Gate,
        watch: ProcessWatch,
    ) -> None:
        """Store the parts; no request is sent and nothing is started before the first round.

        `schedule` says what is due, and `prompt_learning` what is to be learned.  `attempts` tries to warm a prompt up,
        `head_start` is done right after an answer, and `idle_work` when nothing is due.  `readiness` has the gauges,
        and `forgetting` has a prompt forgotten.  `gate` tells whether a user is there; `watch` whether llama-server is
        up, awake, and still the same process.
        """
        self._schedule = schedule
        self._prompt_learning = prompt_learning
        self._attempts = attempts
        self._head_start = head_start
        self._idle_work = idle_work
        self._readiness = readiness
        self._forgetting = forgetting
        self._gate = gate
        self._watch = watch

    async def round(self) -> None:
        """Warm up what is due, one prompt after the other, until a user is at the gate; if none is, tidy up.

        Fires with nothing when there is nothing more to do, or a user has come.  Errors of llama-server do not make
        this fail: they are logged, counted, and lead to a pause.  Cancelling ends the work in progress; at most what
        was computed since the last save is lost.
        """
        # What users' requests have taught since the last round.  It needs llama-server, but not its slot.
        if self._watch.up and not self._gate.busy and self._prompt_learning.has_news:
            for id in await self._prompt_learning.study():
                self._forgetting.forget_learned(id)
        # The conversation in the slot comes before learned prompts, because its client will probably be the next.  It
        # does not come before templates, whose warm-ups displace it in any case.
        if self._watch.up and not self._watch.process.props.asleep and not self._gate.busy:
            due = self._schedule.next(set())
            if due is None or due.prompt.learned is not None:
                await self._head_start.do()
        # A try may leave its prompt due, for example because the text has changed meanwhile.  Without this set the loop
        # below would take the same prompt again at once, for as long as the gate is free.
        tried: set[str] = set()
        # All conditions are checked again before each prompt: the last warm-up may have taken minutes, in which
        # llama-server stopped, a user came, or an operator asked for a prompt.  A list that was made before the loop
        # would be out of date after the first ``await``.
        while self._watch.up and not self._gate.busy and (due := self._schedule.next(tried)) is not None:
            tried.add(due.prompt.id)
            await self._attempts.try_once(due)
            # Whatever came of the try: it may have displaced another prompt that was warm in the slot only.
            self._readiness.show()
        # A llama-server that sleeps (``--sleep-idle-seconds``) is not woken up for this: waking up means loading the
        # model, and when it falls asleep again, what was restored into the slot is lost.
        if self._watch.up and not self._watch.process.props.asleep and not self._gate.busy:
            await self._idle_work.do()
        # The gauges are set in every round, also while users are at the gate: a file may have been deleted, or a text
        # edited, since the last round.
        self._readiness.show()
