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
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from benchmarks.fleet_sim_balancers import Balancer
from benchmarks.fleet_sim_load import Conversation, Load, Machine, conversations
from benchmarks.fleet_sim_loads import PLACES
from benchmarks.fleet_sim_pairs import Pair
from benchmarks.fleet_sim_result import Result
from benchmarks.fleet_sim_shelf import SharedShelf

REPEAT = 1.0
"""Seconds until a client sends a request again whose pair was lost.

Half a second to some seconds is what client libraries wait; the time is small beside computing a conversation again.
"""

MOVED = 256
"""Tokens beyond the new ones that a pair may compute and still count as warm."""

BEGINS, ARRIVES, ANSWERED, CHANGES = range(4)
"""Kinds of events: a conversation begins, a later request of one arrives, an answer is complete, the fleet changes."""


@dataclass(frozen=True)
class Change:
    """Something happens to some pairs while the fleet works."""

    kind: str
    """``added``, ``lost``, or ``slow``: four times slower from then on."""
    pairs: int
    """How many pairs; which ones is by chance."""
    time: float
    """Seconds after the beginning."""


def best(runs: Iterable[Run]) -> Run:
    """Carry out some runs with the same requests; return the one whose first tokens came soonest, on average.

    Of one run it simply carries that out.  Of several it is the oracle: somebody who has tried all of them before.
    """
    return min(runs, key=lambda each: each.run().seconds)


class Run:
    """A fleet, its balancer and its clients, from the first request to the last answer.

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
        # `shelf` is what all pairs share, `None` if each has only its own disk; `change` is what happens meanwhile, if
        # anything.  Both are used up by a run, so each run needs its own.
        self.load, self.machine, self.shelf = load, machine, shelf
        self.since, self.until = since, until
        # Two generators, from one seed.  Decisions by chance are apart from the load, which is the same for all
        # balancers.
        self.random = Random(load.seed + 1)
        self.pairs = [Pair(number, machine, load.prefix, shelf) for number in range(pairs)]
        # As after a quiet night: warm-ups have made all templates warm everywhere.
        if load.prepared:
            for pair in self.pairs:
                pair.templates.update(range(load.templates))
        self.balancer = balancer(self.pairs, self.random)
        self.change = change
        # Requests that wait until some pair has room, and how many are beyond the line, at all pairs together.
        self.line: deque[Conversation] = deque()
        self.beyond = 0
        # A heap by time; the number decides between events of the same time, so nothing else is ever compared.
        self.events: list[tuple[float, int, int, Conversation | Pair | None]] = []
        self.number = 0
        # Filled while the run goes on.
        self.result = Result()
        # Conversations are made when they begin: a million at once would not fit into memory.
        self._coming: Iterator[tuple[float, Conversation]] = conversations(load)

    def run(self) -> Result:
        """Answer all requests; return what that has cost.

        The loop ends by itself: each request that is answered makes at most one further event, and conversations end.
        """
        self._next_conversation()
        if self.change is not None:
            self._later(self.change.time, CHANGES, None)
        now = 0.0
        # What an event is about says mostly what happens: a pair has an answer complete, a conversation has a request.
        while self.events:
            now, _, kind, what = heapq.heappop(self.events)
            if isinstance(what, Pair):
                # A pair that was lost meanwhile answers nothing: its requests have been sent again already.
                if what.alive:
                    self._answered(what, now)
            elif what is None:
                self._changes(now)
            else:
                # One begins, so the next one is put into the heap: there is never more than one that has not begun.
                if kind == BEGINS:
                    self._next_conversation()
                # A request that is sent again keeps its first arrival, since its user has waited from then on.
                if kind != CHANGES:
                    what.arrived = now
                self._arrives(what, now)
        return self._finish(now)

    def _later(self, time: float, kind: int, what: Conversation | Pair | None) -> None:
        """Have an event at a time, in seconds from the beginning."""
        self.number += 1
        heapq.heappush(self.events, (time, self.number, kind, what))

    def _next_conversation(self) -> None:
        """Have the next conversation begin at its time, if there is one."""
        for time, conversation in self._coming:
            self._later(time, BEGINS, conversation)
            break

    def _arrives(self, conversation: Conversation, now: float) -> None:
        """Give a request to a pair, or let it stand in the line."""
        # Whoever comes while others stand in the line stands behind them, also if there is room by chance.
        balancer = self.balancer
        if balancer.lined and (self.line or self.beyond >= PLACES * len(balancer.pairs)):
            self.line.append(conversation)
        else:
            self._assign(conversation, now)

    def _assign(self, conversation: Conversation, now: float) -> None:
        """Give a request to the pair that the balancer picks.

        With a line there is room at some pair.  Without one, a pair may have any number of requests in its own queue.
        """
        # What the conversation's last pair would have saved in the meantime is saved now, before anybody looks.  Done
        # when somebody looks, and not by an event, it costs nothing for the pairs that nobody looks at.
        home = self.balancer.known.get(conversation.home)
        if home is not None:
            home.settle(now)
        pair = self.balancer.pick(conversation, now)
        # Counted before it is served, so that the pair knows how many are here.
        self.beyond += 1
        pair.assigned += 1
        self.balancer.loads.note(pair)
        # A pair that is idle begins at once; otherwise the request waits, and the pair knows whose turn is last.
        if pair.busy is None:
            self._serve(pair, conversation, now)
        else:
            pair.queue.append(conversation)
        pair.tail = conversation
        self._foresee(pair, now)

    def _foresee(self, pair: Pair, now: float) -> None:
        """Work out when a pair will be ready, for the oracle.

        An estimate: what a request in the queue will find in the slot depends on those before it, and is taken for
        warm.
        """
        # The last one that came adds its own time to all that was there before.
        if pair.queue:
            pair.ready += pair.warm_seconds(pair.queue[-1])

    def _serve(self, pair: Pair, conversation: Conversation, now: float) -> None:
        """Let a pair begin with a request, which is the only one that it answers now."""
        # All that the answer costs is known at its beginning; in between nothing can change it.
        pair.busy = conversation
        end = now + pair.serve(conversation, now)
        pair.ready = end
        self._later(end, ANSWERED, pair)

    def _answered(self, pair: Pair, now: float) -> None:
        """End an answer: count it, let the next request in, and have its client go on."""
        conversation = pair.busy
        assert conversation is not None
        self._count(conversation, pair)
        # The next request comes after the pause, with all that was said until now.
        new, answer, pause = conversation.steps[conversation.turn]
        conversation.tokens = (conversation.tokens or self.load.prefix) + new + answer
        conversation.home = pair.number
        conversation.turn += 1
        if conversation.turn < len(conversation.steps):
            self._later(now + pause, ARRIVES, conversation)
        # Only now is the pair free, in the order in which the real one would be: answered, counted, then the next.
        pair.busy = None
        pair.assigned -= 1
        self.beyond -= 1
        if pair.queue:
            self._serve(pair, pair.queue.popleft(), now)
            # `_serve` has begun the time anew; those that still wait add theirs.
            for each in pair.queue:
                pair.ready += pair.warm_seconds(each)
        self.balancer.loads.note(pair)
        self._from_line(now)

    def _from_line(self, now: float) -> None:
        """Let requests leave the line while there is room beyond it, those that came first before the others."""
        while self.line and self.beyond < PLACES * len(self.balancer.pairs):
            self._assign(self.line.popleft(), now)

    def _count(self, conversation: Conversation, pair: Pair) -> None:
        """Note what an answer has cost.

        Called before the conversation goes on: it still says where the answer before came from.
        """
        # Of the whole run, for how evenly pairs are used; the rest is of the span only.
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
            # Also if the pair had an older version, which lacks a few tokens.  What came from the shared shelf is
            # counted apart, because a copy over the network is what affinity is meant to save.
            if conversation.computed <= new + MOVED:
                result.warm += not conversation.fetched
                result.fetched += conversation.fetched

    def _changes(self, now: float) -> None:
        """Let happen to the fleet what was planned, to pairs that are drawn by chance."""
        assert self.change is not None
        balancer, count = self.balancer, self.change.pairs
        if self.change.kind == "added":
            # New pairs are empty: what they are asked for first is computed, or comes from the shared shelf.
            added = [Pair(len(self.pairs) + each, self.machine, self.load.prefix, self.shelf) for each in range(count)]
            self.pairs += added
            balancer.add(*added)
            self._from_line(now)
            return
        # By the second generator, so that the conversations are the same with and without this.
        chosen = self.random.sample(balancer.pairs, count)
        # As if something else used the machine.  Balancers are not told; those that count requests notice.
        if self.change.kind == "slow":
            for pair in chosen:
                pair.slowness = 4.0
            return
        # Lost: slot and disk are gone, and an event of it that is still in the heap is passed over.
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
        """Return the result, with what can be said at the end only.

        That is how evenly the work was spread, and how much was stored.  `now` is when the last answer was complete.
        """
        result, pairs = self.result, self.balancer.pairs
        result.wall = now
        busy = [pair.busy_seconds for pair in pairs]
        answered = [pair.answered for pair in pairs]
        # Multiples of the mean, so that fleets of different sizes can be compared.  1 would be perfectly even.
        result.busiest = max(busy) * len(pairs) / sum(busy) if sum(busy) else 0.0
        result.most = max(answered) * len(pairs) / sum(answered) if sum(answered) else 0.0
        result.local_bytes = max(pair.bytes for pair in pairs)
        if self.shelf is not None:
            result.shared_bytes, result.copied = self.shelf.peak, self.shelf.copied
        return result
