"""Does it help?  Compares what restoring promised with what llama-server really reused.

Some models can only go on from the end of what they hold, and some builds of llama-server reuse nothing of a restored
file with them: a sliding window without ``--swa-full``, for example.  Which, nobody can tell beforehand.  But each
answer says how many prompt tokens were reused (`timings.cache_n`), so what does not help is noticed, and not done again
for the model that runs now.  The next process of llama-server, with other flags perhaps, gets a new chance.

Knows nothing of slots and files.
"""

from __future__ import annotations

from twisted.logger import Logger

STRIKES = 2
"""So many restores in a row that did not help are enough."""

HELPED = 0.5
"""The part of the tokens restored that has to be reused.  Checkpoints of builds that have them lie a little before."""


class ReuseCheck:
    """What is known of the model that runs now.

    `trouble` says why nothing is restored any more, if that is so.  `goes_back`: can it go on from somewhere inside
    what it holds, as when the slot has the template and another question behind it?  `conversations`: are those that
    were restored of use?  They are not where a model cannot go back and its chat template changes earlier turns, as
    those do that drop a thinking model's reasoning.
    """

    log = Logger()

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.goes_back = True
        self.conversations = True
        self._strikes = 0
        self._conversation_strikes = 0

    def llama_restarted(self) -> None:
        """Forget everything: another process of llama-server runs."""
        self.trouble, self.goes_back, self.conversations = None, True, True
        self._strikes = self._conversation_strikes = 0

    def helped(self) -> None:
        """Note that what was restored was reused."""
        self._strikes = 0

    def did_not_help(self, promised: int, reused: int) -> None:
        """Note that of so many tokens restored only so many were reused, although they were the right ones."""
        self._strikes += 1
        if self._strikes < STRIKES or self.trouble is not None:
            return
        self.trouble = (
            f"restoring slot files does not help: of {promised} tokens restored llama-server reused {reused}."
            " A model with a sliding window needs --swa-full; some older builds reuse nothing with such models,"
            " or with recurrent ones; --no-cache-prompt prevents it altogether"
        )
        self.log.warn("{text}; no more is restored until llama-server is started again", text=self.trouble)

    def conversation_restored(self, useful: bool) -> None:
        """Note whether a conversation that was restored was reused."""
        self._conversation_strikes = 0 if useful else self._conversation_strikes + 1
        if self._conversation_strikes >= STRIKES and self.conversations:
            self.conversations = False
            self.log.warn("restored conversations are not reused with this model: no more are kept")

    def went_back(self, promised: int, reused: int) -> None:
        """Note how many tokens were reused where the slot held more than those."""
        if not helped(promised, reused):
            self.goes_back = False


def helped(promised: int, reused: int) -> bool:
    """Tell whether enough of the tokens in the slot were reused to call it a help."""
    return reused >= promised * HELPED
