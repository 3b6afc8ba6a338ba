"""Sessions that talk to a fleet, and what each of their turns was: where it went, what it cost, how it ended.

A session is a chat of many turns on one template.  Like the clients of OpenAI's library it names itself in a header,
streams its answers, and repeats a turn that failed: after ``Retry-After`` where the error has one, at once where an
answer broke off.  Each session runs in a thread of its own.

A client must be able to tell a whole answer from one that broke off.  So each answer is judged twice: whether it
*looks* whole, by HTTP's framing and the stream's last line, and whether it *is* whole, by what llama-server says of the
work.

Does not know how a fleet is made (`benchmarks.fleet_parts`).
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from benchmarks.fleet_parts import KEY
from bioproxy.demo.tiny_model import COMMON_WORDS

SLACK = 256
"""Tokens that a turn may compute beside what is new, if its conversation was found: pieces end at multiples of this."""

TIMEOUT = 120.0
"""Seconds of silence after which a request counts as hung.  None may."""

AGAIN = 0.5
"""Seconds that a client waits before it repeats a turn, at most: less than an error asks for, or runs take minutes."""

TRIES = 20
"""Attempts at one turn before a session gives up."""


@dataclass(frozen=True)
class Attempt:
    """How one request ended."""

    status: int
    """HTTP status; 0 where no answer began."""
    pair: str | None = None
    """The pair that answered, as HAProxy says."""
    cache: str | None = None
    """``hot``, ``restored`` or ``cold``, as bioproxy says."""
    looks_whole: bool = False
    is_whole: bool = False
    hung: bool = False
    retry_after: str | None = None
    said: str = ""
    """What an error says."""
    text: str = ""
    ttft: float = 0.0
    """Seconds to the first piece of text."""
    reused: int = 0
    """Prompt tokens that the slot had."""
    computed: int = 0
    """Prompt tokens that llama-server computed."""

    @property
    def helpful(self) -> bool:
        """Whether an error says what to do: a status and a text, and when to try again if that helps."""
        return bool(self.said) and (self.status < 500 or self.retry_after is not None)


@dataclass(frozen=True)
class Turn:
    """A turn that was answered."""

    session: str
    number: int
    """0 for the first."""
    answer: Attempt
    new: int
    """Tokens of the prompt that no earlier answer of this session was computed with."""
    moved: bool
    """Whether the turn before was answered by another pair."""

    @property
    def warm(self) -> bool:
        """Whether the pair that was found had the conversation, in its slot or in a file."""
        return self.answer.cache in ("hot", "restored") and self.answer.computed <= self.new + SLACK


def ask(port: int, body: Any, headers: dict[str, str], path: str = "/v1/chat/completions") -> Attempt:
    """Send a request over a connection of its own, and read the answer to its end, whatever that is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    status, pair, cache, retry_after, text, said, ttft = 0, None, None, None, "", "", 0.0
    done = finished = False
    timings: dict[str, Any] = {}
    began = time.monotonic()
    try:
        sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
        connection.request("POST", path, json.dumps(body), sent)
        response = connection.getresponse()
        status, retry_after = response.status, response.getheader("Retry-After")
        pair, cache = response.getheader("X-Fleet-Pair"), response.getheader("X-Bioproxy-Cache")
        if status != HTTPStatus.OK:
            said = str(json.loads(response.read())["error"]["message"])
            return Attempt(status, pair, cache, retry_after=retry_after, said=said)
        while line := response.readline():
            if line.startswith(b"data: [DONE]"):
                done = True
            elif line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    said = str(event["error"]["message"])
                    continue
                timings = event.get("timings", timings)
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        ttft = ttft or time.monotonic() - began
                        text += piece
                    finished = finished or bool(choice["finish_reason"])
        # The standard library takes a stream without its last chunk for ended: only the connection knows.
        framed = response.isclosed()
    except TimeoutError:
        return Attempt(status, pair, cache, hung=True)
    except (OSError, http.client.HTTPException) as error:
        return Attempt(status, pair, cache, said=f"the connection broke: {error!r}"[:100])
    finally:
        connection.close()
    return Attempt(
        status,
        pair,
        cache,
        looks_whole=framed and done and not said,
        is_whole=finished and bool(timings),
        said=said,
        text=text,
        ttft=ttft,
        reused=int(timings.get("cache_n", 0)),
        computed=int(timings.get("prompt_n", 0)),
    )


@dataclass
class Session:
    """A chat on one template.  `turns` are those that were answered, `failures` what went wrong on the way."""

    name: str
    prefix: str
    answer_tokens: int = 12
    question_words: int = 60
    turns: list[Turn] = field(default_factory=list)
    failures: list[Attempt] = field(default_factory=list)
    _messages: list[dict[str, str]] = field(default_factory=list)
    _known: int = 0

    def turn(self, port: int) -> Turn:
        """Ask the next question, as often as it takes; return what came of it."""
        number = len(self._messages) // 2
        words = random.Random(f"{self.name} {len(self.turns)}").choices(COMMON_WORDS, k=self.question_words)
        opening = f"{self.prefix} " if number == 0 else ""
        self._messages.append({"role": "user", "content": opening + " ".join(words)})
        body = {"messages": self._messages, "stream": True, "max_tokens": self.answer_tokens, "temperature": 0}
        for _ in range(TRIES):
            answer = ask(port, body, {"X-Session-Id": self.name})
            if answer.status == HTTPStatus.OK and answer.looks_whole:
                break
            self.failures.append(answer)
            time.sleep(min(AGAIN, float(answer.retry_after or 0)))
        else:
            raise SystemExit(f"{self.name}: no answer in {TRIES} attempts, the last one was {self.failures[-1]}")
        self._messages.append({"role": "assistant", "content": answer.text})
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
