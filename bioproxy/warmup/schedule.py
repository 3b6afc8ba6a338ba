"""Decides which prompt is warmed up next.

Whether a prompt is due at all is decided by `bioproxy.warmup.due`, from facts that are collected here.  Among those
that are due the order is:

1. what an operator asked for;
2. what the slot holds already: it only has to be saved, and the next request may displace it;
3. templates as they were used last, the latest one at the end, so that the slot is left with the prompt that will
   probably be asked for next;
4. what was learned from requests.

A prompt whose last warm-ups came to nothing has to wait for a while (`bioproxy.warmup.outcomes`).

No list of jobs is kept.  The schedule is worked out anew each time that `bioproxy.warmup.warmer` asks, which is twice a
second, from what is known then.  A queue of jobs would have to be corrected at each edit of a template, each restart of
llama-server and each question; a schedule that is derived from the present state cannot be out of date.

Starts nothing, waits for nothing, and knows nothing of pieces or tokens: the warmer does the work, and reports the
outcome here.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from twisted.internet.interfaces import IReactorTime

from bioproxy.learning.shape_learning import ShapeLearning
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.catalogue import Catalogue, Prompt, Source
from bioproxy.slot.slot import Slot
from bioproxy.warmup.due import Facts, decide
from bioproxy.warmup.due_reasons import Due, Hold, NotDue
from bioproxy.warmup.outcomes import Outcomes

QUIET = 1.0
"""Seconds without any user at the gate before a learned prompt is warmed up.

An agent's requests follow each other quickly, with a tool's work in between, and a warm-up would take the slot from it
each time.  Halved, that happens more often; doubled, an agent without longer pauses is learned later.
"""


class Schedule:
    """Which of a catalogue's prompts is warmed up next.

    Invariant: nothing here is about llama-server's or the slot's present state, which is asked each time.  What is kept
    is what people asked for, and what came of the last tries.
    """

    ahead: bool
    """Whether prompts are warmed up before any user has asked for them.  Changes when the configuration is reloaded."""

    learns: bool
    """Whether learned prompts are warmed up at all.  May be changed at any time."""

    wanted: set[str]
    """The ids of the prompts that an operator wants to be warmed up now.

    An id stays until its warm-up has succeeded or failed, over all interruptions by users.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        shape_learning: ShapeLearning,
        slot: Slot,
        watch: ProcessWatch,
        clock: IReactorTime,
        ahead: bool,
        idle_seconds: Callable[[], float],
        learns: bool = True,
        is_computed_elsewhere: Callable[[str], bool] = lambda id: False,
    ) -> None:
        """Keep what is asked when something is to be decided; nothing is asked yet.

        `catalogue` has the prompts, and `shape_learning` the order in which they were used.  `slot`, with its files and
        its content, tells what is warm, and `watch` in what state llama-server is.  `clock` is what pauses are measured
        by.  `ahead` and `learns` are first values of the attributes.  `idle_seconds` tells for how long no user was at
        the gate, and `is_computed_elsewhere` of other bioproxies' warm-ups.
        """
        self.ahead = ahead
        self.learns = learns
        self.wanted = set()
        self._catalogue = catalogue
        self._shape_learning = shape_learning
        self._slot = slot
        self._watch = watch
        self._idle_seconds = idle_seconds
        self._is_computed_elsewhere = is_computed_elsewhere
        # Ids that users have asked for since the start.  Not kept over a restart: with warm-ups ahead switched off,
        # none is wanted before the first question.
        self._asked: set[str] = set()
        # The id that an operator has asked for last, as long as no user has asked for any prompt since.
        self._chosen: str | None = None
        # What came of the last tries.  What the warmer reports without this class having a part in it goes there
        # directly.
        self._outcomes = Outcomes(clock)
        self.begins = self._outcomes.begins
        self.changed = self._outcomes.changed

    def look(self, id: str) -> Due | NotDue:
        """Return whether the prompt with this id is due now, and why.

        Sends nothing and changes nothing, so `/status` may call this at any time.  Looks at one file.
        """
        prompt = self._catalogue.get(id)
        return NotDue(Hold.NO_TEXT) if prompt is None else decide(prompt, self._facts(prompt))

    def next(self, tried: Set[str]) -> Due | None:
        """Return the prompt to warm up now, if there is any; none whose id is in `tried`.

        `tried` are the ids that the present round has tried already: what came of it may be that they are still due.
        """
        # `min` takes the first of equals, so prompts without any question so far come in the order of the
        # configuration.
        looks = (self.look(id) for id in self._catalogue if id not in tried)
        return min((look for look in looks if isinstance(look, Due)), default=None, key=self._order)

    def favourite(self) -> Prompt | None:
        """Return the prompt that will probably be asked for next: the last one, or else the first that there is.

        A prompt that an operator asked for since then comes first.
        """
        # Asked again from the catalogue, because the prompt may have got another text since the operator chose it.  One
        # that cannot be read, or has nothing to process, is not worth the slot.
        chosen = None if self._chosen is None else self._catalogue.get(self._chosen)
        if chosen is not None and not chosen.empty:
            return chosen
        # Among prompts without any question so far the first one wins: `max`, like `min`, takes the first of equals.
        known = map(self._catalogue.get, self._catalogue)
        usable = [prompt for prompt in known if prompt is not None and not prompt.empty]
        return max(usable, default=None, key=lambda prompt: self._shape_learning.turn(prompt.id))

    def trouble(self, prompt: Prompt) -> str | None:
        """Return what went wrong with a prompt's last warm-up, if that is still so.

        Also after the pause, until a try succeeds: the next try may fail for the same reason.
        """
        trouble = self._outcomes.failures.current(prompt.id, self._about(prompt))
        return None if trouble is None else trouble.text

    # What people ask for.

    def asked(self, id: str) -> None:
        """Note that a user asked for a prompt: it is worth a file, even where warm-ups ahead are switched off.

        Called by the proxy for each request that names a prompt, when the request is inside the gate.
        """
        self._asked.add(id)
        # `shape_learning` notes the order of use, but only after the answer, and only of requests that were answered.
        # The latest wish counts, a user's as much as an operator's: where only the slot can be warm, this prompt gets
        # the slot now.
        self._chosen = None

    def want(self, id: str) -> None:
        """Have a prompt warmed up next, for an operator: even if it is warm, or its warm-ups pause after failures.

        Only a note: the warm-up begins in the next round, when no user is at the gate.
        """
        self.wanted.add(id)
        self._chosen = id
        self._outcomes.end_pauses(id)
        # Until that round nothing else is done about it: `wanted` is looked at before all pauses.  Files may have
        # been given up after failed saves, and are tried again.  The old file must not make the warm-up end early.
        self._slot.discard_prompt_file(id)

    def forget(self, id: str) -> None:
        """Forget all about a prompt: it is gone, or another one with this id has come.

        Without this a template that gets another file under its old name would inherit the old one's failures.
        """
        # What a success forgets has to be forgotten here, too.
        self.succeeded(id)
        self._asked.discard(id)
        if self._chosen == id:
            self._chosen = None

    # What came of the tries.

    def succeeded(self, id: str) -> None:
        """Note that a prompt is warm now, whether something had to be computed for that or not."""
        self.wanted.discard(id)
        self._outcomes.forget(id)

    def failed(self, prompt: Prompt, text: str, took: float | None) -> bool:
        """Note a failed warm-up; return whether the failure is news.

        `text` says what failed.  `took` is how many seconds the try took, or `None` if trying again would be useless.
        The failure counts for the prompt that was tried: if its text changed meanwhile, the new text need not wait.
        """
        # An operator's wish is for one try that users do not interrupt; an interrupted one leaves the wish in place.
        # If the wish stayed, the prompt would never pause after failures.
        self.wanted.discard(prompt.id)
        return self._outcomes.failures.failed(prompt.id, self._about(prompt), text, took)

    def _about(self, prompt: Prompt) -> object:
        """Return what a failure is about: when it is another, the next try may succeed.  Only good for comparing."""
        # Equal prompts have equal tokens only with one chat template and tokenizer, and these are llama-server's.
        # `process` is a new object for each process of llama-server, which may have another model, or another context.
        return prompt.key, self._watch.process

    def _order(self, due: Due) -> tuple[bool, bool, bool, int]:
        """Return what prompts that are due are sorted by: four values, of which the first that differs decides."""
        # False comes before True, so each question is asked the wrong way round.  The last value is small for what was
        # used long ago, or never: the prompt that was used last is warmed up last, and stays in the slot.
        prompt = due.prompt
        # Held prompts come early for a second reason: a piece of another warm-up would displace what only has to be
        # saved, and then it would have to be computed.
        held = self._slot.holds(prompt.key)
        learned = prompt.source is Source.LEARNED
        return prompt.id not in self.wanted, not held, learned, self._shape_learning.turn(prompt.id)

    def _facts(self, prompt: Prompt) -> Facts:
        """Collect what is known now and matters for a prompt.

        Everything is collected before anything is decided, although mostly the first fact decides.  That costs a `stat`
        or two for each prompt and round, some microseconds.  In return the decision is a table that can be tested line
        by line, without a slot, files or a clock.
        """
        name, key = prompt.id, prompt.key
        slot = self._slot
        recorded, usable = slot.facts.recorded_file(name), slot.facts.may_use_files
        return Facts(
            up=self._watch.up,
            asleep=self._watch.process.props.asleep,
            files_known=slot.facts.llama_keeps_files is not None,
            files_usable=usable,
            model_known=slot.facts.model_is_known,
            wanted=name in self.wanted,
            allowed=self.ahead or name in self._asked,
            # Only while the pause lasts: afterwards a failure is history, and no fact that speaks against a try.
            failure=self._outcomes.failures.waiting(name, self._about(prompt)),
            change=self._outcomes.changes.waiting(name),
            recorded=recorded,
            # Looked up on disk, where the folder can be seen: somebody may have deleted the file.
            whole=recorded is None or slot.facts.is_intact(recorded),
            saved=slot.facts.saved(name, key) is not None,
            # `saved` is false for a prompt in doubt; the doubt itself is only needed as the reason.
            doubted=slot.facts.is_doubted(name),
            held=slot.holds(key),
            slot_seen=slot.tells_content,
            # To find the favourite all prompts are compared, so it is only done where the answer matters.
            favourite=not usable and prompt == self.favourite(),
            # By name, not by key: a conversation in another shape is the user's, too.
            left_by_user=slot.is_used_by_user(name),
            learns=self.learns,
            elsewhere=self._is_computed_elsewhere(name),
            quiet=self._idle_seconds() >= QUIET,
        )
