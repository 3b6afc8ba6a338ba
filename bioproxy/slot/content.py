"""What bioproxy believes to be in slot 0, and how it finds out whether that is still so.

`GET /slots` is the *witness*: the number of the last task and how many tokens the slot holds.  It is written down when
the slot was left, and compared before the slot's content is relied on.  If both are equal, nobody used the slot in
between and the server did not restart.

The witness does not see everything (a restore leaves the task's number alone), so what is believed is forgotten
*before* anything changes the slot, and noted again only when all went well.  A fault in the middle, or a cancelled
request, leaves "unknown", never something wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from bioproxy.llama.api import LlamaApi, Witness
from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed

IDLE_POLL = 1.5
"""Seconds between looks at a slot that is busy.

More than one: llama.cpp looks whether the client of a plain request is still there only after a second in which no
other task has ended, and being asked for its slots is a task.
"""


@dataclass(frozen=True)
class Held:
    """What the slot was left with: a template's prefix, and, after a question on it, the conversation behind.

    `saved` tokens of it are in a file already; `witness` is what llama-server said of the slot then.
    """

    name: str
    key: Key
    conversation: Conversation | None
    saved: int
    witness: Witness


@dataclass(frozen=True)
class Believed:
    """What the slot probably holds, a template with a conversation on it, where no witness can confirm it."""

    key: Key
    turns: ConversationChain


class SlotContent:
    """What slot 0 holds: `now`, as far as is known, or at least `perhaps`, as far as is believed.

    `visible` tells whether llama-server says what the slot holds (with ``--no-slots`` it does not).  `users` is true
    while it was a user who used the slot last, and false after a warm-up or a start of llama-server.
    """

    def __init__(self, llama: LlamaApi) -> None:
        self.now: Held | None = None
        self.perhaps: Believed | None = None
        self.visible = True
        self.users = False
        self._llama = llama

    def forget(self) -> None:
        """Note that what the slot holds is unknown."""
        self.now = self.perhaps = None

    def taken_by_user(self, believed: Believed | None = None) -> None:
        """Note that a user's request is about to change the slot, and what it will probably leave there."""
        self.forget()
        self.perhaps, self.users = believed, True

    def taken_by_warmup(self) -> None:
        """Note that a warm-up is about to change the slot."""
        self.forget()
        self.users = False

    def begin_anew(self) -> None:
        """Note that another process of llama-server runs."""
        self.forget()
        self.visible, self.users = True, False

    def has(self, key: Key | None) -> bool:
        """Tell whether the slot was left with this key's tokens."""
        return self.now is not None and self.now.key == key

    def unsaved(self) -> int:
        """Return by how many tokens the conversation in the slot has grown since it was saved, 0 if there is none."""
        held = self.now
        return 0 if held is None or held.conversation is None else held.witness.tokens - held.saved

    def now_saved(self, tokens: int) -> None:
        """Note that so many tokens of what the slot holds are in a file, or will be."""
        if self.now is not None:
            self.now = replace(self.now, saved=max(tokens, self.now.saved))

    async def note(self, name: str, key: Key, conversation: Conversation | None, saved: int) -> None:
        """Remember what the slot was left with, if its witness can be had."""
        self.now = None
        try:
            witness = await self._llama.witness()
        except LlamaCallFailed:
            return
        self.visible = witness is not None
        # A slot without any task is that of a fresh server, and the next fresh server's will look just the same.
        if witness is not None and witness.task is not None and not witness.busy:
            self.now = Held(name, key, conversation, saved, witness)

    async def until_idle(self, clock: IReactorTime) -> None:
        """Fire when nobody works in the slot, as far as llama-server tells."""
        try:
            while (witness := await self._llama.witness()) is not None and witness.busy:
                await deferLater(clock, IDLE_POLL)
        except LlamaCallFailed:
            return  # it is away, or restarted: nobody works there

    async def has_perhaps(self, key: Key, turns: ConversationChain, tokens: int) -> bool:
        """Tell whether the slot probably has what a request goes on with, or at least so many `tokens` of its template.

        That is so after an answer that was broken off: llama-server holds what it had computed.  It compares tokens
        itself, so a mistake costs time and nothing else.  Fails as `LlamaApi`'s calls do.
        """
        believed = self.perhaps
        if believed is None or believed.key != key:
            return False
        witness = await self._llama.witness()
        if witness is None:
            return turns.continues(believed.turns.all_messages)
        return witness.tokens > tokens

    async def look(self) -> Held | None:
        """Fire with what the slot holds, if the witness confirms it.  Fails as `LlamaApi`'s calls do."""
        held = self.now
        if held is None:
            return None
        same = await self._llama.witness() == held.witness
        # While llama-server was asked, something else may have been noticed: that it was restarted, for example.
        if self.now is held and not same:
            self.forget()
        return held if self.now is held else None
