"""Forgets prompts: those that an operator or a reload removes, and learned ones that are not worth their file.

What is known of a prompt stands in several parts: what was learned, which tokens it has, how far its warm-up has come,
what the schedule has noted, and its files.  Each part forgets for itself; here stands which of them are to be told.
Three events remove a prompt, and each leaves something else to be forgotten.

Nothing here awaits anything, so on Twisted's one thread a prompt is forgotten at one moment: no other code sees it half
gone.  A warm-up of this prompt that is running notices it between two pieces.

Does not know why a prompt is to be forgotten.
"""

from __future__ import annotations

from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.slot.slot import Slot
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.warmup import Warmup


class Forgetting:
    """Has all parts forget a prompt.  Invariant: nothing is stored here."""

    def __init__(
        self,
        prompt_learning: PromptLearning,
        schedule: Schedule,
        warmup: Warmup,
        slot: Slot,
        tokens: dict[str, int],
    ) -> None:
        """Tell these parts; `tokens` has the number of tokens of each prompt, by id."""
        self._prompt_learning = prompt_learning
        self._schedule = schedule
        self._warmup = warmup
        self._slot = slot
        self._tokens = tokens

    def forget(self, id: str) -> None:
        """Forget everything about a prompt that was removed, or replaced by another prompt with the same id.

        Called after a reload of the configuration.  Its files stay.
        """
        self._tokens.pop(id, None)
        self._warmup.progress.pop(id, None)
        self._schedule.forget(id)

    def forget_learned(self, id: str) -> bool:
        """Forget a learned prompt or a conversation, with its files; return whether there was one.

        Raises `OSError` if the record of files cannot be written.
        """
        known = self._prompt_learning.forget(id)
        self.forget(id)
        return self._slot.remove_files(id) or known

    def file_removed(self, id: str) -> None:
        """Forget a learned prompt whose file was removed to make room.  Called by the shelf, for any prompt."""
        # It would be warmed up again otherwise, and its new file would only remove the next one's.  A template is not
        # forgotten: the operator has configured it, and its files are never removed for their number.
        if self._prompt_learning.forget(id):
            self.forget(id)
