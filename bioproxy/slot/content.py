"""What bioproxy believes to be in slot 0, and how it finds out whether that is still so.

`GET /slots` is the *witness*: the number of the last task and how many tokens the slot holds.  It is written down when
the slot was left, and compared before the slot's content is relied on.  If both are equal, nobody used the slot in
between and the server did not restart.

The witness does not see everything (a restore leaves the task's number alone), so what is believed is forgotten
*before* anything changes the slot, and noted again only when all went well.  A fault in the middle, or a cancelled
request, leaves "unknown", never something wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from bioproxy.llama.api import Evaluated, LlamaApi, Witness
from bioproxy.prompts.conversation import Conversation, Turns
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed

IDLE_POLL = 1.5
"""Seconds between looks at a slot that is busy.

More than one: llama.cpp looks whether the client of a plain request is still there only after a second in which no
other task has ended, and being asked for its slots is a task.
"""


@dataclass(frozen=True)
class KnownContent:
    """What the slot was left with: a template's prefix, and, after a question on it, the conversation behind.

    `saved` tokens of it are in a file already; `witness` is what llama-server said of the slot then.
    """

    name: str
    key: Key
    conversation: Conversation | None
    saved: int
    witness: Witness


@dataclass(frozen=True)
class ProbableContent:
    """What the slot probably holds, a template with a conversation on it, where no witness can confirm it."""

    key: Key
    turns: Turns


class SlotContent:
    """What slot 0 holds: `known`, as far as is known, or at least `probable`, as far as is believed.

    `visible` tells whether llama-server says what the slot holds (with ``--no-slots`` it does not).  `users` is true
    while it was a user who used the slot last, and false after a warm-up or a start of llama-server.
    """

    def __init__(self, llama: LlamaApi) -> None:
        self.known: KnownContent | None = None
        self.probable: ProbableContent | None = None
        self.visible = True
        self.left_by_user = False
        self._llama = llama

    def forget(self) -> None:
        """Note that what the slot holds is unknown."""
        self.known = self.probable = None

    def taken_by_user(self, believed: ProbableContent | None = None) -> None:
        """Note that a user's request is about to change the slot, and what it will probably leave there."""
        self.forget()
        self.probable, self.left_by_user = believed, True

    def taken_by_warmup(self) -> None:
        """Note that a warm-up is about to change the slot."""
        self.forget()
        self.left_by_user = False

    def llama_restarted(self) -> None:
        """Note that another process of llama-server runs."""
        self.forget()
        self.visible, self.left_by_user = True, False

    def has(self, key: Key | None) -> bool:
        """Tell whether the slot was left with this key's tokens."""
        return self.known is not None and self.known.key == key

    def unsaved_tokens(self) -> int:
        """Return by how many tokens the conversation in the slot has grown since it was saved, 0 if there is none."""
        held = self.known
        return 0 if held is None or held.conversation is None else held.witness.tokens - held.saved

    def mark_saved(self, tokens: int) -> None:
        """Note that so many tokens of what the slot holds are in a file, or will be."""
        if self.known is not None:
            self.known = replace(self.known, saved=max(tokens, self.known.saved))

    async def remember(self, name: str, key: Key, conversation: Conversation | None, saved: int) -> None:
        """Remember what the slot was left with, if its witness can be had."""
        self.known = None
        try:
            witness = await self._llama.witness()
        except LlamaCallFailed:
            return
        self.visible = witness is not None
        # A slot without any task is that of a fresh server, and the next fresh server's will look just the same.
        if witness is not None and witness.task is not None and not witness.busy:
            self.known = KnownContent(name, key, conversation, saved, witness)

    async def evaluate_for_warmup(self, tokens: Sequence[int]) -> Evaluated:
        """Have the slot hold exactly these tokens, for a warm-up.  Fires, fails and is cancelled as `LlamaApi`'s."""
        self.taken_by_warmup()
        return await self._llama.evaluate(tokens)

    async def until_idle(self, clock: IReactorTime) -> None:
        """Fire when nobody works in the slot, as far as llama-server tells."""
        try:
            while (witness := await self._llama.witness()) is not None and witness.busy:
                await deferLater(clock, IDLE_POLL)
        except LlamaCallFailed:
            return  # it is away, or restarted: nobody works there

    async def probably_has(self, key: Key, turns: Turns, tokens: int) -> bool:
        """Tell whether the slot probably has what a request goes on with, or at least so many `tokens` of its template.

        That is so after an answer that was broken off: llama-server holds what it had computed.  It compares tokens
        itself, so a mistake costs time and nothing else.  Fails as `LlamaApi`'s calls do.
        """
        believed = self.probable
        if believed is None or believed.key != key:
            return False
        witness = await self._llama.witness()
        if witness is None:
            return turns.continues(believed.turns.whole)
        return witness.tokens > tokens

    async def confirm(self) -> KnownContent | None:
        """Fire with what the slot holds, if the witness confirms it.  Fails as `LlamaApi`'s calls do."""
        held = self.known
        if held is None:
            return None
        same = await self._llama.witness() == held.witness
        # While llama-server was asked, something else may have been noticed: that it was restarted, for example.
        if self.known is held and not same:
            self.forget()
        return held if self.known is held else None
