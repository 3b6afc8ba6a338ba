"""What is known of a prompt beside the slot: its files, its tokens, and whether reusing them works.

`bioproxy.slot.plan` decides from values what is to be done with the slot before a request.  This module collects those
of the values that need no question to llama-server: they come from the record of files, from what earlier answers have
shown, and from the tokens that warm-ups have had made.  Warm-ups and the operator's view ask here for the same facts.

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
        # Parts of `bioproxy.slot.slot.Slot`, which makes this object, shares it with the preparer, and shows it to all.
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check
        self.tokens_of: Callable[[Key], Sequence[int] | None] = lambda key: None
        """Returns a prompt's tokens and one that does not belong to it, if they are known.  Assigned by assembly."""

    def file_for(self, name: str, key: Key | None) -> Snapshot | None:
        """Return the prompt's file if it is for this key, for the model that runs now, and unchanged on disk."""
        # Whether restoring helps at all is another question (`saved`).  Also a file that is not to be restored
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

    # Questions of code in other folders.  Some check the file on the disk, if this host sees the folder; that takes
    # microseconds.

    def saved(self, name: str, key: Key | None) -> Snapshot | None:
        """Return the prompt's file if it may be restored now: for this key, by the model that runs."""
        # With slot files, "warm" means that there is such a file.  A doubted file does not count:
        # its prompt is due for a warm-up, which compares the tokens.
        usable = self.may_use_files and not self.is_doubted(name)
        return self.file_for(name, key) if usable else None

    def is_doubted(self, name: str) -> bool:
        """Tell whether the prompt's tokens must be compared with its file before that is restored again."""
        # The warm-up that compares them must ask llama-server for the tokens again, because the
        # chat template may produce other tokens now.
        return self._reuse_check.is_doubted(name)

    @property
    def llama_keeps_files(self) -> bool | None:
        """Whether llama-server runs with ``--slot-save-path``; `None`: llama-server was not asked yet."""
        # The watch asks each new process once, and sets it.  While it is `None` nothing is warmed
        # up, because the best order of the prompts depends on it.
        return self._files.enabled

    @property
    def may_use_files(self) -> bool:
        """Whether slot files can be saved now, and restoring them helps."""
        # Without files, only one prompt can be warm at a time: the one in the slot.
        return self._files.of_use

    @property
    def restore_trouble(self) -> str | None:
        """Why nothing is restored with this llama-server, in a sentence for operators; `None` if there is no reason."""
        # It stays until another process runs: flags and builds do not change before that.
        return self._reuse_check.trouble

    @property
    def model_goes_back(self) -> bool:
        """Whether the model can continue from a point inside the slot's tokens, as far as is known."""
        # True until an answer has shown that it cannot.  A warm-up that could reuse part of an
        # older text tests this with a few tokens first, so that no user has to wait because of a
        # wrong guess.
        return self._reuse_check.goes_back

    @property
    def model_is_known(self) -> bool:
        """Whether it is known which model runs; without that nothing can be saved."""
        return self._files.model_known

    def recorded_file(self, name: str) -> Snapshot | None:
        """Return the record of a prompt's file, whatever its model and text."""
        return self._files.recorded(name, PREFIX)

    def is_intact(self, entry: Snapshot) -> bool:
        """Tell whether a file is as it was recorded, as far as this host can see it."""
        return self._files.folder.is_intact(entry)

    def files_sharing(self, tokens: Sequence[int]) -> list[tuple[str, str, Snapshot, int]]:
        """Return the files of the model that runs now that begin with these tokens, those that share most first.

        As name, kind, entry, and how many tokens are certainly the same.
        """
        return self._files.sharing(tokens)

    def conversation_on(self, key: Key) -> tuple[str, Snapshot] | None:
        """Return the file of a conversation that begins with this key's prompt, as name and entry; `None` without."""
        return self._files.shortest_conversation_on(key)
