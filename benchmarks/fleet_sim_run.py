"""One run of the simulated fleet: requests come, are balanced and answered; pairs are added, lost or slow.

A run is a loop over events in the order of their times, kept in a heap: a conversation begins, a request arrives, an
answer is complete, the fleet changes.  The clock is the time of the present event, so an hour of 3,000 pairs passes in
a minute.  Two events at the same time are taken in the order in which they were made, so a run with the same seed is
the same to the last digit.

A pair that is lost takes its slot and its disk with it.  The requests that were there are sent again a second later, as
clients do, and are still counted from their first arrival.

Does not decide anything: balancers and pairs do.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

from benchmarks.fleet_sim_balancers import PLACES, Balancer
from benchmarks.fleet_sim_load import Conversation, Load, Machine, conversations
from benchmarks.fleet_sim_pairs import Pair, SharedShelf

REPEAT = 1.0
"""Seconds until a client sends a request again whose pair was lost."""

MOVED = 256
"""Tokens beyond the new ones that a pair may compute and still count as warm."""

STEPS = 50
"""Classes of times to the first token for each factor of e, so that a percentile is right to 2 %."""

BEGINS, ARRIVES, ANSWERED, CHANGES = range(4)
"""Kinds of events."""


@dataclass(frozen=True)
class Change:
    """Something happens to some pairs while the fleet works."""

    kind: str
    """``added``, ``lost``, or ``slow``: four times slower from then on."""
    pairs: int
    time: float
    """Seconds after the beginning."""


@dataclass
class Result:
    """What a run has cost.  Only requests that arrived in the span that was asked for are counted."""

    requests: int = 0
    later: int = 0
    """Requests that are not the first of their conversation."""
    warm: int = 0
    """Later ones whose pair had their conversation in its slot or on its own disk."""
    stayed: int = 0
    """Later ones that came to the pair of the request before."""
    fetched: int = 0
    """Later ones whose pair had their conversation from the shared shelf."""
    new: int = 0
    """Tokens that no pair could have had."""
    computed: int = 0
    repeated: int = 0
    """Requests that were sent again since their pair was lost, in the whole run."""
    seconds: float = 0.0
    """Sum of the times to the first token."""
    classes: Counter[int] = field(default_factory=Counter)
    busiest: float = 0.0
    """Busy time of the busiest pair, as a multiple of the mean of all pairs, in the whole run."""
    most: float = 0.0
    """The same for the number of answers."""
    local_bytes: float = 0.0
    """Bytes on the fullest pair's own disk at the end."""
    shared_bytes: float = 0.0
    """Bytes of conversations on the shared shelf at most."""
    copied: float = 0.0
    """Bytes copied to and from the shared shelf."""
    wall: float = 0.0
    """Seconds until the last answer."""

    def note(self, seconds: float) -> None:
        """Note a time to the first token."""
        self.seconds += seconds
        self.classes[math.floor(math.log(seconds) * STEPS) if seconds > 0 else -(10**6)] += 1

    def ttft(self, share: float) -> float:
        """Return the time to the first token within which this share of the requests was, in seconds."""
        left = share * self.requests
        for each in sorted(self.classes):
            left -= self.classes[each]
            if left <= 0:
                return math.exp((each + 0.5) / STEPS)
        return 0.0


def best(runs: Iterable[Run]) -> Run:
    """Carry out some runs with the same requests; return the one whose first tokens came soonest, on average."""
    return min(runs, key=lambda each: each.run().seconds)


class Run:
    """A fleet, its balancer and its clients.

    Invariant: each conversation that has begun and not ended is in one place only: in one event, in the line, or at one
    pair.
    """

    def __init__(
        self,
        load: Load,
        machine: Machine,
        pairs: int,
        balancer: type[Balancer],
        shelf: SharedShelf | None = None,
        change: Change | None = None,
        since: float = 0.0,
        until: float = math.inf,
    ) -> None:
        """Make a fleet of so many pairs; requests that arrive between `since` and `until` (in seconds) are counted."""
        self.load, self.machine, self.shelf = load, machine, shelf
        self.since, self.until = since, until
        # Decisions by chance are apart from the load, which is the same for all balancers.
        self.random = Random(load.seed + 1)
        self.pairs = [Pair(number, machine, load.prefix, shelf) for number in range(pairs)]
        if load.prepared:
            for pair in self.pairs:
                pair.templates.update(range(load.templates))
        self.balancer = balancer(self.pairs, self.random)
        self.change = change
        self.line: deque[Conversation] = deque()
        self.beyond = 0
        self.events: list[tuple[float, int, int, Conversation | Pair | None]] = []
        self.number = 0
        self.result = Result()
        self._coming: Iterator[tuple[float, Conversation]] = conversations(load)

    def run(self) -> Result:
        """Answer all requests; return what that has cost."""
        self._next_conversation()
        if self.change is not None:
            self._later(self.change.time, CHANGES, None)
        now = 0.0
        while self.events:
            now, _, kind, what = heapq.heappop(self.events)
            if isinstance(what, Pair):
                if what.alive:
                    self._answered(what, now)
            elif what is None:
                self._changes(now)
            else:
                if kind == BEGINS:
                    self._next_conversation()
                if kind != CHANGES:
                    what.arrived = now
                self._arrives(what, now)
        return self._finish(now)

    def _later(self, time: float, kind: int, what: Conversation | Pair | None) -> None:
        """Have an event at a time."""
        self.number += 1
        heapq.heappush(self.events, (time, self.number, kind, what))

    def _next_conversation(self) -> None:
        """Have the next conversation begin, if there is one."""
        for time, conversation in self._coming:
            self._later(time, BEGINS, conversation)
            break

    def _arrives(self, conversation: Conversation, now: float) -> None:
        """Give a request to a pair, or let it stand in the line."""
        balancer = self.balancer
        if balancer.lined and (self.line or self.beyond >= PLACES * len(balancer.pairs)):
            self.line.append(conversation)
        else:
            self._assign(conversation, now)

    def _assign(self, conversation: Conversation, now: float) -> None:
        """Give a request to the pair that the balancer picks."""
        home = self.balancer.known.get(conversation.home)
        if home is not None:
            home.settle(now)
        pair = self.balancer.pick(conversation, now)
        self.beyond += 1
        pair.assigned += 1
        self.balancer.loads.note(pair)
        if pair.busy is None:
            self._serve(pair, conversation, now)
        else:
            pair.queue.append(conversation)
        pair.tail = conversation
        self._foresee(pair, now)

    def _foresee(self, pair: Pair, now: float) -> None:
        """Work out when a pair will be ready, for the oracle."""
        # The last one that came adds its own time to all that was there before.
        if pair.queue:
            last = pair.queue[-1]
            new, answer, _ = last.steps[last.turn]
            pair.ready += (new / self.machine.prefill + answer / self.machine.generate) * pair.slowness

    def _serve(self, pair: Pair, conversation: Conversation, now: float) -> None:
        """Let a pair begin with a request."""
        pair.busy = conversation
        end = now + pair.serve(conversation, now)
        pair.ready = end
        self._later(end, ANSWERED, pair)

    def _answered(self, pair: Pair, now: float) -> None:
        """End an answer: count it, let the next request in, and have its client go on."""
        conversation = pair.busy
        assert conversation is not None
        self._count(conversation, pair)
        new, answer, pause = conversation.steps[conversation.turn]
        conversation.tokens = (conversation.tokens or self.load.prefix) + new + answer
        conversation.home = pair.number
        conversation.turn += 1
        if conversation.turn < len(conversation.steps):
            self._later(now + pause, ARRIVES, conversation)
        pair.busy = None
        pair.assigned -= 1
        self.beyond -= 1
        if pair.queue:
            self._serve(pair, pair.queue.popleft(), now)
            for each in pair.queue:
                new, answer, _ = each.steps[each.turn]
                pair.ready += (new / self.machine.prefill + answer / self.machine.generate) * pair.slowness
        self.balancer.loads.note(pair)
        self._from_line(now)

    def _from_line(self, now: float) -> None:
        """Let requests leave the line while there is room beyond it."""
        while self.line and self.beyond < PLACES * len(self.balancer.pairs):
            self._assign(self.line.popleft(), now)

    def _count(self, conversation: Conversation, pair: Pair) -> None:
        """Note what an answer has cost."""
        pair.answered += 1
        if not self.since <= conversation.arrived < self.until:
            return
        result, new = self.result, conversation.steps[conversation.turn][0]
        result.requests += 1
        result.new += new
        result.computed += conversation.computed
        result.note(conversation.first_token - conversation.arrived)
        if conversation.turn:
            result.later += 1
            result.stayed += conversation.home == pair.number
            # Also if the pair had an older version, which lacks a few tokens.
            if conversation.computed <= new + MOVED:
                result.warm += not conversation.fetched
                result.fetched += conversation.fetched

    def _changes(self, now: float) -> None:
        """Let happen to the fleet what was planned."""
        assert self.change is not None
        balancer, count = self.balancer, self.change.pairs
        if self.change.kind == "added":
            added = [Pair(len(self.pairs) + each, self.machine, self.load.prefix, self.shelf) for each in range(count)]
            self.pairs += added
            balancer.add(*added)
            self._from_line(now)
            return
        chosen = self.random.sample(balancer.pairs, count)
        if self.change.kind == "slow":
            for pair in chosen:
                pair.slowness = 4.0
            return
        balancer.remove(*chosen)
        for pair in chosen:
            pair.alive = False
            self.beyond -= pair.assigned
            for each in [pair.busy, *pair.queue]:
                if each is not None:
                    self.result.repeated += 1
                    # As if it had just come, but for its first arrival.
                    self._later(now + REPEAT, CHANGES, each)

    def _finish(self, now: float) -> Result:
        """Return the result, with what can be said at the end only."""
        result, pairs = self.result, self.balancer.pairs
        result.wall = now
        busy = [pair.busy_seconds for pair in pairs]
        answered = [pair.answered for pair in pairs]
        result.busiest = max(busy) * len(pairs) / sum(busy) if sum(busy) else 0.0
        result.most = max(answered) * len(pairs) / sum(answered) if sum(answered) else 0.0
        result.local_bytes = max(pair.bytes for pair in pairs)
        if self.shelf is not None:
            result.shared_bytes, result.copied = self.shelf.peak, self.shelf.copied
        return result
