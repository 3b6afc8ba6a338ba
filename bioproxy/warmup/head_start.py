"""The head start: after an answer, the conversation is processed as its client will send it back.

The next prompt of a conversation has all that the slot holds, but not always in the same form.  Chat templates drop the
reasoning of earlier answers, write tool calls in their own way, or strip white space.  From there on everything would
have to be computed when the user asks; on models that cannot go back, everything from the first token on.  While nobody
waits, it can be computed in advance.  The steps:

1. `request_sent` and `answered` keep the last conversation with its answer, until the next user comes.
2. `do` has llama-server render it with its chat template, several times with other words in place of the next message.
   What the token lists have in common is what the next prompt begins with.  The slot is not needed for that.
3. If the slot does not hold that already, it is evaluated inside the gate, in pieces as a warm-up.
4. The next answer tells by its reused tokens whether the guess was right.

On Twisted: the first step awaits nothing, so it costs a request no time.  The second may be overtaken by a user at each
``await``; nothing is lost then, and a comparison afterwards notices it.  In the third step the gate *cancels* the
coroutine for a user who comes: the ``await`` raises `CancelledError`, the connection closes, and llama-server stops.

Texts are kept for the one last conversation only, and no longer than until the head start or the next user.  Nothing of
them is logged.  Does not know APIs and chat templates, nor what the slot does with its files.
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
from bioproxy.prompts.answer_text import AnswerText
from bioproxy.prompts.chat_history import CONVERTERS
from bioproxy.prompts.next_turn import next_turn
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.runtime.errors import LlamaCallFailed, ProxyError
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.spool import Spool
from bioproxy.slot.slot import Slot
from bioproxy.warmup.client_kinds import ClientKinds
from bioproxy.warmup.head_start_evaluation import HeadStartEvaluation
from bioproxy.warmup.next_prompt import NextPrompt, find_next_prompt
from bioproxy.warmup.talks import Candidate, Expected, Talk

LARGEST_BODY = 1 << 20
"""Bytes of a request's body, with its templates filled in, for which there is a head start.

Each head start writes it as JSON four times, some milliseconds each, and keeps a copy in memory.  Halved, conversations
of more than about 130,000 tokens get none; doubled, the reactor stands still twice as long for the longest.
"""


WORTH = 32
"""Tokens that a head start must spare the next request, on a model that can go back.

Halved, answers of a few words get head starts of which nobody notices anything; doubled, the next request after a short
answer may compute 63 tokens beside what is new, which takes some machines two seconds.
"""

NEARLY = 64
"""Tokens at the end of what was expected that need not be reused for a guess to count as right.

A prompt may part from the guess in the role of its last message.  Halved, two such prompts might end the head starts of
their client; doubled, a guess may be wrong about all of a short answer, and still count as right.
"""


class HeadStart:
    """Prepares the slot for the next turn of the last conversation.

    Invariant: the slot is used only inside the gate, each conversation is tried once, and texts of at most one
    conversation are kept.  The methods are called in this order for each request that uses the slot, all but the first
    two only if it comes so far::

        user_came ──▶ request_sent ──▶ answered ──▶ do, in the warmer's next rounds ──▶ user_came, of the next request
    """

    log = Logger()

    enabled: bool
    """Whether there are head starts (``head_start``).  May be changed at any time."""

    kinds: ClientKinds
    """Which kinds of clients send their conversations back as expected.  `/status` shows those that do not."""

    def __init__(
        self,
        gate: Gate,
        slot: Slot,
        llama: LlamaApi,
        watch: ProcessWatch,
        evaluation: HeadStartEvaluation,
        metrics: Metrics,
        clock: IReactorTime,
        read: Callable[..., Awaitable[Any]],
        enabled: bool,
    ) -> None:
        """Store the parts; nothing is asked before the first `do`.

        `slot` is used inside `gate`, by `evaluation`; `llama` renders prompts, and `watch` tells which process it is.
        `metrics` gets each outcome, and `clock` measures durations for the log.  `read` has a function read a body, in
        another process if that is large.  `enabled` is the first value of the attribute.
        """
        self.enabled = enabled
        self.kinds = ClientKinds()
        self._gate = gate
        self._slot = slot
        self._llama = llama
        self._watch = watch
        self._evaluation = evaluation
        self._metrics = metrics
        self._clock = clock
        self._read = read
        # The request inside the gate, and after its answer the candidate that it made.  Only one of them is set at a
        # time.  `do` compares the candidate after each ``await``: if it is another one or none, a user has come.
        self._sent: tuple[Talk, bytes] | None = None
        self._candidate: Candidate | None = None
        # What the next request is expected to reuse, and the same for the request that is inside the gate now.  The
        # first becomes the second when that request comes in, and is judged when its answer has ended.
        self._expected: Expected | None = None
        self._awaited: Expected | None = None

    # What requests tell.  None of this waits for anything.

    def user_came(self) -> None:
        """Note that a user's request is about to use the slot: the last conversation is not kept any longer."""
        # Also if the request fails later: what it leaves in the slot is its own, or unknown.  And texts of a user are
        # not kept for longer than they are of use.
        self._sent, self._candidate = None, None
        # A request that goes on with the conversation is judged when it is answered.  For all later ones the slot has
        # changed, so nothing is expected of them.
        self._awaited, self._expected = self._expected, None

    def request_sent(self, talk: Talk, body: RequestBody) -> AnswerText | None:
        """Note that a request is about to be sent, inside the gate.

        `talk` says which conversation it is of, and `body` is sent to llama-server.  Return what is to be fed with its
        answer, or `None` if there will be no head start.
        """
        # For a kind of client that has stopped, not even the text is collected.
        wanted = self.enabled and talk.path in CONVERTERS and not self.kinds.stopped(talk.kind)
        if not wanted or body.size > LARGEST_BODY:
            return None
        # Copied now: the request's own file is closed as soon as its answer has ended.  It is not parsed here, since
        # its client is waiting, and most of the time the next request comes before there is a use for it.
        self._sent = talk, body.to_bytes()
        return AnswerText()

    def answered(self, answer: AnswerText | None, reused: int | None, hot: bool) -> None:
        """Note that the request was answered to its end.

        `reused` is how many tokens llama-server says it reused, and `hot` whether the slot was left as it was for this
        request: only then does `reused` say whether a guess was right.
        """
        # Taken out first, so that nothing of this request is kept if there is no message.  There is none after an
        # answer that was broken off, or too long.
        sent, awaited = self._sent, self._awaited
        self._sent, self._awaited = None, None
        message = answer.message() if answer is not None else None
        if sent is None or message is None:
            return
        talk, body = sent
        # The next round of the warmer finds it, half a second later at most.
        self._candidate = Candidate(talk, body, message)
        earlier = awaited.talk.conversation.all_messages if awaited is not None else None
        if awaited is None or earlier is None or reused is None or not hot:
            return
        # The same question once more goes back to before the answer, whatever was guessed about what follows it.  So
        # does an edited question, and a request of another conversation says nothing at all.
        if talk.conversation.continues(earlier) and talk.conversation.is_longer_than(earlier):
            self._judge(awaited, reused)

    def _judge(self, expected: Expected, reused: int) -> None:
        """Compare what an answer has reused, in tokens, with what was expected.

        Two mistakes are possible, and each has its own consequence.  The slot was left alone although the next prompt
        parts from it: then the next time it is evaluated.  Or it was evaluated, and the prompt was another one: after
        two of these in a row the kind of client gets no more head starts.
        """
        right, kind = reused >= expected.tokens - NEARLY, expected.talk.kind
        if not expected.guessed:
            # The slot was left alone because it looked right.  Next time it is not left alone.
            if not right:
                self.kinds.found_parting(kind)
            return
        self.kinds.guessed(kind, right)
        if not right:
            self._count(expected.talk, "useless")

    # What is done while nobody asks.

    async def do(self) -> None:
        """Give the last conversation a head start, if it needs one and nobody is at the gate.

        Fires when that is done, or a user has come.  Errors of llama-server do not make this fail.  Cancelling leaves
        what the slot holds unknown at worst.
        """
        candidate = self._candidate
        if candidate is None:
            return
        # The warmer calls this in each round, twice a second.  Most of the time it ends above.
        #
        # A reload may have switched head starts off since the answer.
        if not self.enabled:
            self._candidate = None
            return
        # Where the slot holds something else, or llama-server does not tell what it holds, there is nothing to prepare.
        # A conversation that comes back later is restored from its file, and computes the last answer again.
        held = self._slot.tokens_of_conversation(candidate.talk.conversation)
        if held is None:
            self._candidate = None
            return
        try:
            found = await self._find(candidate)
            # A user may have come and gone meanwhile.  From here to the gate there is no ``await``, so what is found
            # out here is still true there.
            if candidate is not self._candidate or self._gate.busy:
                return
            self._candidate = None
            if found is None:
                # Images, a conversation that does not fit the context, or a user who has come.
                return
            if found.leave_alone(certain=not self.kinds.parts(candidate.talk.kind)):
                # Whether it really is right, the next answer tells.
                self._expected = Expected(candidate.talk, held, guessed=False)
                return
            if found.end - found.shared < WORTH and self._slot.model_goes_back:
                # The answer had a few words only.  A model that cannot go back has to compute the whole prompt for
                # them, so this is about the others.
                return
            await self._evaluate(candidate.talk, found)
        except (LlamaCallFailed, ProxyError, OSError) as error:
            # Each conversation is tried once: the next answer brings the next chance.  No warning, as nobody is harmed:
            # a chat template that cannot write such a conversation would otherwise warn after each answer.
            self._candidate = None
            self._count(candidate.talk, "failed")
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
            self._llama, turn, candidate.answer, context, lambda: candidate is self._candidate
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
            return self._count(talk, "preempted")
        # `None` where the slot turned out to hold something else: then nothing was done, and nothing is expected.
        # Another client may use llama-server without bioproxy.
        if (computed := self._evaluation.computed) is None:
            return None
        # The next request that goes on with this conversation will tell whether the guess was right.
        self._expected = Expected(talk, found.end, guessed=True)
        self._count(talk, "done")
        return self.log.info(
            "head start: {computed} of {tokens} tokens computed in {seconds:.1f} s",
            computed=computed,
            tokens=found.end,
            seconds=self._clock.seconds() - began,
        )

    def _count(self, talk: Talk, result: str) -> None:
        """Count the outcome of a head start."""
        # Learned prompts share one label, or the metrics would grow with the number of prompts.
        self._metrics.head_starts.labels(metric_label(talk.prompt), result).inc()
