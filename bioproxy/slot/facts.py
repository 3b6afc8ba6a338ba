"""What is known of a prompt beside the slot: its files, its tokens, and whether reusing them works.

`bioproxy.slot.plan` decides from values what is to be done with the slot before a request.  This module collects those
of the values that need no question to llama-server: they come from the record of files, from what earlier answers have
shown, and from the tokens that warm-ups have had made.

So there is no ``await`` here, and that matters.  Twisted switches between coroutines at an ``await`` and nowhere else:
what one of these methods returns was all true at one moment.  It may be out of date after the caller's next ``await``,
because an operator may have had a file forgotten meanwhile.  So the caller asks again then, and keeps nothing.

Not known here: what the slot holds, and what is best to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.plan import Files, Reuse, Wanted
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import PREFIX, Snapshot
from bioproxy.slot_files.reuse_check import ReuseCheck


class PromptFacts:
    """Tells what is known of a prompt.  Invariant: nothing is stored here, so each answer is of this moment."""

    def __init__(self, files: SlotFiles, saver: ConversationSaver, reuse_check: ReuseCheck) -> None:
        # Parts of `bioproxy.slot.slot.Slot`, which makes this object and shares it with the preparer.
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check
        self.tokens_of: Callable[[Key], Sequence[int] | None] = lambda key: None
        """Returns a prompt's tokens and one that does not belong to it, if they are known.  Assigned by assembly."""

    def file_for(self, name: str, key: Key | None) -> Snapshot | None:
        """Return the prompt's file if it is for this key, for the model that runs now, and unchanged on disk."""
        # Whether restoring helps at all is another question (`Slot.saved`).  Also a file that is not to be restored
        # tells how many tokens the prompt has, and how much of the slot is saved.
        entry = self._files.usable(name, PREFIX)
        return entry if entry is not None and entry.key == key else None

    def files(self, wanted: Wanted) -> Files:
        """Return what the record has for a request.

        `wanted` may be a prompt that is not known, with an empty name: then only a conversation is found.
        """
        # The folder is looked at for both, where it is visible, which takes microseconds.
        prefix = self.file_for(wanted.name, wanted.key)
        chat = self._saver.saved_beginning(wanted.turns)
        tokens = self.tokens_of(wanted.key)
        return Files(
            chat,
            # Whatever text, shape and model it was made of: a file that does not fit tells why a request is cold.
            self._files.recorded(wanted.name, PREFIX),
            prefix.tokens if prefix is not None else None,
            len(tokens) - 1 if tokens is not None else None,
        )

    def reuse(self, name: str) -> Reuse:
        """Return what answers have shown so far, as far as it matters for a prompt.

        A prompt whose file is doubted counts as one for which nothing may be restored.
        """
        # As a value: whatever happens during the next ``await``, one plan is made from one state.
        check = self._reuse_check
        return Reuse(check.goes_back, check.conversations, check.trouble is not None or check.is_doubted(name))
