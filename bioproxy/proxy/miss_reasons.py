"""Why was it cold?  In words that tell an operator what to do, or that nothing need be done.

A question on a template should reuse what was computed for the template.  When it does not, somebody waited, and wants
to know why.  `bioproxy.slot.slot` knows the reason as one word, which programs can count; here is what there is to say
beside it. No text of any message is in that, at most the names of a request's fields.
"""

from __future__ import annotations

from bioproxy.prompts.filling import FilledRequest
from bioproxy.prompts.prompt_shape import Shape
from bioproxy.slot.slot import Slot
from bioproxy.warmup.shape_learning import ShapeLearning
from bioproxy.warmup.warmer import Warmer
from bioproxy.warmup.warmup import Warmup

MEANINGS = {
    "first": "nobody had asked for it before, and its warm-up had not begun",
    "warming": "its warm-up has begun, and was not through when the question came",
    "no-file": "its slot file is missing, or was changed by somebody else",
    "other-model": "its slot file was made with another model",
    "content-changed": "its text has changed, and the warm-up of the new text had not begun",
    "shape-changed": "what stands before it in the request is not what it was warmed up with",
    "slot-taken": "something else took the slot, and there is no slot file",
    "ineffective": "what the slot held, or a file brought back, was not reused",
}
"""The reasons, in words."""

NOTHING_READY = frozenset({"first", "content-changed", "slot-taken"})
"""The reasons that say no more than that nothing is ready yet.

If the prompt's warm-up is under way, that is the better reason: it says why, and that waiting helps.  The other reasons
name something that a warm-up's progress would hide, for example a file of another model.
"""

NEARLY_ALL = 0.9
"""The part of a template's tokens whose reuse is no miss: models with checkpoints begin again a little earlier."""


class MissReasons:
    """Explains misses."""

    def __init__(self, shape_learning: ShapeLearning, warmer: Warmer, warmup: Warmup, slot: Slot) -> None:
        self._shape_learning = shape_learning
        self._warmer = warmer
        self._warmup = warmup
        self._slot = slot

    def reason(self, filled: FilledRequest, miss: str) -> str:
        """Return the word for a miss: the one that the slot found, or ``warming`` where that says more."""
        # The request itself has interrupted the warm-up when it arrived, so no warm-up runs now.  What an interruption
        # leaves behind is the progress, until a later try finishes the warm-up.  A failure leaves it behind as well,
        # but then the trouble is the reason, and the warm-up is paused.
        name = filled.template.name
        if miss not in NOTHING_READY or self._warmup.unfinished(name, filled.key) is None:
            return miss
        return miss if self._warmer.state(name)[0] == "error" else "warming"

    def detail(self, filled: FilledRequest, miss: str) -> str | None:
        """Return what there is to say about a miss that was found before the request was sent, if anything."""
        name = filled.template.name
        if not filled.reusable:
            return "the request reuses nothing: cache_prompt is off, or it has adapters or several prompts"
        if miss == "shape-changed":
            return self._difference(name, filled.shape)
        if miss == "ineffective":
            return (
                self._slot.restore_trouble or "its tokens will be looked at again: does the chat template tell a date?"
            )
        if miss == "warming":
            return f"its warm-up is at {self._warmup.unfinished(name, filled.key) or 0:.0%}"
        return self._warmer.state(name)[1]

    def _difference(self, name: str, shape: Shape) -> str:
        """Say how a shape differs from the one that is warm, and from that of the question before."""
        usual, before = self._shape_learning.shape(name), self._shape_learning.other(name)
        if usual == shape:
            return "it is to be warmed up with that now"
        said = usual.difference(shape)
        if before is None or before == shape:
            return said
        return f"{said}; since the question before: {before.difference(shape)}"

    def afterwards(self, filled: FilledRequest, reused: int) -> str | None:
        """Return what there is to say if fewer tokens were reused than the template has; `None` if not."""
        saved = self._slot.saved(filled.template.name, filled.key)
        tokens = saved.tokens if saved is not None else self._warmer.tokens.get(filled.template.name, 0)
        if reused >= tokens * NEARLY_ALL:
            return None
        return f"{reused} of its {tokens} tokens were reused"
