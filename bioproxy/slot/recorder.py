"""Writes down what slot 0 was left with after a request or a warm-up, and that its prompt was used.

What the slot holds is kept by `bioproxy.slot.content`, which asks llama-server for a witness.  Here it is collected
what that needs to know: with which conversation the slot was left, and how much of that is in a file already.

An answer on a prompt is also a use of the prompt's file, by which the least recently used files are found.  A prompt
that has no file yet is used as well.  That is noted until its warm-up has made the file, and told then, with the time
at which the prompt was asked for.

On Twisted: after an answer this runs in a coroutine that belongs to no client, so a hang-up does not cancel it
(`bioproxy.slot.uses`).  A warm-up may be cancelled in it by a user who comes.  The slot is unknown then.

Does not know how the slot came to hold its content: `bioproxy.slot.preparer` does.
"""

from __future__ import annotations

from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.facts import PromptFacts
from bioproxy.slot.known_content import NO_CONVERSATION, KnownContent
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import PREFIX


class SlotRecorder:
    """Writes down what the slot was left with.

    Invariant: `content` is told nothing that llama-server did not confirm, and each use of a prompt is counted once.
    """

    def __init__(self, facts: PromptFacts, content: SlotContent, files: SlotFiles, saver: ConversationSaver) -> None:
        # Parts of `bioproxy.slot.slot.Slot`, which makes this object from its own.
        self._facts = facts
        self._content = content
        self._files = files
        self._saver = saver
        # The prompts that users have asked for, and that have no file yet, with the time.
        self._asked: dict[str, float] = {}

    async def remember(
        self,
        name: str,
        key: Key,
        turns: ConversationChain = NO_CONVERSATION,
        before: KnownContent | None = None,
        *,
        is_counted: bool = False,
    ) -> None:
        """Write down that the slot was left holding a prompt, with a conversation on it.

        `before` is as in `SlotContent.remember`.  `is_counted` tells that this request was counted as a
        use of the prompt's file when that was restored.  Fires when llama-server has told the witness,
        or cannot; then the slot is unknown.  Cancelling leaves it unknown too.
        """
        # How much of it a file has already, from whichever file has more: only what has grown since
        # is worth a save.
        prefix, chat = self._facts.file_for(name, key), self._saver.saved_beginning(turns)
        saved = max(each.tokens if each is not None else 0 for each in (prefix, chat))
        conversation = turns.all_messages if turns.message_digests else None
        await self._content.remember(name, key, conversation, saved, turns, before)
        # A prompt that is hot is used as much as one that is restored.  If it has no file yet, that
        # is noted until it has.
        if conversation is not None and prefix is not None:
            if not is_counted:
                self._files.used(name, PREFIX)
        elif conversation is not None and name:
            self._asked[name] = self._files.now()

    def warmed_up(self, name: str) -> None:
        """Note that a prompt has a file now."""
        # Used when it was asked for, not now.  Otherwise the prompt would look later than the conversation on it, and
        # the slot would get the prompt alone where the conversation is what goes on.
        if (asked_at := self._asked.pop(name, None)) is not None:
            self._files.used(name, PREFIX, asked_at)

    def forget(self, name: str) -> None:
        """Forget a prompt that is gone, so that nothing grows with the prompts that there ever were."""
        self._asked.pop(name, None)
