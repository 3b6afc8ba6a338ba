"""Does restoring help?  Compares what a restore promised with what llama-server really reused.

Some models can only go on from the end of what they hold, and some builds of llama-server reuse
nothing of a restored file with them: a sliding window without checkpoints, for example.  Nothing
that llama-server says of itself tells which.  But each answer says how many prompt tokens were
reused (`timings.cache_n`), so a restore that does not help is noticed, and not repeated for the
model that runs now.  The next process of llama-server may have other flags; it is judged from the
beginning.

One failed restore has two possible causes, and they must be told apart.  Either this llama-server
reuses nothing, which is true of all prompts.  Or the chat template makes other tokens of the same
text today, because it has a date in it, say; then only the file is out of date.  So a prompt
whose restore did not help is *doubted* first: nothing is restored for it until a warm-up has
compared its tokens with those in the file.  Equal tokens that were not reused count against
llama-server, other tokens only against the file.  The file is written anew in both cases, unless
restoring is given up: an earlier process may have saved it with other flags, without what this one
needs to go on from it.

Nothing of Twisted here: plain state, changed by plain calls.  It knows nothing of slots and files,
and prompts are only names to it.
"""

from __future__ import annotations

from twisted.logger import Logger

STRIKES = 2
"""How many restores in a row must fail to help before no more are made.

With 1, a single odd answer would turn slot files off for as long as llama-server runs.  With 4,
users would pay for two more useless restores, seconds each with a large model.
"""

HELPED = 0.5
"""The part of the tokens restored that must be reused to call the restore a help.

Builds that have checkpoints go on from one a little before the end, so not all tokens are reused.
With 0.25, restores that save next to nothing would count as a help; near 1, every restore with
checkpoints would count as a failure.
"""


class ReuseCheck:
    """What answers have shown about the llama-server that runs now.

    Everything here only ever gets worse while that process runs; `llama_restarted` makes it good
    again.
    """

    log = Logger()

    trouble: str | None
    """Why nothing is restored any more, in a sentence for operators; `None` while restoring helps."""

    goes_back: bool
    """Whether the model can go on from inside what it holds, as when another question stands behind the prompt."""

    has_gone_back: bool
    """Whether an answer has shown that it can."""

    conversations: bool
    """Whether restored conversations are reused.

    They are not where a model cannot go back and its chat template changes earlier turns, as those
    of thinking models do that drop the reasoning.
    """

    def __init__(self) -> None:
        self._doubted: dict[str, tuple[int, int]] = {}
        self.llama_restarted()

    def llama_restarted(self) -> None:
        """Forget everything: another process of llama-server runs."""
        self.trouble, self.goes_back, self.conversations = None, True, True
        self.has_gone_back = False
        self._strikes = self._conversation_strikes = 0
        self._doubted.clear()

    def helped(self) -> None:
        """Note that what was restored was reused."""
        self._strikes = 0

    def did_not_help(self, promised: int, reused: int) -> None:
        """Note that of the `promised` tokens, which were the right ones, only `reused` were reused."""
        self._strikes += 1
        if self._strikes < STRIKES or self.trouble is not None:
            return
        self.trouble = (
            f"restoring slot files does not help: of {promised} tokens restored llama-server reused {reused}."
            " A model with a sliding window, or a recurrent one, needs checkpoints, which older builds have not and"
            " --ctx-checkpoints 0 switches off; --no-cache-prompt prevents it altogether"
        )
        self.log.warn("{text}; no more is restored until llama-server is started again", text=self.trouble)

    def doubt(self, name: str, promised: int, reused: int) -> None:
        """Note that a prompt's file did not help, for a reason still to be found."""
        self._doubted[name] = (promised, reused)

    def is_doubted(self, name: str) -> bool:
        """Tell whether the prompt's tokens must be compared with its file before that is restored again."""
        return name in self._doubted

    def tokens_compared(self, name: str, same: bool) -> bool:
        """Note that the prompt's tokens were compared, and whether they are the `same` as in its file.

        Return whether the file is to be written anew although it has them: it was doubted, and files may help.
        """
        numbers = self._doubted.pop(name, None)
        if numbers is None or not same:
            return False
        self.did_not_help(*numbers)
        return self.trouble is None

    def conversation_restored(self, useful: bool) -> None:
        """Note whether a conversation that was restored was reused."""
        # Counted apart from prompts: a model may reuse these and not those, and conversations
        # alone are given up.
        self._conversation_strikes = 0 if useful else self._conversation_strikes + 1
        if self._conversation_strikes >= STRIKES and self.conversations:
            self.conversations = False
            self.log.warn("restored conversations are not reused with this model: no more are kept")

    def went_back(self, promised: int, reused: int) -> None:
        """Note how many tokens were reused where the slot held more than those `promised`."""
        # One failure is enough here.  Nothing is lost by it: what is given up is only the attempt
        # to reuse the prompt before another conversation, and its file is restored instead.
        if helped(promised, reused):
            self.has_gone_back = True
        else:
            self.goes_back = False


def helped(promised: int, reused: int) -> bool:
    """Tell whether enough of the tokens in the slot were reused to call it a help."""
    return reused >= promised * HELPED
