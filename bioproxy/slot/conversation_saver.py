"""Decides when the conversation in slot 0 is worth a file, and saves it.

After an answer the slot holds the whole conversation, and the next question on it has to be
computed only from there on.  If somebody else asks in between, that is lost, unless it was saved.
Any number of conversations can be saved, and the shelf (`bioproxy.slot_files.shelf`) removes those that
were not used for the longest time.

A file is called after the digest of its conversation, so a conversation that goes on gets another
file, and the shorter one is removed then: a client that goes on with the longer one does not need it, and
a client that edits the last question can mostly drop the end of the longer one.  The last conversation on
a template is called after the template (`NAME.chat.bin`), for people who look into the folder; when
another conversation on that template is saved, it gets the name of its digest.

A save costs space, and time in which llama-server serves nobody else.  So it is made only when the
conversation has grown by some hundreds of tokens, and only if it is quick compared with what it may
save.  If something else is about to take the slot, fewer tokens are enough, provided that saving is
quicker than computing them again: several agents that take turns add 100 or 200 tokens each time.
There is no timer here: others call `save_if_due`, in an idle moment, before something else takes
the slot, and at the end of the process.

Everything here happens inside the gate.  A save that fails is no error for those who call: they
have a request to serve, and the conversation is only computed again some day.

Not known here: how a save is made safe (`bioproxy.slot_files.saving`), and who asks next.
"""

from __future__ import annotations

from twisted.logger import Logger

from bioproxy.llama.speed import Speed
from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.prompts.prompt_ids import is_learned, learned_id
from bioproxy.runtime.errors import LlamaCallFailed
from bioproxy.slot.content import SlotContent
from bioproxy.slot.known_content import NO_CONVERSATION, KnownContent
from bioproxy.slot_files.file_search import SavedConversation
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import CHAT
from bioproxy.slot_files.reuse_check import ReuseCheck
from bioproxy.slot_files.save_failures import SaveFailed

GROWN = 256
"""Tokens that a conversation must have grown by to be saved.

Fewer are computed again in about a second.  Halved, short exchanges cause twice as many saves;
doubled, up to 511 tokens may have to be computed twice.
"""

GROWN_IF_DISPLACED = 64
"""Tokens that are enough if something else takes the slot now and saving is quicker than computing them again.

What is restored is used up to a multiple of 64 tokens, so fewer would gain nothing.  Doubled, agents that take turns
with 100 tokens each compute them twice.
"""

FIRST_QUESTION = 2
"""Messages that a conversation has at most before its first answer: a system message and a question.

Halved, each question with a system message is saved when something else takes the slot; doubled, a conversation is
saved late in its second turn.
"""

EARLIER = 8
"""Beginnings of a saved conversation by which it is found, too, without its last messages.

So it is of use after its last question was edited, or one of the last four.  Halved, after fewer of them; doubled, each
record has twice as many digests.
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

    Invariant: a file is only replaced or removed for one whose conversation goes on with it.
    """

    log = Logger()

    enabled: bool
    """Whether conversations are saved at all.  May be changed at any time."""

    minimum: int | None
    """Tokens that a conversation without a template must have to be saved; `None`: such ones are not.

    May be changed at any time.
    """

    def __init__(
        self,
        content: SlotContent,
        files: SlotFiles,
        reuse_check: ReuseCheck,
        speed: Speed,
        enabled: bool,
        minimum: int | None = None,
    ) -> None:
        self._content = content
        self._files = files
        self._reuse_check = reuse_check
        self._speed = speed
        self.enabled = enabled
        self.minimum = minimum
        # Whether the last save failed, and was told in the log.
        self._last_failed = False

    def due(self, displaced: bool = False) -> bool:
        """Tell whether there is a conversation that is worth saving now; `displaced`: something else takes the slot."""
        known, grown = self._content.known, self._content.unsaved_tokens()
        if known is None or grown < GROWN_IF_DISPLACED or not self._can_keep(known):
            return False
        # Most questions are asked once, and a file for each of them would be written for nobody.  A conversation that
        # has gone on before will probably go on again.
        goes_on = known.conversation is not None and known.conversation.length > FIRST_QUESTION
        if grown < GROWN and not (displaced and goes_on):
            return False
        # Measured by the last save and the last prompt (`bioproxy.llama.speed`).
        seconds = self._speed.save_seconds(known.witness.tokens)
        computing = grown * self._speed.seconds_per_token
        if grown < GROWN:
            return seconds is not None and seconds < computing
        # How long the first save takes is not known.  It is risked, or it would never be known.
        return (seconds or 0.0) <= max(LONGEST_SAVE, computing * WORTH)

    def _can_keep(self, known: KnownContent) -> bool:
        """Tell whether what the slot holds can be saved at all, and the file be of use."""
        if known.conversation is None or not self.enabled or not self._reuse_check.conversations or self._content.mixed:
            return False
        # One without a template is kept with those that were learned, or not at all.
        if not is_template(known.name) and (self.minimum is None or known.witness.tokens < self.minimum):
            return False
        # Where it is not known which model runs, a file could not be said to be of any, and finding
        # that out would overwrite the very conversation.
        return self._files.of_use and self._files.model_known

    def switch_seconds(self) -> float:
        """Return how long it would take to bring the slot's conversation back after another one; 0 if not known.

        With a file that is twice the time of a save, since restoring takes no longer than saving does.
        """
        known = self._content.known
        if known is None:
            return 0.0
        tokens = known.witness.tokens
        computing = tokens * self._speed.seconds_per_token
        # Before the first save, as if there was none: files are then the exception.
        saving = self._speed.save_seconds(tokens) if self._can_keep(known) else None
        return computing if saving is None else min(computing, 2 * saving)

    async def save_if_due(self, displaced: bool = False) -> None:
        """Save the conversation in the slot if that is due.  Never fails for reasons of llama-server's.

        `displaced` tells that something else takes the slot now.

        Cancelling stops waiting for llama-server, which finishes the save; the slot stays as known
        as it was, because a save does not change it.
        """
        if not self.due(displaced):
            return
        try:
            # Asked first: a file of what somebody else has left there would be worse than none.
            known = await self._content.confirm()
            if known is None or known.conversation is None:
                return
            tokens = known.witness.tokens
            # Looked up before the save, as afterwards the new conversation would be found among those
            # that it continues.
            superseded = self._superseded(known.turns)
            name = self._name_for(known, known.conversation)
            beginnings = known.turns.beginnings(EARLIER)
            await self._files.save(name, CHAT, known.key, tokens, conversation=known.conversation, earlier=beginnings)
            # From here on the file is complete and recorded: only now older ones may go.
            self._content.mark_saved(tokens)
            self._last_failed = False
            self._files.discard(*((each, CHAT) for each in superseded if each != name))
        except (SaveFailed, LlamaCallFailed, OSError) as error:
            # A full disk stays full: one line in the log is enough.
            if not self._last_failed:
                self.log.warn("conversation not saved: {error}", error=error)
            self._last_failed = True
            # Counted as saved although it is not, so that the next attempt comes when it has grown
            # again.  Otherwise each idle moment would try once more.
            self._content.mark_saved(self._content.known.witness.tokens if self._content.known is not None else 0)

    def restorable(self, turns: ConversationChain) -> ConversationChain:
        """Return the part of a conversation of which a file may be of use; none where restoring them does not help."""
        if not self._reuse_check.conversations:
            return NO_CONVERSATION
        # Where the model cannot go back, it cannot answer the same question once more from behind
        # its first answer, nor an edited one: only shorter conversations are of use.
        return turns if self._reuse_check.goes_back else turns.without_last

    def saved_beginning(self, turns: ConversationChain) -> SavedConversation | None:
        """Return the saved conversation that has most of these turns, if any."""
        return self._files.longest_conversation(self.restorable(turns), self._reuse_check.goes_back)

    def _superseded(self, turns: ConversationChain) -> list[str]:
        """Return the names of saved conversations that nobody needs any more when one with these turns is saved."""
        earlier = self._files.continued_conversations(turns)
        if self._reuse_check.goes_back:
            return earlier
        # A model that cannot go back needs the one before, for when the last question is edited or
        # asked once more.
        needed = self._files.continued_conversations(turns.without_last)[:1]
        return [name for name in earlier if name not in needed]

    def _name_for(self, known: KnownContent, conversation: Conversation) -> str:
        """Return the name to save the conversation in the slot under.  Raises `OSError`."""
        # Without a template there is no name that means anything to people.
        if not is_template(known.name):
            return learned_id(conversation.digest)
        recorded = self._files.recorded(known.name, CHAT)
        last = recorded.conversation if recorded is not None else None
        if (
            last is not None
            and last != conversation
            and not (self._reuse_check.goes_back and known.turns.continues(last))
        ):
            # Somebody may go on with the other one, or need it (`_superseded`).  Without a folder
            # that can be seen no file can be renamed, and then the new one takes its place.
            self._files.rename_entry(known.name, CHAT, learned_id(last.digest))
        return known.name


def is_template(name: str) -> bool:
    """Tell whether a prompt is a template's, and neither learned nor unknown."""
    return bool(name) and not is_learned(name)
