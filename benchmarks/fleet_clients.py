"""Sessions that talk to a fleet, and what each of their turns was: where it went, what it cost, how it ended.

A session is a chat of many turns on one template.  Like the clients of OpenAI's library it names itself in a header,
streams its answers, and repeats a turn that failed: after ``Retry-After`` where the error has one, at once where an
answer broke off.  Each session runs in a thread of its own.

Threads and blocking calls, and no Twisted: each client is a program of its own in real life, and what is tried out here
is the fleet.  A thread waits most of its time, so a few hundred of them do not disturb what is measured.

Does not know how a fleet is made (`benchmarks.fleet_parts`).
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from benchmarks.fleet_asking import Attempt, ask
from bioproxy.demo.vocabulary import COMMON_WORDS

SLACK = 256
"""Tokens that a turn may compute beside what is new, if its conversation was found: pieces end at multiples of this."""

AGAIN = 0.5
"""Seconds that a client waits before it repeats a turn, at most: less than an error asks for, or runs take minutes.

Halved, a fleet in trouble is asked more often than real clients would; doubled, tests of such moments take longer.
"""

TRIES = 20
"""Attempts at one turn before a session gives up: about ten seconds, longer than HAProxy needs to notice a lost
pair."""


@dataclass(frozen=True)
class Turn:
    """A turn that was answered."""

    session: str
    """The session's name."""
    number: int
    """0 for the first."""
    answer: Attempt
    """The attempt that was answered; those that failed before are `Session.failures`."""
    new: int
    """Tokens of the prompt that no earlier answer of this session was computed with."""
    moved: bool
    """Whether the turn before was answered by another pair."""

    @property
    def warm(self) -> bool:
        """Whether the pair that was found had the conversation, in its slot or in a file."""
        return self.answer.cache in ("hot", "restored") and self.answer.computed <= self.new + SLACK


@dataclass
class Session:
    """A chat on one template.  `turns` are those that were answered, `failures` what went wrong on the way."""

    name: str
    """What it calls itself in ``X-Session-Id``, by which a balancer may hash it."""
    prefix: str
    """The prefix of its template, with which its first question begins."""
    answer_tokens: int = 12
    """Tokens of an answer at most: short, because it is the prompts that matter here."""
    question_words: int = 60
    """Words of a question; most are one token."""
    turns: list[Turn] = field(default_factory=list)
    failures: list[Attempt] = field(default_factory=list)
    # What was said in the present chat, and how many tokens of it some answer was computed with.
    _messages: list[dict[str, str]] = field(default_factory=list)
    _known: int = 0

    def turn(self, port: int) -> Turn:
        """Ask the next question, as often as it takes; return what came of it."""
        # The words depend on the session and the turn, so that a run can be made again, and no two sessions share more
        # than their template.
        number = len(self._messages) // 2
        words = random.Random(f"{self.name} {len(self.turns)}").choices(COMMON_WORDS, k=self.question_words)
        opening = f"{self.prefix} " if number == 0 else ""
        self._messages.append({"role": "user", "content": opening + " ".join(words)})
        body = {"messages": self._messages, "stream": True, "max_tokens": self.answer_tokens, "temperature": 0}
        # The same body each time, as a client library does it: the pair that is asked next may have none of it.
        for _ in range(TRIES):
            answer = ask(port, body, {"X-Session-Id": self.name})
            if answer.status == HTTPStatus.OK and answer.looks_whole:
                break
            self.failures.append(answer)
            time.sleep(min(AGAIN, float(answer.retry_after or 0)))
        else:
            raise SystemExit(f"{self.name}: no answer in {TRIES} attempts, the last one was {self.failures[-1]}")
        self._messages.append({"role": "assistant", "content": answer.text})
        # Everything before the answer.  What is more than last time is new: the last answer and this question.
        prompt = answer.reused + answer.computed
        moved = number > 0 and self.turns[-1].answer.pair != answer.pair
        self.turns.append(Turn(self.name, number, answer, prompt - self._known, moved))
        self._known = prompt
        return self.turns[-1]

    def begin_again(self) -> None:
        """Forget what was said: the next question begins a new chat."""
        self._messages.clear()
        self._known = 0


class Crowd:
    """Sessions that run at the same time, each in a thread.  A problem of one of them is raised by `join`."""

    def __init__(self, sessions: Iterable[Session]) -> None:
        """Gather sessions; nothing is asked before `start`."""
        self.sessions = [*sessions]
        self._problems: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def start(self, port: int, turns: int, pause: float, endless: bool = False) -> None:
        """Let all of them ask so many questions, and think before each one for up to `pause` seconds.

        With `endless`, they begin new chats until they are stopped.
        """
        for session in self.sessions:
            thread = threading.Thread(target=self._run, args=(session, port, turns, pause, endless), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Have each session end after its present turn."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until all are done."""
        # A wait with a timeout can be interrupted by Ctrl-C.
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.2)
        self._threads.clear()
        if self._problems:
            raise self._problems[0]

    @property
    def turns(self) -> list[Turn]:
        """All turns that were answered."""
        return [turn for session in self.sessions for turn in session.turns]

    @property
    def failures(self) -> list[Attempt]:
        """All that went wrong on the way."""
        return [each for session in self.sessions for each in session.failures]

    def _run(self, session: Session, port: int, turns: int, pause: float, endless: bool) -> None:
        """Have one session's chats.  Called in its own thread; `pause` is in seconds."""
        # Of its own, so that the pauses of one session do not depend on what the others do.
        thinking = random.Random(session.name)
        try:
            while True:
                for _ in range(turns):
                    # At first, too: people do not all begin at the same moment.
                    if self._stopping.wait(thinking.uniform(0, pause)):
                        return
                    session.turn(port)
                if not endless:
                    return
                session.begin_again()
        except BaseException as problem:
            # An exception in a thread would only be printed.  `SystemExit` too: it ends a thread without a word.
            self._problems.append(problem)


@dataclass(frozen=True)
class Summary:
    """What some turns were, all together."""

    turns: int
    warm: float
    """Share of second and later turns whose pair had the conversation."""
    stayed: float
    """Share of second and later turns that came to the pair of the turn before."""
    hot: float
    """Share of second and later turns whose pair had the conversation in its slot."""
    computed: int
    """Prompt tokens computed."""
    again: int
    """Prompt tokens of second and later turns that were computed although an answer of this session had used them."""
    ttft: float
    """Median of the seconds to the first piece of text."""
    ttft_worst: float
    """The same, of the slowest twentieth."""

    @classmethod
    def of(cls, turns: Sequence[Turn]) -> Summary:
        """Return the summary of some turns."""
        # First turns are left out of the shares: nobody can have had their conversation.
        later = [turn for turn in turns if turn.number]
        times = sorted(turn.answer.ttft for turn in turns)
        return cls(
            len(turns),
            sum(turn.warm for turn in later) / len(later),
            sum(not turn.moved for turn in later) / len(later),
            sum(turn.answer.cache == "hot" for turn in later) / len(later),
            sum(turn.answer.computed for turn in turns),
            sum(max(turn.answer.computed - turn.new, 0) for turn in later),
            statistics.median(times),
            times[int(len(times) * 0.95)],
        )

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self.turns} turns: {self.warm:.1%} of the later ones found their conversation ({self.hot:.1%} in the"
            f" slot, {self.stayed:.1%} at the same pair), {self.computed} tokens computed, {self.again} of them again,"
            f" first token after {self.ttft * 1000:.0f} ms, worst twentieth {self.ttft_worst * 1000:.0f} ms"
        )
