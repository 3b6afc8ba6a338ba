"""The replays that judge the rules of shape learning and the pauses, on a few of their cases."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from benchmarks.replay_pauses import TROUBLES, tries
from benchmarks.replay_shapes import CLIENTS, RULES, Question, outcome, replay, told
from bioproxy.learning.shape_rules import learned
from bioproxy.runtime.backoff import LONGEST_PAUSE

A, B = told("A"), told("B")


class Sequences(SynchronousTestCase):
    """`replay`, by hand."""

    def count(self, *questions: tuple[float, object]) -> tuple[int, int, int]:
        """Replay first questions at these times, ``None`` for something else; return started, useful and warm."""
        asked = [Question(at, None if who is None else told(who), True) for at, who in questions]
        found = replay(asked, learned, False)
        return found.started, found.useful, found.warm

    def test_warm_by_the_slot(self) -> None:
        """What the last question left in the slot is warm without any warm-up."""
        self.assertEqual((0, 0, 1), self.count((0.1, "A"), (0.2, "A")))

    def test_warm_by_the_file(self) -> None:
        """After a warm-up a question finds the file, whatever the slot was used for; the first is not useful: bare."""
        self.assertEqual((2, 1, 1), self.count((100, "A"), (200, None), (300, "A")))

    def test_interrupted(self) -> None:
        """A warm-up that a question ends is of no use, and started again."""
        self.assertEqual((3, 0, 0), self.count((100, "A"), (125.6, None), (160, "A")))


class Figures(SynchronousTestCase):
    """What the rules are there for."""

    def test_rules(self) -> None:
        """Each rule makes the difference that is told beside it, for the clients that it is there for."""
        for rules, client, more_warmups, fewer_warm in (
            ("1 off", "two in turn", 20, 5),
            ("2 off", "two in turn", -1, 40),
            ("3 off", "stranger, 1 in 10", 20, 5),
            ("4 off", "clock by the minute", 20, 0),
            ("4 not eased", "changes 10 times", -1, 8),
        ):
            with_all, without = (outcome(CLIENTS[client], each, turns=1.0) for each in ("all rules", rules))
            self.assertGreaterEqual(without.started - with_all.started, 10 * more_warmups, rules)
            self.assertGreaterEqual(100 * (with_all.warm - without.warm), fewer_warm * with_all.asked, rules)

    def test_rules_that_are_gone(self) -> None:
        """Neither a second takeover at once nor later questions as confirmations find more questions warm."""
        names = ("two in turn", "clock by the second", "3 tools in any order")
        with_all = sum(outcome(CLIENTS[name], "all rules", 1.0).warm for name in names)
        for rules in ("+ 2 guesses", "+ later turns"):
            found = [outcome(CLIENTS[name], rules, 1.0) for name in names]
            self.assertLess(abs(sum(each.warm for each in found) - with_all), 0.01 * sum(each.asked for each in found))

    def test_names(self) -> None:
        """The clients and rules that the table is about are all there."""
        self.assertEqual((17, 10, 3), (len(CLIENTS), len(RULES), len(TROUBLES)))

    def test_pauses(self) -> None:
        """A pause in proportion to a costly failure leaves most of the time to others."""
        trouble = TROUBLES["fails after 30 s"]
        by_cost, not_by_cost = (tries(trouble, trouble.shortest, LONGEST_PAUSE, each)[1] for each in (True, False))
        self.assertLess(by_cost, 0.06)
        self.assertGreater(not_by_cost, 0.25)
