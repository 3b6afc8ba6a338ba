"""What bioproxy knows of slot 0's content, and how it finds out whether that is still so.

llama-server does not say which tokens a slot holds.  It says two numbers, in `GET /slots`: which
task used the slot last, and how many tokens the slot holds.  This pair is the *witness*.  It is
written down when the slot was left, and compared before the slot's content is relied on.  If both
are equal, nobody used the slot in between and the process was not restarted.

The witness does not see everything: a restore leaves the task's number alone, for example.  So it
is only the second line of defence.  The first is an order of steps: what is known is forgotten
*before* anything changes the slot, and written down again only when all went well.  This
order also makes cancelling harmless.  A coroutine can be ended at each of its ``await``s, by a
client that hangs up or a service that stops, and nothing behind that ``await`` runs.  Broken off in
the middle, the slot is "unknown", never "known" and wrong.

Everything here that changes or relies on the slot happens inside the gate, with one exception:
`llama_restarted` comes from a watch that runs at any time.  So after each ``await`` the content is
looked at once more.

Not known here: files, templates' texts, and what is best to be done with what the slot holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from bioproxy.llama.answers import Evaluated
from bioproxy.llama.api import LlamaApi
from bioproxy.prompts.conversation import Conversation, ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.slot.known_content import NO_CONVERSATION, NO_KEY, KnownContent, ProbableContent

IDLE_POLL = 1.5
"""Seconds between looks at a slot that is busy.

It must be more than one: llama.cpp looks whether the client of a plain request is still there only
after a second in which no other task has ended, and being asked for its slots is a task.  Halved,
the request that is waited for would never notice that its client has gone.  Doubled, the next user
waits 1.5 seconds longer at worst.
"""


class SlotContent:
    """What slot 0 holds, as far as bioproxy knows.

    Invariant: `known` was true when it was written down, and nothing that bioproxy does has changed
    the slot since.  Whether others have is for `confirm` to find out.
    """

    known: KnownContent | None
    """What the slot was left with, `None` for "unknown"."""

    probable: ProbableContent | None
    """What it probably holds.  Only of interest where `known` is `None`."""

    visible: bool
    """Whether llama-server says what its slots hold; with ``--no-slots`` it does not."""

    left_by_user: bool
    """Whether a user's request used the slot last, and not a warm-up or a new process."""

    foreign: ConversationChain | None
    """The conversation of the last request with LoRA adapters of its own, until what it left is dropped; else `None`.

    Tokens in the slot may have the keys and values of other adapters then.  llama-server compares the tokens only.
    """

    mixed: bool
    """Whether adapters were switched while this process of llama-server ran.

    Its memory of prompts (``--cache-ram``) does not tell adapters apart, so what users' requests leave in the slot may
    have keys and values of the earlier ones.  Nothing of it is saved then.
    """

    def __init__(self, llama: LlamaApi, clock: IReactorTime) -> None:
        self.known = self.probable = None
        self.visible = True
        self.left_by_user = self.mixed = False
        self.foreign = None
        self._llama = llama
        self._clock = clock

    # Before the slot changes.  None of these waits for anything, so nothing can come in between a
    # call and the request to llama-server that follows it.

    def forget(self) -> None:
        """Note that what the slot holds is unknown."""
        # Always allowed, by anybody, at any time: it costs a restore at the next request, never
        # more.
        self.known = self.probable = None

    def taken_by_user(self, probable: ProbableContent | None = None) -> None:
        """Note that a user's request is about to change the slot, and what that probably leaves."""
        # The moment at which the slot becomes unknown.  From here on it may end in any way, and
        # there is nothing to be done about it: the one thing to do has been done.
        self.forget()
        # This may be believed although nobody confirms it, because it is always checked by a
        # comparison that llama-server makes itself, token by token: a mistake costs time only.
        self.probable, self.left_by_user = probable, True

    def taken_by_warmup(self, probable: ProbableContent | None = None) -> None:
        """Note that a warm-up or a head start is about to change the slot, and what that probably leaves."""
        # Nothing is probable after a warm-up that was broken off: it had less than the prompt,
        # and the next attempt begins with a file.  A head start has the conversation of a user.
        self.forget()
        self.probable, self.left_by_user = probable, False

    def taken_by_file(self) -> None:
        """Note that what the slot holds is in a file, or of no use to anybody, whatever request left it."""
        self.left_by_user = False

    def llama_restarted(self) -> None:
        """Note that another process of llama-server runs, whose slot is empty."""
        self.forget()
        # The new process may have been started with or without --no-slots.
        self.visible, self.left_by_user, self.mixed, self.foreign = True, False, False, None

    # What is known, without asking llama-server.

    def has(self, key: Key | None) -> bool:
        """Tell whether the slot was left with this key's tokens."""
        # Good enough for showing a state and for choosing what to do next.  Before the slot's
        # content is relied on, `confirm` asks llama-server.
        return self.known is not None and self.known.key == key

    def is_continued_by(self, conversation: ConversationChain) -> bool:
        """Tell whether a conversation begins with all messages of the one that the slot was left with.

        Only the messages are compared, as the client wrote them.  Good enough for the order at the
        gate: if a template was edited meanwhile, the request has to compute its prompt again,
        wherever it stands in the queue.
        """
        # Without a witness (``--no-slots``) nothing is known, but what is probable is as good here.
        left = self.known or self.probable
        return left is not None and left.is_continued_by(conversation)

    def unsaved_tokens(self) -> int:
        """Return by how many tokens the conversation in the slot has grown since it was saved."""
        return 0 if self.known is None else self.known.unsaved_tokens

    def mark_saved(self, tokens: int) -> None:
        """Note that so many tokens of what the slot holds are in a file, or will be."""
        if self.known is not None:
            self.known = self.known.with_saved(tokens)

    # Asking llama-server.

    async def drop_foreign(self) -> None:
        """Empty the slot if its tokens may have the keys and values of other adapters (`foreign`).

        Otherwise the next request would reuse them, llama-server would keep a copy in memory, and the prompt would be
        saved to a file that gives everybody another model's answers.  Never fails for reasons of llama-server's.
        Cancelling leaves the slot unknown, to be emptied later.
        """
        if self.foreign is None:
            return
        self.forget()
        try:
            await self._llama.erase()
        except LlamaError:
            pass  # there is no slot folder, so nothing can be saved either
        except LlamaCallFailed:
            return
        self.foreign = None

    async def remember(
        self,
        name: str,
        key: Key,
        conversation: Conversation | None,
        saved: int,
        turns: ConversationChain = NO_CONVERSATION,
        before: KnownContent | None = None,
        ahead: bool = False,
    ) -> None:
        """Write down what the slot was left with, if its witness can be had.

        The first arguments are the fields of `KnownContent`.  `before` is what the slot held before
        a request that may have used another slot: if nobody has used slot 0 since, it still holds
        that.  Fires in any case, with the slot unknown if llama-server could not be asked.
        Cancelling leaves it unknown.
        """
        # Unknown while llama-server is asked: were this broken off, the witness would belong to
        # something else than what is written down here.  `probable` stays, for just that case.
        self.known = None
        try:
            witness = await self._llama.witness()
        except LlamaCallFailed:
            return
        self.visible = witness is not None
        # A slot without any task is that of a fresh process, and the next fresh process will look
        # just the same: it proves nothing.  A busy one is about to be something else.
        if witness is not None and witness.task is not None and not witness.busy:
            # Only a request that names a slot is certain to use that one (`id_slot`).  Another one
            # may have got any slot of a llama-server that has several.
            elsewhere = before is not None and before.witness == witness
            self.known = before if elsewhere else KnownContent(name, key, conversation, saved, witness, turns, ahead)

    async def confirm(self) -> KnownContent | None:
        """Fire with what the slot holds if the witness confirms it, with `None` if it is unknown.

        Fails as `LlamaApi`'s calls do.  Cancelling changes nothing: asking leaves the slot as it
        is.
        """
        known = self.known
        if known is None:
            return None  # and llama-server is not asked, which could only say what nobody believes
        same = await self._llama.witness() == known.witness
        # Meanwhile others ran.  If the watch has noticed another process, `known` is gone already,
        # and what was read above may be the old process's or the new one's.
        if self.known is known and not same:
            self.forget()
        return known if self.known is known else None

    async def as_it_is(self) -> KnownContent | None:
        """Fire with the slot's content together with its witness of this moment, `None` without a witness.

        Content that is not known has no name.  Never fails for reasons of llama-server's.
        """
        # For `remember`, which compares the witness only: what is not known stays not known.
        try:
            witness = await self._llama.witness()
        except LlamaCallFailed:
            return None
        if witness is None:
            return None
        known = self.known
        return known if known is not None and known.witness == witness else KnownContent("", NO_KEY, None, 0, witness)

    async def probably_has(self, key: Key, turns: ConversationChain, tokens: int) -> bool:
        """Tell whether the slot probably has what a request goes on with.

        That is so if it has more than `tokens`, those of the prompt, or, where llama-server does
        not tell how many it has, if `turns` go on with the conversation that was broken off.  Fails
        as `LlamaApi`'s calls do; cancelling changes nothing.
        """
        probable = self.probable
        if probable is None or probable.key != key:
            return False
        witness = await self._llama.witness()
        if witness is None:
            return turns.continues(probable.turns.all_messages)
        return witness.tokens > tokens

    async def evaluate_for_warmup(
        self, tokens: Sequence[int], probable: ProbableContent | None = None, anew: bool = False
    ) -> Evaluated:
        """Have the slot hold exactly these tokens, for a warm-up, or for a head start that has `probable` there.

        Fires and fails as `LlamaApi.evaluate`, which also says what `anew` is.  Cancelling closes the
        connection and leaves the slot unknown.
        """
        self.taken_by_warmup(probable)
        return await self._llama.evaluate(tokens, anew=anew)

    async def until_idle(self) -> None:
        """Fire when nobody works in the slot, as far as llama-server tells.  Never fails."""
        # Polling, because llama-server has no way to say when it is done.  `deferLater` is
        # Twisted's sleep: a Deferred that the clock fires, while everything else goes on.
        try:
            while (witness := await self._llama.witness()) is not None and witness.busy:
                await deferLater(self._clock, IDLE_POLL)
        except LlamaCallFailed:
            return  # it is away, or restarted: nobody works there
