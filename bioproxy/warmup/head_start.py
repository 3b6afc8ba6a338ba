"""The head start: after an answer, the conversation is processed as its client will send it back.

The next prompt of a conversation has all that the slot holds, but not always in the same form.  Chat templates drop the
reasoning of earlier answers, write tool calls in their own way, or strip white space.  From there on everything would
have to be computed when the user asks; on models that cannot go back, everything from the first token on.  While nobody
waits, it can be computed in advance.  The steps:

1. Requests leave the last conversation with its answer in `bioproxy.warmup.last_talk`.
2. `do` has llama-server render it with its chat template, several times with other words in place of the next message.
   What the token lists have in common is what the next prompt begins with.  The slot is not needed for that.
3. If the slot does not hold that already, it is evaluated inside the gate, in pieces as a warm-up.
4. The next answer tells by its reused tokens whether the guess was right (`bioproxy.warmup.last_talk`, too).

On Twisted: the second step may be overtaken by a user at each ``await``; nothing is lost then, and a comparison
afterwards notices it.  In the third step the gate *cancels* the coroutine for a user who comes: the ``await`` raises
`CancelledError`, the connection closes, and llama-server stops.

Does not know APIs and chat templates, what requests tell, nor what the slot does with its files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.gate.gate import Gate
from bioproxy.http.request_body import RequestBody
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.process_watch import ProcessWatch
from bioproxy.prompts.next_turn import next_turn
from bioproxy.runtime.errors import LlamaCallFailed, ProxyError
from bioproxy.runtime.spool import Spool
from bioproxy.slot.slot import Slot
from bioproxy.warmup.head_start_evaluation import HeadStartEvaluation
from bioproxy.warmup.last_talk import LastTalk
from bioproxy.warmup.next_prompt import NextPrompt, find_next_prompt
from bioproxy.warmup.talks import Candidate, ExpectedReuse, Talk

WORTH = 32
"""Tokens that a head start must spare the next request, on a model that can go back.

Halved, answers of a few words get head starts of which nobody notices anything; doubled, the next request after a short
answer may compute 63 tokens beside what is new, which takes some machines two seconds.
"""


class HeadStart:
    """Prepares the slot for the next turn of the last conversation.

    Invariant: the slot is used only inside the gate, and each conversation is tried once.
    """

    log = Logger()

    def __init__(
        self,
        last_talk: LastTalk,
        gate: Gate,
        slot: Slot,
        llama: LlamaApi,
        watch: ProcessWatch,
        evaluation: HeadStartEvaluation,
        clock: IReactorTime,
        read: Callable[..., Awaitable[Any]],
    ) -> None:
        """Store the parts; nothing is asked before the first `do`.

        `last_talk` has the conversation.  `slot` is used inside `gate`, by `evaluation`; `llama` renders prompts, and
        `watch` tells which process it is.  `clock` measures durations for the log.  `read` has a function read a body,
        in another process if that is large.
        """
        self._last_talk = last_talk
        self._gate = gate
        self._slot = slot
        self._llama = llama
        self._watch = watch
        self._evaluation = evaluation
        self._clock = clock
        self._read = read

    async def do(self) -> None:
        """Give the last conversation a head start, if it needs one and nobody is at the gate.

        Fires when that is done, or a user has come.  Errors of llama-server do not make this fail.  Cancelling leaves
        what the slot holds unknown at worst.
        """
        # `last_talk` is asked for its candidate after each ``await``: if it is another one or none, a user has come.
        last_talk = self._last_talk
        candidate = last_talk.candidate
        if candidate is None:
            return
        # The warmer calls this in each round, twice a second.  Most of the time it ends above.
        #
        # A reload may have switched head starts off since the answer.
        if not last_talk.enabled:
            last_talk.candidate = None
            return
        # Where the slot holds something else, or llama-server does not tell what it holds, there is nothing to prepare.
        # A conversation that comes back later is restored from its file, and computes the last answer again.
        held = self._slot.tokens_of_conversation(candidate.talk.conversation)
        if held is None:
            last_talk.candidate = None
            return
        try:
            found = await self._find(candidate)
            # A user may have come and gone meanwhile.  From here to the gate there is no ``await``, so what is found
            # out here is still true there.
            if candidate is not last_talk.candidate or self._gate.busy:
                return
            last_talk.candidate = None
            if found is None:
                # Images, a conversation that does not fit the context, or a user who has come.
                return
            if found.leave_alone(certain=not last_talk.kinds.parts(candidate.talk.kind)):
                # Whether it really is right, the next answer tells.
                last_talk.expected = ExpectedReuse(candidate.talk, held, guessed=False)
                return
            if found.end - found.shared < WORTH and self._slot.facts.model_goes_back:
                # The answer had a few words only.  A model that cannot go back has to compute the whole prompt for
                # them, so this is about the others.
                return
            await self._evaluate(candidate.talk, found)
        except (LlamaCallFailed, ProxyError, OSError) as error:
            # Each conversation is tried once: the next answer brings the next chance.  No warning, as nobody is harmed:
            # a chat template that cannot write such a conversation would otherwise warn after each answer.
            last_talk.candidate = None
            last_talk.count(candidate.talk, "failed")
            self.log.info("a head start has failed: {error}", error=error)

    async def _find(self, candidate: Candidate) -> NextPrompt | None:
        """Find out how the next prompt begins.

        Fires with `None` if that cannot be guessed, or a user has come.  Fails as `LlamaApi`'s calls do, and with
        `ProxyError` if the body cannot be read; cancelling ends the call in progress.
        """
        # As a file, because that is how a body gets to the second process.  A small one stays in memory.  Parsing the
        # body of a long conversation takes tens of milliseconds, in which the reactor could serve nobody.
        with Spool() as file:
            file.write(candidate.body)
            turn = await self._read(next_turn, RequestBody(file), candidate.talk.path, candidate.answer)
        if turn is None:
            return None
        # The last argument is asked between two calls: a user who came meanwhile has made the guess useless.
        # Cancelling the call would spare nothing: these are quick, and do not use the slot.
        context = self._watch.process.props.context
        return await find_next_prompt(
            self._llama, turn, candidate.answer, context, lambda: candidate is self._last_talk.candidate
        )

    async def _evaluate(self, talk: Talk, found: NextPrompt) -> None:
        """Have the slot hold what the next prompt begins with, unless a user comes.

        Fires when that is over, in whichever way.  Fails as `LlamaApi`'s calls do; cancelling ends the piece in
        progress.
        """
        began = self._clock.seconds()
        # The gate returns `False` if a user has come.  That user may go on with this conversation: llama-server keeps
        # what it has computed, and compares the tokens itself.  Nothing is expected then, so the guess is not judged.
        if not await self._gate.warmup(lambda: self._evaluation.run(talk.conversation, found)):
            return self._last_talk.count(talk, "preempted")
        # `None` where the slot turned out to hold something else: then nothing was done, and nothing is expected.
        # Another client may use llama-server without bioproxy.
        if (computed := self._evaluation.computed) is None:
            return None
        # The next request that goes on with this conversation will tell whether the guess was right.
        self._last_talk.expected = ExpectedReuse(talk, found.end, guessed=True)
        self._last_talk.count(talk, "done")
        return self.log.info(
            "head start: {computed} of {tokens} tokens computed in {seconds:.1f} s",
            computed=computed,
            tokens=found.end,
            seconds=self._clock.seconds() - began,
        )
