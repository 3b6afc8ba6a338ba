"""The beginnings of requests that clients have sent lately, and what is known of each.

A *beginning* is what stands before the first user message: a system message, tools.  Whether one is worth learning
depends on what came before: did another conversation begin with it, and which other beginnings are the same for a
while?  So the latest `SEEN` beginnings are remembered, in memory only, and the one that was not used for the longest
time is forgotten first.  After a restart of bioproxy they are learned anew from the next requests.

On Twisted: everything here is synchronous, and a `Beginning` is the only value in it that changes.  A coroutine may
hold one over an ``await`` and write down what llama-server has told.  If the beginning was forgotten meanwhile, the
result is written into an object that nobody looks at any more, which is harmless.

Texts of beginnings are here, because they can become prompts; no word of any user's message is.

Does not know llama-server, nor what is worth learning (`bioproxy.learning.prompt_rules`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from bioproxy.learning.prompt_rules import Seen, Tokens
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.conversation import Conversation
from bioproxy.prompts.digests import prefix_digests
from bioproxy.prompts.prompt_shape import Shape

SEEN = 64
"""Beginnings that are remembered, at most.  Each may have 256 KiB of text.

Halved, two requests of one client must follow each other within 32 other ones for their shared part to be found;
doubled, up to 32 MiB of memory are taken by what clients have sent.
"""


@dataclass
class Beginning:
    """What is known of one beginning.

    Invariant: `process` and `exact` are about `tokens`.
    """

    shape: Shape
    """The beginning itself."""

    at_once: bool = False
    """Whether it has tools, or a client marked it."""

    conversation: Conversation | None = None
    """The latest conversation that began with it; `None` until a request was answered."""

    repeated: bool = False
    """Whether two different conversations began with it."""

    tokens: Tokens | None = None
    """Its tokens; `None` before llama-server was asked."""

    process: object = None
    """The process of llama-server that was asked.  Another one may have another model, and so other tokens."""

    exact: bool = False
    """Whether `tokens` ends where the user's message begins; otherwise it has some tokens of a stand-in."""

    news: bool = False
    """Whether something was noted about it from which nothing was learned yet."""

    def know_tokens(self, tokens: list[int], process: object, *, exact: bool) -> None:
        """Note what llama-server made of it.

        `process` is the process that was asked, and `exact` tells whether the tokens end where the user's message
        begins.
        """
        # Digests instead of the tokens: they are all that is compared, and take a thirtieth of the memory.
        self.tokens, self.process, self.exact = Tokens(len(tokens), prefix_digests(tokens)), process, exact

    def tokens_in(self, process: object) -> Tokens | None:
        """Return its tokens in a process of llama-server; `None` if this process was not asked for them."""
        return self.tokens if self.process == process else None

    def seen(self) -> Seen | None:
        """Return the beginning as the rules see it; `None` if its tokens are unknown or it was never answered."""
        if self.tokens is None or self.conversation is None:
            return None
        return Seen(self.shape, self.tokens, self.at_once, self.repeated)


class Beginnings:
    """The beginnings that clients have sent lately.

    Invariant: at most `SEEN`, the one that was answered or added last at the end.
    """

    def __init__(self) -> None:
        # By the digest of the shape: texts of 256 KiB are not compared with each request.
        self._seen: OrderedDict[str, Beginning] = OrderedDict()

    def get(self, shape: Shape) -> Beginning | None:
        """Return what is known of a beginning; `None` if it is not remembered."""
        return self._seen.get(shape.digest)

    def get_or_add(self, shape: Shape) -> Beginning:
        """Return what is known of a beginning, which is remembered from now on."""
        known = self._seen.get(shape.digest)
        # One comes and at most one goes, so the loop of a caller that holds another one is not disturbed.
        if known is None:
            known = self._seen[shape.digest] = Beginning(shape)
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
        return known

    def answered(self, chat: ChatRequest, process: object) -> Beginning:
        """Note that a request was answered by a process of llama-server; return its beginning."""
        # Only answered requests count.  A request that llama-server refuses has proved nothing about its beginning, and
        # its client may send it again and again.
        beginning = self.get_or_add(chat.beginning)
        self._seen.move_to_end(chat.beginning.digest)
        # A conversation is the same one if the request continues it, or asks its last question once more.
        before = beginning.conversation
        another = before is not None and not chat.conversation.continues(before)
        beginning.conversation = chat.conversation.all_messages
        at_once = beginning.at_once or chat.marked or chat.has_tools
        changed = (another and not beginning.repeated) or at_once != beginning.at_once
        # With another model the tokens are other ones, and so is what two beginnings share.
        beginning.news |= before is None or changed or beginning.process != process
        beginning.at_once, beginning.repeated = at_once, beginning.repeated or another
        return beginning

    def with_news(self) -> list[Beginning]:
        """Return the beginnings about which there is something new."""
        # Not an iterator but a list of its own, because requests add beginnings while the caller awaits llama-server.
        return [each for each in self._seen.values() if each.news]

    def others(self, beginning: Beginning) -> list[Seen]:
        """Return all other beginnings of which the same process has told the tokens, as the rules see them."""
        return [
            seen
            for each in self._seen.values()
            if each is not beginning and each.process == beginning.process and (seen := each.seen()) is not None
        ]

    def forget(self, shape: Shape) -> None:
        """Forget a beginning, if it is remembered: the next request that has it is like a first one."""
        self._seen.pop(shape.digest, None)

    def difference(self, shape: Shape) -> str | None:
        """Say how a beginning differs from the most similar one that was answered; `None` if there is none.

        The text names fields and positions, and quotes nothing.
        """
        beginning = self.get(shape)
        tokens = beginning.tokens if beginning is not None else None
        others = [each for each in self._seen.values() if each.shape != shape and each.conversation is not None]
        if not others:
            return None

        # The text alone does not tell: two long system messages may differ in one character.
        # By the tokens that both share, where they are known; among equals the latest.
        def similarity(other: Beginning) -> int:
            return tokens.shared(other.tokens) if tokens is not None and other.tokens is not None else 0

        return max(reversed(others), key=similarity).shape.difference(shape)
