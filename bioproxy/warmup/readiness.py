"""Says how warm each prompt is: for `/status`, the live page, the metrics, and the explanation of a cold answer.

A prompt is *warm* if the next question on it finds it processed: in the slot, or in a file that may be restored.  That
is never stored, because half of what it depends on changes without notice: a file is edited or deleted,
llama-server is restarted with another model, a user's question takes the slot.  So it is worked out each time that
somebody asks, from what the parts believe at that moment.  Asking costs a `stat` of one file.

Nothing here awaits anything.  Twisted runs one thing at a time, so an answer that is put together without an ``await``
is consistent: there is no moment at which a prompt is shown as warm and its progress as 10 %.

Changes nothing but the gauges, and does not know what is done about a prompt that is cold.
"""

from __future__ import annotations

from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.learning.shape_learning import ShapeLearning
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.prompt_ids import is_learned
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.slot import Slot
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.warmup import Warmup


class Readiness:
    """The state of every prompt in a catalogue.

    Invariant: apart from the number of tokens, nothing is remembered; two calls without an ``await`` in between agree.
    """

    catalogue: Catalogue
    """Which prompts there are."""

    schedule: Schedule
    """Which of them is due, and what operators and users asked for."""

    tokens: dict[str, int]
    """The number of tokens of each prompt, by id, where they were counted; 0 if there are too many to count."""

    def __init__(
        self,
        catalogue: Catalogue,
        schedule: Schedule,
        slot: Slot,
        warmup: Warmup,
        shape_learning: ShapeLearning,
        prompt_learning: PromptLearning,
        metrics: Metrics,
        tokens: dict[str, int],
    ) -> None:
        """Ask these parts for each answer, and set the gauges of `metrics`; three are attributes of this object."""
        self.catalogue = catalogue
        self.schedule = schedule
        self.tokens = tokens
        self._shape_learning = shape_learning
        self._prompt_learning = prompt_learning
        self._slot = slot
        self._warmup = warmup
        self._metrics = metrics

    def state(self, id: str) -> tuple[str, str | None]:
        """Return a prompt's state and what is wrong with it, if anything is.

        The state is ``cold``, ``warming`` (its warm-up is inside the gate), ``warm``, or ``error`` (its last warm-up
        failed, or its file cannot be read).
        """
        prompt = self.catalogue.get(id)
        trouble = None if prompt is None else self.schedule.trouble(prompt)
        problems = [*self.catalogue.problems(id), *([] if trouble is None else [trouble])]
        # The error that a client gets names the template.  Here the name stands beside the error already.
        error = "; ".join(problem.removeprefix(f"template {id}: ") for problem in problems) or None
        # Without a problem and without a text: the file was not read yet, just after the start.  That is no error.
        if prompt is None:
            return ("error" if error else "cold"), error
        # Before the question whether it is warm: a warm-up that an operator asked for shows as one, also of a prompt
        # that the slot or an older file has.
        if self.current == id:
            return "warming", error
        # A prompt can be warm although something is wrong: an include that cannot be read leaves a text with a remark
        # in its place, and that text can be warmed up.  And a prompt whose last warm-up failed can be warm in the slot,
        # after a user's question on it.
        if self._slot.holds(prompt.key) or self._slot.facts.saved(id, prompt.key):
            return "warm", error
        return ("error" if trouble is not None else "cold"), error

    def progress(self, id: str) -> float:
        """Return how far a prompt is: from 0, nothing is processed or there is no text, to 1, warm."""
        prompt = self.catalogue.get(id)
        if prompt is None or self.state(id)[0] == "warm":
            return float(prompt is not None)
        # An interrupted warm-up goes on where it was, so what it reached still counts; not for another text, though.
        return self._warmup.unfinished(id, prompt.key) or 0.0

    @property
    def current(self) -> str | None:
        """The id of the prompt that is inside the gate for a warm-up, if any."""
        return self._warmup.current

    def note(self, id: str) -> str | None:
        """Return a warning about how clients use a prompt, if there is one.

        For operators.  For example, a client whose system message contains the time makes every warm-up useless, and
        only a change of the client can help.
        """
        return self._shape_learning.note(id) or self._prompt_learning.note(id)

    def show(self) -> None:
        """Bring the gauges up to date.

        Prometheus asks at any time, so this is called after each change that the warmer knows of, and in each round for
        all others.  A gauge that looked for itself would look at files for each scrape, and outlive its prompt.
        """
        # Learned prompts have no gauge of their own: each would be a time series, and they come and go.
        for id in self.catalogue:
            if is_learned(id):
                continue
            self._metrics.template_warm.labels(id).set(self.state(id)[0] == "warm")
            self._metrics.template_tokens.labels(id).set(self.tokens.get(id, 0))
