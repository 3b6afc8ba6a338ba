"""The conversation that was answered last, for a head start, and whether the guess about the one before was right.

Requests tell three things on their way: that they use the slot, that they are sent, and that they were answered to
their end.  From these it follows whether there is a conversation whose next turn may be guessed (`Candidate`), and what
the present request was expected to reuse (`ExpectedReuse`).

None of this waits for anything, so it costs a request no time.  In Twisted that also means that nothing else runs in
between: each method leaves everything in order before it returns.  `bioproxy.warmup.head_start` takes the conversation
later, in a round of the warmer.  It looks once more after each of its ``await``s whether it is still the last one.

Texts are kept for the one last conversation only, and no longer than until the head start or the next user.  Nothing of
them is logged.  Does not know how a next turn is guessed, or what the slot holds.
"""

from __future__ import annotations

from bioproxy.http.request_body import RequestBody
from bioproxy.prompts.answer_text import AnswerText
from bioproxy.prompts.chat_history import CONVERTERS
from bioproxy.prompts.prompt_ids import metric_label
from bioproxy.runtime.metrics import Metrics
from bioproxy.warmup.client_kinds import ClientKinds
from bioproxy.warmup.talks import Candidate, ExpectedReuse, Talk

LARGEST_BODY = 1 << 20
"""Bytes of a request's body, with its templates filled in, for which there is a head start.

Each head start writes it as JSON four times, some milliseconds each, and keeps a copy in memory.  Halved, conversations
of more than about 130,000 tokens get none; doubled, the reactor stands still twice as long for the longest.
"""

NEARLY = 64
"""Tokens at the end of what was expected that need not be reused for a guess to count as right.

A prompt may part from the guess in the role of its last message.  Halved, two such prompts might end the head starts of
their client; doubled, a guess may be wrong about all of a short answer, and still count as right.
"""


class LastTalk:
    """The last conversation, and what is expected of its next request.

    Invariant: texts of at most one conversation are kept.  The methods are called in this order for each request that
    uses the slot, all but the first two only if it comes so far::

        user_came ──▶ request_sent ──▶ answered ──▶ HeadStart.do, in the warmer's rounds ──▶ user_came, of the next
    """

    enabled: bool
    """Whether there are head starts (``head_start``).  May be changed at any time."""

    kinds: ClientKinds
    """Which kinds of clients send their conversations back as expected.  `/status` shows those that do not."""

    candidate: Candidate | None
    """The conversation with its answer, `None` if there is none, or its head start is done."""

    expected: ExpectedReuse | None
    """What the next request is expected to reuse."""

    def __init__(self, metrics: Metrics, enabled: bool) -> None:
        """Keep nothing yet.  `metrics` gets each outcome; `enabled` is the first value of the attribute."""
        self.enabled = enabled
        self.kinds = ClientKinds()
        self.candidate = None
        self.expected = None
        self._metrics = metrics
        # The request inside the gate.  When it is answered, it becomes the candidate: only one of both is set.
        self._sent: tuple[Talk, bytes] | None = None
        # What the request that is inside the gate now is expected to reuse.
        self._awaited: ExpectedReuse | None = None

    def user_came(self) -> None:
        """Note that a user's request is about to use the slot: the last conversation is not kept any longer."""
        # Also if the request fails later: what it leaves in the slot is its own, or unknown.  And texts of a user are
        # not kept for longer than they are of use.
        self._sent, self.candidate = None, None
        # A request that goes on with the conversation is judged when it is answered.  For all later ones the slot has
        # changed, so nothing is expected of them.
        self._awaited, self.expected = self.expected, None

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
        self.candidate = Candidate(talk, body, message)
        earlier = awaited.talk.conversation.all_messages if awaited is not None else None
        if awaited is None or earlier is None or reused is None or not hot:
            return
        # The same question once more goes back to before the answer, whatever was guessed about what follows it.  So
        # does an edited question, and a request of another conversation says nothing at all.
        if talk.conversation.continues(earlier) and talk.conversation.is_longer_than(earlier):
            self._judge(awaited, reused)

    def _judge(self, expected: ExpectedReuse, reused: int) -> None:
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
            self.count(expected.talk, "useless")

    def count(self, talk: Talk, result: str) -> None:
        """Count the outcome of a head start."""
        # Learned prompts share one label, or the metrics would grow with the number of prompts.
        self._metrics.head_starts.labels(metric_label(talk.prompt), result).inc()
