"""Decides when the conversation in slot 0 is worth a file, and saves it.

After an answer the slot holds the whole conversation, and the next question on it has to be
computed only from there on.  If somebody else asks in between, that is lost, unless it was saved:
to `NAME.chat.bin`, which holds the last conversation on that template.

A save costs space, and time in which llama-server serves nobody else.  So it is made only when the
conversation has grown by some hundreds of tokens, and only if it is quick compared with what it may
save.  There is no timer here: others call `save_if_due`, in an idle moment, before something else
takes the slot, and at the end of the process.

Everything here happens inside the gate.  A save that fails is no error for those who call: they
have a request to serve, and the conversation is merely computed again some day.

Not known here: how a save is made safe (`bioproxy.slot.saving`), and who asks next.
"""

from __future__ import annotations

from twisted.logger import Logger

from bioproxy.llama.speed import Speed
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.slot.content import SlotContent
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.record import CHAT, Snapshot
from bioproxy.slot.reuse_check import ReuseCheck
from bioproxy.slot.saving import SaveFailed

GROWN = 256
"""Tokens that a conversation must have grown by to be saved.

Fewer are computed again in about a second.  Halved, short exchanges cause twice as many saves;
doubled, up to 511 tokens may have to be computed twice.
"""

LONGEST_SAVE = 1.0
"""Seconds that a save may take in any case.

Halved, large models with slow disks keep fewer conversations; doubled, users notice the wait.
"""

WORTH = 0.1
"""A save may take longer than `LONGEST_SAVE` if that is at most this part of computing it again.

Halved, long conversations on slow disks are not kept; doubled, a save of a minute's computing may
take twelve seconds, in which nobody is served.
"""


class ConversationSaver:
    """Saves the conversation in slot 0.

    Invariant: it never saves over the only file of a conversation that has more tokens and is asked
    for now; `bioproxy.slot.plan` sees to that before it has anything saved.
    """

    log = Logger()

    enabled: bool
    """Whether conversations are saved at all.  May be changed at any time."""

    def __init__(
        self, content: SlotContent, files: SlotFiles, reuse_check: ReuseCheck, speed: Speed, enabled: bool
    ) -> None:
        self._content = content
        self._files = files
        self._reuse_check = reuse_check
        self._speed = speed
        self.enabled = enabled
        # Whether the last save failed, and was told in the log.
        self._last_failed = False

    def due(self) -> bool:
        """Tell whether there is a conversation that is worth saving now."""
        known, grown = self._content.known, self._content.unsaved_tokens()
        if known is None or grown < GROWN or not self.enabled or not self._reuse_check.conversations:
            return False
        # Where it is not known which model runs, a file could not be said to be of any, and finding
        # that out would overwrite the very conversation.
        if not self._files.of_use or not self._files.model_known:
            return False
        # Measured by the last save and the last prompt (`bioproxy.llama.speed`).  How long the
        # first save takes is not known.  It is risked, or it would never be known.
        seconds = self._speed.save_seconds(known.witness.tokens) or 0.0
        return seconds <= max(LONGEST_SAVE, grown * self._speed.seconds_per_token * WORTH)

    async def save_if_due(self) -> None:
        """Save the conversation in the slot if that is due.  Never fails for reasons of llama-server's.

        Cancelling stops waiting for llama-server, which finishes the save; the slot stays as known
        as it was, because a save does not change it.
        """
        if not self.due():
            return
        try:
            # Asked first: a file of what somebody else has left there would be worse than none.
            known = await self._content.confirm()
            if known is None:
                return
            tokens = known.witness.tokens
            await self._files.save(known.name, CHAT, known.key, tokens, conversation=known.conversation)
            self._content.mark_saved(tokens)
            self._last_failed = False
        except (SaveFailed, LlamaCallFailed) as error:
            # A full disk stays full: one line in the log is enough.
            if not self._last_failed:
                self.log.warn("conversation not saved: {error}", error=error)
            self._last_failed = True
            # Counted as saved although it is not, so that the next attempt comes when it has grown
            # again.  Otherwise each idle moment would try once more.
            self._content.mark_saved(self._content.known.witness.tokens if self._content.known is not None else 0)

    def saved_beginning(self, name: str, turns: ConversationChain) -> Snapshot | None:
        """Return the record of the template's saved conversation if these turns go on with it."""
        recorded, usable = self._files.recorded(name, CHAT), self._files.usable(name, CHAT)
        # While it is not known which model runs, the file may turn out to be of another one.  It is
        # a candidate all the same: the model is identified before anything is restored.
        chat = usable if self._files.model_known else recorded
        goes_on = chat is not None and chat.conversation is not None and turns.continues(chat.conversation)
        return chat if goes_on and self._reuse_check.conversations else None
