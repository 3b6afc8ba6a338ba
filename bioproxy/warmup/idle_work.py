"""What is done when all prompts are warm and nobody asks: the slot and the files are made ready for the next question.

Four things, in this order:

1. What was used, and when, is written down, so that a restart knows what is asked for.
2. The conversation that a user left in the slot is saved, if it is worth that: something else may take the slot soon.
3. What will probably be asked for next is restored, after warm-ups or a restart of llama-server have displaced it: the
   last conversation, or the prompt that was used last.
4. The tokens of the prompt in the slot are made, if they are not known: before the next question on it, the slot is cut
   back to exactly that prompt (`bioproxy.slot.preparer`).

Nothing is computed here, so each takes a second at most.  For Twisted each is a short coroutine.  The save and the
restore run inside the gate like a warm-up, but a user who arrives waits for their end: llama-server would finish them
in any case.

Does not know which prompt is due for a warm-up, beyond that none is.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from bioproxy.gate.gate import Gate
from bioproxy.llama.prefix_tokens import DoesNotFit
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.slot.slot import Slot
from bioproxy.slot_files.snapshot import CHAT, Snapshot
from bioproxy.warmup.prompt_tokens import PromptTokens, UnusablePrompt
from bioproxy.warmup.schedule import Schedule

IDLE = 3.0
"""Seconds without any user at the gate after which the conversation in the slot is saved.

A user who arrives during a save waits for its end.  Halved: users who read an answer quickly meet the save more often.
Doubled: a conversation is more often lost to the next request, or saved while that request waits.
"""


class IdleWork:
    """Makes the slot ready while nobody asks.

    Invariant: the slot is used only inside the gate, and nothing here is tried endlessly.
    """

    log = Logger()

    def __init__(
        self,
        catalogue: Catalogue,
        schedule: Schedule,
        prompt_tokens: PromptTokens,
        gate: Gate,
        slot: Slot,
        watch: ProcessWatch,
        write_uses: Callable[[], None],
    ) -> None:
        """Store the parts.

        `catalogue` has the prompts as they are now, `schedule` tells whether anything is done ahead of questions at
        all, and `prompt_tokens` makes tokens.  `slot` is used inside `gate`; `watch` tells which process of
        llama-server runs.  `write_uses` writes down which files were used, if that has changed.
        """
        self._catalogue = catalogue
        self._schedule = schedule
        self._prompt_tokens = prompt_tokens
        self._gate = gate
        self._slot = slot
        self._watch = watch
        self._write_uses = write_uses
        # What was tried last: the process and file for which a restore was, and the process and key for which tokens
        # were made.  `None` before the first try.
        self._brought_back: object = None
        self._asked_tokens: object = None

    def slot_displaced(self) -> None:
        """Note that a warm-up takes the slot, so that something may have to be restored again."""
        # Not the tokens: they do not depend on the slot.
        self._brought_back = None

    async def do(self) -> None:
        """Do what there is to do.  Called when nothing is due.

        Fires when that is done, or a user has come.  Errors of llama-server do not make this fail.  After cancelling,
        the slot's content counts as unknown, so the next request may be slower, but is correct.
        """
        if self._gate.stats.idle_seconds() >= IDLE:
            # Without waiting for the disk: losing them costs nothing but the order of some files.
            self._write_uses()
            # Before the restore, which would displace it.  If a user comes, the code below finds the gate in use, or
            # the user's content in the slot, and does nothing.
            if self._slot.conversation_save_is_due():
                await self._gate.warmup(self._save_conversation)
        if self._schedule.ahead:
            await self._bring_back()
        await self._make_tokens()

    async def _bring_back(self) -> None:
        """Restore what will probably be asked for next, if the slot does not hold it.  Fires and ends as `do`."""
        if (file := self._slot.to_bring_back(self._is_current)) is None:
            return
        # There is no ``await`` between here and the gate, so the state does not change in between.
        #
        # Tried once for each process of llama-server and file: a file that cannot be restored, or that is not seen in
        # the slot afterwards, would otherwise be tried twice a second, endlessly.  After a warm-up of another prompt
        # it is tried once more.
        if self._brought_back != (occasion := (self._watch.process, *file)):
            self._brought_back = occasion
            await self._gate.warmup(lambda: self._restore(file))

    async def _restore(self, file: tuple[str, str, Snapshot]) -> None:
        """Restore a file; runs inside the gate.  Fires and fails as `Slot.bring_back`."""
        # llama-server finishes a restore that it has begun in any case, and all requests wait for it meanwhile.  If an
        # arriving user cancelled this, the same file would mostly be restored once more for that user.
        with self._gate.without_preemption(last=True):
            await self._slot.bring_back(*file)

    def _is_current(self, name: str, kind: str, entry: Snapshot) -> bool:
        """Tell whether a file is what a request of this moment could use."""
        # Conversations are found by their messages, whatever became of the prompt.
        prompt = None if kind == CHAT else self._catalogue.get(name)
        return kind == CHAT or (prompt is not None and prompt.key == entry.key)

    async def _make_tokens(self) -> None:
        """Have the tokens of the prompt in the slot made, if they are not remembered.

        Fires when they are, or cannot be; cancelling ends the request to llama-server.
        """
        # The one prompt in the slot, if there is one and it is whole.  Only for this one the tokens are needed soon,
        # because only this one can be cut back to.  A warm-up has made them; after a restart of bioproxy, or a restore,
        # nobody has.
        prompt = next(
            (
                prompt
                for prompt in map(self._catalogue.get, self._catalogue)
                if prompt is not None and not prompt.empty and self._slot.holds(prompt.key)
            ),
            None,
        )
        if prompt is None or self._prompt_tokens.remembered(prompt.key) is not None:
            return
        # Once for each process and prompt: what cannot be made now cannot be made in half a second either.
        if self._asked_tokens != (occasion := (self._watch.process, prompt.key)):
            # Noted before the ``await``, so that an error leaves it noted, too.
            self._asked_tokens = occasion
            try:
                await self._prompt_tokens.of(prompt)
            except (LlamaCallFailed, DoesNotFit, UnusablePrompt) as error:
                self.log.debug("{prompt}: its tokens are not known: {error}", prompt=prompt, error=error)

    async def _save_conversation(self) -> None:
        """Save the conversation in the slot; runs inside the gate.

        Fires when it is saved, or could not be.  An arriving user does not cancel this: llama-server finishes a save
        that it has begun, and all requests wait meanwhile, so cancelling would only lose the file.  Cancelling, when
        bioproxy stops, loses llama-server's answer, and so the record of the file.
        """
        # `last`: nothing follows here, so there is no need to end this coroutine for a user who has come meanwhile.
        # `save_conversation` never fails because of llama-server, and logs if a conversation could not be saved.
        with self._gate.without_preemption(last=True):
            await self._slot.save_conversation()
