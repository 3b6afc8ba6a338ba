"""Has llama-server keep in its memory what a slot file is about to overwrite, where no file has its prompt.

llama-server keeps finished prompts in memory (``--cache-ram``, 8 GiB by default): when a *request* takes the slot from
another prompt, a copy of that prompt is made first, and a later request that begins with it gets it back.  A restore
is no request.  It overwrites the slot without a copy, so what a client without a template has computed would be lost
by a file that bioproxy restores for somebody else.  Without bioproxy it would not have been lost.

So a request comes first: the prompt of a single token, which has nothing in common with the slot's content.
llama-server makes its copy, and computes one token.  That is called *parking* here.

Parking is one more ``await`` before a restore, in which a client may hang up.  Twisted then raises `CancelledError`
there, the connection is closed, and nothing after it runs.  The caller has forgotten before what the slot holds, so
"unknown" is what remains, which is right: nobody can say whether llama-server has received the token.

Not known here: which file is restored, and for whom.  Nor does bioproxy know what llama-server has in its memory; it
only learns from answers whether what was parked came back.
"""

from __future__ import annotations

from dataclasses import dataclass

from twisted.logger import Logger

from bioproxy.llama.api import LlamaApi
from bioproxy.prompts.conversation import ConversationChain
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.runtime.metrics import Metrics
from bioproxy.slot.content import SlotContent
from bioproxy.slot.known_content import KnownContent
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.record import PREFIX

LEAST = 64
"""Tokens that the slot must hold for parking, and that must be reused later for parking to have been of use.

Halved, a token and a copy are spent to save less than a batch of 64 tokens; doubled, 127 tokens of a short chat are
computed again, which takes a slow machine two seconds.
"""

STRIKES = 2
"""How many parked conversations in a row must come back without being reused before nothing more is parked.

With 1, one conversation that llama-server had to give up for lack of memory would end it.  With 4, each restore costs a
token more for longer where llama-server keeps nothing (``--cache-ram 0``).
"""

STRANGER = (0,)
"""The prompt that parks: one token, by its number, which each vocabulary has.

If the slot's content begins with the same token, that is still so small a part that llama-server makes its copy: it
does unless half of the content is reused.
"""


@dataclass(frozen=True)
class Displaced:
    """What a restore is about to overwrite, and what is worth parking.

    `known` is `None` where nobody can name it.  `prompt` is how many tokens the prompt has of the request that left it,
    without the answer; 0 where nobody has said.
    """

    known: KnownContent | None
    prompt: int = 0


class Parking:
    """Parks the slot's content before a file is restored over it.

    Invariant: a prompt that has a file is not parked.  The file would be restored for it the next time, and hide the
    copy in memory.
    """

    log = Logger()

    def __init__(self, llama: LlamaApi, content: SlotContent, files: SlotFiles, metrics: Metrics) -> None:
        self._llama = llama
        self._content = content
        self._files = files
        self._metrics = metrics
        self.llama_restarted()

    def llama_restarted(self) -> None:
        """Forget what was learned: another process of llama-server runs, perhaps with other flags."""
        self._of_use = True
        self._strikes = 0
        # The latest only.  It is enough to find out whether llama-server keeps anything.
        self._parked: Displaced | None = None
        # Tokens of the latest prompt that was answered.
        self._prompt = 0

    def answered(self, prompt: int | None) -> None:
        """Note how many tokens the prompt of an answered request has, `None` if the answer does not say."""
        self._prompt = prompt or 0

    async def look(self) -> Displaced | None:
        """Fire with the slot's content if it should be parked before a restore, else with `None`.

        Where the content is not known, llama-server is asked how many tokens there are, about a millisecond's work.
        Fails as `LlamaApi.witness`.  Cancelling changes nothing.
        """
        content = self._content
        # What a warm-up has left is in a file, or is computed again in an idle moment.  It is asked here and not noted
        # when a request ends, because what the slot holds may be saved in between.
        if not self._of_use or not content.left_by_user:
            return None
        if (known := content.known) is not None:
            # A file of the conversation is not enough.  It helps the client that goes on with this conversation, and
            # nobody who begins another one with the same prompt.
            worth = known.witness.tokens >= LEAST and not self._has_file(known.name, known.key)
            return Displaced(known, self._prompt) if worth else None
        # An answer was broken off, or the request was none that bioproxy reads.  In the first case the prompt's name
        # may be known, and a file may have most of it.
        probable = content.probable
        if probable is not None and self._has_file(probable.name, probable.key):
            return None
        witness = await self._llama.witness()
        return Displaced(None) if witness is not None and witness.tokens >= LEAST else None

    async def park(self, displaced: Displaced) -> None:
        """Have llama-server copy what the slot holds to its memory.  The caller has forgotten what the slot holds.

        Fires when the slot may be overwritten, also if llama-server refused.  Fails with `UpstreamError` or
        `UpstreamTimeout`.  Cancelling leaves the slot unknown.
        """
        # What it fires with is of no interest: one token is computed, and none is reused.  Whether llama-server has
        # made a copy cannot be seen from that, nor from anything else that it tells.
        try:
            await self._llama.evaluate(STRANGER)
        except LlamaCallFailed as error:
            # Not tried again with this process.  A user is waiting, and what cannot be parked is computed again, as it
            # always was.
            self._of_use = False
            self._count("failed")
            self.log.warn("prompts without a file cannot be kept in llama-server's memory: {error}", error=error)
            # A refusal says nothing about restoring.  A llama-server that does not answer would not answer that either.
            if not isinstance(error, LlamaError):
                raise
        else:
            self._parked = displaced
            self._count("parked")

    def judge(self, key: Key, turns: ConversationChain, reused: int) -> None:
        """Learn from an answer for which nothing was prepared whether what was parked last came back.

        `key` and `turns` are those of the request, and llama-server has `reused` so many tokens for it.
        """
        parked = self._parked.known if self._parked is not None else None
        # Another prompt than the parked one says nothing.  Nor does a chat that bioproxy does not read: it is parked,
        # but has no key, and nobody could tell what goes on with it.
        if self._parked is None or parked is None or parked.key != key:
            return
        if reused >= LEAST:
            self._parked, self._strikes = None, 0
            self._count("reused")
        # Another conversation with the same system message may have too little of it.  But one that goes on with what
        # was parked has all of its prompt.  Of its answer perhaps not: chat templates drop what a model has thought.
        elif parked.conversation is not None and turns.continues(parked.conversation):
            is_lost, self._parked = self._parked.prompt >= LEAST, None
            if not is_lost:
                return
            self._strikes += 1
            self._count("lost")
            # It stays so until another process runs, as the flag does not change before.
            if self._strikes >= STRIKES:
                self._of_use = False
                self.log.info("llama-server does not keep prompts in memory (--cache-ram): no more are parked")

    def _has_file(self, name: str, key: Key) -> bool:
        """Tell whether a prompt has a file; one that is not known has no name, and none."""
        entry = self._files.usable(name, PREFIX) if name else None
        return entry is not None and entry.key == key

    def _count(self, result: str) -> None:
        """Count one event."""
        self._metrics.slot_parked.labels(result).inc()
