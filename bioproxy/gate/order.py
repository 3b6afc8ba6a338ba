"""The order at the gate: which of the waiting requests goes next, as a function of plain values.

Order of arrival is fair, but it can be very slow.  An agent sends a request, runs a tool and sends the next request of
the same conversation half a second later.  If five agents do that at the same time, each of them finds another
conversation in the slot, and each request waits until its own conversation was restored or computed again.  So a
request that *goes on* with the conversation in the slot may pass others, and after an answer that ended with tool calls
the gate *lingers*: it waits for a moment, with nobody inside, for the next request of that conversation.

Lingering is of use only where bringing a conversation back takes long.  Where that is quick, from a file, switching
costs less than waiting, and the gate does not linger (`worth_lingering`).

Both cost the others time, and two rules limit that:

* **Patience.**  For each waiting request the seconds are counted by which it was passed over: the time that later
  requests spent inside after passing it, and the time for which the gate lingered while it waited.  A request may pass
  others, and the gate may linger, only if none of those would exceed the patience.
* **Order.**  Requests that do not go on with the slot's conversation keep the order of their arrival.

How long a request will be inside is not known before, so the caller hands in an estimate, `Policy.expected_s`.  If no
passing request takes longer than that, nobody is ever passed over for more than the patience.  If one does, the
patience is exceeded by that one request's extra time and by no more: afterwards nobody may pass any longer.

Some requests only fill llama-server's cache and produce nothing (`WaitingTurn.fills_only`).  They are let in when
nobody else waits, so they are outside both rules: everybody passes them, and no patience is counted for them.

This module is pure.  It knows no clock, no gate and no Twisted, so tests can try thousands of queues, and
`benchmarks/scheduling.py` runs a whole day with it in a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WaitingTurn:
    """One waiting request, as far as the order depends on it.  Its place in the queue tells when it arrived."""

    goes_on: bool = False
    """Whether the request goes on with the conversation that the slot holds now."""

    passed_s: float = 0.0
    """Seconds by which the request was passed over until now."""

    fills_only: bool = False
    """Whether the request only fills the cache.  Such a request waits until nobody else does."""


@dataclass(frozen=True)
class Policy:
    """What the decision depends on apart from the queue."""

    patience_s: float
    """Seconds by which a request may be passed over in all; 0 for the order of arrival."""

    expected_s: float = 0.0
    """Seconds that a request which goes on with the slot's conversation will probably be inside."""

    linger_s: float = 0.0
    """Seconds that are left to linger; 0 if the last answer gives no reason to, or if that time is over."""


@dataclass(frozen=True)
class Enter:
    """Let in the request at this index of the queue."""

    index: int


@dataclass(frozen=True)
class Linger:
    """Let nobody in for so many seconds, unless the queue changes before.  Always more than 0 seconds."""

    seconds: float


RECENT_TURNS = 64
"""The number of latest turns of users from which the time of the next passing turn is estimated.

Halved, one long answer is forgotten sooner, and the patience of others is exceeded more often; doubled, one long answer
prevents passing for twice as many turns.
"""

MARGIN = 1.25
"""The estimate, as a multiple of the longest of these turns.

At half, which is less than the longest turn, the patience of others is often exceeded; at twice as much, a quarter of
the patience is left unused where answers take about as long as it.
"""

CHEAP_SWITCH = 0.5
"""The gate lingers only if another conversation in between would cost at least this part of the time to linger.

Most tools take less than the whole time, so this is about what lingering costs on average, also where no request comes.
Halved, agents whose conversations are restored quickly take a tenth longer in all, for the sake of lingering; doubled,
the gate lingers less where a switch costs as much as the wait, and agents switch more often.
"""

SHORTEST_LINGER = 0.001
"""Seconds below which lingering is not worth a timer.

Halved or doubled, nothing changes that could be noticed.  0 would be wrong: rounding may leave a remainder so small
that adding it to the clock's time gives the same time, and such a timer fires at once, again and again.
"""


def expected_s(recent: Iterable[float]) -> float:
    """Return for how many seconds a request that goes on with the slot's conversation will probably be inside, at most.

    `recent` are the seconds of the latest `RECENT_TURNS` turns, each 0 if that did not go on with the slot's
    conversation.  Those have to wait for other things, such as the computing of a whole prompt.
    """
    # The longest and not the mean, so that the estimate is seldom exceeded.
    return MARGIN * max(recent, default=0.0)


def worth_lingering(linger_s: float, switch_s: float) -> float:
    """Return for how many seconds to linger at most after an answer with tool calls: `linger_s`, or 0.

    `switch_s` are the seconds that it would take to bring the conversation back after another one.
    """
    return linger_s if switch_s >= CHEAP_SWITCH * linger_s else 0.0


def in_order(fills_only: Sequence[bool]) -> list[int]:
    """Return the indexes of waiting requests in the order in which they go if nobody passes.

    That is the order of arrival, with those that only fill the cache at the end; `fills_only` tells which ones do.
    """
    # `sorted` keeps the order of equal elements.
    return sorted(range(len(fills_only)), key=fills_only.__getitem__)


def decide(queue: Sequence[WaitingTurn], policy: Policy) -> Enter | Linger | None:
    """Return who goes next, or for how long to linger first; `None` if the queue is empty.

    `queue` is in the order of arrival.  To be asked when nobody is inside, and again whenever the queue changes while
    the gate lingers.  The decision has five steps, and the first that applies is taken:

    1. nobody waits: nothing to do;
    2. the first request goes on with the slot's conversation: it enters, and passes nobody;
    3. a later one does, and everybody before it has enough patience left: it enters;
    4. there is time left to linger, and everybody has enough patience left for that and for the request that is waited
       for: linger;
    5. the first request enters.
    """
    if not queue:
        return None
    order = in_order([each.fills_only for each in queue])
    # The patience that is left to the most impatient of those who would be passed.  `most` grows while we go back in
    # the queue: a request has to pass everybody before it.
    most = 0.0
    room = policy.patience_s - policy.expected_s
    for place, index in enumerate(order):
        each = queue[index]
        if each.fills_only:
            break
        # Less than, not at most: with a patience of 0 and no estimate, nobody may pass.
        if each.goes_on and (place == 0 or most < room):
            return Enter(index)
        most = max(most, each.passed_s)
    # Nobody goes on with the slot's conversation.  Lingering is useless if the request that is waited for could not
    # pass the others when it comes, so there must be room for both.  Where only requests wait that fill the cache,
    # `most` is 0.
    if (seconds := min(policy.linger_s, room - most)) > SHORTEST_LINGER:
        return Linger(seconds)
    return Enter(order[0])
