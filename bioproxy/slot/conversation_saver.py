"""Keeps conversations: saves what a question has left in the slot, before something else takes its place.

After an answer the slot holds the whole conversation, and the next question on it has to be computed only from there.
If somebody else asks in between that is lost, unless it was saved: to `NAME.chat.bin`, the last conversation on that
template.

Saving costs time, in which nobody else is served, and space.  So it is done when the conversation has grown by some
hundreds of tokens, and if it is quick, measured by what it may save.

Everything here happens inside the gate.
"""

from __future__ import annotations

from twisted.logger import Logger

from bioproxy.llama.speed import Speed
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.slot.content import SlotContent
from bioproxy.slot.files import SaveFailed, SlotFiles
from bioproxy.slot.record import CHAT, Snapshot
from bioproxy.slot.reuse_check import ReuseCheck

GROWN = 256
"""Tokens that a conversation must have grown by to be saved: fewer are soon computed again."""

LONGEST_SAVE = 1.0
"""Seconds that a save may take in any case."""

WORTH = 0.1
"""A save may take longer than that if it takes no more than this part of what computing it again would take."""


class ConversationSaver:
    """Saves the conversation in slot 0.  Not `enabled`, it never does."""

    log = Logger()

    def __init__(
        self, content: SlotContent, files: SlotFiles, reuse_check: ReuseCheck, speed: Speed, enabled: bool
    ) -> None:
        self._content = content
        self._files = files
        self._reuse_check = reuse_check
        self._speed = speed
        self.enabled = enabled
        self._failing = False

    def due(self) -> bool:
        """Tell whether there is a conversation that is worth saving now."""
        held, grown = self._content.now, self._content.unsaved()
        if held is None or grown < GROWN or not self.enabled or not self._reuse_check.conversations:
            return False
        if not self._files.of_use or not self._files.model_known:
            return False
        # Nobody knows how long the first save will take.  It is risked: without it nobody will ever know.
        seconds = self._speed.save_seconds(held.witness.tokens) or 0.0
        return seconds <= max(LONGEST_SAVE, grown * self._speed.seconds_per_token * WORTH)

    async def keep(self) -> None:
        """Save the conversation in the slot if that is due.  Never fails for reasons of llama-server's."""
        if not self.due():
            return
        try:
            held = await self._content.look()
            if held is None:
                return
            tokens = held.witness.tokens
            await self._files.save(held.name, CHAT, held.key, tokens, conversation=held.conversation)
            self._content.now_saved(tokens)
            self._failing = False
        except (SaveFailed, LlamaCallFailed) as error:
            if not self._failing:  # a full disk stays full: one line is enough
                self.log.warn("a conversation is not kept: {error}", error=error)
            self._failing = True
            # The next try is when it has grown again.
            self._content.now_saved(self._content.now.witness.tokens if self._content.now is not None else 0)

    def continued(self, name: str, turns: ConversationChain) -> Snapshot | None:
        """Return the record of the template's saved conversation if these turns go on with it.

        While it is not known which model runs, it may turn out to be of another one.
        """
        recorded, usable = self._files.recorded(name, CHAT), self._files.usable(name, CHAT)
        chat = usable if self._files.model_known else recorded
        goes_on = chat is not None and chat.conversation is not None and turns.continues(chat.conversation)
        return chat if goes_on and self._reuse_check.conversations else None
