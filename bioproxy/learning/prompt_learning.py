"""Learns prompts from the requests that pass by, and finds the prompt that a request begins with.

A request goes through three methods.  `look` is awaited when it arrives, before it waits at the gate: where only a part
of its beginning may be known, llama-server is asked for its tokens.  `prompt_for` tells, inside the gate, which learned
prompt it begins with.  `answered` is called when it was answered: only then it has taught anything.

Nothing is decided at that moment.  `study` decides later, in a round of the warmer: turning a beginning into tokens
takes some requests to llama-server, and no user should wait for them.  The rules are pure and stand in
`bioproxy.learning.prompt_rules`; what was seen so far is in `bioproxy.learning.beginnings`; here are the requests to
llama-server and what comes of them.

On Twisted: `look` and `study` may both be waiting for llama-server's tokens of the same beginning, for two clients that
came at the same time.  Nothing is locked for that.  Each stores what it has found when its ``await`` has returned; if
`look` is the second, the next `study` of this beginning asks once more.

Does not know what a warm-up is, nor which files there are.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.learning.beginnings import Beginning, Beginnings
from bioproxy.learning.prompt_rules import longest_part, may_have, to_learn
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.prefix_tokens import STAND_INS, prefix_tokens
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.chat_request import ChatRequest
from bioproxy.prompts.learned_prompts import LearnedPrompt, LearnedPrompts
from bioproxy.prompts.prompt_shape import Key, Shape
from bioproxy.runtime.errors import LlamaCallFailed

PROOF_SECONDS = 3600.0
"""Seconds after which a prompt that was learned at first sight does not count as waiting for its second use any more.

Halved, a client whose tools change each time costs eight warm-ups an hour instead of four; doubled, a new agent is
learned an hour later if such a client is there.
"""


class PromptLearning:
    """What is learned from the beginnings of requests.

    Invariant: only beginnings without any word of a user become prompts, and only after a request on them was answered,
    by this bioproxy or by one with the same shared shelf.
    """

    log = Logger()

    minimum: int | None
    """Tokens below which nothing is learned (``learn_minimum``); `None`: nothing at all.  May change at any time."""

    learned: LearnedPrompts
    """What was learned."""

    def __init__(
        self, learned: LearnedPrompts, llama: LlamaApi, watch: ProcessWatch, clock: IReactorTime, minimum: int | None
    ) -> None:
        """Keep what is learned in `learned`; ask `llama` for tokens.

        `watch` tells which process answers, and whether one does.  `clock` measures how long a prompt waits for its
        second use.
        """
        # Both are read at each call: a reload may change the minimum, and an operator may have a prompt forgotten,
        # while a coroutine waits for llama-server.
        self.learned = learned
        self.minimum = minimum
        self._llama = llama
        self._watch = watch
        self._clock = clock
        self._beginnings = Beginnings()
        # When prompts were learned at first sight that have not been used by a second conversation, in the clock's
        # seconds.  After a restart of bioproxy they count as proven: the clients that sent them may be back.
        self._unproven: dict[str, float] = {}
        self.shelf_tokens: Callable[[str, Key], int] = lambda id, key: 0
        """Returns the tokens of a prompt's file that another bioproxy shares, 0 without one.  Assigned by assembly."""
        # Prompts that were forgotten since the last `study`, because others were learned.
        self._forgotten: list[str] = []
        # How the latest request that shared a learned part went on otherwise, by the part's id.
        self._differences: dict[str, str] = {}

    # The three steps of a request.

    async def look(self, chat: ChatRequest) -> None:
        """Find out what has to be asked of llama-server to tell with which prompt a request begins.

        Fires when that is known, or cannot be.  Never fails for reasons of llama-server's; cancelling gives up the
        request to it.

        This comes before the gate, so the client waits in no queue yet, and holds up nobody else.  llama-server answers
        such questions while it computes for others: they do not use a slot.
        """
        # Mostly there is nothing to ask.  A beginning that was learned as a whole is found by its digest, and where no
        # part of a beginning was learned, no tokens could match one.
        shape = chat.beginning
        if self.minimum is None or self.learned.whole(shape) is not None:
            return
        # Another bioproxy has found it worth a file, so this one need not wait for a second conversation.
        prompt = LearnedPrompt(shape)
        if shape.may_be_kept and self.shelf_tokens(prompt.id, prompt.key) >= self.minimum:
            self._forgotten += self.learned.add(prompt)
            self.log.info("learned {prompt}: the shared shelf has it", prompt=prompt.id)
            return
        if not self.learned.cuts():
            return
        # A client waits for this, so it is asked only where the answer may be of use, and where one will come.
        if not self._watch.up or shape.is_too_large or not may_have(shape, self.minimum):
            return
        beginning, process = self._beginnings.get_or_add(shape), self._watch.process
        if beginning.tokens_in(process) is not None:
            return
        try:
            # One stand-in is enough here: some tokens too many at the end match no learned part.
            tokens = await self._llama.tokenize(await self._llama.apply_template(shape.request(STAND_INS[0])))
        except LlamaCallFailed:
            # The request is sent anyway.  Its own answer says what is wrong.
            return
        # `process` is the one that was asked.  If another one runs by now, `prompt_for` does not use these tokens.
        beginning.know_tokens(tokens, process, exact=False)

    def prompt_for(self, chat: ChatRequest) -> LearnedPrompt | None:
        """Return the longest learned prompt with which a request begins, as far as is known.

        Asks nobody, so it can be called inside the gate, where each question to llama-server would hold up all others.
        """
        # With learning switched off, what was learned is kept but not used, as before it was ever switched on.
        if self.minimum is None:
            return None
        # The whole is always longer than any part, and needs no tokens: one look-up by the digest of its text.
        whole = self.learned.whole(chat.beginning)
        if whole is not None:
            return whole
        # `look` has stored the tokens, unless llama-server could not be asked or was restarted since.  Then no part is
        # found, and the request is only computed from its first token.
        beginning = self._beginnings.get(chat.beginning)
        tokens = None if beginning is None else beginning.tokens_in(self._watch.process)
        return None if tokens is None else longest_part(tokens, self.learned.cuts())

    def answered(self, chat: ChatRequest) -> None:
        """Note that a request was answered.

        Only writes down what has happened, because a user may be waiting at the gate.
        """
        # Checked here once more and not only in the rules: what can never be learned takes no place in memory.
        shape = chat.beginning
        if self.minimum is None or shape.is_too_large or not may_have(shape, self.minimum) or not shape.may_be_kept:
            return
        # Where there are too many prompts, those that nobody uses are forgotten first.
        prompt = self.prompt_for(chat)
        if prompt is not None:
            self.learned.used(prompt.id)
        # A second conversation is the proof that a prompt learned at first sight was worth it.  That makes room for
        # another one.
        if self._beginnings.answered(chat, self._watch.process).repeated:
            self._unproven.pop(LearnedPrompt(shape).id, None)

    # What is learned from them.

    @property
    def has_news(self) -> bool:
        """Whether `study` has something to decide.

        Asked twice a second, mostly for nothing, so it must be cheap: no tokens and no texts are looked at.
        """
        return self.minimum is not None and (bool(self._forgotten) or bool(self._beginnings.with_news()))

    async def study(self) -> list[str]:
        """Decide what is learned from the requests that were answered since the last call.

        Fires with the ids of prompts that were forgotten because there were too many; never fails for reasons of
        llama-server's.  Cancelling gives up the request to it, and the rest is decided next time.
        """
        forgotten, self._forgotten = self._forgotten, []
        for id in forgotten:
            self._forget_notes(id)
        for beginning in self._beginnings.with_news():
            # Asked again for each: llama-server may have been restarted during the last ``await``.
            process = self._watch.process
            if not beginning.exact or beginning.tokens_in(process) is None:
                # In contrast to `look` the exact end matters: where the user's message begins in the tokens.  It takes
                # three stand-ins to find that out, whose common beginning it is.
                try:
                    tokens = await prefix_tokens(self._llama, "", beginning.shape, process.props.context)
                except LlamaCallFailed as error:
                    # A chat template may refuse these tools, and would do so each time.  If llama-server is away, the
                    # next request on this beginning is news again.
                    self.log.debug("what requests begin with cannot be made tokens: {error}", error=error)
                    beginning.news = False
                    continue
                beginning.know_tokens(tokens, process, exact=True)
            # Only now, behind the ``await``: cancelled in it, the news is still there for the next round.
            beginning.news = False
            forgotten += self._learn_from(beginning)
        return forgotten

    def _learn_from(self, beginning: Beginning) -> list[str]:
        """Learn what there is to learn from a beginning; return the ids of what was forgotten for that."""
        # From here to the end nothing waits, so the rules see one state, and what they find is learned in that state.
        # Learning may have been switched off while llama-server was asked.
        seen, minimum = beginning.seen(), self.minimum
        if seen is None or minimum is None:
            return []
        learned = [prompt for id in self.learned if (prompt := self.learned.get(id)) is not None]
        forgotten: list[str] = []
        others = self._beginnings.others(beginning)
        for prompt in to_learn(seen, others, learned, minimum, self._count_unproven()):
            # Told once for each prompt, since a user may ask why llama-server computes something that nobody
            # configured.
            self.log.info(
                "learned {prompt}: {why}, {tokens} tokens",
                prompt=prompt.id,
                why="two beginnings share it" if prompt.cut else "requests begin with it",
                tokens=prompt.cut or seen.tokens.count,
            )
            # Written to the disk at once.  The catalogue has it from this line on, and the warmer will find it due.
            forgotten += self.learned.add(prompt)
            # A part is proven when it is learned: two beginnings have it.
            if prompt.cut is None and not seen.repeated:
                self._unproven[prompt.id] = self._clock.seconds()
        # Written down now, because the beginnings that show the difference will be forgotten before the part is.
        part = longest_part(seen.tokens, self.learned.cuts())
        if part is not None and (told := self.difference(beginning.shape)) is not None:
            self._differences[part.id] = told
        for id in forgotten:
            self._forget_notes(id)
        return forgotten

    def _count_unproven(self) -> int:
        """Return how many prompts wait for a second conversation."""
        # Those that have waited for too long are dropped here instead of by a timer: the number is only needed here.
        oldest = self._clock.seconds() - PROOF_SECONDS
        self._unproven = {id: since for id, since in self._unproven.items() if since > oldest}
        return len(self._unproven)

    def forget(self, id: str) -> bool:
        """Forget a prompt; return whether there was one.  Requests that begin with it teach it anew."""
        prompt = self.learned.get(id)
        if prompt is None:
            return False
        # The beginning goes as well.  Otherwise a second conversation that came before would teach it again at once,
        # with the very next request.
        self._beginnings.forget(prompt.shape)
        self._forget_notes(id)
        return self.learned.forget(id)

    def _forget_notes(self, id: str) -> None:
        """Forget what is noted about a prompt that is gone, so that notes do not outlive their prompts."""
        self._unproven.pop(id, None)
        self._differences.pop(id, None)

    # What an operator is told.

    def difference(self, shape: Shape) -> str | None:
        """Say how a beginning differs from the most similar one that was seen before; `None` if there is none."""
        return self._beginnings.difference(shape)

    def note(self, id: str) -> str | None:
        """Return what is unwise about how clients use a learned part, in words for an operator."""
        # Only where requests differ behind the part: then a change of the client would make more of them reusable.
        told = self._differences.get(id)
        return None if told is None else f"requests share only this part: {told}"
