"""The balancers of the simulated fleet: which pair gets the next request.

Those that HAProxy has are simulated as HAProxy decides, and behind one *line* as in `examples/haproxy`: at most two
requests for each pair are beyond it, one that is answered and one that waits.  All others stand in the line, in the
order of arrival, until a pair has room.

* `Hashed` is consistent hashing without a bound: no line, each pair has its own queue.
* `Bounded` is the same with `hash-balance-factor`: a pair that has more than its share is passed over, for the next one
  on the ring.
* `LeastConnections`, `TwoChoices` (HAProxy's ``balance random``) and `RoundRobin` do not look at the request.
* `Gateway` knows what each pair has in its slot and on its disk, and how many requests are there, as inference gateways
  with prefix-aware routing do.  It picks the pair with the least work.
* `Foreseeing` knows also how long each answer will take, so it knows when the first token would come.

The *oracle* knows the future: it tries several of these on the very same requests, and takes the best.  The best
possible plan is not known for a fleet, so this is no proof that nothing is better.

Does not know what happens at a pair, except for the last two.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from random import Random

from benchmarks.fleet_sim_load import Conversation
from benchmarks.fleet_sim_loads import PLACES, Loads
from benchmarks.fleet_sim_pairs import Pair

POINTS = 16
"""Points of each pair on HAProxy's ring, for a ``weight`` of 1 (`BE_WEIGHT_SCALE` in HAProxy's code)."""

CANDIDATES = 3
"""Pairs with little to do that the gateway compares, beside the one that has the conversation.

Of thousands with the same load, any three are as good as all of them.
"""


class Balancer:
    """Knows the pairs that are up, and picks one for each request.

    Invariant: `pairs` are those that get requests, in the order in which they were added.
    """

    lined = True
    """Whether requests wait in one line until some pair has room, instead of at one pair."""

    def __init__(self, pairs: Sequence[Pair], random: Random) -> None:
        """Balance between these pairs; `random` makes all decisions by chance."""
        self.random = random
        self.pairs: list[Pair] = []
        self.known: dict[int, Pair] = {}
        self.loads = Loads(random)
        self.add(*pairs)

    def add(self, *pairs: Pair) -> None:
        """Send requests to these pairs, too."""
        for pair in pairs:
            self.pairs.append(pair)
            self.known[pair.number] = pair
            self.loads.note(pair)
        self.arranged()

    def remove(self, *pairs: Pair) -> None:
        """Send no more requests to these pairs."""
        for pair in pairs:
            self.pairs.remove(pair)
            del self.known[pair.number]
            self.loads.forget(pair)
        self.arranged()

    def arranged(self) -> None:
        """Note that the pairs are others now."""

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return the pair for a request.  With a line, this is called only if some pair has room."""
        raise NotImplementedError


class Hashed(Balancer):
    """Consistent hashing: a key belongs to the pair with the next point on a ring, whatever that pair has to do."""

    lined = False
    points = POINTS

    def arranged(self) -> None:
        """Make the ring anew.  Points depend on a pair's number only, so most keys stay where they are."""
        self._ring: list[tuple[int, int]] = []
        for place, pair in enumerate(self.pairs):
            bits = Random(pair.number).getrandbits
            self._ring += [(bits(32), place) for _ in range(self.points)]
        self._ring.sort()

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return the pair of the next point on the ring."""
        # The ring is closed: behind the last point comes the first one.
        place = bisect_left(self._ring, (conversation.key, -1)) % len(self._ring)
        return self.pairs[self._ring[place][1]]


class Heavy(Hashed):
    """The same with ``weight 16`` for each pair, which gives it 256 points on the ring."""

    points = 16 * POINTS


class Bounded(Hashed):
    """Consistent hashing with bounded load (`hash-balance-factor`), by HAProxy's own arithmetic."""

    lined = True
    points = Heavy.points
    factor = 150
    """Per cent of the mean load that a pair may have."""

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return the next pair on the ring that has less than its share, this request included."""
        ring, pairs, count = self._ring, self.pairs, len(self.pairs)
        # The shares are whole numbers that add up to the factor times all requests; HAProxy deals out the remainder by
        # the order of the pairs.  Each has a share of one at least.
        shares = ((self.loads.served + 1) * self.factor + 99) // 100
        each, rest = divmod(shares, self.points * count)
        each *= self.points
        # From the conversation's own point on, so that it finds the same second and third pair whenever its own is
        # full.
        start = bisect_left(ring, (conversation.key, -1))
        for step in range(len(ring)):
            place = ring[(start + step) % len(ring)][1]
            share = each + (place + 1) * rest // count - place * rest // count
            if min(pairs[place].assigned, PLACES) < max(1, share):
                return pairs[place]
        return pairs[ring[start % len(ring)][1]]


class Loose(Bounded):
    """The same with a factor of 2: a pair is passed over only if it has twice the mean."""

    factor = 200


class Tight(Bounded):
    """The same with a factor of 1.2: nearly as even as the fewest connections."""

    factor = 120


class LeastConnections(Balancer):
    """The pair with the fewest requests; of several, any."""

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return one of the least loaded pairs."""
        return self.loads.least()


class TwoChoices(Balancer):
    """The better one of two pairs that were picked at random, as ``balance random`` does."""

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return the less loaded one of two random pairs; if both are full, any with room."""
        one, other = (self.pairs[int(self.random.random() * len(self.pairs))] for _ in range(2))
        pair = one if one.assigned <= other.assigned else other
        return pair if pair.assigned < PLACES else self.loads.least()


class RoundRobin(Balancer):
    """One pair after the other; full ones are passed over."""

    _last = -1

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return the next pair that has room."""
        for _ in self.pairs:
            self._last = (self._last + 1) % len(self.pairs)
            if self.pairs[self._last].assigned < PLACES:
                break
        return self.pairs[self._last]


class Gateway(Balancer):
    """The pair with the least work: what it has to do already, and what this request would cost there.

    Work is in seconds of a usual answer for each request that is there, and exact for the tokens to compute.
    """

    usual = 2.0
    """Seconds that a request takes, on average; learned from those that were answered."""

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return the best one of the conversation's last pair and a few with little to do."""
        # The conversation's last pair may be cheap and busy; the others are dear and free.  Comparing seconds settles
        # it.
        best, least = self.loads.least(), float("inf")
        candidates = [best, *(self.loads.least() for _ in range(CANDIDATES - 1))]
        candidates += [self.known[conversation.home]] if conversation.home in self.known else []
        for pair in candidates:
            if pair.assigned < PLACES:
                cost = pair.assigned * self.usual + cost_of(pair, conversation, now)
                if cost < least:
                    best, least = pair, cost
        return best


class Foreseeing(Balancer):
    """The pair that would give the first token first, as it knows how long each answer takes.

    No line: a request waits at its pair, since waiting there is known to be better than any other pair.
    """

    lined = False
    first = 1
    """Pairs that are looked at, of those that are ready first."""
    thrift = 0.0
    """How many times the work that a pair would do counts once more, since all who come later wait for it."""

    def arranged(self) -> None:
        """Begin again with all pairs, sorted by when they are ready."""
        self._ready = [(pair.ready, pair.number, pair) for pair in self.pairs]
        heapq.heapify(self._ready)

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return the best one of the conversation's last pair and of pairs that are ready first."""
        # The heap has each pair once, with the time that was right when it was put in.  Only the first one matters, so
        # only that is corrected, until it is right.
        ready = self._ready
        while ready[0][0] != ready[0][2].ready:
            heapq.heapreplace(ready, (ready[0][2].ready, ready[0][1], ready[0][2]))
        # Of equals, the one that has the conversation.
        candidates = [self.known[conversation.home]] if conversation.home in self.known else []
        candidates += [each[2] for each in ready[: self.first]]
        return min(candidates, key=lambda pair: self._badness(pair, conversation, now))

    def _badness(self, pair: Pair, conversation: Conversation, now: float) -> float:
        """Return when the first token would come, and something for the work."""
        return max(now, pair.ready) + cost_of(pair, conversation, now) * (1 + self.thrift)


class Thrifty(Foreseeing):
    """The same, but rather waiting than computing: better where pairs are busy."""

    first = 3
    thrift = 0.5


def cost_of(pair: Pair, conversation: Conversation, now: float) -> float:
    """Return the seconds from the moment a pair begins with a request to its first token."""
    plan = pair.plan(conversation, now)
    prompt = (conversation.tokens or pair.prefix) + conversation.steps[conversation.turn][0]
    return (plan.fetch + plan.restore + (prompt - plan.reused) / pair.machine.prefill) * pair.slowness


BALANCERS: dict[str, tuple[type[Balancer], ...]] = {
    "hash": (Hashed,),
    "hash, weight 16": (Heavy,),
    "hash, at most 2": (Loose,),
    "hash, at most 1.5": (Bounded,),
    "hash, at most 1.2": (Tight,),
    "least connections": (LeastConnections,),
    "random": (TwoChoices,),
    "round robin": (RoundRobin,),
    "gateway": (Gateway,),
    "oracle": (Foreseeing, Thrifty, Gateway, Tight),
}
"""All balancers by the names in tables and on the command line.  Of several, the best one counts."""
