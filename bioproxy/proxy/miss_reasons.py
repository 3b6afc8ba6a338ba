"""Explains why an answer on a template was cold, in words that tell an operator what to do, or that waiting is enough.

A question on a template should reuse what was computed for the template.  When it does not, somebody waited and wants
to know why.  The explanation has two parts: a *miss*, one word from a fixed list that programs can count, and a
*detail*, a sentence that only some misses have.  The slot finds most of the words (`bioproxy.slot.plan`), because it
knows what it looked for and did not find.  This module adds what the slot cannot know: that a warm-up is in progress,
what went wrong with the last one, and how the request differs from the one that was expected.

No text of any message is in a detail, at most the names of a request's fields: details are in headers, in the log and
in `/status`.

On Twisted: nothing here awaits anything.  Other code runs only during an ``await``, so a miss and its detail are about
the same moment, although each looks at the warm-ups anew.  Does not know HTTP, and changes nothing.
"""

from __future__ import annotations

from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.learning.prompt_rules import why_not
from bioproxy.learning.shape_learning import ShapeLearning
from bioproxy.prompts.prompt_shape import Shape
from bioproxy.proxy.asked import Asked
from bioproxy.slot.facts import PromptFacts
from bioproxy.warmup.readiness import Readiness
from bioproxy.warmup.warmup import Warmup

MEANINGS = {
    "first": "nobody has asked for the template before, and its warm-up had not begun",
    "warming": "its warm-up has begun, and was not finished when the question came",
    "no-file": "its slot file is missing, or was changed by another program",
    "other-model": "its slot file was made with another model",
    "content-changed": "its text has changed, and the warm-up of the new text had not begun",
    "shape-changed": "the text before it in the request is not what it was warmed up with",
    "slot-taken": "another request used the slot, and there is no slot file",
    "ineffective": "what the slot held, or a restored file, was not reused",
}
"""All misses, with what each one means."""

NOTHING_READY = frozenset({"first", "content-changed", "slot-taken"})
"""The misses that say no more than that nothing is ready yet.

If the prompt's warm-up is under way, that is the better reason: it says why, and that waiting helps.  The other misses
name something that a warm-up's progress would hide, for example a file of another model.
"""

NEARLY_ALL = 0.9
"""The part of a template's tokens that must be reused for an answer to count as a hit.

Less than all of them, because models with checkpoints resume a little before the end of what they hold.  Halved, an
answer that computed half of its template still counts as a hit; doubled, it would be over 1, and every answer a miss.
"""


class MissReasons:
    """Explains misses.

    Invariant: what is told is what the parts believe at the moment of the call; nothing is remembered here.
    """

    def __init__(
        self,
        shape_learning: ShapeLearning,
        prompt_learning: PromptLearning,
        readiness: Readiness,
        warmup: Warmup,
        facts: PromptFacts,
    ) -> None:
        """Ask these parts for each explanation.

        `shape_learning` knows the shapes of earlier questions on templates, and `prompt_learning` the beginnings of
        earlier chats.  `readiness` knows what is wrong with a prompt, `warmup` how far an unfinished warm-up has come,
        and `facts` which files there are and whether restoring helps.
        """
        self._shape_learning = shape_learning
        self._prompt_learning = prompt_learning
        self._readiness = readiness
        self._warmup = warmup
        self._facts = facts

    def reason(self, asked: Asked, miss: str) -> str:
        """Return the word for a miss: `miss`, which the slot has found, or another word where that says more."""
        # A chat that begins almost as another one did: what differs is the reason.
        if asked.chat is not None and asked.learned is None:
            differs = miss in NOTHING_READY and self._prompt_learning.difference(asked.shape) is not None
            return "shape-changed" if differs else miss
        # The request itself has interrupted the warm-up when it came to the gate, so no warm-up runs now.  What an
        # interruption leaves behind is the progress, until a later try finishes the warm-up.  The key tells whether
        # it is the warm-up of this very prompt, with this text and shape.
        if miss not in NOTHING_READY or self._warmup.unfinished(asked.prompt, asked.key) is None:
            return miss
        # A failure leaves its progress behind as well.  But then the failure is the reason, and waiting does not help:
        # warm-ups of this prompt pause.
        return miss if self._readiness.state(asked.prompt)[0] == "error" else "warming"

    def detail(self, asked: Asked, miss: str | None) -> str | None:
        """Return what there is to say about a request before it is sent; `None` for nothing.

        `miss` is the word that `reason` returned, `None` if there is no miss.
        """
        learned = asked.learned
        # Also without a miss: a part is restored, and the operator wonders why not all of it.
        if miss is None:
            shared_part = learned is not None and learned.cut is not None
            told = self._prompt_learning.difference(asked.shape) if shared_part else None
            return None if told is None else f"only what it shares with earlier requests: {told}"
        # The client's own wish goes first: whatever else is true, it is why nothing was reused.
        if not asked.reusable:
            return "the request allows no reuse: cache_prompt is off, or it has adapters, other prompts or another slot"
        if asked.chat is not None and learned is None:
            return why_not(asked.chat, self._prompt_learning.difference)
        name = asked.prompt
        if miss == "shape-changed":
            return self._difference(name, asked.shape)
        if miss == "ineffective":
            doubted = "its tokens will be looked at again: does the chat template tell a date?"
            return self._facts.restore_trouble or doubted
        if miss == "warming":
            return f"its warm-up is at {self._warmup.unfinished(name, asked.key) or 0:.0%}"
        # For all other words: what is wrong with the prompt, if anything is.  It may well be why there is no file.
        return self._readiness.state(name)[1]

    def _difference(self, name: str, shape: Shape) -> str:
        """Say how a shape differs from the one that is warm, and from that of the question before."""
        usual, before = self._shape_learning.shape(name), self._shape_learning.other(name)
        # This very request may have settled the question: its shape is the one to warm up from now on.
        if usual == shape:
            return "it is to be warmed up with that now"
        said = usual.difference(shape)
        if before is None or before == shape:
            return said
        # A client whose system message tells the time sends another shape each time.  Only the comparison with its own
        # question before shows that; the one that is warm may be of another client.
        return f"{said}; since the question before: {before.difference(shape)}"

    def afterwards(self, asked: Asked, reused: int) -> str | None:
        """Return what there is to say if too few tokens were reused, or `None` if there were enough.

        `reused` is how many tokens llama-server says it reused.
        """
        # From the file if there is one, because it has the number of just this text; otherwise from the last warm-up.
        # If nobody ever counted them, the number is 0, and any answer is enough.
        saved = self._facts.saved(asked.prompt, asked.key)
        tokens = saved.tokens if saved is not None else self._readiness.tokens.get(asked.prompt, 0)
        if reused >= tokens * NEARLY_ALL:
            return None
        return f"{reused} of its {tokens} tokens were reused"
