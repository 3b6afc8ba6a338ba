"""How long a request will need the slot, by what recent requests like it took.

A request has two phases in the slot.  llama-server *reads* the prompt, as far as it cannot reuse what it has.  Then it
*answers*; how long that takes, nobody knows before, but requests of a kind resemble each other: an agent's requests for
a title are short, those for code are long.

So both are learned from finished requests, by kind:

* **Seconds of reading**, for each byte of the body as it arrived.  That includes what the cache usually saves for this
  kind: a template's text is not in the body, and of a conversation that goes on most is in the slot.  It includes the
  speed, too.  The latest measurement of the speed alone is no better, since it comes from a single request.
* **Seconds behind that**: generating the answer, and whatever else takes time, such as restoring a file.  In seconds
  and not in tokens: not every API tells how many tokens it generated, and this needs only a clock.

A **kind** is a list of words that goes from general to special: the path, the prompt, and whether it is the first
question of a conversation.  Each request teaches all levels; the most special one that has enough is asked.

Of the answers the median counts.  It is less than the mean, as few answers are very long, so the sum of all estimates
is a tenth too low; but most single estimates are better.  `benchmarks.estimates` compares both on a recorded run.

Pure: knows no clock, no gate and no request.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LATEST = 10
"""Requests of a kind that count.

Halved, a few odd answers in a row spoil the estimates; doubled, they follow a client that changes its habits, or a
prompt that has become warm, only after twice as many requests.
"""

ENOUGH = 3
"""Requests of a kind before its own numbers are preferred to those of a more general kind.

With 1, a single odd request decides; with 6, a client's own habits count only after it has waited by those of others.
"""

KINDS = 200
"""Kinds that are remembered; the one that was used least recently goes.

Each has `LATEST` small entries, so all take about 0.5 MB.  Halved, a busy server with many learned prompts forgets some
between two uses; doubled, it takes twice the memory for kinds that hardly come again.
"""

OVERDUE = 0.2
"""The rest of a request that takes longer than expected, as a part of the time that it has taken already.

Such a request is not about to end just because it should have: the longer an answer is, the longer it will probably go
on. Halved, clients behind a very long answer hear "about 1 s" for too long; doubled, a small delay looks like a large
one.
"""

Kind = tuple[str, ...]
"""What a request has in common with others, from general to special."""

Average = Callable[[Sequence[float]], float]
"""Makes one number of several; at least one is given."""


@dataclass(frozen=True)
class Served:
    """What one request took, as it turned out."""

    size: int
    """Bytes of the body as it arrived."""
    sent: int
    """Bytes of the body as it was sent on, with templates filled in."""
    prompt_tokens: int
    """Tokens of the prompt, reused ones included; 0 if the answer does not tell."""
    seconds: float
    """From the moment at which it got the slot to the end of its answer."""
    reading: float
    """How many of these seconds went into the prompt."""


@dataclass(frozen=True)
class Expected:
    """What one request will probably take, in seconds: first for its prompt, then for its answer."""

    reading: float
    answering: float

    def rest(self, inside: float, answering: float | None) -> float:
        """Return the seconds that are left of a request that has had the slot for `inside` seconds.

        `answering` is for how many seconds its answer has been coming, `None` if nothing of it has come.
        """
        # Nothing has come in two cases: llama-server still reads the prompt, or the answer is no stream and comes as a
        # whole.  Which one it is, is not known without parsing the request, so both phases are taken together.
        if answering is None:
            return max(self.reading + self.answering - inside, OVERDUE * inside)
        return max(self.answering - answering, OVERDUE * answering)


class Experience:
    """What the latest requests took.

    Invariant: it has at most `KINDS` kinds with `LATEST` requests each, so it does not grow with the number of
    requests.
    """

    def __init__(self, average: Average = statistics.median) -> None:
        """`average` makes one number of the latest ones; another one is for comparisons only."""
        self._average = average
        # The kind that was used last is at the end.
        self._latest: OrderedDict[Kind, deque[Served]] = OrderedDict()

    def learn(self, kind: Kind, served: Served) -> None:
        """Learn from a request that has ended well."""
        # The empty kind, of which all requests are, comes last and so is never the one that is forgotten.
        for level in range(len(kind), -1, -1):
            self._latest.setdefault(kind[:level], deque(maxlen=LATEST)).append(served)
            self._latest.move_to_end(kind[:level])
        while len(self._latest) > KINDS:
            self._latest.popitem(last=False)

    def expected(self, kind: Kind, size: int) -> Expected | None:
        """Return what a request of this kind will take, whose body has `size` bytes as it arrived.

        `None` as long as nothing was learned.
        """
        latest = self._of(kind)
        if not latest:
            return None
        # The ratio of the sums and not the mean of the ratios: a body of a few bytes has a chat template's twenty
        # tokens, too, and its ratio would say nothing about a long one.
        reading = size * sum(each.reading for each in latest) / max(1, sum(each.size for each in latest))
        return Expected(reading, self._average([max(0.0, each.seconds - each.reading) for each in latest]))

    def prompt_tokens(self, kind: Kind, sent: int) -> int | None:
        """Return about how many tokens the prompt of a request has, whose body has `sent` bytes with its templates.

        `None` if no answer to such a request has told.
        """
        told = [each for each in self._of(kind) if each.prompt_tokens]
        size = sum(each.sent for each in told)
        return round(sent * sum(each.prompt_tokens for each in told) / size) if size else None

    def _of(self, kind: Kind) -> Sequence[Served]:
        """Return the latest requests of the most special kind that has enough, else of the most general one."""
        for level in range(len(kind), 0, -1):
            latest = self._latest.get(kind[:level], ())
            if len(latest) >= ENOUGH:
                return latest
        return self._latest.get((), ())
