"""The pairs of the simulated fleet by how much they have to do, for balancers that look for the least loaded one.

A balancer asks "which pair has the fewest requests?" for each request, and there may be 3,000 pairs and a million
requests.  Looking at all pairs each time would make a run last for hours.  With at most `PLACES` requests at a pair
there are only three answers, though: none, one, or more.  So the pairs are kept in three lists, one for each answer,
and a random one of the first list that is not empty is the one that was asked for.

A pair leaves its list by changing places with the last one of it, which takes the same time however long the list is;
the order in a list means nothing, since the choice among equals is by chance anyway.

Does not know what a request costs, nor which one goes where.
"""

from __future__ import annotations

from random import Random

from benchmarks.fleet_sim_pairs import Pair

PLACES = 2
"""Requests for each pair beyond the line (``maxconn``): one is answered and one waits."""


class Loads:
    """The pairs by how many requests they have: none, one, or more.

    Invariant: each pair is in one of three lists, at a known place.  So a random one of the least loaded pairs is found
    without looking at all, also among thousands.
    """

    def __init__(self, random: Random) -> None:
        """Know no pair yet; `random` picks among equals."""
        self._random = random
        self._by_load: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
        self._place: dict[Pair, tuple[int, int]] = {}

    @property
    def served(self) -> int:
        """Requests at the pairs, but for those that wait in a queue before a pair."""
        return len(self._by_load[1]) + PLACES * len(self._by_load[2])

    def note(self, pair: Pair) -> None:
        """Note how many requests a pair has now."""
        load = min(pair.assigned, PLACES)
        if pair in self._place:
            if self._place[pair][0] == load:
                return
            self.forget(pair)
        self._place[pair] = load, len(self._by_load[load])
        self._by_load[load].append(pair)

    def forget(self, pair: Pair) -> None:
        """Forget a pair; the last one of its list takes its place."""
        load, place = self._place.pop(pair)
        last = self._by_load[load].pop()
        if last is not pair:
            self._by_load[load][place] = last
            self._place[last] = load, place

    def least(self) -> Pair:
        """Return one of the pairs with the fewest requests."""
        pairs = next(each for each in self._by_load if each)
        return pairs[int(self._random.random() * len(pairs))]
