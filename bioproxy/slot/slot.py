"""Slot 0 of llama-server: the one object through which all others use it and ask about it.

The slot is where llama-server processes prompts.  It holds the tokens of the last request with
their KV cache, and a prompt that begins with the same tokens goes on from there.  bioproxy is in
essence the art of having the right tokens there in time, and this is the door to it.  It leads to
several parts, each in its own module:

* `bioproxy.slot.content`: what the slot holds, and whether that is still so;
* `bioproxy.slot.files`, `bioproxy.slot.saving`: the files that it was saved to;
* `bioproxy.slot.conversation_saver`: when a conversation is worth a file;
* `bioproxy.slot.reuse_check`: whether all this helps with the model that runs;
* `bioproxy.slot.plan`, `bioproxy.slot.preparer`: what to do before a request, and doing it;
* `bioproxy.slot.uses`: the ``async with`` blocks around requests and warm-ups.

Nobody outside reaches through to them.  Whoever wants to change the slot uses one of the three
blocks; whoever wants to know something asks a question here, and gets an answer at once: no
question needs an ``await``, so what it tells is what bioproxy knows, and not what llama-server
would say at this moment.

Deliberately unknown here: who waits at the gate, what requests look like, and which template is
warmed up next.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.preparer import SlotPreparer
from bioproxy.slot.record import PREFIX, Snapshot
from bioproxy.slot.reuse_check import ReuseCheck
from bioproxy.slot.uses import SlotUses


class Slot:
    """Slot 0.

    Invariant: what is known of the slot is true at each point where another coroutine may run.
    That is, at each ``await``: Twisted runs everything in one thread, and switches nowhere else.  A
    method here without ``async`` sees one state of everything, and needs no lock.
    """

    def __init__(
        self,
        identity: ModelIdentity,
        content: SlotContent,
        files: SlotFiles,
        saver: ConversationSaver,
        reuse_check: ReuseCheck,
        metrics: Metrics,
        clock: IReactorTime,
    ) -> None:
        self._identity = identity
        self._content = content
        self._files = files
        self._saver = saver
        self._reuse_check = reuse_check
        # Two parts that are of no concern to those who build a slot, so they are made here.
        self._preparer = SlotPreparer(identity, content, files, saver, reuse_check, clock)
        uses = SlotUses(self._preparer, content, files, saver, reuse_check, metrics, clock)
        # Using the slot, always inside the gate.  The parts say what each of these does; they are
        # offered here under the same names, so that there is one object to know.  For requests and
        # warm-ups, the first three are all they need.
        self.use_for_template = uses.use_for_template
        self.use_otherwise = uses.use_otherwise
        self.use_for_warmup = uses.use_for_warmup
        self.judge = uses.judge
        # What the uses consist of.  `bring_back` alone is called from outside, by a warm-up that
        # puts a template back which others have displaced: it changes the slot and computes
        # nothing, so there is nothing to be done after it.
        self.prepare = self._preparer.prepare
        self.remember = self._preparer.remember
        self.bring_back = self._preparer.bring_back
        # For idle moments and the end of the process.  A save changes nothing in the slot.
        self.save_conversation = saver.save_if_due

    # What happened elsewhere.  These may come at any time, also while somebody is inside the gate
    # and waits for llama-server; `SlotContent` and `SlotFiles` expect that after each ``await``.

    def llama_restarted(self, slot_known: bool = False) -> None:
        """Note that another process of llama-server runs: nothing learned from the last one counts."""
        # The watch looks every two seconds, so a request may have met the new process before, and
        # what it left in the slot may be written down already.  Then, with `slot_known`, it stays.
        if not slot_known:
            self._content.llama_restarted()
        self._reuse_check.llama_restarted()

    def llama_fell_asleep(self) -> None:
        """Note that llama-server has unloaded its model, and the content of the slot with it."""
        # It is the same process with the same flags, so what answers have shown of it stays true.
        self._content.llama_restarted()

    def model_changed(self) -> None:
        """Note that somebody changes the model that runs: its adapters."""
        # The tokens in the slot stay, but their KV cache is of another model now.  Which one is
        # found out, by its behaviour, before the next file is restored.
        self._content.forget()
        self._identity.current = None

    def tokens_compared(self, name: str, same: bool) -> None:
        """Note that a template's tokens were compared with its file, and whether they are the `same`."""
        # Equal tokens that were not reused are llama-server's fault; other tokens are the text's.
        # With that the doubt is over in any case: what is right is in the file, or about to be
        # warmed up.
        self._reuse_check.tokens_compared(name, same)

    def discard_template_file(self, name: str) -> None:
        """Have a template saved anew, for an operator: forget its file, and end a pause after failed saves."""
        # The file itself stays until the new one is whole.  It is not used any more, but a disk
        # that is nearly full should not lose the last thing that it has.
        self._files.end_pause()
        self._files.forget(name, PREFIX)

    # Questions about the slot.  All are answered from memory.

    def holds(self, key: Key | None) -> bool:
        """Tell whether the slot was left with this key's tokens, as far as is known."""
        # Somebody may have used llama-server behind bioproxy's back.  That is found out by whoever
        # relies on it; for showing a state it is good enough.
        return self._content.has(key)

    @property
    def tells_content(self) -> bool:
        """Whether llama-server tells what its slot holds; not with ``--no-slots``."""
        return self._content.visible

    def is_used_by_user(self, name: str) -> bool:
        """Tell whether a user left something on this template in the slot, in whatever shape."""
        known = self._content.known
        return self._content.left_by_user and known is not None and known.name == name

    def was_displaced(self, name: str, key: Key) -> bool:
        """Tell whether a warm-up, and no user, took the slot from a template that a file could bring back."""
        # After a user's request the slot has what that user probably goes on with, and nothing is
        # worth more.  After warm-ups it has whatever happened to be warmed up last.
        content = self._content
        ours = content.visible and not content.left_by_user and not content.has(key)
        return ours and self.saved(name, key) is not None

    def conversation_save_is_due(self) -> bool:
        """Tell whether the slot holds a conversation that is worth saving now."""
        # Asked before the gate is entered, so that nobody enters it for nothing.  It may be
        # otherwise by the time the gate is free, so the save asks once more.
        return self._saver.due()

    # Questions about files.  A look at the disk takes microseconds, where the folder is seen.

    def saved(self, name: str, key: Key | None) -> Snapshot | None:
        """Return the template's file if it may be restored now: for this key, by the model that runs."""
        # This is what "warm" means where there are files.  A doubted file is none: its template is
        # due for a warm-up, which compares the tokens.
        usable = self.may_use_files and not self.is_doubted(name)
        return self._preparer.file_for(name, key) if usable else None

    def is_doubted(self, name: str) -> bool:
        """Tell whether the template's tokens must be compared with its file before that is restored again."""
        # Whoever compares must have them made anew, since the chat template may make others now.
        return self._reuse_check.is_doubted(name)

    @property
    def llama_keeps_files(self) -> bool | None:
        """Whether llama-server runs with ``--slot-save-path``; `None`: it was not asked yet."""
        # The watch asks each new process once, and sets it.  While it is `None` nothing is warmed
        # up: with files, one order of templates is best, and without them another.
        return self._files.enabled

    @llama_keeps_files.setter
    def llama_keeps_files(self, enabled: bool | None) -> None:
        self._files.enabled = enabled

    @property
    def may_use_files(self) -> bool:
        """Whether slot files can be saved now, and restoring them helps."""
        # Without them a template can be warm only in the slot itself, one at a time.
        return self._files.of_use

    @property
    def restore_trouble(self) -> str | None:
        """Why nothing is restored with this llama-server, in a sentence for operators; `None` if that is not so."""
        # It stays until another process runs: flags and builds do not change before that.
        return self._reuse_check.trouble

    @property
    def model_goes_back(self) -> bool:
        """Whether the model can go on from inside what the slot holds, as far as is known."""
        # True until an answer has shown that it cannot.  A warm-up that wants to reuse part of an
        # older text tries it out on a few tokens, before a user would have to wait for a wrong
        # guess.
        return self._reuse_check.goes_back

    @property
    def model_is_known(self) -> bool:
        """Whether it is known which model runs; without that nothing can be saved."""
        return self._files.model_known

    def recorded_file(self, name: str) -> Snapshot | None:
        """Return the record of a template's file, of whatever model and text."""
        return self._files.recorded(name, PREFIX)

    def is_intact(self, entry: Snapshot) -> bool:
        """Tell whether a file is as it was recorded, as far as this host can see it."""
        return self._files.folder.is_intact(entry)

    def usable_file(self, name: str, kind: str) -> Snapshot | None:
        """Return a template's file of this kind if it is of the model that runs now, whatever text it was made of."""
        # A file of an older text is of use to a warm-up: the new text may begin in the same way.
        return self._files.usable(name, kind)

    async def load_file(self, name: str, kind: str, entry: Snapshot) -> bool:
        """Have llama-server read a file into the slot, in a warm-up.  Fires and fails as `SlotFiles.load`."""
        # Only the beginning of a template comes into the slot by this.  Nothing is written down
        # about it, and what was known before is forgotten only with the first piece that is computed
        # next.  A warm-up that is cancelled in between leaves that to the witness, which tells by
        # the number of tokens that the slot is not what it was.
        return await self._files.load(name, kind, entry)
