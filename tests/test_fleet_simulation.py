"""The simulation of fleets (`benchmarks/fleet.py`): the same each time, no request lost, HAProxy's own arithmetic."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import mean

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.fleet import LIKE_MAKE_FLEET, MACHINE_OF_MAKE_FLEET, row, size, templates_for
from benchmarks.fleet_sim_balancers import BALANCERS, Balancer, Bounded, Hashed, RoundRobin
from benchmarks.fleet_sim_load import Conversation, Load, Machine, conversations
from benchmarks.fleet_sim_loads import PLACES
from benchmarks.fleet_sim_pairs import LOCAL, NOWHERE, SHARED, SLOT, Pair
from benchmarks.fleet_sim_result import Result
from benchmarks.fleet_sim_run import Change, Run, best
from benchmarks.fleet_sim_shelf import SharedShelf

MACHINE = Machine()
LOAD = Load(150, rate=0.15)
"""A load that keeps three pairs busy for about 60 % of the time."""


REAL = {
    "hash, at most 2": (0.972, 37_438, 1.035),
    "hash, at most 1.5": (0.961, 38_734, 1.125),
    "hash, at most 1.2": (0.944, 39_665, 1.200),
    "round robin": (0.922, 41_091, 1.005),
}
"""What HAProxy, three bioproxies and three real llama.cpp did with the load of ``make fleet``, one run each.

The share of later requests that found their conversation, the tokens computed, and the answers of the fullest pair as a
multiple of the mean.
"""


def shelf(bandwidth: float = 1e9) -> SharedShelf:
    """Return a shared shelf with room for all, and with a bandwidth in bytes per second."""
    return SharedShelf(limit=1e12, bandwidth=bandwidth, link=bandwidth)


def run(name: str, load: Load = LOAD, with_shelf: bool = True, change: Change | None = None) -> Run:
    """Return a run of three pairs that is over."""
    return best(Run(load, MACHINE, 3, each, shelf() if with_shelf else None, change) for each in BALANCERS[name])


def requests(load: Load) -> int:
    """Return how many requests a load has."""
    return sum(len(conversation.steps) for _, conversation in conversations(load))


class Watched(RoundRobin):
    """Balances as usual, and remembers the most requests that were at one pair, or at all."""

    most = most_of_all = 0

    def pick(self, conversation: Conversation, now: float) -> Pair:
        """Return the next pair."""
        pair = super().pick(conversation, now)
        self.most = max(self.most, pair.assigned + 1)
        self.most_of_all = max(self.most_of_all, self.loads.served + 1)
        return pair


class Simulated(SynchronousTestCase):
    """Whole runs."""

    def test_the_same_again(self) -> None:
        """The same seed gives the same result to the last digit, and another seed another one."""
        for name in BALANCERS:
            first = run(name).result
            self.assertEqual(first, run(name).result, name)
            self.assertNotEqual(first, run(name, replace(LOAD, seed=1)).result, name)

    def test_no_request_is_lost(self) -> None:
        """Each request is answered once, whatever happens to pairs; nothing is left anywhere."""
        for name in BALANCERS:
            for kind in (None, "added", "lost", "slow"):
                done = run(name, change=Change(kind, 1, 500.0) if kind else None)
                said = f"{name}, {kind}"
                self.assertEqual(requests(LOAD), done.result.requests, said)
                self.assertEqual(requests(LOAD), sum(pair.answered for pair in done.pairs), said)
                self.assertEqual((0, 0), (len(done.line), done.beyond), said)
                for pair in done.balancer.pairs:
                    self.assertEqual((None, 0, 0), (pair.busy, len(pair.queue), pair.assigned), said)
                self.assertEqual({None: 3, "added": 4, "lost": 2, "slow": 3}[kind], len(done.balancer.pairs))

    def test_tokens(self) -> None:
        """Nobody computes fewer tokens than are new, nor more than all prompts together have."""
        all_of_them = sum(
            LOAD.prefix + new + sum(sum(step[:2]) for step in conversation.steps[:turn])
            for _, conversation in conversations(LOAD)
            for turn, (new, _, _) in enumerate(conversation.steps)
        )
        for name in BALANCERS:
            result = run(name).result
            self.assertLessEqual(result.new, result.computed, name)
            self.assertLess(result.computed, all_of_them, name)

    def test_oracle(self) -> None:
        """Nobody's first tokens come sooner, on average, than those of the oracle: on idle and busy fleets."""
        for rate in (0.05, 0.15, 0.22):
            for with_shelf in (False, True):
                load = replace(LOAD, rate=rate, seed=3)
                means = {name: run(name, load, with_shelf).result.seconds for name in BALANCERS}
                self.assertEqual(min(means.values()), means["oracle"], means)

    def test_hash(self) -> None:
        """Without a bound each conversation stays at its pair; with one, it computes fewer tokens than round robin."""
        self.assertEqual(run("hash").result.warm, run("hash").result.later)
        computed = [run(name).result.computed for name in ("hash", "hash, at most 1.5", "round robin")]
        self.assertEqual(sorted(computed), computed)

    def test_shared(self) -> None:
        """With a shared shelf, what one pair has computed is fetched by others."""
        for name in ("hash, at most 1.2", "round robin"):
            alone, sharing = (run(name, with_shelf=with_shelf).result for with_shelf in (False, True))
            self.assertEqual(0, alone.fetched)
            self.assertGreater(sharing.fetched, 0)
            self.assertLess(sharing.computed, alone.computed)

    def test_lost(self) -> None:
        """A lost pair's requests are repeated, and its conversations are computed anew, unless they are shared."""
        change, load = Change("lost", 1, 500.0), replace(LOAD, rate=0.22)
        alone, sharing = (run("hash", load, with_shelf, change).result for with_shelf in (False, True))
        self.assertGreater(alone.repeated, 0)
        self.assertLess(alone.warm, alone.later)
        self.assertLess(sharing.computed, alone.computed)

    def test_slow(self) -> None:
        """A slow pair makes clients wait who belong to it, and fewer of them if there is a bound."""
        change = Change("slow", 1, 500.0)
        for name in ("hash", "hash, at most 1.2"):
            self.assertGreater(run(name, change=change).result.ttft(0.9), run(name).result.ttft(0.9))
        self.assertLess(
            run("hash, at most 1.2", change=change).result.ttft(0.9), run("hash", change=change).result.ttft(0.9)
        )

    def test_added(self) -> None:
        """A pair that is added gets its part."""
        done = run("hash, at most 1.5", change=Change("added", 1, 300.0))
        self.assertGreater(done.pairs[3].answered, 0)

    def test_places(self) -> None:
        """No more than two requests for each pair are beyond the line."""
        watched = Run(replace(LOAD, rate=2.0), MACHINE, 3, Watched)
        watched.run()
        assert isinstance(watched.balancer, Watched)
        self.assertEqual((PLACES, 3 * PLACES), (watched.balancer.most, watched.balancer.most_of_all))

    def test_span(self) -> None:
        """Only requests that arrive in the span that was asked for are counted."""
        counted = [
            Run(LOAD, MACHINE, 3, Hashed, None, None, *span).run().requests for span in ((0, 400.0), (400.0, 1e9))
        ]
        self.assertEqual(requests(LOAD), sum(counted))
        self.assertTrue(all(counted))

    def test_like_make_fleet(self) -> None:
        """Conversations that are alike have all their turns, use the templates in turn, and begin close together."""
        load = Load(8, 1.0, templates=4, alike=3, pause=2.0, prepared=True)
        made = list(conversations(load))
        self.assertEqual([0, 1, 2, 3, 0, 1, 2, 3], [conversation.template for _, conversation in made])
        self.assertEqual({3}, {len(conversation.steps) for _, conversation in made})
        self.assertLessEqual(max(time for time, _ in made), 2.0)
        done = Run(load, MACHINE, 3, Hashed)
        self.assertEqual({0, 1, 2, 3}, done.pairs[0].templates)


class Real(SynchronousTestCase):
    """The simulation beside a real fleet of three pairs."""

    def test_within_a_fifth(self) -> None:
        """Found conversations, computed tokens and the spread of load are within 20 % of what a real fleet did."""
        for name, measured in REAL.items():
            results = [
                Run(replace(LIKE_MAKE_FLEET, seed=seed), MACHINE_OF_MAKE_FLEET, 3, BALANCERS[name][0], shelf()).run()
                for seed in range(20)
            ]
            simulated = (
                mean((result.warm + result.fetched) / result.later for result in results),
                mean(result.computed for result in results),
                mean(result.most for result in results),
            )
            for now, then in zip(simulated, measured, strict=True):
                self.assertLessEqual(abs(now / then - 1), 0.2, (name, simulated, measured))


class Bounds(SynchronousTestCase):
    """HAProxy's bounded load."""

    def picks(self, factor: int, *assigned: int) -> set[int]:
        """Return which pairs get requests, of pairs that have so many of them."""
        pairs = [Pair(number, MACHINE, LOAD.prefix, None) for number in range(len(assigned))]
        for pair, count in zip(pairs, assigned, strict=True):
            pair.assigned = count
        balancer = type("Any", (Bounded,), {"factor": factor})(pairs, Random(0))
        keys = Random(1)
        return {balancer.pick(Conversation(0, keys.getrandbits(32), 0, [(1, 1, 0.0)]), 0.0).number for _ in range(300)}

    def test_shares(self) -> None:
        """A pair with less than its share may get the next request; the remainder is dealt out in their order."""
        # One request and the new one: 3 places of 1.5 times the load, one for each pair.
        self.assertEqual({1, 2}, self.picks(150, 1, 0, 0))
        # 3 requests with the new one, times 1.5, rounded up: 5 places, 1, 2 and 2.
        self.assertEqual({1, 2}, self.picks(150, 1, 1, 0))
        # The same with 1.2: 4 places, 1, 1 and 2.
        self.assertEqual({2}, self.picks(120, 1, 1, 0))
        # All have two: none has less than its share of 1.2 times 7, rounded up to 9, so the first on the ring gets it.
        self.assertEqual({0, 1, 2}, self.picks(120, 2, 2, 2))
        # Each pair has one place in any case.
        self.assertEqual({0, 1, 2}, self.picks(101, 0, 0, 0))

    def test_few_keys_move(self) -> None:
        """If a pair goes, only its own keys go to others; if it comes back, they return."""
        pairs = [Pair(number, MACHINE, LOAD.prefix, None) for number in range(4)]
        balancer: Balancer = Hashed(pairs, Random(0))

        def owners() -> list[int]:
            return [balancer.pick(Conversation(0, key << 22, 0, []), 0.0).number for key in range(1024)]

        before = owners()
        balancer.remove(pairs[1])
        without = owners()
        self.assertTrue(all(now == then for now, then in zip(without, before, strict=True) if then != 1))
        self.assertNotIn(1, without)
        balancer.add(pairs[1])
        self.assertEqual(before, owners())


class OnePair(SynchronousTestCase):
    """What a pair takes from where."""

    def conversation(self, number: int = 7, tokens: int = 0) -> Conversation:
        """Return a conversation that has so many tokens already."""
        return Conversation(number, 0, 0, [(100, 30, 1.0)], tokens=tokens)

    def test_sources(self) -> None:
        """What is not here is computed; then it is in the slot, on the disk, and on the shelf for others."""
        shared = shelf()
        one, other = (Pair(number, MACHINE, 2000, shared) for number in range(2))
        self.assertEqual(NOWHERE, one.plan(self.conversation(), 0.0).source)
        took = one.serve(self.conversation(), 0.0)
        self.assertAlmostEqual(2100 / 670 + 1, took)
        goes_on = self.conversation(tokens=2130)
        self.assertEqual((SLOT, 2130), (one.plan(goes_on, 10.0).source, one.plan(goes_on, 10.0).reused))
        self.assertEqual(SHARED, other.plan(self.conversation(8), 10.0).source)
        one.serve(self.conversation(8), 10.0)
        self.assertEqual((LOCAL, 2098), (one.plan(goes_on, 20.0).source, one.plan(goes_on, 20.0).reused))
        self.assertEqual((SHARED, 2098), (other.plan(goes_on, 20.0).source, other.plan(goes_on, 20.0).reused))

    def test_slow_shelf(self) -> None:
        """A file that would take longer than computing is waited for that long, and then the shelf is left alone."""
        shared = shelf(bandwidth=1e6)
        shared.templates[0] = 0.0
        pair = Pair(0, MACHINE, 2000, shared)
        self.assertAlmostEqual(2000 / 670 + 2100 / 670 + 1, pair.serve(self.conversation(), 10.0))
        pair.slot_template, pair.assigned = 1, 0
        pair.templates.clear()
        self.assertEqual(NOWHERE, pair.plan(self.conversation(8), 12.0).source)
        self.assertEqual(SHARED, pair.plan(self.conversation(8), 30.0).source)

    def test_limits(self) -> None:
        """The least recently used conversations leave a full disk, and a full shelf."""
        size_of_one = 2130 * MACHINE.bytes_per_token
        shared = SharedShelf(limit=2.5 * size_of_one, bandwidth=1e9, link=1e9)
        pair = Pair(0, replace(MACHINE, local=1.5 * size_of_one), 2000, shared)
        for number in range(4):
            pair.serve(self.conversation(number), 100.0 * number)
        self.assertEqual([2], list(pair.local))
        self.assertEqual([1, 2], list(shared.files))
        self.assertEqual(2 * size_of_one, shared.peak)

    def test_too_large(self) -> None:
        """A conversation whose save would take too long is not saved: it is lost with the slot."""
        pair = Pair(0, replace(MACHINE, save=1e6), 2000, None)
        pair.serve(self.conversation(), 0.0)
        pair.serve(self.conversation(8), 100.0)
        self.assertEqual(0, len(pair.local))


class Printed(SynchronousTestCase):
    """The table."""

    def test_numbers(self) -> None:
        """Numbers of bytes have units, templates grow with the root of pairs, and a row has a cell for each column."""
        self.assertEqual([1.0, 2048.0, 3 * 2**40, 470e6], [size(each) for each in ("1", "2K", "3T", "470e6")])
        self.assertEqual([4, 13, 126], [templates_for(pairs) for pairs in (3, 30, 3000)])
        self.assertEqual(12, row("hash", run("hash").result, 1.0).count("|"))
        self.assertEqual(12, row("hash", Result(), 1.0).count("|"))

    def test_percentiles(self) -> None:
        """A percentile is right to 2 %."""
        result = Result(requests=1000)
        for milliseconds in range(1, 1001):
            result.note(milliseconds / 1000)
        for share in (0.5, 0.99):
            self.assertLessEqual(abs(share - result.ttft(share)), share * 0.02)
        self.assertEqual(0.0, Result().ttft(0.5))
